// Jobs in ComfyUI's queue that caption clips again. They belong to clips of a folder, not to the panel, which may show
// another folder by the time they end, or be closed.

import { api } from "../../../scripts/api.js"

const LOOK = 10000 // milliseconds after which the queue is asked, whatever events have said or have not
const SOON = 300
const ENDS = { execution_success: "completed", execution_error: "failed", execution_interrupted: "cancelled" }

const jobs = new Map() // by the id of their prompt
let tell = () => {} // whom to tell what has become of a job
let timer
let isListening = false

export function whenChanged(listener) {
  tell = listener
}

/** Note a prompt that captions clips of a folder again, in this order, with the node of that id; `items`: what was known
 * of them. */
export function note(id, node, folder, items) {
  const clips = items.map(({ clip }) => clip)
  const was = new Map(items.map((item) => [item.clip, { seen: item.seen, state: item.state }]))
  const places = new Map(clips.map((clip, at) => [clip, at]))
  jobs.set(id, { id, node, folder, clips, was, places, at: -1, taken: 0 })
  listen()
  look() // it may have ended before we knew its name
}

export const all = () => [...jobs.values()]

/** The job that has yet to caption a clip. */
export function jobOf(folder, clip) {
  return all().find((job) => job.folder === folder && job.places.get(clip) >= Math.max(job.at, 0))
}

/** What is running ends at its next step. How a job has ended comes as of every other. */
export async function cancelAll() {
  await Promise.allSettled(all().map(({ id }) => api.fetchApi(`/jobs/${id}/cancel`, { method: "POST" })))
  look()
}

function end(job, how, words = "") {
  if (jobs.delete(job.id)) tell(job, how, words)
}

function listen() {
  if (isListening) return
  isListening = true
  for (const [kind, how] of Object.entries(ENDS))
    api.addEventListener(kind, ({ detail }) => {
      const job = jobs.get(detail?.prompt_id)
      if (job) end(job, how, detail.exception_message)
    })
  api.addEventListener("execution_start", ({ detail }) => advance(jobs.get(detail?.prompt_id), 0))
  api.addEventListener("progress", ({ detail }) => {
    const job = jobs.get(detail?.prompt_id)
    if (job?.node === String(detail.node) && job.clips.length === detail.max) advance(job, detail.value)
  })
  // Whatever is taken from the queue changes its status; no other event says so.
  for (const kind of ["status", "reconnected"])
    api.addEventListener(kind, () => {
      clearTimeout(timer)
      timer = setTimeout(look, SOON)
    })
}

function advance(job, at) {
  if (!job) return
  job.at = at
  tell(job)
}

/** Ask for the jobs of which no event has told the end: cancelled before they began, or forgotten with the server. */
async function look() {
  clearTimeout(timer)
  for (const job of all()) {
    try {
      const answer = await api.fetchApi(`/jobs/${job.id}`, { cache: "no-store" })
      if (answer.status === 404) end(job, "gone")
      else if (answer.ok) {
        const { status, execution_error } = await answer.json()
        if (Object.values(ENDS).includes(status)) end(job, status, execution_error?.exception_message)
        else if (status === "in_progress" && job.at < 0) advance(job, 0)
      }
    } catch {
      break // no server: asked again
    }
  }
  clearTimeout(timer)
  if (jobs.size) timer = setTimeout(look, LOOK)
}
