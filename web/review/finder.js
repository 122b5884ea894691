// Find and replace in captions, in a worker: a regular expression that never ends stops nothing else, and is given up.
//
// ComfyUI loads this file as it loads all of them; only in the worker does it do anything.

const LIMIT = 2000 // milliseconds

/** How often a text occurs in each of some texts, and what they are with another in its place. */
function found({ find, put, isPattern, isCase, texts }) {
  const source = isPattern ? find : find.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")
  const pattern = new RegExp(source, isCase ? "gu" : "giu")
  const counts = texts.map((text) => (text.match(pattern) ?? []).length)
  return { counts, texts: put == null ? null : texts.map((text) => text.replace(pattern, isPattern ? put : () => put)) }
}

if (typeof WorkerGlobalScope !== "undefined" && self instanceof WorkerGlobalScope) {
  self.onmessage = ({ data }) => {
    try {
      self.postMessage(found(data))
    } catch (error) {
      self.postMessage({ wrong: error.message })
    }
  }
  self.postMessage("ready") // the time that the worker takes to begin is not the pattern's
}

export class Finder {
  turn = 0

  /** What `found` finds; null where something else was asked for meanwhile. Raises an error with the cause `wrong` for
   * what is no pattern, `slow` for one that takes too long, `broken` where there are no workers. */
  async find(asked) {
    const turn = ++this.turn
    if (this.settle) this.end()
    const worker = await (this.worker ??= begun())
    if (turn !== this.turn) return null
    const answer = await new Promise((settle) => {
      this.settle = settle
      this.timer = setTimeout(() => this.end({ slow: true }), LIMIT)
      worker.onmessage = ({ data }) => settle(data)
      worker.postMessage(asked)
    })
    if (turn !== this.turn) return null
    clearTimeout(this.timer)
    this.settle = null
    if (answer.slow) throw new Error("", { cause: "slow" })
    if (answer.wrong) throw new Error(answer.wrong, { cause: "wrong" })
    return answer
  }

  /** Stop the worker; whoever waits gets the answer. */
  end(answer = null) {
    clearTimeout(this.timer)
    this.worker?.then((worker) => worker.terminate()).catch(() => {})
    this.settle?.(answer)
    this.worker = this.settle = null
  }
}

function begun() {
  return new Promise((ready, failed) => {
    const worker = new Worker(new URL("./finder.js", import.meta.url), { type: "module" })
    worker.onmessage = () => ready(worker)
    worker.onerror = () => failed(new Error("", { cause: "broken" }))
  })
}
