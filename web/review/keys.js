// What keys do in the panel. words.js tells people.

import { isComposed } from "./dom.js"

const FILTERS = ["open", "accepted", "skipped", "all"] // keys 1 to 4

export function press(panel, event) {
  event.stopPropagation() // ComfyUI has shortcuts of its own
  if (isComposed(event)) return
  const isTyping = event.target.matches("textarea, input, select")
  const isControl = event.ctrlKey || event.metaKey
  if (event.key === "Escape") {
    event.preventDefault()
    if (isTyping) panel.list.element.focus()
    else panel.close()
  } else if (event.key === "Enter" && isControl) {
    event.preventDefault()
    panel.decideChosen("accepted")
  } else if (event.altKey && !isControl) doAlt(panel, event)
  else if (!isTyping) command(panel, event, isControl)
}

function doAlt({ replace }, event) {
  // By the place of the key: with Alt, some keyboards write other letters
  const switches = { KeyC: replace.caseButton, KeyR: replace.patternButton }
  if (!(event.code in switches)) return
  event.preventDefault()
  replace.flip(switches[event.code])
}

function command(panel, event, isControl) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key
  const acts = isControl ? controlled(panel) : plain(panel, event)
  const step = isControl ? undefined : moves(panel)[key]
  if (step !== undefined) {
    event.preventDefault()
    panel.move(step, event.shiftKey)
  } else if (key in acts && !event.repeat) {
    event.preventDefault()
    acts[key]()
  }
}

function moves({ list }) {
  const steps = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, Home: -Infinity, End: Infinity }
  return { ...steps, PageDown: list.page, PageUp: -list.page }
}

function controlled(panel) {
  return { a: () => panel.markAll(), z: () => panel.replace.undo() }
}

function plain(panel, event) {
  const acts = {
    s: () => panel.decideChosen("skipped"),
    u: () => panel.decideChosen("open"),
    e: () => panel.newBox.focus(),
    h: () => panel.hintBox.focus(),
    f: () => panel.replace.findBox.focus(),
    o: () => panel.folderBox.focus(),
    r: () => panel.reload(),
    a: () => panel.acceptAll(),
    c: () => panel.cancelJobs(),
    x: () => panel.toggleMark(),
    z: () => panel.replace.undo(),
    "/": () => panel.searchBox.focus(),
    "?": () => panel.toggleKeys(),
  }
  FILTERS.forEach((name, at) => {
    acts[at + 1] = () => panel.filter(name)
  })
  if (!event.target.matches("button")) {
    acts.Enter = () => panel.decideChosen("accepted")
    acts[" "] = () => panel.play()
  }
  return acts
}
