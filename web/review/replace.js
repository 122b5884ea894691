// Find and replace, in the captions that are shown and not decided about; and what is undone.

import { button, h, isEnter } from "./dom.js"
import { Finder } from "./finder.js"

const SOON = 150 // milliseconds after a key before it is counted again
const LONGEST = 100000 // letters of a caption

export class Replace {
  finder = new Finder()
  before = new Map() // by item: the text before the last replacement, and after it
  by = null // what made it

  constructor(panel) {
    const { t } = panel
    this.panel = panel
    this.findBox = h("input", { size: 16, maxLength: 1000, placeholder: t.find, "aria-label": t.find })
    this.putBox = h("input", { size: 16, maxLength: 1000, placeholder: t.replace, "aria-label": t.replace })
    this.caseButton = this.toggle("Aa", t.letterCase, true)
    this.patternButton = this.toggle(".*", t.pattern, false)
    this.matches = h("span", { className: "uvg-name uvg-found", role: "status" })
    this.replaceButton = button(t.replaceAll, () => this.replace(), { disabled: true })
    this.undoButton = button(t.undo, () => this.undo(), { disabled: true })
    this.elements = [
      this.findBox,
      this.putBox,
      this.caseButton,
      this.patternButton,
      this.replaceButton,
      this.undoButton,
      this.matches,
    ]
    for (const box of [this.findBox, this.putBox]) {
      box.addEventListener("input", () => this.count())
      box.addEventListener("keydown", (event) => {
        if (isEnter(event)) this.replace()
      })
    }
  }

  toggle(label, title, isOn) {
    const element = button(label, () => this.flip(element), { title, "aria-label": title, "aria-pressed": isOn })
    return element
  }

  flip(element) {
    element.setAttribute("aria-pressed", element.getAttribute("aria-pressed") !== "true")
    this.count()
  }

  end() {
    clearTimeout(this.soon)
    this.finder.turn++
    this.finder.end()
  }

  asked(items, put) {
    const isOn = (element) => element.getAttribute("aria-pressed") === "true"
    return {
      find: this.findBox.value,
      put,
      isPattern: isOn(this.patternButton),
      isCase: isOn(this.caseButton),
      texts: items.map((item) => this.panel.text(item)),
    }
  }

  get items() {
    return this.panel.shown.filter((item) => item.state === "open")
  }

  count() {
    clearTimeout(this.soon)
    this.undoButton.disabled = !this.before.size
    this.replaceButton.disabled = true
    if (this.findBox.value) this.soon = setTimeout(() => this.search(), SOON)
    else this.say("")
    this.panel.keepFocus()
  }

  say(words, isWrong = false) {
    this.matches.textContent = words
    this.matches.title = words
    this.matches.classList.toggle("uvg-problem", isWrong)
  }

  /** What is found, and said; null where nothing is or it cannot be told. */
  async search(put = null) {
    clearTimeout(this.soon)
    const { t } = this.panel
    if (!this.findBox.value) return null
    const items = this.items
    try {
      const answer = await this.finder.find(this.asked(items, put))
      if (!answer) return null
      const hits = items.filter((_, at) => answer.counts[at])
      this.say(
        t.matches(
          answer.counts.reduce((sum, count) => sum + count, 0),
          hits.length,
        ),
      )
      this.replaceButton.disabled = !hits.length
      return hits.length ? { items, ...answer } : null
    } catch ({ cause, message }) {
      const why = message.replace(/^Invalid regular expression: (\/.*\/\w*: )?/, "")
      this.say({ wrong: t.wrongPattern(why), slow: t.slowPattern }[cause] ?? t.noWorker, true)
      return null
    }
  }

  async replace() {
    const { panel } = this
    const found = await this.search(this.putBox.value)
    if (!found) return
    const { items, counts, texts } = found
    this.forget()
    items.forEach((item, at) => {
      const text = texts[at].slice(0, LONGEST)
      if (!counts[at] || item.state !== "open") return
      this.remember(item, panel.text(item), text, "replace")
      panel.type(item, text)
    })
    panel.say(panel.t.replaced(this.matches.textContent))
    this.count()
    panel.drawDetail()
  }

  /** Note that a text was put in the place of another, to be undone with all others that came `by` the same. */
  remember(item, before, after, by) {
    if (this.by !== by) this.forget()
    this.by = by
    this.before.set(item, { before, after })
  }

  forget() {
    this.before.clear()
    this.by = null
  }

  /** Bring back what stood there, unless it was changed again. */
  undo() {
    const { panel } = this
    for (const [item, { before, after }] of this.before)
      if (item.state === "open" && panel.text(item) === after) panel.type(item, before)
    this.forget()
    this.count()
    panel.drawDetail()
  }
}
