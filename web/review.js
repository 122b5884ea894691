// Review captions: what Caption Folder has proposed, beside the clips and the captions that they have now.
// Plain modules, no build step. The routes are in nodes/comfy/review.py.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

const NODE = "UniViGUCaptionFolder"
const ROUTE = "/uni_vigu/review"
const ROW = 74 // pixels of a row of the list
const BEYOND = 6 // rows that are drawn above and below what is seen
const LOOK = 1000 // milliseconds before a caption that somebody else has changed can be accepted over
const BATCH = 100 // decisions in one request
const LETTERS = 500000 // in one request, at most: up to 6 bytes each, and a request may have 8 MB
const PICTURES = /\.gif$/i // what a browser shows as a picture

const drafts = new Map() // by folder, by clip: what was typed and not accepted yet; it outlives the panel

const WORDS = {
  en: {
    title: "Review captions",
    folder: "Folder of clips",
    load: "Load",
    close: "Close",
    show: "Show",
    all: "all",
    open: "to decide",
    accepted: "accepted",
    skipped: "skipped",
    search: "Search",
    find: "Find",
    replace: "Replace with",
    replaceAll: "Replace in all shown",
    undoReplace: "Undo",
    acceptAll: "Accept all shown",
    list: "Captions",
    was: "Now",
    now: "New",
    nothing: "(no caption)",
    accept: "Accept",
    skip: "Skip",
    reopen: "Decide again",
    hint: "Hint",
    again: "Caption again",
    hintHelp: "A prompt to look at beside the clip",
    keys: "Keys",
    keyList:
      "↑ ↓ choose · Enter accept · S skip · E edit · Ctrl+Enter accept while editing · Esc back to the list, then close · " +
      "Space play · H hint · F find · U decide again",
    none: "No captions wait in this folder. Turn review on in Caption Folder, and run it.",
    noneShown: "Nothing here. Choose another list above.",
    counts: (o, a, s) => `${o} to decide, ${a} accepted, ${s} skipped`,
    gone: (n) => (n === 1 ? "1 of the clips is not there any more" : `${n} of the clips are not there any more`),
    matches: (n, m) => `${n} in ${m} captions`,
    conflict: "Somebody changed this caption meanwhile. It is shown as Now; accept again to replace it.",
    newer: "This clip was captioned again meanwhile. Read the new caption, then decide again.",
    unreachable: "The server does not answer; nothing was saved. Try again.",
    noNode: "Open the panel with the button of a Caption Folder node to caption again.",
    queued: "waiting in the queue",
    captioning: "captioning",
    failed: "The run ended with an error; see the node.",
    noPlay: "This browser does not play this file: its first frame.",
    sure: (n) => (n === 1 ? "Accept 1 caption?" : `Accept ${n} captions?`),
    loading: "Loading",
    edited: "edited",
  },
  ja: {
    title: "キャプションを確認",
    folder: "クリップのフォルダ",
    load: "読み込む",
    close: "閉じる",
    show: "表示",
    all: "すべて",
    open: "未決定",
    accepted: "採用",
    skipped: "見送り",
    search: "絞り込み",
    find: "検索",
    replace: "置換後",
    replaceAll: "表示中をすべて置換",
    undoReplace: "元に戻す",
    acceptAll: "表示中をすべて採用",
    list: "キャプション",
    was: "現在",
    now: "新",
    nothing: "（キャプションなし）",
    accept: "採用",
    skip: "見送る",
    reopen: "未決定に戻す",
    hint: "ヒント",
    again: "もう一度キャプション",
    hintHelp: "クリップとあわせて参照するプロンプト",
    keys: "キー",
    none: "このフォルダに確認待ちのキャプションはありません。「フォルダのキャプション作成」で「確認してから」をオンにして実行してください。",
    noneShown: "ここにはありません。上で別の一覧を選んでください。",
    counts: (o, a, s) => `未決定 ${o}、採用 ${a}、見送り ${s}`,
    conflict: "その間に誰かがこのキャプションを変えました。「現在」に表示しています。もう一度採用すると置き換えます。",
    newer: "その間にこのクリップのキャプションが作り直されました。新しいキャプションを読んで、もう一度決めてください。",
    unreachable: "サーバーが応答しません。何も保存されていません。もう一度試してください。",
    edited: "編集済み",
    loading: "読み込み中",
    keyList:
      "↑ ↓ 選ぶ · Enter 採用 · S 見送る · E 編集 · 編集中のCtrl+Enter 採用 · Esc 一覧へ、もう一度で閉じる · Space 再生 · " +
      "H ヒント · F 検索 · U 未決定に戻す",
    gone: (n) => `${n}本のクリップはもうありません`,
    matches: (n, m) => `${m}件のキャプションに${n}か所`,
    noNode:
      "もう一度キャプションを付けるには、「フォルダのキャプション作成」ノードのボタンからパネルを開いてください。",
    queued: "待機中",
    captioning: "作成中",
    failed: "実行はエラーで終わりました。ノードを見てください。",
    noPlay: "このブラウザでは再生できないファイルです。最初のフレームを表示しています。",
    sure: (n) => `${n}件のキャプションを採用しますか？`,
  },
  ko: {
    title: "캡션 검토",
    folder: "클립 폴더",
    load: "불러오기",
    close: "닫기",
    show: "보기",
    all: "모두",
    open: "미결정",
    accepted: "적용함",
    skipped: "건너뜀",
    search: "찾아보기",
    find: "찾기",
    replace: "바꿀 말",
    replaceAll: "보이는 것 모두 바꾸기",
    undoReplace: "되돌리기",
    acceptAll: "보이는 것 모두 적용",
    list: "캡션",
    was: "현재",
    now: "새 캡션",
    nothing: "(캡션 없음)",
    accept: "적용",
    skip: "건너뛰기",
    reopen: "다시 결정",
    hint: "힌트",
    again: "다시 캡션",
    hintHelp: "클립과 함께 참고할 프롬프트",
    keys: "키",
    none: "이 폴더에는 검토할 캡션이 없습니다. 폴더 캡션 작성에서 검토 후 저장을 켜고 실행하세요.",
    noneShown: "여기에는 없습니다. 위에서 다른 목록을 고르세요.",
    counts: (o, a, s) => `미결정 ${o}, 적용 ${a}, 건너뜀 ${s}`,
    conflict: "그동안 누군가 이 캡션을 바꿨습니다. 현재에 보입니다. 다시 적용하면 바뀝니다.",
    newer: "그동안 이 클립에 캡션을 다시 달았습니다. 새 캡션을 읽고 다시 결정하세요.",
    unreachable: "서버가 응답하지 않습니다. 아무것도 저장되지 않았습니다. 다시 시도하세요.",
    edited: "수정함",
    loading: "불러오는 중",
    keyList:
      "↑ ↓ 고르기 · Enter 적용 · S 건너뛰기 · E 수정 · 수정 중 Ctrl+Enter 적용 · Esc 목록으로, 다시 누르면 닫기 · Space 재생 · " +
      "H 힌트 · F 찾기 · U 다시 결정",
    gone: (n) => `클립 ${n}개가 더 이상 없습니다`,
    matches: (n, m) => `캡션 ${m}개에서 ${n}곳`,
    noNode: "다시 캡션을 달려면 폴더 캡션 작성 노드의 버튼으로 패널을 여세요.",
    queued: "대기 중",
    captioning: "캡션 작성 중",
    failed: "실행이 오류로 끝났습니다. 노드를 보세요.",
    noPlay: "이 브라우저가 재생하지 못하는 파일입니다. 첫 프레임을 보여 줍니다.",
    sure: (n) => `캡션 ${n}개를 적용할까요?`,
  },
  zh: {
    title: "审阅描述",
    folder: "视频文件夹",
    load: "加载",
    close: "关闭",
    show: "显示",
    all: "全部",
    open: "待定",
    accepted: "已采用",
    skipped: "已跳过",
    search: "筛选",
    find: "查找",
    replace: "替换为",
    replaceAll: "替换所有显示的",
    undoReplace: "撤销",
    acceptAll: "采用所有显示的",
    list: "描述",
    was: "现有",
    now: "新",
    nothing: "（无描述）",
    accept: "采用",
    skip: "跳过",
    reopen: "重新决定",
    hint: "参考提示词",
    again: "重新描述",
    hintHelp: "与视频一起参考的提示词",
    keys: "按键",
    none: "这个文件夹里没有待审阅的描述。请在“文件夹批量标注”中打开“先审阅”并运行。",
    noneShown: "这里没有。请在上方选择别的列表。",
    counts: (o, a, s) => `待定 ${o}，已采用 ${a}，已跳过 ${s}`,
    conflict: "期间有人改了这条描述，见“现有”；再次采用即可替换。",
    newer: "期间这个视频被重新描述过。请看过新的描述再决定。",
    unreachable: "服务器没有响应，什么都没有保存。请重试。",
    edited: "已修改",
    loading: "正在加载",
    keyList:
      "↑ ↓ 选择 · Enter 采用 · S 跳过 · E 编辑 · 编辑时 Ctrl+Enter 采用 · Esc 回到列表，再按关闭 · Space 播放 · H 参考提示词 · " +
      "F 查找 · U 重新决定",
    gone: (n) => `有 ${n} 个视频已不存在`,
    matches: (n, m) => `${m} 条描述中有 ${n} 处`,
    noNode: "要重新描述，请用“文件夹批量标注”节点上的按钮打开面板。",
    queued: "排队中",
    captioning: "正在描述",
    failed: "运行出错，请查看节点。",
    noPlay: "此浏览器无法播放该文件，显示的是第一帧。",
    sure: (n) => `采用 ${n} 条描述？`,
  },
}

function words() {
  const locale = app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en"
  return { ...WORDS.en, ...WORDS[String(locale).split("-")[0]] }
}

const STYLE = `
.uvg-review { width: min(1340px, 97vw); height: min(900px, 95vh); max-width: none; max-height: none; padding: 0; margin: auto;
  border: 1px solid var(--border-color, #4e4e4e); border-radius: 10px; overflow: hidden;
  background: var(--comfy-menu-bg, #232323); color: var(--input-text, #ddd); font: 14px/1.4 system-ui, sans-serif; }
.uvg-review::backdrop { background: rgb(0 0 0 / 0.6); }
.uvg-review[open] { display: grid; grid-template: auto minmax(0, 1fr) auto / minmax(280px, 34%) minmax(0, 1fr); }
.uvg-review header { grid-column: 1 / -1; display: flex; flex-direction: column; gap: 6px; padding: 8px 12px;
  border-bottom: 1px solid var(--border-color, #4e4e4e); }
.uvg-review h2 { font-size: 16px; margin: 0 8px 0 0; }
.uvg-review .uvg-gap { flex: 1; }
.uvg-review input, .uvg-review select, .uvg-review textarea, .uvg-review button { font: inherit; color: inherit;
  background: var(--comfy-input-bg, #1a1a1a); border: 1px solid var(--border-color, #4e4e4e); border-radius: 6px; padding: 4px 8px; }
.uvg-review button { cursor: pointer; }
.uvg-review button:disabled { opacity: 0.45; cursor: default; }
.uvg-review button.uvg-main { background: #2f6f4f; border-color: #3f8f67; color: #fff; }
.uvg-review :focus-visible { outline: 2px solid #6cb6ff; outline-offset: 1px; }
.uvg-review .uvg-list { position: relative; overflow-y: auto; border-right: 1px solid var(--border-color, #4e4e4e); }
.uvg-review .uvg-list:focus-visible { outline-offset: -2px; }
.uvg-review .uvg-row { position: absolute; left: 0; right: 0; height: ${ROW}px; box-sizing: border-box; display: flex; gap: 10px;
  padding: 7px 10px; cursor: pointer; border-bottom: 1px solid rgb(128 128 128 / 0.2); }
.uvg-review .uvg-row[aria-selected="true"] { background: rgb(80 140 220 / 0.28); }
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
.uvg-review .uvg-both textarea { height: 128px; resize: vertical; font-size: 14px; color: var(--input-text, #ddd); }
.uvg-review .uvg-both textarea[readonly] { opacity: 0.75; }
.uvg-review .uvg-line { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; }
.uvg-review .uvg-line .uvg-hint { flex: 1; min-width: 120px; }
.uvg-review .uvg-problem { color: #ffb4a2; min-height: 0; }
.uvg-review .uvg-empty { padding: 24px; color: var(--descrip-text, #999); }
.uvg-review footer { grid-column: 1 / -1; padding: 5px 12px; font-size: 12px; color: var(--descrip-text, #999);
  border-top: 1px solid var(--border-color, #4e4e4e); display: flex; gap: 16px; }
.uvg-review footer [role="status"] { margin-left: auto; color: var(--input-text, #ddd); }
`

function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && !name.startsWith("aria")) element[name] = value
    else element.setAttribute(name, value)
  }
  element.append(...children)
  return element
}

/** Enter alone, and not the one that ends what an input method composes. */
function isEnter(event) {
  const isComposed = event.isComposing || event.keyCode === 229
  return event.key === "Enter" && !isComposed && !event.ctrlKey && !event.metaKey
}

class Panel {
  constructor(folder, subfolders, node) {
    Object.assign(this, {
      folder,
      subfolders,
      node,
      t: words(),
      items: [],
      shown: [],
      at: -1,
      rows: new Map(),
      before: null,
    })
    this.jobs = new Map() // prompts that caption a clip again, by their id
    this.build()
  }

  build() {
    const t = this.t
    const on = (element, act) => (element.addEventListener("click", act), element)
    this.folderBox = h("input", { value: this.folder, size: 22, "aria-label": t.folder, title: t.folder })
    this.filterBox = h("select", { "aria-label": t.show })
    for (const name of ["open", "accepted", "skipped", "all"])
      this.filterBox.append(h("option", { value: name }, t[name]))
    this.searchBox = h("input", { type: "search", size: 12, placeholder: t.search, "aria-label": t.search })
    this.findBox = h("input", { size: 14, placeholder: t.find, "aria-label": t.find })
    this.replaceBox = h("input", { size: 14, placeholder: t.replace, "aria-label": t.replace })
    this.matches = h("span", { className: "uvg-name" })
    this.replaceButton = on(h("button", { disabled: true }, t.replaceAll), () => this.replace())
    this.undoButton = on(h("button", { disabled: true }, t.undoReplace), () => this.undo())
    this.acceptAllButton = on(h("button", {}, t.acceptAll), () => this.acceptAll())
    this.list = h("div", { className: "uvg-list", tabIndex: 0, role: "listbox", "aria-label": t.list })
    this.space = h("div", { role: "presentation" })
    this.list.append(this.space)
    this.stage = h("div", { className: "uvg-clip" })
    this.nameLine = h("div", { className: "uvg-name" })
    this.oldBox = h("textarea", { readOnly: true })
    this.newBox = h("textarea", { maxLength: 100000, spellcheck: true })
    this.acceptButton = on(h("button", { className: "uvg-main" }, t.accept), () => this.decideCurrent("accepted"))
    this.skipButton = on(h("button", {}, t.skip), () => this.decideCurrent("skipped"))
    this.reopenButton = on(h("button", {}, t.reopen), () => this.decideCurrent("open"))
    this.hintBox = h("input", { className: "uvg-hint", placeholder: `${t.hint}: ${t.hintHelp}`, "aria-label": t.hint })
    this.againButton = on(h("button", {}, t.again), () => this.again())
    this.problem = h("div", { className: "uvg-problem", role: "alert" })
    this.counts = h("span", { className: "uvg-name" })
    this.status = h("span", { role: "status" })
    this.detail = h(
      "main",
      {},
      this.nameLine,
      this.stage,
      h("div", { className: "uvg-both" }, h("label", {}, t.was, this.oldBox), h("label", {}, t.now, this.newBox)),
      this.problem,
      h(
        "div",
        { className: "uvg-line" },
        this.acceptButton,
        this.skipButton,
        this.reopenButton,
        this.hintBox,
        this.againButton,
      ),
    )
    this.dialog = h(
      "dialog",
      { className: "uvg-review", "aria-label": t.title },
      h(
        "header",
        {},
        h(
          "div",
          { className: "uvg-line" },
          h("h2", {}, t.title),
          this.folderBox,
          on(h("button", {}, t.load), () => this.reload()),
          this.filterBox,
          this.searchBox,
          this.counts,
          h("span", { className: "uvg-gap" }),
          on(h("button", { "aria-label": t.close, title: t.close }, "✕"), () => this.close()),
        ),
        h(
          "div",
          { className: "uvg-line" },
          this.findBox,
          this.replaceBox,
          this.replaceButton,
          this.undoButton,
          this.matches,
          h("span", { className: "uvg-gap" }),
          this.acceptAllButton,
        ),
      ),
      this.list,
      this.detail,
      h("footer", {}, h("span", {}, `${t.keys}: ${t.keyList}`), this.status),
    )
    this.listen()
  }

  listen() {
    this.dialog.addEventListener("cancel", (event) => event.preventDefault()) // Esc is ours
    this.dialog.addEventListener("close", () => this.end())
    this.dialog.addEventListener("keydown", (event) => this.key(event))
    for (const kind of ["keyup", "keypress", "copy", "cut", "paste", "wheel", "pointerdown", "contextmenu"])
      // not ComfyUI's
      this.dialog.addEventListener(kind, (event) => event.stopPropagation())
    this.list.addEventListener("scroll", () => this.draw())
    this.list.addEventListener("click", (event) => {
      const row = event.target.closest(".uvg-row")
      if (row) this.select(Number(row.dataset.index))
    })
    this.filterBox.addEventListener("change", () => this.refilter())
    this.searchBox.addEventListener("input", () => this.refilter())
    this.folderBox.addEventListener("keydown", (event) => {
      if (isEnter(event)) this.reload()
    })
    this.hintBox.addEventListener("keydown", (event) => {
      if (isEnter(event)) this.again()
    })
    for (const box of [this.findBox, this.replaceBox]) {
      box.addEventListener("input", () => this.count())
      box.addEventListener("keydown", (event) => {
        if (isEnter(event)) this.replace()
      })
    }
    this.newBox.addEventListener("input", () => this.type(this.item, this.newBox.value))
    this.heard = {}
    for (const kind of [
      "execution_success",
      "execution_error",
      "execution_interrupted",
      "execution_start",
      "progress",
    ]) {
      this.heard[kind] = ({ detail }) => this.hear(kind, detail)
      api.addEventListener(kind, this.heard[kind])
    }
    this.resized = new ResizeObserver(() => this.draw())
    this.resized.observe(this.list)
  }

  end() {
    for (const [kind, heard] of Object.entries(this.heard)) api.removeEventListener(kind, heard)
    this.resized.disconnect()
    clearTimeout(this.soon)
    clearTimeout(this.later)
    this.dialog.remove()
    if (Panel.current === this) Panel.current = null
  }

  close() {
    this.dialog.close()
  }

  async open() {
    Panel.current?.close()
    Panel.current = this
    document.body.append(this.dialog)
    this.dialog.showModal()
    this.list.focus()
    this.refilter()
    await this.load()
  }

  // What is there

  get item() {
    return this.shown[this.at]
  }

  draftsOf(folder) {
    if (!drafts.has(folder)) drafts.set(folder, new Map())
    return drafts.get(folder)
  }

  text(item) {
    return item.drafts.get(item.clip) ?? item.new
  }

  type(item, text) {
    if (!item) return
    if (text === item.new) item.drafts.delete(item.clip)
    else item.drafts.set(item.clip, text)
    this.drawRow(this.shown.indexOf(item))
  }

  address(what, item) {
    try {
      const query = new URLSearchParams({ folder: this.folder, subfolders: this.subfolders, clip: item.clip })
      return api.apiURL(`${ROUTE}/${what}?${query}`)
    } catch {
      return "" // a name that is no text
    }
  }

  async ask(path, options) {
    let answer, content
    try {
      answer = await api.fetchApi(path, { cache: "no-store", ...options })
      content = await answer.json()
    } catch {
      throw new Error(this.t.unreachable)
    }
    if (!answer.ok) throw new Error(content?.error ?? this.t.unreachable)
    return content
  }

  reload() {
    this.folder = this.folderBox.value.trim()
    return this.load()
  }

  async load() {
    if (!this.folder) return
    this.say(this.t.loading)
    const folder = this.folder
    this.before = null
    try {
      const query = new URLSearchParams({ folder, subfolders: this.subfolders })
      const { items, gone } = await this.ask(`${ROUTE}?${query}`)
      this.items = items.map((item) => ({ ...item, seen: item.new, drafts: this.draftsOf(folder) }))
      this.say(gone ? this.t.gone(gone) : "")
      this.refilter(this.t.none)
    } catch (error) {
      this.items = []
      this.say("")
      this.refilter(error.message)
    }
  }

  refilter(none) {
    const chosen = this.item?.clip,
      index = Math.max(this.at, 0)
    const [state, part] = [this.filterBox.value, this.searchBox.value.toLowerCase()]
    this.shown = this.items.filter(
      (item) =>
        (state === "all" || item.state === state) &&
        (!part || item.clip.toLowerCase().includes(part) || this.text(item).toLowerCase().includes(part)),
    )
    for (const row of this.rows.values()) row.remove()
    this.rows.clear()
    this.space.style.height = `${this.shown.length * ROW}px`
    this.empty?.remove()
    if (!this.shown.length) {
      this.empty = h("div", { className: "uvg-empty" }, this.items.length ? this.t.noneShown : (none ?? ""))
      this.list.append(this.empty)
    }
    const kept = this.shown.findIndex((item) => item.clip === chosen)
    const count = (name) => this.items.filter((item) => item.state === name).length
    this.counts.textContent = this.t.counts(count("open"), count("accepted"), count("skipped"))
    this.count()
    this.select(kept >= 0 ? kept : Math.min(index, this.shown.length - 1), chosen)
  }

  // The list: only the rows that are seen are there

  draw() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW) - BEYOND)
    const last = Math.min(this.shown.length, Math.ceil((this.list.scrollTop + this.list.clientHeight) / ROW) + BEYOND)
    for (const [index, row] of this.rows) {
      if (index < first || index >= last) {
        row.querySelector("img").removeAttribute("src") // and its request ends
        row.remove()
        this.rows.delete(index)
      }
    }
    for (let index = first; index < last; index++) if (!this.rows.has(index)) this.drawRow(index)
    clearTimeout(this.soon)
    this.soon = setTimeout(() => {
      // once the list stands still
      for (const [index, row] of this.rows) {
        const picture = row.querySelector("img")
        if (!picture.hasAttribute("src")) picture.src = this.address("frame", this.shown[index])
      }
    }, 120)
  }

  drawRow(index) {
    const item = this.shown[index]
    if (!item) return
    let row = this.rows.get(index)
    if (!row) {
      row = h(
        "div",
        { className: "uvg-row", role: "option", id: `uvg-row-${index}` },
        h("img", { alt: "" }),
        h("div", {}, h("div", { className: "uvg-name" }), h("div", { className: "uvg-text" })),
      )
      row.dataset.index = index
      row.style.top = `${index * ROW}px`
      row.setAttribute("aria-setsize", this.shown.length)
      row.setAttribute("aria-posinset", index + 1)
      this.rows.set(index, row)
      this.space.append(row)
    }
    const notes = [
      item.state === "open" ? "" : this.t[item.state],
      item.drafts.has(item.clip) ? this.t.edited : "",
      item.job ?? "",
    ]
    const mark = item.problem ? "⚠ " : ({ accepted: "✓ ", skipped: "– " }[item.state] ?? "")
    row.querySelector(".uvg-name").textContent = `${mark}${[item.clip, ...notes.filter(Boolean)].join(" · ")}`
    row.querySelector(".uvg-text").textContent = this.text(item)
    row.classList.toggle("uvg-done", item.state !== "open")
    row.setAttribute("aria-selected", index === this.at)
  }

  select(index, before = null) {
    const left = this.at
    this.at = index
    if (index >= 0) {
      const top = index * ROW
      if (top < this.list.scrollTop) this.list.scrollTop = top
      if (top + ROW > this.list.scrollTop + this.list.clientHeight)
        this.list.scrollTop = top + ROW - this.list.clientHeight
      this.list.setAttribute("aria-activedescendant", `uvg-row-${index}`)
    } else this.list.removeAttribute("aria-activedescendant")
    this.draw()
    this.drawRow(left)
    this.drawRow(index)
    this.drawDetail(this.item?.clip !== (before ?? this.drawn))
  }

  drawDetail(isOther = false) {
    const item = this.item
    this.detail.style.visibility = item ? "visible" : "hidden"
    this.nameLine.textContent = item ? `${this.at + 1} / ${this.shown.length} · ${item.clip}` : ""
    this.oldBox.value = item?.old ?? ""
    this.oldBox.placeholder = this.t.nothing
    if (!item || this.newBox.value !== this.text(item)) this.newBox.value = item ? this.text(item) : ""
    this.problem.textContent = item?.problem ?? ""
    const isBusy = !item || Boolean(item.busy)
    this.skipButton.disabled = this.acceptButton.disabled = isBusy || item.fresh
    this.skipButton.hidden = item?.state === "skipped"
    this.reopenButton.hidden = item?.state !== "skipped"
    this.againButton.disabled = isBusy || Boolean(item.job)
    this.againButton.title = this.node ? "" : this.t.noNode
    if (isOther || this.drawn !== item?.clip) this.show(item)
    this.drawn = item?.clip
  }

  show(item) {
    clearTimeout(this.later)
    this.stage.querySelector("video")?.removeAttribute("src")
    this.stage.replaceChildren()
    if (!item) return
    this.later = setTimeout(() => {
      // not for each clip that somebody walks past
      if (PICTURES.test(item.clip)) {
        this.stage.replaceChildren(h("img", { alt: item.clip, src: this.address("clip", item) }))
        return
      }
      const video = h("video", { controls: true, loop: true, muted: true, playsInline: true, tabIndex: -1 })
      video.poster = this.address("frame", item)
      video.autoplay = !matchMedia("(prefers-reduced-motion: reduce)").matches
      video.addEventListener("error", () => {
        if (!video.isConnected || !video.hasAttribute("src")) return
        this.stage.replaceChildren(
          h("img", { alt: this.t.noPlay, title: this.t.noPlay, src: this.address("frame", item) }),
        )
      })
      video.src = this.address("clip", item)
      this.stage.replaceChildren(video)
    }, 150)
  }

  say(text) {
    this.status.textContent = text
  }

  // Decisions

  decideCurrent(decision) {
    const item = this.item
    if (!item || item.busy || (decision === "open" && item.state !== "skipped") || (decision !== "open" && item.fresh))
      return
    if (this.filterBox.value === "all" && decision !== "open" && this.at + 1 < this.shown.length)
      this.select(this.at + 1)
    this.list.focus()
    return this.decide([item], decision)
  }

  async acceptAll() {
    const open = this.shown.filter((item) => item.state === "open" && !item.busy && !item.conflict)
    if (open.length && confirm(this.t.sure(open.length))) await this.decide(open, "accepted")
  }

  async decide(items, decision) {
    for (const item of items) Object.assign(item, { busy: true, conflict: false, problem: "" })
    this.drawDetail()
    const folder = this.folder
    for (let start = 0, part; start < items.length; start += part.length) {
      part = items.slice(start, start + BATCH)
      for (let letters = 0, index = 0; index < part.length; index++) {
        letters += this.text(part[index]).length + part[index].old.length + part[index].seen.length
        if (index && letters > LETTERS) part = part.slice(0, index)
      }
      const decisions = part.map((item) => ({
        clip: item.clip,
        decision,
        new: item.seen,
        ...(decision === "accepted" ? { text: this.text(item), old: item.old } : {}),
      }))
      try {
        const body = JSON.stringify({ folder, subfolders: this.subfolders, decisions })
        const answer = await this.ask(ROUTE, { method: "POST", body, headers: { "Content-Type": "application/json" } })
        answer.items.forEach((outcome, number) => this.take(part[number], outcome, decisions[number]))
        if (part.length < items.length) this.say(`${start + part.length} / ${items.length}`)
      } catch (error) {
        for (const item of items.slice(start)) Object.assign(item, { busy: false, problem: error.message })
        break
      }
    }
    if (folder === this.folder) this.refilter()
  }

  take(item, { state, now, new: proposed, problem }, decision) {
    const isNewer = proposed !== decision.new
    const conflict = isNewer ? this.t.newer : this.t.conflict
    Object.assign(item, { busy: false, problem: state === "conflict" ? conflict : problem })
    if (state === "failed") return
    Object.assign(item, { old: now, seen: proposed, ...(isNewer ? { new: proposed } : {}) })
    if (state === "conflict") {
      item.conflict = item.fresh = true // whoever decides one after the other is to see it first
      setTimeout(() => {
        item.fresh = false
        this.drawDetail()
      }, LOOK)
      return
    }
    item.state = state
    if (state === "accepted" && decision.decision === "accepted") {
      item.new = decision.text
      item.drafts.delete(item.clip)
    }
  }

  // Find and replace, as plain text, in what is shown

  found() {
    const find = this.findBox.value
    return find ? this.shown.filter((item) => item.state === "open" && this.text(item).includes(find)) : []
  }

  count() {
    const items = this.found(),
      find = this.findBox.value
    const total = items.reduce((sum, item) => sum + this.text(item).split(find).length - 1, 0)
    this.matches.textContent = find ? this.t.matches(total, items.length) : ""
    this.replaceButton.disabled = !items.length
    this.undoButton.disabled = !this.before
  }

  replace() {
    const items = this.found(),
      [find, put] = [this.findBox.value, this.replaceBox.value]
    if (!items.length) return
    this.before = new Map(items.map((item) => [item, this.text(item)]))
    for (const item of items) this.type(item, this.text(item).split(find).join(put).slice(0, 100000))
    this.say(this.matches.textContent)
    this.count()
    this.drawDetail()
  }

  undo() {
    for (const [item, text] of this.before ?? []) if (item.state === "open") this.type(item, text)
    this.before = null
    this.count()
    this.drawDetail()
  }

  // Caption again: the node and what it depends on, for one clip

  async again() {
    const item = this.item
    if (!item || item.job || item.busy) return
    item.problem = ""
    try {
      const node = this.node ?? theNode(this.folder)
      if (!node) throw new Error(this.t.noNode)
      const { output, workflow } = await app.graphToPrompt()
      const id = Object.keys(output).find(
        (key) => output[key].class_type === NODE && (key === String(node.id) || key.endsWith(`:${node.id}`)),
      )
      if (!id) throw new Error(this.t.noNode)
      const kept = {}
      const keep = (key) => {
        if (key in kept || !(key in output)) return
        kept[key] = output[key]
        for (const value of Object.values(output[key].inputs))
          if (Array.isArray(value) && value.length === 2) keep(String(value[0]))
      }
      keep(id)
      const hint = this.hintBox.value.trim()
      kept[id] = {
        ...output[id],
        inputs: {
          ...output[id].inputs,
          folder: this.folder,
          subfolders: this.subfolders,
          only: item.clip,
          review: true,
          seed: Math.floor(Math.random() * 2 ** 48),
          ...(hint ? { hint } : {}),
        },
      }
      item.job = this.t.queued
      this.drawRow(this.at)
      this.drawDetail()
      const { prompt_id } = await api.queuePrompt(0, { output: kept, workflow })
      if (!prompt_id) throw new Error(this.t.failed)
      this.jobs.set(prompt_id, item)
    } catch (error) {
      Object.assign(item, { job: "", problem: error.message })
      this.drawRow(this.shown.indexOf(item))
      this.drawDetail()
    }
  }

  async hear(kind, detail) {
    const item = this.jobs.get(detail?.prompt_id)
    if (!item) return
    if (kind === "progress" || kind === "execution_start") {
      item.job = kind === "progress" ? `${this.t.captioning} ${detail.value}/${detail.max}` : this.t.captioning
      this.drawRow(this.shown.indexOf(item))
      return
    }
    this.jobs.delete(detail.prompt_id)
    Object.assign(item, {
      job: "",
      problem: kind === "execution_error" ? detail.exception_message || this.t.failed : "",
    })
    if (kind === "execution_success") {
      try {
        const query = new URLSearchParams({ folder: this.folder, subfolders: this.subfolders })
        const fresh = (await this.ask(`${ROUTE}?${query}`)).items.find((one) => one.clip === item.clip)
        if (fresh) {
          this.before = new Map([[item, this.text(item)]]) // Undo brings back what stood there
          item.drafts.delete(item.clip)
          Object.assign(item, fresh, { seen: fresh.new })
        }
      } catch (error) {
        item.problem = error.message
      }
    }
    this.refilter()
  }

  // Keys

  key(event) {
    event.stopPropagation() // ComfyUI has shortcuts of its own
    if (event.isComposing || event.keyCode === 229) return
    const isTyping = event.target.matches("textarea, input, select")
    if (event.key === "Escape") {
      event.preventDefault()
      if (isTyping) this.list.focus()
      else this.close()
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault()
      this.decideCurrent("accepted")
    } else if (!isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) this.command(event)
  }

  command(event) {
    const page = Math.max(1, Math.floor(this.list.clientHeight / ROW) - 1)
    const moves = {
      ArrowDown: 1,
      ArrowUp: -1,
      j: 1,
      k: -1,
      PageDown: page,
      PageUp: -page,
      Home: -Infinity,
      End: Infinity,
    }
    const acts = {
      s: () => this.decideCurrent("skipped"),
      u: () => this.decideCurrent("open"),
      e: () => this.newBox.focus(),
      h: () => this.hintBox.focus(),
      f: () => this.findBox.focus(),
    }
    const isButton = event.target.matches("button")
    if (!isButton) {
      acts.Enter = () => this.decideCurrent("accepted")
      acts[" "] = () => {
        const video = this.stage.querySelector("video")
        if (video) video[video.paused ? "play" : "pause"]()
      }
    }
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key
    if (key in moves) {
      event.preventDefault()
      if (this.shown.length) this.select(Math.min(Math.max(this.at + moves[key], 0), this.shown.length - 1))
    } else if (key in acts && !event.repeat) {
      event.preventDefault()
      acts[key]()
    }
  }
}

// The node

function value(node, name) {
  return node.widgets?.find((widget) => widget.name === name)?.value
}

function nodes(graph = app.rootGraph ?? app.graph) {
  const all = graph?._nodes ?? []
  return all
    .flatMap((node) => [node, ...(node.subgraph ? nodes(node.subgraph) : [])])
    .filter((node) => node.type === NODE || node.subgraph)
}

function theNode(folder) {
  const all = nodes().filter((node) => node.type === NODE)
  return all.find((node) => value(node, "folder") === folder) ?? (all.length === 1 ? all[0] : null)
}

function review(node = theNode()) {
  if (!document.getElementById("uvg-review-style"))
    document.head.append(h("style", { id: "uvg-review-style", textContent: STYLE }))
  const panel = new Panel(
    String((node && value(node, "folder")) ?? ""),
    node ? value(node, "subfolders") !== false : true,
    node,
  )
  return panel.open()
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
