// The list of captions. Only the rows that are seen are there.

import { h, ROW } from "./dom.js"

const BEYOND = 6 // rows that are drawn above and below what is seen
const STILL = 120 // milliseconds that the list stands still before pictures are asked for

export class List {
  rows = new Map() // by their place

  constructor(panel) {
    this.panel = panel
    this.space = h("div", { role: "presentation" })
    this.element = h(
      "div",
      {
        className: "uvg-list",
        tabIndex: 0,
        role: "listbox",
        "aria-label": panel.t.list,
        "aria-multiselectable": "true",
      },
      this.space,
    )
    this.element.addEventListener("scroll", () => this.draw())
    this.element.addEventListener("click", (event) => {
      const row = event.target.closest(".uvg-row")
      if (row) panel.pick(Number(row.dataset.index), event)
    })
    this.resized = new ResizeObserver(() => this.draw())
    this.resized.observe(this.element)
  }

  end() {
    this.resized.disconnect()
    clearTimeout(this.soon)
  }

  /** Forget all rows: something else is shown; `none`: the words where nothing is. */
  clear(none) {
    for (const row of this.rows.values()) row.remove()
    this.rows.clear()
    this.space.style.height = `${this.panel.shown.length * ROW}px`
    this.empty?.remove()
    if (!this.panel.shown.length) {
      this.empty = h("div", { className: "uvg-empty" }, none)
      this.element.append(this.empty)
    }
  }

  get page() {
    return Math.max(1, Math.floor(this.element.clientHeight / ROW) - 1)
  }

  reveal(index) {
    if (index < 0) {
      this.element.removeAttribute("aria-activedescendant")
      return
    }
    const box = this.element
    const top = index * ROW
    if (top < box.scrollTop) box.scrollTop = top
    if (top + ROW > box.scrollTop + box.clientHeight) box.scrollTop = top + ROW - box.clientHeight
    box.setAttribute("aria-activedescendant", `uvg-row-${index}`)
  }

  draw() {
    const { scrollTop, clientHeight } = this.element
    const first = Math.max(0, Math.floor(scrollTop / ROW) - BEYOND)
    const last = Math.min(this.panel.shown.length, Math.ceil((scrollTop + clientHeight) / ROW) + BEYOND)
    for (const [index, row] of this.rows) {
      if (index < first || index >= last) {
        row.querySelector("img").removeAttribute("src") // and its request ends
        row.remove()
        this.rows.delete(index)
      }
    }
    for (let index = first; index < last; index++) if (!this.rows.has(index)) this.drawRow(index)
    clearTimeout(this.soon)
    this.soon = setTimeout(() => {
      for (const [index, row] of this.rows) {
        const picture = row.querySelector("img")
        if (!picture.hasAttribute("src")) picture.src = this.panel.address("frame", this.panel.shown[index])
      }
    }, STILL)
  }

  redraw() {
    for (const index of this.rows.keys()) this.drawRow(index)
  }

  drawRow(index) {
    const { panel } = this
    const item = panel.shown[index]
    if (!item) return
    const row = this.rows.get(index) ?? this.addRow(index)
    const mark = item.problem ? "⚠ " : ({ accepted: "✓ ", skipped: "– " }[item.state] ?? "")
    row.querySelector(".uvg-name").textContent = `${mark}${[item.clip, ...panel.notes(item)].join(" · ")}`
    row.querySelector(".uvg-text").textContent = panel.text(item)
    row.classList.toggle("uvg-done", item.state !== "open")
    row.setAttribute("aria-selected", index === panel.at)
    row.setAttribute("aria-checked", panel.marked.has(item))
  }

  addRow(index) {
    const row = h(
      "div",
      { className: "uvg-row", role: "option", id: `uvg-row-${index}` },
      h("span", { className: "uvg-mark", title: this.panel.t.mark }),
      h("img", { alt: "" }),
      h("div", {}, h("div", { className: "uvg-name" }), h("div", { className: "uvg-text" })),
    )
    row.dataset.index = index
    row.style.top = `${index * ROW}px`
    row.setAttribute("aria-setsize", this.panel.shown.length)
    row.setAttribute("aria-posinset", index + 1)
    this.rows.set(index, row)
    this.space.append(row)
    return row
  }
}
