// Number widgets in which one number stands for "auto" show that word, and take it.
//
// Which number, the name of the widget says: "steps (0 = auto)". The value stays the number, so nothing that is saved or
// sent is another. Nodes 2.0 formats its numbers itself and lets nobody else: there the name alone says it.

import { app } from "../../scripts/app.js"

const CATEGORY = "Uni-ViGU"
const WORD = "auto"
const NAMED = /\((0|-1) = auto\)$/

/** The number that stands for "auto", by the names of a node's widgets. */
function numbersOf(nodeData) {
  const inputs = Object.entries({ ...nodeData.input?.required, ...nodeData.input?.optional })
  return inputs.flatMap(([name, [, options]]) => {
    const found = NAMED.exec(options?.display_name ?? "")
    return found ? [[name, Number(found[1])]] : []
  })
}

function speak(widget, number) {
  const plain = Object.getPrototypeOf(widget)
  const isAuto = () => widget.value === number || widget.value < 0
  Object.defineProperty(widget, "_displayValue", {
    get: () => (isAuto() && !widget.computedDisabled ? WORD : Reflect.get(plain, "_displayValue", widget)),
  })
  /** Between -1 and 0 there is nothing to set: up goes to 0, down to "auto". */
  widget.setValue = (value, options) => {
    const between = value < 0 && value > number
    plain.setValue.call(widget, between ? (value > widget.value ? 0 : number) : value, options)
  }
  /** The front end's own click, with the word in the place of the number in what it asks for. */
  widget.onClick = (options) => {
    const { canvas } = options
    const [ask, own] = [canvas.prompt, Object.hasOwn(canvas, "prompt")]
    canvas.prompt = (title, value, answered, ...more) => {
      const taken = (text) => answered(String(text).trim().toLowerCase() === WORD ? String(number) : text)
      return ask.call(canvas, title, isAuto() ? WORD : value, taken, ...more)
    }
    try {
      plain.onClick.call(widget, options)
    } finally {
      if (own) canvas.prompt = ask
      else delete canvas.prompt
    }
  }
}

app.registerExtension({
  name: "UniViGU.Auto",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.category !== CATEGORY) return
    const numbers = numbersOf(nodeData)
    if (!numbers.length) return
    const created = nodeType.prototype.onNodeCreated
    nodeType.prototype.onNodeCreated = function (...given) {
      const answer = created?.apply(this, given)
      for (const [name, number] of numbers) {
        const widget = this.widgets?.find((one) => one.name === name)
        if (typeof widget?.setValue === "function" && typeof widget.onClick === "function") speak(widget, number)
      }
      return answer
    }
  },
})
