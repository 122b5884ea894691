// The Templates dialog lists this pack's templates in the order in which one would try them. ComfyUI lists them as the
// file system does, which is no order.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

const ORDER = [
  "text_to_video",
  "video_to_text",
  "joint",
  "few_words",
  "image_to_video",
  "story",
  "caption_folder",
  "caption_shots",
  "find_clips",
  "rank_captions",
  "best_of",
  "edit_by_words",
  "train_two_stages",
  "first_try",
]

/** Our names first and in order; others, such as those that somebody has added, behind them. */
function ordered(names) {
  const place = (name) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length)
  return [...names].sort((one, other) => place(one) - place(other))
}

app.registerExtension({
  name: "UniViGU.Templates",
  init() {
    const get = api.getWorkflowTemplates
    if (typeof get !== "function") return
    api.getWorkflowTemplates = async function (...given) {
      const found = await get.apply(this, given)
      for (const [pack, names] of Object.entries(found ?? {}))
        if (Array.isArray(names) && ORDER.every((name) => names.includes(name))) found[pack] = ordered(names)
      return found
    }
  },
})
