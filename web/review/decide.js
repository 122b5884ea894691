// Decisions, and what the server has made of them.

const BATCH = 100 // decisions in one request
const LETTERS = 500000 // in one request, at most: up to 6 bytes each, and a request may have 8 MB
const LOOK = 1000 // milliseconds before what somebody else has changed can be decided about

/** Send a decision about these captions, and take over what became of them. */
export async function decide(panel, items, decision) {
  for (const item of items) Object.assign(item, { busy: true, conflict: false, problem: "", note: "" })
  panel.drawDetail()
  const { folder, subfolders } = panel
  for (let start = 0, part; start < items.length; start += part.length) {
    part = batch(panel, items.slice(start, start + BATCH))
    const decisions = part.map((item) => ({
      clip: item.clip,
      decision,
      new: item.seen,
      ...(decision === "accepted" ? { text: panel.text(item), old: item.old } : {}),
    }))
    try {
      const answer = await panel.send({ folder, subfolders, decisions })
      answer.items.forEach((outcome, number) => take(panel, part[number], outcome, decisions[number]))
      if (part.length < items.length) panel.say(`${start + part.length} / ${items.length}`)
    } catch (error) {
      for (const item of items.slice(start)) Object.assign(item, { busy: false, problem: error.message })
      break
    }
  }
  if (folder === panel.folder) panel.refilter()
}

/** As many of them as go into one request. */
function batch(panel, items) {
  let letters = 0
  const end = items.findIndex((item) => {
    letters += panel.text(item).length + item.old.length + item.seen.length
    return letters > LETTERS
  })
  return end < 0 ? items : items.slice(0, Math.max(end, 1))
}

function take(panel, item, { state, now, new: proposed, problem }, decision) {
  const isNewer = proposed !== decision.new
  const conflict = isNewer ? panel.t.newer : panel.t.conflict
  Object.assign(item, { busy: false, problem: state === "conflict" ? conflict : problem })
  if (state === "failed") return
  Object.assign(item, { old: now, seen: proposed, ...(isNewer ? { new: proposed } : {}) })
  if (state === "conflict") {
    item.conflict = item.fresh = true // whoever decides one after the other is to see it first
    setTimeout(() => {
      item.fresh = false
      panel.drawDetail()
    }, LOOK)
    return
  }
  item.state = state
  if (state === "accepted" && decision.decision === "accepted") {
    item.new = decision.text
    item.drafts.delete(item.clip)
  }
}
