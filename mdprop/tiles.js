// mdprop: rows of images that can be picked: a gallery, neighbours before and after, targets of an attack.
// Stands behind ground.js in one ES module, in the notebook and in an exported page.
// Names reach the page by textContent only.

const bytes = (value) => (!value ? new Uint8Array(0) : value instanceof ArrayBuffer ? new Uint8Array(value) : new Uint8Array(value.buffer, value.byteOffset, value.byteLength));

/** A DOM element; `text` is always set by textContent. What can have the focus says itself that its keys are not JupyterLab's: Lab looks at the element before its parents. */
function h(tag, { text, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  if ("tabindex" in attributes || ["button", "input", "select"].includes(tag)) node.dataset.lmSuppressShortcuts = "true";
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) if (value !== false && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  node.append(...children);
  return node;
}

/** The sheet of thumbnails as a bitmap; null without one. */
async function readSheet(value) {
  const sheet = bytes(value);
  if (!sheet.length) return null;
  return createImageBitmap(new Blob([sheet], { type: { 0x89: "image/png", 0xff: "image/jpeg", 0x52: "image/webp" }[sheet[0]] }));
}

/** One thumbnail, with what is known of it. */
function makeTile({ item, mark = "", caption = "", detail = "", state = "", title = caption }, selected = false, role = "option") {
  const tile = h("div", { class: "mdp-tile", ...(role === "option" ? { role, tabindex: -1, "aria-selected": `${selected}` } : { role: "img" }), "data-item": item, "data-mark": mark, "data-state": state, title, "aria-label": title });
  const sign = { right: "✓", wrong: "✗", lost: "−", gained: "+", target: "◎" }[mark];
  tile.append(h("canvas", { "aria-hidden": "true" }));
  if (sign) tile.append(h("span", { class: "mdp-tile-mark", "aria-hidden": "true", text: sign }));
  if (caption) tile.append(h("span", { class: "mdp-tile-caption" }, h("bdi", { text: caption })));
  if (detail || state) tile.append(h("span", { class: "mdp-tile-detail" }, h("span", { text: detail }), h("span", { class: "mdp-tile-state", text: state })));
  return tile;
}

/** Draw the thumbnails of all tiles below `root` from the sheet, as large as they stand. */
function paintTiles(root, bitmap, [columns, side]) {
  const ratio = window.devicePixelRatio || 1;
  if (!bitmap || !side) return;
  for (const tile of root.querySelectorAll("[data-item]")) {
    const i = +tile.dataset.item, canvas = tile.firstChild, ctx = canvas.getContext("2d"), size = Math.max(1, Math.round((canvas.clientWidth || 64) * ratio));
    canvas.width = canvas.height = size;
    ctx.imageSmoothingQuality = "high";
    ctx.imageSmoothingEnabled = side > 20;
    ctx.drawImage(bitmap, (i % columns) * side, Math.floor(i / columns) * side, side, side, 0, 0, size, size);
  }
}

/** Tiles that are picked by a click, Enter or the space bar, and reached by the arrow keys: one stop of the Tab key a row. */
function tileKeys(root, pick) {
  const focus = (tile) => {
    for (const other of tile.parentElement.querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
    tile.tabIndex = 0;
    tile.focus();
  };
  const at = (event) => event.target.closest("[role='option'][data-item]");
  root.addEventListener("click", (event) => { const tile = at(event); if (tile) { focus(tile); pick(tile); } });
  root.addEventListener("keydown", (event) => {
    const tile = at(event);
    if (!tile || event.ctrlKey || event.metaKey || event.altKey) return;
    const to = { ArrowRight: tile.nextElementSibling, ArrowLeft: tile.previousElementSibling, Home: tile.parentElement.firstElementChild, End: tile.parentElement.lastElementChild }[event.key];
    if (to) focus(to);
    else if (event.key === " " || event.key === "Enter") pick(tile);
    else if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
    event.stopPropagation();
  });
}

export class TileView {
  constructor(model, host) {
    this.model = model;
    this.root = h("section", { class: "mdp mdp-tiles", "data-lm-suppress-shortcuts": "true" });
    host.append(this.root);
    this.unwatch = watchGround(host, (theme) => { this.root.dataset.theme = theme; });
    this.handlers = { rows: () => this.draw(), sprite: () => this.load(), picked: () => this.mark(), tile: () => this.draw() };
    for (const [name, handler] of Object.entries(this.handlers)) model.on(`change:${name}`, handler);
    tileKeys(this.root, (tile) => { model.set("picked", +tile.dataset.item); model.save_changes(); });
    this.draw();
    this.load();
  }

  destroy() {
    for (const [name, handler] of Object.entries(this.handlers)) this.model.off(`change:${name}`, handler);
    this.unwatch();
    this.root.remove();
  }

  /** The former sheet stays until the next one is read. */
  load() {
    const sheet = this.model.get("sprite");
    readSheet(sheet).then((bitmap) => { if (sheet === this.model.get("sprite")) { this.bitmap = bitmap; this.paint(); } });
  }

  draw() {
    this.root.style.setProperty("--mdp-tile", `${this.model.get("tile")}px`);
    const rows = this.model.get("rows").map((row) => {
      const list = h("div", { class: "mdp-tile-row", role: row.still ? "group" : "listbox", "aria-label": row.label }, ...row.tiles.map((tile) => makeTile(tile, false, row.still ? "img" : "option")));
      if (list.firstChild && !row.still) list.firstChild.tabIndex = 0;
      if (!list.firstChild) list.append(h("p", { class: "mdp-empty", text: row.empty || "No image to show." }));
      return h("div", {}, h("h3", { text: row.label }), row.note ? h("p", { class: "mdp-tile-note", text: row.note }) : "", list);
    });
    const held = this.root.contains(document.activeElement) && document.activeElement.closest("[data-item]"), at = held ? [...this.root.querySelectorAll("[data-item]")].indexOf(held) : -1;
    this.root.replaceChildren(h("div", { class: "mdp-tile-rows", style: `--mdp-columns: ${this.model.get("columns")}` }, ...rows));
    this.mark();
    this.paint();
    if (at >= 0) this.root.querySelectorAll("[data-item]")[at]?.focus();
  }

  paint() { paintTiles(this.root, this.bitmap, this.model.get("sprite_grid")); }

  mark() {
    const picked = this.model.get("picked");
    for (const tile of this.root.querySelectorAll("[role='option']")) tile.setAttribute("aria-selected", +tile.dataset.item === picked);
  }
}

/** The widget. */
export const tiles = {
  render({ model, el }) {
    const view = new TileView(model, el);
    return () => view.destroy();
  },
};
