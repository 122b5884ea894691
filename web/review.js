// Review captions: what Caption Folder has proposed, beside the clips and the captions that they have now.
//
// Plain modules, no build step; those in the folder review do nothing when they are loaded, as ComfyUI loads each file
// here. The routes are in nodes/comfy/review.py.

import { app } from "../../scripts/app.js"
import { h, STYLE } from "./review/dom.js"
import { NODE, theNode, value } from "./review/node.js"
import { Panel } from "./review/panel.js"
import { words } from "./review/words.js"

function review(node = theNode()) {
  if (!document.getElementById("uvg-review-style"))
    document.head.append(h("style", { id: "uvg-review-style", textContent: STYLE }))
  const folder = String((node && value(node, "folder")) ?? "")
  return new Panel(folder, node ? value(node, "subfolders") !== false : true, node).open()
}

app.registerExtension({
  name: "UniViGU.ReviewCaptions",
  commands: [
    { id: "UniViGU.ReviewCaptions", label: "Review captions", icon: "pi pi-list-check", function: () => review() },
  ],
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    const button = node.addWidget("button", words().title, null, () => review(node), { serialize: false })
    button.serialize = false // saved workflows hold their values by place
  },
})
