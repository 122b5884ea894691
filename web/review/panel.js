// The panel.

import { api } from "../../../scripts/api.js"
import * as captions from "./again.js"
import { Clip } from "./clip.js"
import { decide } from "./decide.js"
import { isEnter } from "./dom.js"
import * as jobs from "./jobs.js"
import { press } from "./keys.js"
import { layOut } from "./layout.js"
import { List } from "./list.js"
import { Replace } from "./replace.js"
import { words } from "./words.js"

const ROUTE = "/uni_vigu/review"
const ALONE = ["keyup", "keypress", "copy", "cut", "paste", "wheel", "pointerdown", "contextmenu"] // not ComfyUI's

const drafts = new Map() // by folder, by clip: what was typed and not accepted yet; it outlives the panel
let current = null

function draftsOf(folder) {
  if (!drafts.has(folder)) drafts.set(folder, new Map())
  return drafts.get(folder)
}

export class Panel {
  items = [] // what there is in the folder
  shown = []
  marked = new Set()
  at = -1 // of those that are shown

  constructor(folder, subfolders, node) {
    Object.assign(this, { folder, subfolders, node, t: words() })
    this.list = new List(this)
    this.replace = new Replace(this)
    this.clip = new Clip(this)
    layOut(this)
    this.listen()
    jobs.whenChanged((...given) => captions.hear(current, drafts, ...given))
  }

  listen() {
    this.dialog.addEventListener("cancel", (event) => event.preventDefault()) // Esc is ours
    this.dialog.addEventListener("close", () => this.end())
    this.dialog.addEventListener("keydown", (event) => press(this, event))
    for (const kind of ALONE) this.dialog.addEventListener(kind, (event) => event.stopPropagation())
    this.filterBox.addEventListener("change", () => this.refilter())
    this.searchBox.addEventListener("input", () => this.refilter())
    this.newBox.addEventListener("input", () => this.type(this.item, this.newBox.value))
    this.folderBox.addEventListener("keydown", (event) => isEnter(event) && this.reload())
    this.hintBox.addEventListener("keydown", (event) => isEnter(event) && this.again())
  }

  end() {
    for (const part of [this.list, this.replace, this.clip]) part.end()
    this.dialog.remove()
    if (current === this) current = null
  }

  close() {
    this.dialog.close()
  }

  async open() {
    current?.close()
    current = this
    document.body.append(this.dialog)
    this.dialog.showModal()
    this.list.element.focus()
    this.refilter()
    await this.load()
  }

  // What is there

  get item() {
    return this.shown[this.at]
  }

  /** Those that are marked and shown, or else the one that is looked at. */
  chosen(fits) {
    const marked = this.shown.filter((item) => this.marked.has(item))
    return (marked.length ? marked : this.item ? [this.item] : []).filter(fits)
  }

  text(item) {
    return item.drafts.get(item.clip) ?? item.new
  }

  type(item, text) {
    if (!item) return
    if (text === item.new) item.drafts.delete(item.clip)
    else item.drafts.set(item.clip, text)
    this.list.drawRow(this.shown.indexOf(item))
  }

  /** What is to be said of a caption beside its text. */
  notes(item) {
    const { t } = this
    const job = jobs.jobOf(this.folder, item.clip)
    const isNow = job && job.places.get(item.clip) === job.at
    const notes = [
      item.state === "open" ? "" : t[item.state],
      item.drafts.has(item.clip) ? t.edited : "",
      isNow ? t.captioning : job ? t.queued : item.note,
    ]
    return notes.filter(Boolean)
  }

  address(what, item) {
    try {
      const query = new URLSearchParams({ folder: this.folder, subfolders: this.subfolders, clip: item.clip })
      return api.apiURL(`${ROUTE}/${what}?${query}`)
    } catch {
      return "" // a name that is no text
    }
  }

  async ask(path, options) {
    let answer, content
    try {
      answer = await api.fetchApi(path, { cache: "no-store", ...options })
      content = await answer.json()
    } catch {
      throw new Error(this.t.unreachable)
    }
    if (!answer.ok) throw new Error(content?.error ?? this.t.unreachable)
    return content
  }

  async listed(folder) {
    const found = await this.ask(`${ROUTE}?${new URLSearchParams({ folder, subfolders: this.subfolders })}`)
    for (const item of found.items) item.problem ||= item.failed && this.t.notAgain(item.failed)
    return found
  }

  send(content) {
    const headers = { "Content-Type": "application/json" }
    return this.ask(ROUTE, { method: "POST", body: JSON.stringify(content), headers })
  }

  reload() {
    const folder = this.folderBox.value.trim()
    if (folder !== this.folder) {
      this.folder = folder
      this.items = [] // nothing is decided about clips of another folder
      this.refilter()
    }
    return this.load()
  }

  async load() {
    if (!this.folder) return
    this.say(this.t.loading)
    const folder = this.folder
    this.replace.forget()
    this.marked.clear()
    try {
      const { items, gone } = await this.listed(folder)
      if (folder !== this.folder) return // another one was asked for meanwhile
      this.items = items.map((item) => ({ ...item, seen: item.new, drafts: draftsOf(folder) }))
      this.say(gone ? this.t.gone(gone) : "")
      this.refilter(this.t.none)
    } catch (error) {
      if (folder !== this.folder) return
      this.items = []
      this.say("")
      this.refilter(error.message)
    }
  }

  /** Take over what there is of a caption now; the text that stood there can be brought back. */
  renew(item, now, by) {
    const before = this.text(item)
    item.drafts.delete(item.clip)
    Object.assign(item, now, { seen: now.new, note: "", conflict: false })
    this.replace.remember(item, before, now.new, by)
  }

  filter(name) {
    this.filterBox.value = name
    this.refilter()
  }

  refilter(none = "") {
    const chosen = this.item?.clip,
      index = Math.max(this.at, 0)
    const [state, part] = [this.filterBox.value, this.searchBox.value.toLowerCase()]
    this.shown = this.items.filter(
      (item) =>
        (state === "all" || item.state === state) &&
        (!part || item.clip.toLowerCase().includes(part) || this.text(item).toLowerCase().includes(part)),
    )
    for (const item of this.marked) if (!this.shown.includes(item)) this.marked.delete(item)
    this.list.clear(this.items.length ? this.t.noneShown : none)
    const kept = this.shown.findIndex((item) => item.clip === chosen)
    const count = (name) => this.items.filter((item) => item.state === name).length
    this.counts.textContent = this.t.counts(count("open"), count("accepted"), count("skipped"))
    this.replace.count()
    this.select(kept >= 0 ? kept : Math.min(index, this.shown.length - 1), chosen)
  }

  // What is looked at, and what is marked

  select(index, before = null) {
    const left = this.at
    this.at = index
    this.list.reveal(index)
    this.list.draw()
    this.list.drawRow(left)
    this.list.drawRow(index)
    this.drawDetail(this.item?.clip !== (before ?? this.drawn))
  }

  /** Go on by so many captions; `isMarking`: mark what lies between. */
  move(step, isMarking) {
    if (!this.shown.length) return
    const to = Math.min(Math.max(this.at + step, 0), this.shown.length - 1)
    if (isMarking) this.markTo(to)
    this.select(to)
  }

  /** A click on the list. */
  pick(index, event) {
    if (event.shiftKey) this.markTo(index)
    if (event.ctrlKey || event.metaKey || event.target.closest(".uvg-mark")) this.toggleMark(index)
    else this.select(index)
  }

  toggleMark(index = this.at) {
    const item = this.shown[index]
    if (item && !this.marked.delete(item)) this.marked.add(item)
    this.redraw()
  }

  markTo(index) {
    const [first, last] = [Math.min(this.at, index), Math.max(this.at, index)]
    for (const item of this.shown.slice(Math.max(first, 0), last + 1)) this.marked.add(item)
    this.redraw()
  }

  /** Mark all that are shown, or none if all are. */
  markAll() {
    const isAll = this.shown.every((item) => this.marked.has(item))
    this.marked = new Set(isAll ? [] : this.shown)
    this.redraw()
  }

  redraw() {
    this.list.redraw()
    this.drawDetail()
  }

  drawDetail(isOther = false) {
    const { item, t } = this
    this.newBox.closest("main").style.visibility = item ? "visible" : "hidden"
    const name = item ? [`${this.at + 1} / ${this.shown.length}`, item.clip, ...this.notes(item)] : []
    this.nameLine.textContent = name.join(" · ")
    this.oldBox.value = item?.old ?? ""
    if (!item || this.newBox.value !== this.text(item)) this.newBox.value = item ? this.text(item) : ""
    this.problem.textContent = item?.problem ?? ""
    this.drawActions(item)
    this.progress.textContent = captions.progress(t)
    this.cancelButton.hidden = !this.progress.textContent
    if (isOther || this.drawn !== item?.clip) this.clip.show(item)
    this.drawn = item?.clip
  }

  drawActions(item) {
    const { t } = this
    const count = this.marked.size ? ` (${this.marked.size})` : ""
    const isBusy = !item || Boolean(item.busy)
    this.acceptButton.textContent = `${t.accept}${count}`
    this.skipButton.textContent = `${t.skip}${count}`
    this.reopenButton.textContent = `${t.reopen}${count}`
    this.againButton.textContent = `${t.again}${count}`
    this.skipButton.disabled = this.acceptButton.disabled = isBusy || Boolean(item.fresh)
    this.skipButton.hidden = item?.state === "skipped"
    this.reopenButton.hidden = item?.state !== "skipped"
    this.againButton.disabled = isBusy || (!count && Boolean(jobs.jobOf(this.folder, item.clip)))
    this.againButton.title = this.node ? "" : t.noNode
    this.markAllButton.textContent = count && this.marked.size === this.shown.length ? t.markNone : t.markAll
    this.markAllButton.disabled = !this.shown.length
    this.acceptAllButton.disabled = !this.shown.some((item) => item.state === "open")
    this.keepFocus()
  }

  /** A button that can be pressed no more gets no keys either: they go to the list then. */
  keepFocus() {
    const active = document.activeElement
    if (active === document.body || active?.disabled || active?.hidden) this.list.element.focus()
  }

  toggleKeys() {
    this.keyHelp.hidden = !this.keyHelp.hidden
  }

  play() {
    this.clip.play()
  }

  say(text) {
    this.status.textContent = text
  }

  // Decisions

  decideChosen(decision) {
    const isMany = this.marked.size > 0
    const fits = (item) => {
      if (item.busy || (decision !== "open" && item.fresh)) return false
      if (decision === "open") return item.state === "skipped"
      return !isMany || !(item.conflict || item.state === "accepted")
    }
    const items = this.chosen(fits)
    if (!items.length || (items.length > 1 && !confirm(this.t.sureOf(decision, items.length)))) return undefined
    if (!isMany && this.filterBox.value === "all" && decision !== "open" && this.at + 1 < this.shown.length)
      this.select(this.at + 1)
    this.marked.clear()
    this.list.element.focus()
    return decide(this, items, decision)
  }

  async acceptAll() {
    const open = this.shown.filter((item) => item.state === "open" && !item.busy && !item.conflict)
    if (open.length && confirm(this.t.sureOf("accepted", open.length))) await decide(this, open, "accepted")
  }

  again() {
    return captions.again(this)
  }

  cancelJobs() {
    return jobs.cancelAll()
  }
}
