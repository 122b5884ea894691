// What a node has to say stays in it.
//
// The server sends the last words of a node with its outputs ({"text": [...]}), and words that come without outputs as
// an event of our own. They are shown in the node, in a box that can be read, selected and scrolled, and kept among the
// node's properties: so they are saved in the workflow and come back with it. They are no value of a widget: workflows
// stay what they are where this file is not loaded. A node that fails, or is cancelled, has said nothing.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const CATEGORY = "Uni-ViGU"
const KEPT = "uni_vigu_said" // the property, and the name of the box
const LONGEST = 4000 // characters that are kept and shown; all of a text is in the node's outputs
const LIVE = "$$node-text-preview" // the front end's own box, for text that forms
const WIDTH = 330 // pixels at least of a new node that will have something to say
const [LINE, MOST_LINES, LETTER, MARGINS, BORDER] = [16, 8, 6.5, 20, 26] // for the height that a text asks for

const tabs = new Map() // prompt -> the workflow that it was queued from
const waiting = new WeakMap() // workflow in another tab -> what its nodes have said meanwhile, by their place
let running // the prompt that runs
let started // the place of the node that runs and has not spoken yet
let changed = false // what is kept, since the last undo step

const shown = () => app.extensionManager?.workflow?.activeWorkflow ?? undefined
const isOurs = (node) => node?.constructor?.nodeData?.category === CATEGORY
const isElsewhere = (prompt) => tabs.has(prompt) && tabs.get(prompt) !== shown()

/** The node at a place such as "12:3", which is node 3 in the subgraph that node 12 shows. */
function nodeAt(place) {
  let graph = app.rootGraph ?? app.graph
  let node
  for (const id of String(place).split(":")) {
    node = graph?.getNodeById(id) ?? graph?.getNodeById(Number(id))
    graph = node?.subgraph
  }
  return node
}

function keep(node, text) {
  if ((node.properties[KEPT] ?? "") === text) return
  if (text) node.properties[KEPT] = text
  else delete node.properties[KEPT]
  changed = true
}

function say(node, texts) {
  const text = texts.join("\n\n")
  keep(node, text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text)
  dropLive(node)
  show(node)
}

/** Remove the front end's box: what it shows has been said, or will not come true. */
function dropLive(node) {
  const live = node.widgets?.find((widget) => widget.name === LIVE)
  if (live) node.removeWidget(live)
}

/** Show what is kept. A node without words has no box; one that has lost them, an empty box of no height. */
function show(node, kept = node.properties?.[KEPT]) {
  const text = typeof kept === "string" ? kept.slice(0, LONGEST + 1) : ""
  let box = node.widgets?.find((widget) => widget.name === KEPT)
  if (!box && !text) return
  box ??= addBox(node)
  box.element.value = text
  box.element.style.display = text ? "" : "none"
  box.element.style.minHeight = `${text ? heightOf(text, node.size[0]) - MARGINS : 0}px` // for Nodes 2.0
  mount(node, box.element)
  node.setDirtyCanvas?.(true, true)
}

/** Nodes 2.0 keeps the element of a node that was there before under the same id: put this node's in its place. */
function mount(node, element) {
  if (node.graph !== app.canvas?.graph) return
  const mounted = document.querySelector(`[data-node-id="${node.id}"] textarea[name="${KEPT}"]`)
  if (mounted && mounted !== element) mounted.replaceWith(element)
}

function addBox(node) {
  const element = document.createElement("textarea")
  element.name = KEPT
  element.className = "comfy-multiline-input"
  element.readOnly = true
  element.spellcheck = false
  element.ariaLabel = "What the node said"
  Object.assign(element.style, { resize: "none", opacity: "0.8", cursor: "text", userSelect: "text" })
  element.addEventListener("wheel", (event) => {
    if (element.scrollHeight > element.clientHeight && !event.ctrlKey) event.stopPropagation()
    else app.canvas.processMouseWheel?.(event)
  })
  const height = () => (element.value ? heightOf(element.value, node.size[0]) : 0)
  const box = node.addDOMWidget(KEPT, "UNI_VIGU_SAID", element, {
    serialize: false,
    hideInPanel: true,
    getValue: () => element.value,
    setValue: () => {}, // it is no value that anybody sets
    getMinHeight: height,
    getMaxHeight: () => (element.value ? undefined : 0),
  })
  box.serialize = false
  return box
}

/** Enough for the text, within bounds; more is scrolled to, or shown where the node is drawn larger. */
function heightOf(text, width) {
  const letters = Math.max(10, (width - BORDER) / LETTER)
  const lines = text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / letters)), 0)
  return BORDER + LINE * Math.min(lines, MOST_LINES)
}

function hear(place, texts, prompt) {
  if (!Array.isArray(texts)) return
  if (String(place) === started) started = undefined
  if (isElsewhere(prompt)) {
    const tab = tabs.get(prompt)
    if (!waiting.has(tab)) waiting.set(tab, new Map())
    waiting.get(tab).set(place, texts)
    return
  }
  const node = nodeAt(place)
  if (isOurs(node)) say(node, texts)
}

/** A workflow without words: those of the run before do not belong to the files that this run writes. */
function silent(graph) {
  const without = (node) => {
    if (!node.properties || !(KEPT in node.properties)) return node
    const { [KEPT]: _, ...properties } = node.properties
    return { ...node, properties }
  }
  const found = { ...graph, nodes: graph.nodes?.map(without) }
  const subgraphs = graph.definitions?.subgraphs
  if (subgraphs) found.definitions = { ...graph.definitions, subgraphs: subgraphs.map(silent) }
  return found
}

function watchPrompts() {
  const queue = api.queuePrompt
  api.queuePrompt = async function (number, data, ...more) {
    const tab = shown()
    const sent = data?.workflow ? { ...data, workflow: silent(data.workflow) } : data
    const answer = await queue.call(this, number, sent, ...more)
    if (tab && answer?.prompt_id) tabs.set(answer.prompt_id, tab)
    return answer
  }
  api.addEventListener("execution_start", ({ detail }) => {
    running = detail.prompt_id
  })
  api.addEventListener("executing", ({ detail }) => {
    started = detail == null ? undefined : String(detail)
    const node = isElsewhere(running) ? undefined : nodeAt(started ?? "")
    if (isOurs(node)) show(node, "") // until it speaks again
  })
  api.addEventListener("executed", ({ detail }) => {
    hear(detail.display_node || detail.node, detail.output?.text, detail.prompt_id)
  })
  api.addEventListener("uni_vigu.said", ({ detail }) => hear(detail.node, detail.text, running))
  for (const end of ["execution_success", "execution_error", "execution_interrupted"])
    api.addEventListener(end, ({ detail }) => {
      if (started && end !== "execution_success") hear(started, [], detail.prompt_id)
      tabs.delete(detail.prompt_id)
      if (changed) {
        // An undo step, which the front end also saves for a reload.
        app.canvas.emitBeforeChange?.()
        app.canvas.emitAfterChange?.()
      }
      changed = false
    })
}

app.registerExtension({
  name: "UniViGU.Words",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.category !== CATEGORY) return
    const created = nodeType.prototype.onNodeCreated
    nodeType.prototype.onNodeCreated = function (...given) {
      const answer = created?.apply(this, given)
      if (nodeData.has_intermediate_output && this.size[0] < WIDTH) this.setSize([WIDTH, this.size[1]])
      return answer
    }
    const configured = nodeType.prototype.onConfigure
    nodeType.prototype.onConfigure = function (...given) {
      configured?.apply(this, given)
      show(this)
    }
  },
  setup: watchPrompts,
  /** Called, among others, when another tab has been opened. */
  onNodeOutputsUpdated() {
    const said = waiting.get(shown())
    if (!said) return
    waiting.delete(shown())
    for (const [place, texts] of said) hear(place, texts)
  },
})
