// Caption clips again, with a hint: as one job in the queue for all that are marked.

import { api } from "../../../scripts/api.js"
import * as jobs from "./jobs.js"
import { promptOf, theNode } from "./node.js"

const PAUSE = 2000 // milliseconds at least between two looks at what a job has brought so far

export async function again(panel) {
  const { folder, subfolders, t } = panel
  const items = panel.chosen((item) => !item.busy && !jobs.jobOf(folder, item.clip))
  if (!items.length || panel.isQueueing) return
  panel.isQueueing = true
  for (const item of items) Object.assign(item, { problem: "", note: t.queued })
  panel.redraw()
  try {
    const hint = panel.hintBox.value.trim()
    const only = items.map((item) => item.clip).join("\n")
    const inputs = { folder, subfolders, only, ...(hint ? { hint } : {}) }
    const prompt = await promptOf(panel.node ?? theNode(folder), inputs)
    if (!prompt) throw new Error(t.noNode)
    const { prompt_id } = await api.queuePrompt(0, prompt)
    if (!prompt_id) throw new Error(t.failed)
    for (const item of items) Object.assign(item, { note: "" })
    panel.marked.clear()
    panel.list.element.focus()
    jobs.note(prompt_id, prompt.id, folder, items)
  } catch (error) {
    for (const item of items) Object.assign(item, { note: "", problem: error.message })
  } finally {
    panel.isQueueing = false
    panel.redraw()
  }
}

/** Take over what has become of a job: `how` it has ended, or nothing while it runs. */
export async function hear(panel, drafts, job, how, words) {
  const isShown = panel && panel.folder === job.folder
  const isSoon = !how && Date.now() - (job.looked ?? 0) < PAUSE
  panel?.redraw()
  const clips = job.clips.slice(job.taken, how ? undefined : Math.max(job.at, 0))
  if (isSoon || (!clips.length && !how)) return
  Object.assign(job, { looked: Date.now(), taken: job.taken + clips.length })
  if (isShown) await bring(panel, job, clips, how, words)
  else if (!how || how === "completed") for (const clip of clips) drafts.get(job.folder)?.delete(clip)
}

async function bring(panel, job, clips, how, words) {
  const { t } = panel
  const missed = {
    cancelled: { note: t.cancelled },
    gone: { note: t.cancelled },
    failed: { problem: words || t.failed },
  }[how] ?? { note: t.unchanged }
  const isDone = !how || how === "completed"
  let isMoved = false // from one list to another
  try {
    const { items } = await panel.listed(job.folder)
    if (panel.folder !== job.folder) return
    const [fresh, known] = [items, panel.items].map((all) => new Map(all.map((item) => [item.clip, item])))
    for (const clip of clips) {
      const [item, now] = [known.get(clip), fresh.get(clip)]
      if (!item || !now) continue
      const was = job.was.get(clip)
      const isSame = now.new === was.seen && now.state === was.state
      isMoved ||= now.state !== item.state
      if (isSame) Object.assign(item, isDone && now.problem ? { problem: now.problem } : missed)
      else panel.renew(item, now, job)
    }
  } catch (error) {
    for (const item of panel.items) if (clips.includes(item.clip)) item.problem = error.message
  }
  panel.say({ cancelled: t.cancelled, gone: t.goneJob, failed: t.failed, completed: t.done }[how] ?? "")
  if (isMoved) panel.refilter()
  else panel.redraw() // where somebody has scrolled to, stays
  panel.replace.count()
}

/** How far the jobs are, in words. */
export function progress(t) {
  const all = jobs.all()
  if (!all.length) return ""
  const total = all.reduce((sum, job) => sum + job.clips.length, 0)
  const done = all.reduce((sum, job) => sum + Math.max(job.at, 0), 0)
  return `${all.some((job) => job.at >= 0) ? t.captioning : t.queued} ${done}/${total}`
}
