// Edit by Words: a button that puts the caption of the last run into the box new_caption, where it can be edited.

import { app } from "../../scripts/app.js"

const NODE = "UniViGUEdit"
const LABEL = "edit the caption"
const SAID = "uni_vigu_said" // what the node said, see words.js: both captions, each on a line of its own

/** The caption that the clip has, or has got by the last edit; undefined before a run. */
function captionOf(node) {
  return /^to: (.*)$/ms.exec(node.properties?.[SAID] ?? "")?.[1]
}

function take(node) {
  const caption = captionOf(node)
  if (!caption) {
    const summary = "Run the workflow first: the button takes the caption that the node then shows."
    app.extensionManager?.toast?.add({ severity: "info", summary, life: 6000 })
    return
  }
  const set = (name, text) => {
    const widget = node.widgets.find((one) => one.name === name)
    if (widget) widget.value = text
  }
  app.canvas.emitBeforeChange?.()
  set("change", "")
  set("new_caption", caption)
  app.canvas.emitAfterChange?.()
  node.setDirtyCanvas?.(true, true)
}

app.registerExtension({
  name: "UniViGU.Edit",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    // It has no value, neither in workflows nor in prompts.
    const button = node.addWidget("button", LABEL, null, () => take(node), { serialize: false })
    button.serialize = false
  },
})
