// Elements, and how the panel looks.

export const ROW = 74 // pixels of a row of the list

export const STYLE = `
.uvg-review { width: min(1700px, 97vw); height: min(1050px, 95vh); max-width: none; max-height: none; padding: 0; margin: auto;
  border: 1px solid var(--border-color, #4e4e4e); border-radius: 10px; overflow: hidden;
  background: var(--comfy-menu-bg, #232323); color: var(--input-text, #ddd); font: 14px/1.4 system-ui, sans-serif; }
.uvg-review::backdrop { background: rgb(0 0 0 / 0.6); }
.uvg-review[open] { display: grid; grid-template: auto minmax(0, 1fr) auto auto / minmax(280px, 34%) minmax(0, 1fr); }
.uvg-review [hidden] { display: none; }
.uvg-review header { grid-column: 1 / -1; display: flex; flex-direction: column; gap: 6px; padding: 8px 12px;
  border-bottom: 1px solid var(--border-color, #4e4e4e); }
.uvg-review h2 { font-size: 16px; margin: 0 8px 0 0; }
.uvg-review .uvg-gap { flex: 1; }
.uvg-review .uvg-line .uvg-found { flex: 1 1 60px; }
.uvg-review input, .uvg-review select, .uvg-review textarea, .uvg-review button { font: inherit; color: inherit;
  background: var(--comfy-input-bg, #1a1a1a); border: 1px solid var(--border-color, #4e4e4e); border-radius: 6px; padding: 4px 8px; }
.uvg-review button { cursor: pointer; }
.uvg-review button:disabled { opacity: 0.45; cursor: default; }
.uvg-review button.uvg-main { background: #2f6f4f; border-color: #3f8f67; color: #fff; }
.uvg-review button[aria-pressed] { padding: 4px 7px; font-family: monospace; }
.uvg-review button[aria-pressed="true"] { background: #2c5a8c; border-color: #4d86c4; color: #fff; }
.uvg-review :focus-visible { outline: 2px solid #6cb6ff; outline-offset: 1px; }
.uvg-review .uvg-list { position: relative; overflow-y: auto; border-right: 1px solid var(--border-color, #4e4e4e); }
.uvg-review .uvg-list:focus-visible { outline-width: 1px; outline-offset: -1px; }
.uvg-review .uvg-row { position: absolute; left: 0; right: 0; height: ${ROW}px; box-sizing: border-box; display: flex; gap: 10px;
  padding: 7px 10px; cursor: pointer; border-bottom: 1px solid rgb(128 128 128 / 0.2); user-select: none; }
.uvg-review .uvg-row[aria-selected="true"] { background: rgb(80 140 220 / 0.28); }
.uvg-review .uvg-row .uvg-mark { flex: none; align-self: stretch; width: 26px; margin: -7px -8px -7px -10px; display: flex;
  align-items: center; justify-content: center; color: color-mix(in srgb, #3b8eea 60%, var(--input-text, #ddd)); opacity: 0.35; font-size: 17px; }
.uvg-review .uvg-row .uvg-mark::before { content: "☐"; }
.uvg-review .uvg-row[aria-checked="true"] .uvg-mark { opacity: 1; }
.uvg-review .uvg-row[aria-checked="true"] .uvg-mark::before { content: "☑"; }
.uvg-review .uvg-row:hover .uvg-mark { opacity: 1; }
.uvg-review .uvg-row img { width: 84px; height: 60px; object-fit: contain; background: #0008; border-radius: 4px; flex: none; }
.uvg-review .uvg-row div { min-width: 0; flex: 1; }
.uvg-review .uvg-name { color: var(--descrip-text, #999); font-size: 12px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.uvg-review .uvg-text { display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical; overflow: hidden; }
.uvg-review .uvg-row.uvg-done .uvg-text { opacity: 0.55; }
.uvg-review main { display: flex; flex-direction: column; gap: 8px; padding: 10px 14px; min-height: 0; overflow-y: auto; }
.uvg-review .uvg-clip { flex: 1 1 180px; min-height: 120px; display: flex; justify-content: center; align-items: center;
  background: #0008; border-radius: 6px; overflow: hidden; }
.uvg-review .uvg-clip video, .uvg-review .uvg-clip img { width: 100%; height: 100%; object-fit: contain; image-rendering: auto; }
.uvg-review .uvg-both { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; flex: 0 0 auto; }
.uvg-review .uvg-both label { display: flex; flex-direction: column; gap: 3px; font-size: 12px; color: var(--descrip-text, #999); }
.uvg-review .uvg-both textarea { height: clamp(110px, 17vh, 200px); resize: vertical; font-size: 14px; color: var(--input-text, #ddd); }
.uvg-review .uvg-both textarea[readonly] { opacity: 0.75; }
.uvg-review .uvg-line { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; }
.uvg-review .uvg-line .uvg-hint { flex: 1; min-width: 120px; }
.uvg-review .uvg-problem { color: color-mix(in srgb, #ff5a36 60%, var(--input-text, #ddd)); min-height: 0; }
.uvg-review main .uvg-problem { white-space: pre-line; }
.uvg-review .uvg-empty { padding: 24px; color: var(--descrip-text, #999); }
.uvg-review .uvg-keys { grid-column: 1 / -1; margin: 0; padding: 8px 12px; font-size: 12px; columns: 3 300px; column-gap: 24px;
  max-height: 38vh; overflow-y: auto; border-top: 1px solid var(--border-color, #4e4e4e); }
.uvg-review .uvg-keys div { break-inside: avoid; display: flex; gap: 8px; padding: 1px 0; }
.uvg-review .uvg-keys dt { flex: none; width: 108px; text-align: right; color: color-mix(in srgb, #3b8eea 60%, var(--input-text, #ddd)); }
.uvg-review .uvg-keys dd { margin: 0; }
.uvg-review footer { grid-column: 1 / -1; padding: 4px 12px; font-size: 12px; color: var(--descrip-text, #999); min-height: 34px;
  box-sizing: border-box; border-top: 1px solid var(--border-color, #4e4e4e); display: flex; gap: 12px; align-items: center; }
.uvg-review footer button { padding: 1px 8px; }
.uvg-review footer [role="status"] { color: var(--input-text, #ddd); }
.uvg-review footer :nth-child(2) { margin-left: auto; }
`

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && !name.startsWith("aria")) element[name] = value
    else element.setAttribute(name, value)
  }
  element.append(...children)
  return element
}

export function button(label, act, properties = {}) {
  const element = h("button", { type: "button", ...properties }, label)
  element.addEventListener("click", act)
  return element
}

/** A key that belongs to an input method, which composes letters with it. */
export const isComposed = (event) => event.isComposing || event.keyCode === 229

/** Enter alone, and not the one that ends what an input method composes. */
export function isEnter(event) {
  return event.key === "Enter" && !isComposed(event) && !event.ctrlKey && !event.metaKey
}
