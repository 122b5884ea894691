// The elements of the panel, and where they lie.

import { button, h } from "./dom.js"

const LISTS = ["open", "accepted", "skipped", "all"]

/** Make the panel's elements, and put them into its dialog. */
export function layOut(panel) {
  const { t } = panel
  panel.stage = h("div", { className: "uvg-clip" })
  panel.nameLine = h("div", { className: "uvg-name" })
  panel.oldBox = h("textarea", { readOnly: true, placeholder: t.nothing })
  panel.newBox = h("textarea", { maxLength: 100000, spellcheck: true })
  panel.problem = h("div", { className: "uvg-problem", role: "alert" })
  panel.dialog = h(
    "dialog",
    { className: "uvg-review", "aria-label": t.title, tabIndex: -1 }, // a click beside all elements keeps the keys here
    h("header", {}, top(panel), tools(panel)),
    panel.list.element,
    h(
      "main",
      {},
      panel.nameLine,
      panel.stage,
      h("div", { className: "uvg-both" }, h("label", {}, t.was, panel.oldBox), h("label", {}, t.now, panel.newBox)),
      panel.problem,
      actions(panel),
    ),
    keys(panel),
    foot(panel),
  )
}

function top(panel) {
  const { t } = panel
  panel.folderBox = h("input", { value: panel.folder, size: 22, "aria-label": t.folder, title: t.folder })
  panel.filterBox = h("select", { "aria-label": t.show, title: t.show })
  for (const name of LISTS) panel.filterBox.append(h("option", { value: name }, t[name]))
  panel.searchBox = h("input", { type: "search", size: 14, placeholder: t.search, "aria-label": t.search })
  panel.counts = h("span", { className: "uvg-name" })
  return h(
    "div",
    { className: "uvg-line" },
    h("h2", {}, t.title),
    panel.folderBox,
    button(t.load, () => panel.reload()),
    panel.filterBox,
    panel.searchBox,
    panel.counts,
    h("span", { className: "uvg-gap" }),
    button("?", () => panel.toggleKeys(), { "aria-label": t.keys, title: t.keys }),
    button("✕", () => panel.close(), { "aria-label": t.close, title: t.close }),
  )
}

function tools(panel) {
  const { t } = panel
  panel.acceptAllButton = button(t.acceptAll, () => panel.acceptAll())
  panel.markAllButton = button(t.markAll, () => panel.markAll())
  return h("div", { className: "uvg-line" }, ...panel.replace.elements, panel.markAllButton, panel.acceptAllButton)
}

function actions(panel) {
  const { t } = panel
  panel.acceptButton = button(t.accept, () => panel.decideChosen("accepted"), { className: "uvg-main" })
  panel.skipButton = button(t.skip, () => panel.decideChosen("skipped"))
  panel.reopenButton = button(t.reopen, () => panel.decideChosen("open"))
  panel.hintBox = h("input", { className: "uvg-hint", placeholder: `${t.hint}: ${t.hintHelp}`, "aria-label": t.hint })
  panel.againButton = button(t.again, () => panel.again())
  const all = [panel.acceptButton, panel.skipButton, panel.reopenButton, panel.hintBox, panel.againButton]
  return h("div", { className: "uvg-line" }, ...all)
}

function keys(panel) {
  const rows = panel.t.keyList.map(([key, does]) => h("div", {}, h("dt", {}, key), h("dd", {}, does)))
  panel.keyHelp = h("dl", { className: "uvg-keys", hidden: true }, ...rows)
  return panel.keyHelp
}

function foot(panel) {
  const { t } = panel
  panel.progress = h("span", { role: "status" })
  panel.cancelButton = button(t.cancel, () => panel.cancelJobs(), { hidden: true })
  panel.status = h("span", { role: "status" })
  return h("footer", {}, h("span", {}, t.keyLine), panel.status, panel.progress, panel.cancelButton)
}
