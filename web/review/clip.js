// The clip that is looked at.

import { h } from "./dom.js"

const PICTURES = /\.gif$/i // what a browser shows as a picture
const PASSED = 150 // milliseconds; no clip is loaded that somebody only walks past

export class Clip {
  constructor(panel) {
    this.panel = panel
  }

  get video() {
    return this.panel.stage.querySelector("video")
  }

  end() {
    clearTimeout(this.later)
  }

  show(item) {
    const { stage } = this.panel
    clearTimeout(this.later)
    this.video?.removeAttribute("src")
    stage.replaceChildren()
    if (!item) return
    this.later = setTimeout(() => {
      const src = this.panel.address("clip", item)
      stage.replaceChildren(PICTURES.test(item.clip) ? h("img", { alt: item.clip, src }) : this.player(item, src))
    }, PASSED)
  }

  player(item, src) {
    const { panel } = this
    const poster = panel.address("frame", item)
    const video = h("video", { controls: true, loop: true, muted: true, playsInline: true, tabIndex: -1, poster })
    video.autoplay = !matchMedia("(prefers-reduced-motion: reduce)").matches
    video.addEventListener("error", () => {
      if (!video.isConnected || !video.hasAttribute("src")) return
      panel.stage.replaceChildren(h("img", { alt: panel.t.noPlay, title: panel.t.noPlay, src: poster }))
    })
    video.src = src
    return video
  }

  play() {
    if (this.video) this.video[this.video.paused ? "play" : "pause"]()
  }
}
