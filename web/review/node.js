// The node whose captions are reviewed, and prompts that caption clips again with it.

import { app } from "../../../scripts/app.js"

export const NODE = "UniViGUCaptionFolder"

export function value(node, name) {
  return node.widgets?.find((widget) => widget.name === name)?.value
}

function nodes(graph = app.rootGraph ?? app.graph) {
  const all = graph?._nodes ?? []
  return all
    .flatMap((node) => [node, ...(node.subgraph ? nodes(node.subgraph) : [])])
    .filter((node) => node.type === NODE || node.subgraph)
}

/** The node of that folder, or the only one. */
export function theNode(folder) {
  const all = nodes().filter((node) => node.type === NODE)
  return all.find((node) => value(node, "folder") === folder) ?? (all.length === 1 ? all[0] : null)
}

/** The id of the node in the prompt, and a prompt of it and what it depends on, with other inputs; null where the graph
 * does not hold the node. */
export async function promptOf(node, inputs) {
  const { output, workflow } = await app.graphToPrompt()
  const id = Object.keys(output).find(
    (key) => output[key].class_type === NODE && (key === String(node?.id) || key.endsWith(`:${node?.id}`)),
  )
  if (!id) return null
  const kept = {}
  const keep = (key) => {
    if (key in kept || !(key in output)) return
    kept[key] = output[key]
    for (const value of Object.values(output[key].inputs))
      if (Array.isArray(value) && value.length === 2) keep(String(value[0]))
  }
  keep(id)
  const seed = Math.floor(Math.random() * 2 ** 48)
  kept[id] = { ...output[id], inputs: { ...output[id].inputs, review: true, seed, ...inputs } }
  return { id, output: kept, workflow }
}
