// mdprop: two pictures of the same items, side by side, that pan, zoom, brush and highlight together.
// One ES module without a build step. JupyterLab loads it through anywidget (the default export); an exported page
// holds this very text and calls `openPage`. Names of classes and items reach the page by textContent only.

// ---------------------------------------------------------------- pure functions (tested in the browser)

/** Any buffer that a widget manager or a page may hand over, as bytes. */
export function bytes(value) {
  if (!value) return new Uint8Array(0);
  if (value instanceof ArrayBuffer) return new Uint8Array(value);
  return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
}

const typed = (Type, value) => new Type(bytes(value).slice().buffer);

/** Bits of a mask (least significant first) as one byte per item. */
export function unpackBits(mask, n) {
  const packed = bytes(mask), out = new Uint8Array(n);
  if (packed.length) for (let i = 0; i < n; i++) out[i] = (packed[i >> 3] >> (i & 7)) & 1;
  return out;
}

export function packBits(flags) {
  const out = new Uint8Array((flags.length + 7) >> 3);
  for (let i = 0; i < flags.length; i++) if (flags[i]) out[i >> 3] |= 1 << (i & 7);
  return out;
}

/** The bounding box of all positions and the square window around it (as `mdprop.project.picture_window`). */
export function pictureWindow(layouts, margin = 0.12) {
  let x0 = Infinity, x1 = -Infinity, y0 = Infinity, y1 = -Infinity;
  for (const xy of layouts) {
    for (let i = 0; i < xy.length; i += 2) {
      x0 = Math.min(x0, xy[i]); x1 = Math.max(x1, xy[i]);
      y0 = Math.min(y0, xy[i + 1]); y1 = Math.max(y1, xy[i + 1]);
    }
  }
  const side = Math.max(x1 - x0, y1 - y0) * (1 + 2 * margin) || 1;
  return { left: (x0 + x1 - side) / 2, bottom: (y0 + y1 - side) / 2, side, width: x1 - x0, height: y1 - y0 };
}

/** Items per cell: a histogram with linear sharing, then a Gaussian blur (as `mdprop.project.picture_density`). */
export function densityGrid(xy, keep, window, bandwidth, cells = 128) {
  const grid = new Float32Array(cells * cells), half = new Float32Array(cells * cells);
  for (let i = 0; i < xy.length / 2; i++) {
    if (keep && !keep[i]) continue;
    const gx = ((xy[2 * i] - window.left) / window.side) * cells - 0.5;
    const gy = ((xy[2 * i + 1] - window.bottom) / window.side) * cells - 0.5;
    const cx = Math.floor(gx), cy = Math.floor(gy), px = gx - cx, py = gy - cy;
    for (let dy = 0; dy < 2; dy++) for (let dx = 0; dx < 2; dx++) {
      const c = cx + dx, r = cy + dy;
      if (c >= 0 && r >= 0 && c < cells && r < cells) grid[r * cells + c] += Math.abs(1 - dx - px) * Math.abs(1 - dy - py);
    }
  }
  const sigma = bandwidth * cells, reach = Math.ceil(4 * sigma), kernel = [];
  for (let d = -reach; d <= reach; d++) kernel.push(Math.exp(-0.5 * (d / sigma) ** 2));
  const sum = kernel.reduce((a, b) => a + b, 0);
  const blur = (from, to, along, across) => {
    to.fill(0);
    for (let j = 0; j < cells; j++) for (let i = 0; i < cells; i++) {
      const value = from[j * across + i * along];
      if (!value) continue;
      for (let d = Math.max(-reach, -i); d <= Math.min(reach, cells - 1 - i); d++) to[j * across + (i + d) * along] += (value * kernel[d + reach]) / sum;
    }
  };
  blur(grid, half, 1, cells);
  blur(half, grid, cells, 1);
  return grid;
}

/** Closed lines of one level by marching squares, in grid coordinates; the higher side lies to the left. */
export function contourRings(grid, cells, level) {
  const n = cells + 2, at = (i, j) => (i < 1 || j < 1 || i > cells || j > cells ? 0 : grid[(j - 1) * cells + i - 1]);
  const next = new Int32Array(2 * n * n).fill(-1);  // a crossing is named by its grid edge: 2 * node (to the right), 2 * node + 1 (upwards)
  for (let j = 0; j < n - 1; j++) for (let i = 0; i < n - 1; i++) {
    const corner = (at(i, j) > level) | ((at(i + 1, j) > level) << 1) | ((at(i + 1, j + 1) > level) << 2) | ((at(i, j + 1) > level) << 3);
    if (corner === 0 || corner === 15) continue;
    const B = 2 * (j * n + i), L = B + 1, R = B + 3, T = 2 * ((j + 1) * n + i);
    const steps = [, [B, L], [R, B], [R, L], [T, R], [B, L, T, R], [T, B], [T, L], [L, T], [B, T], [R, B, L, T], [R, T], [L, R], [B, R], [L, B]][corner];
    for (let s = 0; s < steps.length; s += 2) next[steps[s]] = steps[s + 1];
  }
  const point = (edge) => {
    const node = edge >> 1, i = node % n, j = (node - i) / n, up = edge & 1;
    const a = at(i, j), b = up ? at(i, j + 1) : at(i + 1, j), t = (level - a) / (b - a);
    return up ? [i, j + t] : [i + t, j];
  };
  const rings = [];
  for (let start = 0; start < next.length; start++) {
    if (next[start] < 0) continue;
    const ring = [];
    for (let edge = start; next[edge] >= 0;) {
      ring.push(point(edge));
      const following = next[edge];
      next[edge] = -1;
      edge = following;
    }
    if (ring.length > 2) rings.push(ring);
  }
  return rings;
}

/** Is the point inside the polygon (list of [x, y])? */
export function inside(polygon, x, y) {
  let odd = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [xi, yi] = polygon[i], [xj, yj] = polygon[j];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) odd = !odd;
  }
  return odd;
}

// ---------------------------------------------------------------- colours, words and DOM

const CELLS = 128;
const MAX_COLOURS = 8;
// Okabe and Ito's eight colours; the last one is the ink of the theme. On dark ground the two dark ones are lifted.
const PALETTE = {
  light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B8A500", "#1b1f24"],
  dark: ["#56B4E9", "#E69F00", "#1fc299", "#CC79A7", "#F0E442", "#3f9be0", "#ee7a2b", "#f2f4f7"],
};
const number = new Intl.NumberFormat("en");
const plural = (n, one, many = one + "s") => `${number.format(n)} ${n === 1 ? one : many}`;
let views = 0;

/** A DOM element; `text` is always set by textContent. */
function h(tag, { text, on, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) if (value !== false && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  for (const [name, handler] of Object.entries(on || {})) node.addEventListener(name, handler);
  node.append(...children);
  return node;
}

/** A row of radio buttons drawn as one segmented control. */
function segments(label, name, options, value, pick) {
  const group = h("fieldset", { class: "mdp-segments" }, h("legend", { text: label }));
  const row = h("div", { class: "mdp-segment-row" });
  for (const [key, text, title] of options) {
    const input = h("input", { type: "radio", name, value: key, on: { change: () => pick(key) } });
    input.checked = key === value;
    row.append(h("label", { title }, input, h("span", { text })));
  }
  group.append(row);
  group.show = (key) => { for (const input of group.querySelectorAll("input")) input.checked = input.value === key; };
  return group;
}

function slider(label, title, { min, max, step, value, format, input, change }) {
  const out = h("output", { text: format(value) });
  const range = h("input", { type: "range", min, max, step, on: { change } });
  range.value = value;
  range.addEventListener("input", () => { out.textContent = format(+range.value); input(+range.value); });
  const node = h("label", { class: "mdp-slider", title }, h("span", { text: label }), range, out);
  node.show = (v) => { range.value = v; out.textContent = format(v); };
  return node;
}

/** One measure: before, after, difference, direction and, on hover or focus, what it means. */
function metricCard(metric, id) {
  const { label, caption = "", before, after, percent, better, digits = 3, meaning, words, direction } = metric;
  const known = (v) => typeof v === "number" && Number.isFinite(v);
  const show = (v) => (v === "inf" ? "∞" : known(v) ? (percent ? `${(100 * v).toFixed(1)} %` : v.toFixed(digits)) : "n/a");
  const both = known(before) && known(after), gap = both ? after - before : 0;
  const shown = Math.abs(percent ? 100 * gap : gap).toFixed(percent ? 1 : digits);
  const still = both && Number(shown) === 0, up = gap > 0;
  const good = (better === "higher") === up, verdict = !both ? "" : still ? "no change" : words[good ? 0 : 1];
  const tip = h("span", { class: "mdp-meaning", role: "tooltip", id, text: meaning });
  const info = h("button", { type: "button", class: "mdp-info", "aria-label": `What ${label} means`, "aria-describedby": id, text: "?" });
  const part = (name, value, cls) => h("div", { class: `mdp-value ${cls}` }, h("span", { text: name }), h("strong", { text: value }));
  return h("article", { class: "mdp-metric", "data-verdict": both && !still ? (good ? "better" : "worse") : "none" },
    h("h3", {}, h("span", { text: label }), h("span", { class: "mdp-caption", text: caption }), info, tip),
    h("div", { class: "mdp-values" }, part("before", show(before), ""), part("after", show(after), "mdp-after"),
      part("difference", both ? `${still ? "±" : up ? "+" : "−"}${shown}${percent ? " points" : ""}` : "n/a", "mdp-gap")),
    h("p", { class: "mdp-direction" }, h("strong", { text: verdict && verdict !== "no change" ? `${up ? "▲" : "▼"} ${verdict}` : verdict }), h("span", { text: direction })));
}

// ---------------------------------------------------------------- the view

class View {
  constructor(model, host) {
    this.model = model;
    this.id = `mdp${++views}`;
    this.undo = [];
    this.root = h("section", { class: "mdp", "data-lm-suppress-shortcuts": "true", "aria-label": "Two embeddings of the same items, side by side" });
    host.append(this.root);
    this.watchTheme();
    const problem = this.read();
    if (problem) { this.fail(problem); return; }
    this.build();
    this.frame();
    this.listen();
    this.loadSprite();
    this.refilter();
  }

  destroy() { for (const undo of this.undo) undo(); this.root.remove(); }

  on(target, event, handler, options) {
    if (target.on) { target.on(event, handler); this.undo.push(() => target.off(event, handler)); }
    else { target.addEventListener(event, handler, options); this.undo.push(() => target.removeEventListener(event, handler, options)); }
  }

  set(name, value, save = true) { this.model.set(name, value); if (save) this.model.save_changes(); }

  // ---- data

  /** Take the arrays out of the model; says what is wrong, or nothing. */
  read() {
    const get = (name) => this.model.get(name);
    if (get("error")) return get("error");
    this.names = get("class_names");
    this.classes = typed(Uint16Array, get("classes"));
    this.n = this.classes.length;
    this.keys = get("item_keys");
    this.titles = get("titles");
    if (!this.n) return "There are no items to show. Pass at least one embedding.";
    if (this.keys.length && this.keys.length !== this.n) return `There are ${plural(this.keys.length, "item name")} for ${plural(this.n, "item")}. Pass one name per item, or none.`;
    for (const [name, p] of Object.entries(get("projections"))) for (const side of ["before", "after"]) {
      if (bytes(p[side]).length !== 8 * this.n) {
        return `The ${name.toUpperCase()} layout ${side} has ${plural(bytes(p[side]).length / 8, "position")}, but there are ${plural(this.n, "item")}. Embed the same items with both models.`;
      }
    }
    this.counts = new Uint32Array(this.names.length);
    for (const c of this.classes) {
      if (c >= this.names.length) return `Class number ${c} has no name: only ${plural(this.names.length, "class", "classes")} are named.`;
      this.counts[c]++;
    }
    this.spread = typed(Float32Array, get("class_spread"));
    return this.readLayout();
  }

  readLayout() {
    const p = this.model.get("projections")[this.model.get("projection")];
    if (!p) return this.xy ? "" : `There is no ${this.model.get("projection")} layout in this view.`;
    this.shown = this.model.get("projection");
    this.xy = [typed(Float32Array, p.before), typed(Float32Array, p.after)];
    for (const xy of this.xy) for (const v of xy) if (!Number.isFinite(v)) return "A position is not a finite number: the embedding holds NaN or infinity.";
    this.trust = [p.trust_before, p.trust_after];
    this.window = pictureWindow(this.xy);
    this.camera = null;
    return "";
  }

  loadSprite() {
    const sheet = bytes(this.model.get("sprite"));
    if (!sheet.length) return;
    const type = { 0x89: "image/png", 0xff: "image/jpeg", 0x52: "image/webp" }[sheet[0]];
    createImageBitmap(new Blob([sheet], { type })).then((bitmap) => { this.sprite = bitmap; this.drawGallery(); this.showTip(); });
  }

  /** Draw the thumbnail of item i into a square of a canvas. */
  thumbnail(ctx, i, x, y, size) {
    const [columns, side] = this.model.get("sprite_grid");
    ctx.drawImage(this.sprite, (i % columns) * side, Math.floor(i / columns) * side, side, side, x, y, size, size);
  }

  // ---- theme

  watchTheme() {
    let later = 0;
    const read = () => {
      cancelAnimationFrame(later);
      const style = getComputedStyle(this.root), ctx = document.createElement("canvas").getContext("2d");
      const colour = (name) => { ctx.fillStyle = "#888888"; ctx.fillStyle = style.getPropertyValue(name).trim(); return ctx.fillStyle; };
      const ground = colour("--mdp-ground"), [r, g, b] = [1, 3, 5].map((i) => parseInt(ground.slice(i, i + 2), 16));
      if (!style.getPropertyValue("--mdp-ground")) later = requestAnimationFrame(read);  // not in the page yet, or before its style sheet
      const theme = 0.3 * r + 0.59 * g + 0.11 * b < 128 ? "dark" : "light";
      this.root.dataset.theme = theme;
      this.palette = PALETTE[theme];
      const ink = theme === "dark" ? "#f2f4f7" : "#1b1f24";
      this.colours = { ground, ink, accent: this.palette[0], point: theme === "dark" ? "#aab4c0" : "#4a5562", ghost: theme === "dark" ? "#6d7782" : "#9aa4af" };
      if (this.panels) { this.stamps.clear(); this.colourRows(); this.showChips(); this.draw(); }
    };
    const dark = matchMedia("(prefers-color-scheme: dark)");
    this.on(dark, "change", read);
    const observer = new MutationObserver(() => requestAnimationFrame(read));
    for (const node of [document.body, document.documentElement]) observer.observe(node, { attributes: true, attributeFilter: ["class", "style", "data-jp-theme-light", "data-jp-theme-name", "data-vscode-theme-kind"] });
    // JupyterLab swaps the theme's style sheet after it has changed the attribute: look again when the sheet has arrived
    const sheets = new MutationObserver(() => setTimeout(read, 60));
    sheets.observe(document.head, { childList: true });
    this.undo.push(() => { observer.disconnect(); sheets.disconnect(); cancelAnimationFrame(later); });
    this.stamps = new Map();
    read();
  }

  // ---- structure

  fail(message) {
    this.root.replaceChildren(h("div", { class: "mdp-error", role: "alert" }, h("span", { class: "mdp-error-mark", "aria-hidden": "true", text: "!" }),
      h("div", {}, h("h3", { text: "This view cannot be drawn" }), h("p", { text: message }))));
  }

  build() {
    const get = (name) => this.model.get(name);
    const metrics = get("metrics");
    if (metrics.length) this.root.append(h("div", { class: "mdp-metrics" }, ...metrics.map((m, i) => metricCard(m, `${this.id}m${i}`))));
    this.controls = {
      projection: segments("Layout", `${this.id}p`, get("projection_choices").map((k) => [k, k.toUpperCase(), k === "pca" ? "Straight projection of both spaces on their two widest directions: distances mean something" : "Bent so that neighbours stay together: clusters show well, distances and sizes do not count"]), get("projection"), (v) => this.set("projection", v)),
      contours: segments("Density lines", `${this.id}c`, [["all", "Overall", "One set of lines for everything shown"], ["class", "Per class", "A set of lines for each coloured class"], ["off", "Off", "Points only"]], get("contours"), (v) => this.set("contours", v)),
      drag: segments("Drag to", `${this.id}d`, [["move", "Move", "Drag to move, wheel to zoom"], ["lasso", "Lasso", "Draw around images (also: shift and drag)"], ["box", "Box", "Select a rectangle"]], "move", (v) => { this.drag = v; this.stage.dataset.drag = v; }),
      bandwidth: slider("Smoothing", "Width of the blur behind the density lines, as a share of the picture", { min: 0.01, max: 0.08, step: 0.005, value: get("bandwidth"), format: (v) => `${(100 * v).toFixed(1)} %`, input: (v) => this.set("bandwidth", v, false), change: () => this.model.save_changes() }),
      point_size: slider("Points", "Diameter of a point", { min: 1, max: 10, step: 0.5, value: get("point_size"), format: (v) => `${v} px`, input: (v) => this.set("point_size", v, false), change: () => this.model.save_changes() }),
    };
    this.drag = "move";
    const reset = h("button", { type: "button", class: "mdp-button", text: "Reset view", title: "Show everything again (key 0)", on: { click: () => this.resetCamera() } });
    const { projection, contours, drag, bandwidth, point_size } = this.controls;
    if (get("projection_choices").length < 2) projection.hidden = true;
    this.chips = h("div", { class: "mdp-chips", "aria-label": "Coloured classes" });
    this.overlay = h("canvas", { class: "mdp-overlay", "aria-hidden": "true" });
    this.busy = h("div", { class: "mdp-busy", role: "status", hidden: true }, h("span", { class: "mdp-spinner", "aria-hidden": "true" }), h("span"));
    this.panels = [0, 1].map((side) => this.buildPanel(side));
    this.stage = h("div", { class: "mdp-stage", "data-drag": "move" }, ...this.panels.map((p) => p.figure), this.overlay, this.busy);
    this.summary = h("p", { class: "mdp-summary", role: "status", "aria-live": "polite" });
    this.clear = h("button", { type: "button", class: "mdp-button", text: "Clear selection", on: { click: () => this.select(new Uint8Array(this.n)) } });
    this.pickTheirs = h("button", { type: "button", class: "mdp-button", text: "Colour their classes", title: "Pick the classes of the selected images (at most 8, the most frequent)", on: { click: () => this.pickSelectedClasses() } });
    this.gallery = h("canvas", { class: "mdp-gallery", role: "img", hidden: true });
    this.tip = h("div", { class: "mdp-tip", hidden: true });
    this.alert = h("p", { class: "mdp-alert", role: "alert", hidden: true });
    this.note = h("div", { class: "mdp-note" });
    const bar = h("div", { class: "mdp-selection" }, this.summary, this.pickTheirs, this.clear);
    const middle = h("div", { class: "mdp-main" }, this.chips, this.stage, bar, this.gallery);
    this.root.append(h("div", { class: "mdp-toolbar", role: "toolbar", "aria-label": "How the pictures are drawn" }, projection, contours, drag, bandwidth, point_size, reset),
      this.alert, h("div", { class: "mdp-body" }, middle, this.buildFilter()), this.note, this.tip);
  }

  buildPanel(side) {
    const canvas = h("canvas", { class: "mdp-canvas", tabindex: 0, role: "application", "aria-roledescription": "scatter plot",
      "aria-label": `${side ? "After" : "Before"}: ${this.titles[side]}, ${plural(this.n, "image")}. Arrow keys move, plus and minus zoom, 0 resets, N and P step through the images, Enter selects.` });
    const figure = h("figure", { class: "mdp-panel" }, h("figcaption", {}, h("span", { text: side ? "After" : "Before" }), h("strong", { text: this.titles[side] })), canvas);
    return { canvas, figure, side, ctx: canvas.getContext("2d", { willReadFrequently: true, alpha: false }) };
  }

  buildFilter() {
    const many = this.names.length;
    this.search = h("input", { type: "search", class: "mdp-search", placeholder: `Search ${plural(many, "class", "classes")}`, "aria-label": "Search classes", on: { input: () => this.listRows() } });
    const orders = [["name", "by name"], ["size", "by size"]];
    if (this.spread.length) orders.push(["looser", "spread out most"], ["tighter", "drew together most"]);
    this.order = h("select", { class: "mdp-order", "aria-label": "Order of the classes", on: { change: () => this.listRows() } }, ...orders.map(([value, text]) => h("option", { value, text })));
    this.picked = h("span", { class: "mdp-picked" });
    this.none = h("button", { type: "button", class: "mdp-button", text: "Clear", "aria-label": "Clear the class filter", on: { click: () => this.set("class_filter", []) } });
    this.rows = h("div", { class: "mdp-rows", role: "listbox", "aria-multiselectable": "true", "aria-label": "Classes" });
    this.on(this.rows, "click", (event) => { const row = event.target.closest("[data-class]"); if (row) { this.toggle(+row.dataset.class); this.focusRow(row); } });
    this.on(this.rows, "keydown", (event) => this.rowKey(event));
    const head = h("div", { class: "mdp-rows-head", "aria-hidden": "true" }, h("span", { text: "class" }), h("span", { text: "images" }));
    if (this.spread.length) head.append(h("span", { text: "spread", title: "Mean cosine distance of two images of the class in the embedding space, before and after" }));
    const panel = h("aside", { class: "mdp-filter", "aria-label": "Class filter" }, h("div", { class: "mdp-filter-head" }, h("h3", { text: "Classes" }), this.picked, this.none),
      h("div", { class: "mdp-filter-tools" }, this.search, this.order), head, this.rows);
    panel.dataset.spread = this.spread.length > 0;
    return panel;
  }

  // ---- the class list

  listRows() {
    const wanted = this.search.value.trim().toLowerCase(), spread = (c) => this.spread[2 * c + 1] - this.spread[2 * c];
    const order = { name: null, size: (a, b) => this.counts[b] - this.counts[a], looser: (a, b) => spread(b) - spread(a), tighter: (a, b) => spread(a) - spread(b) }[this.order.value];
    let found = [...this.names.keys()].filter((c) => this.counts[c] && this.names[c].toLowerCase().includes(wanted));
    if (order) found = found.filter((c) => this.order.value === "size" || Number.isFinite(spread(c))).sort(order);
    const limit = 300, value = (v) => (Number.isFinite(v) ? v.toFixed(2) : "–");
    const rows = found.slice(0, limit).map((c) => {
      const row = h("div", { role: "option", class: "mdp-row", "data-class": c, id: `${this.id}o${c}`, tabindex: -1 }, h("span", { class: "mdp-swatch", "aria-hidden": "true" }),
        h("span", { class: "mdp-row-name", text: this.names[c], title: this.names[c] }), h("span", { class: "mdp-row-count", text: number.format(this.counts[c]) }));
      if (this.spread.length) row.append(h("span", { class: "mdp-row-spread", text: `${value(this.spread[2 * c])} → ${value(this.spread[2 * c + 1])}` }));
      return row;
    });
    if (!found.length) rows.push(h("p", { class: "mdp-empty", text: wanted ? `No class contains “${this.search.value.trim()}”.` : "No class to list." }));
    if (found.length > limit) rows.push(h("p", { class: "mdp-empty", text: `and ${plural(found.length - limit, "more class", "more classes")}: search to find them` }));
    this.rows.replaceChildren(...rows);
    if (found.length) this.rows.firstChild.tabIndex = 0;
    this.colourRows();
  }

  colourRows() {
    for (const row of this.rows.children) {
      if (!row.dataset.class) continue;
      const c = +row.dataset.class, on = this.filter.has(c);
      row.setAttribute("aria-selected", on);
      row.firstChild.style.background = this.classColour(c) || "";
    }
    this.none.disabled = !this.filter.size;
    this.picked.textContent = this.filter.size ? `${number.format(this.filter.size)} of ${number.format(this.names.length)} picked` : `all ${number.format(this.names.length)}`;
  }

  focusRow(row) {
    for (const other of this.rows.querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
    row.tabIndex = 0;
    row.focus();
  }

  rowKey(event) {
    const row = event.target.closest("[data-class]");
    if (!row) return;
    const to = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling, Home: this.rows.firstElementChild, End: this.rows.lastElementChild }[event.key];
    if (to?.dataset.class) this.focusRow(to);
    else if (event.key === " " || event.key === "Enter") this.toggle(+row.dataset.class);
    else if (!(event.key in { ArrowDown: 0, ArrowUp: 0 })) return;
    event.preventDefault();
    event.stopPropagation();
  }

  toggle(c) { this.set("class_filter", this.filter.has(c) ? [...this.filter].filter((other) => other !== c) : [...this.filter, c]); }

  pickSelectedClasses() {
    const tally = new Map();
    for (let i = 0; i < this.n; i++) if (this.selected[i]) tally.set(this.classes[i], (tally.get(this.classes[i]) || 0) + 1);
    this.set("class_filter", [...tally].sort((a, b) => b[1] - a[1]).slice(0, MAX_COLOURS).map(([c]) => c));
  }

  /** The colour of a class, or nothing when it has none of its own. */
  classColour(c) { const slot = this.slots.get(c); return slot === undefined ? "" : this.palette[slot]; }

  /** After a change of the class filter: visible points, colours (a class keeps its colour while it stays picked), lines. */
  refilter() {
    this.filter = new Set(this.model.get("class_filter").filter((c) => c < this.names.length));
    const present = [...this.names.keys()].filter((c) => this.counts[c]);
    const coloured = this.filter.size ? [...this.filter] : present, old = this.slots || new Map();
    this.slots = new Map();
    if (coloured.length <= MAX_COLOURS) {
      for (const c of coloured) if (old.has(c)) this.slots.set(c, old.get(c));
      for (const c of coloured) if (!this.slots.has(c)) this.slots.set(c, [...Array(MAX_COLOURS).keys()].find((slot) => ![...this.slots.values()].includes(slot)));
    }
    this.visible = new Uint8Array(this.n);
    for (let i = 0; i < this.n; i++) this.visible[i] = !this.filter.size || this.filter.has(this.classes[i]) ? 1 : 0;
    if (!this.rows.children.length) this.listRows(); else this.colourRows();
    this.showChips();
    this.reselect();
    this.recontour();
  }

  showChips() {
    const chips = [...this.filter].slice(0, MAX_COLOURS).map((c) => {
      const swatch = h("span", { class: "mdp-swatch", "aria-hidden": "true" });
      swatch.style.background = this.classColour(c) || this.colours.accent;
      return h("button", { type: "button", class: "mdp-chip", "aria-label": `Stop picking ${this.names[c]}`, on: { click: () => this.toggle(c) } }, swatch, h("span", { text: this.names[c] }), h("span", { "aria-hidden": "true", text: "×" }));
    });
    const rest = this.filter.size - MAX_COLOURS;
    let hint = "";
    if (rest > 0) hint = `and ${number.format(rest)} more in one colour: eight is the most that can be told apart`;
    else if (!this.filter.size && !this.slots.size) hint = this.model.get("contours") === "class" ? `Pick up to ${MAX_COLOURS} classes in the list: each gets a colour and density lines of its own.`
      : `No class picked: all ${number.format(this.names.length)} share one colour. Pick up to ${MAX_COLOURS} in the list to colour and compare them.`;
    else if (!this.filter.size) hint = "All classes are shown. Pick some in the list to compare them alone.";
    this.chips.replaceChildren(...chips, h("span", { class: "mdp-hint", text: hint }));
  }

  // ---- density lines

  recontour() {
    const mode = this.model.get("contours"), bandwidth = this.model.get("bandwidth");
    this.lines = [[], []];
    const perClass = mode === "class" && this.slots.size > 0;
    const groups = mode === "off" ? [] : perClass ? [...this.slots.keys()] : [null];
    for (const c of groups) {
      const keep = c === null ? this.visible : Uint8Array.from(this.classes, (other) => +(other === c));
      const grids = this.xy.map((xy) => densityGrid(xy, keep, this.window, bandwidth, CELLS));
      let peak = 0;
      for (const grid of grids) for (const v of grid) if (v > peak) peak = v;
      const levels = perClass ? [4, 3, 2, 1] : [6, 5, 4, 3, 2, 1];
      if (peak > 0) grids.forEach((grid, side) => this.lines[side].push({ c, levels: levels.map((k) => this.path(contourRings(grid, CELLS, peak * 2 ** -k))) }));
    }
    this.explain();
    this.draw();
  }

  /** Rings of the grid as one path in the picture's own coordinates. */
  path(rings) {
    const { left, bottom, side } = this.window, path = new Path2D();
    for (const ring of rings) {
      ring.forEach(([i, j], k) => { const x = left + ((i - 0.5) / CELLS) * side, y = bottom + ((j - 0.5) / CELLS) * side; if (k) path.lineTo(x, y); else path.moveTo(x, y); });
      path.closePath();
    }
    return path;
  }

  explain() {
    const mode = this.model.get("contours"), what = this.filter.size ? "images of the picked classes" : "images";
    const line = mode === "off" ? "Every point is one image." : mode === "class" && this.slots.size
      ? "Each class has its own lines: every line inwards means twice as many of its images on the same area. A class uses the same levels on both sides; levels of two classes are not comparable."
      : `Dense means many images on little area. Every line inwards means twice as many of ${what} on the same area, at the same levels on both sides.`;
    const more = mode === "class" && !this.slots.size ? ` Lines per class need at most ${MAX_COLOURS} picked classes; until then the lines are of all ${what} together.` : "";
    const trust = (v) => (typeof v === "number" ? v.toFixed(2) : "n/a");
    const lies = `A picture in two dimensions can lie: its trustworthiness is ${trust(this.trust[0])} before and ${trust(this.trust[1])} after (1: whoever is near here is near in the embedding space; 0.5: chance).`;
    const scale = this.shown === "pca" ? " Both pictures have the same axes and scale." : " UMAP bends the space: sizes and gaps do not count, only who is near whom.";
    this.note.replaceChildren(h("p", {}, h("strong", { text: "How to read it. " }), h("span", { text: line + more + scale })),
      h("p", {}, h("strong", { text: "How far to trust it. " }), h("span", { text: lies + (this.model.get("metrics").length ? " The measures at the top are taken in the embedding space, not from this picture." : "") })));
  }

  // ---- camera and drawing

  frame() {
    const measure = () => {
      const gap = 12, wide = this.stage.clientWidth >= 420, width = wide ? (this.stage.clientWidth - gap) / 2 : this.stage.clientWidth;
      if (width <= 0) return;
      const height = Math.round(Math.max(220, Math.min(width * 0.92, 620))), ratio = window.devicePixelRatio || 1;
      this.stage.dataset.stacked = !wide;
      this.stage.style.setProperty("--mdp-height", `${height}px`);
      this.size = { width: Math.round(width - 2), height, ratio };
      for (const { canvas } of this.panels) { canvas.width = Math.round(this.size.width * ratio); canvas.height = Math.round(height * ratio); }
      this.overlay.width = Math.round(this.stage.clientWidth * ratio);
      this.overlay.height = Math.round(this.stage.clientHeight * ratio);
      this.draw();
      this.drawGallery();
    };
    this.watcher = new ResizeObserver(measure);
    this.watcher.observe(this.stage);
    this.undo.push(() => this.watcher.disconnect());
    this.on(window, "resize", measure);
    measure();
  }

  /** Scale and origin of the shared camera: both panels always show the same part of the plane. */
  look() {
    const { width, height } = this.size, { left, bottom, side } = this.window;
    if (!this.camera) this.camera = { x: left + side / 2, y: bottom + side / 2, zoom: 1 };
    const fit = 0.84 * Math.min(width / (this.window.width || side), height / (this.window.height || side));
    return { scale: fit * this.camera.zoom, x: this.camera.x, y: this.camera.y };
  }

  toScreen(side, i) {
    const { scale, x, y } = this.look();
    return [this.size.width / 2 + (this.xy[side][2 * i] - x) * scale, this.size.height / 2 - (this.xy[side][2 * i + 1] - y) * scale];
  }

  resetCamera() { this.camera = null; this.draw(); }

  zoomAt(px, py, factor) {
    const { scale, x, y } = this.look(), { width, height } = this.size, dx = (px - width / 2) / scale, dy = (height / 2 - py) / scale;
    const zoom = Math.min(60, Math.max(0.5, this.camera.zoom * factor)), real = zoom / this.camera.zoom;
    this.camera = { x: x + dx - dx / real, y: y + dy - dy / real, zoom };
    this.draw();
  }

  draw() {
    if (this.pending || !this.size) return;
    this.pending = requestAnimationFrame(() => { this.pending = 0; for (const panel of this.panels) this.drawPanel(panel); this.drawOverlay(); });
  }

  /** A point as the pixels that it covers: [dx, dy, red, green, blue, alpha, ...]. */
  stamp(colour, size, alpha, ring) {
    const { ratio } = this.size, key = `${colour} ${size} ${alpha} ${ring} ${ratio}`;
    if (!this.stamps.has(key)) {
      const edge = Math.ceil(size * ratio) + 4, canvas = document.createElement("canvas"), pixels = [];
      canvas.width = canvas.height = edge;
      const ctx = canvas.getContext("2d", { willReadFrequently: true });
      ctx.globalAlpha = alpha;
      ctx.fillStyle = colour;
      ctx.beginPath();
      ctx.arc(edge / 2, edge / 2, (size * ratio) / 2, 0, 7);
      ctx.fill();
      if (ring) { ctx.globalAlpha = 1; ctx.strokeStyle = ring; ctx.lineWidth = ratio; ctx.stroke(); }
      const { data } = ctx.getImageData(0, 0, edge, edge), half = Math.floor(edge / 2);
      for (let k = 0; k < edge * edge; k++) if (data[4 * k + 3]) pixels.push((k % edge) - half, Math.floor(k / edge) - half, data[4 * k], data[4 * k + 1], data[4 * k + 2], data[4 * k + 3] / 255);
      if (this.stamps.size > 200) this.stamps.clear();
      this.stamps.set(key, Float32Array.from(pixels));
    }
    return this.stamps.get(key);
  }

  drawPanel({ ctx, side }) {
    const { width, height, ratio } = this.size, { scale, x, y } = this.look(), point = this.model.get("point_size");
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.globalAlpha = 1;
    ctx.fillStyle = this.colours.ground;
    ctx.fillRect(0, 0, ctx.canvas.width, ctx.canvas.height);
    const toPicture = () => ctx.setTransform(scale * ratio, 0, 0, -scale * ratio, (width / 2 - x * scale) * ratio, (height / 2 + y * scale) * ratio);
    toPicture();
    for (const { c, levels } of this.lines[side]) {
      ctx.fillStyle = c === null ? this.colours.accent : this.classColour(c);
      ctx.globalAlpha = c === null ? 0.075 : 0.1;
      for (const path of levels) ctx.fill(path, "evenodd");
    }
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.globalAlpha = 1;
    this.drawPoints(ctx, side, point);
    toPicture();
    for (const { c, levels } of this.lines[side]) {
      ctx.strokeStyle = c === null ? this.colours.accent : this.classColour(c);
      levels.forEach((path, k) => { ctx.globalAlpha = 0.35 + (0.5 * k) / levels.length; ctx.lineWidth = 1.1 / scale; ctx.stroke(path); });
    }
    ctx.globalAlpha = 1;
    if (this.shown === "pca") this.drawScale(ctx, scale);
  }

  /** All points, blended here into the pixels of the panel: as fast without a graphics processor as with one. */
  drawPoints(ctx, side, point) {
    const { width, height, ratio } = this.size, { scale, x, y } = this.look(), xy = this.xy[side], some = this.anySelected, few = this.chosen.length <= 150;
    const crowd = Math.max(0.28, Math.min(0.75, 900 / this.n + 0.25));
    const plain = this.stamp(this.filter.size ? this.colours.accent : this.colours.point, point, crowd * (some ? 0.4 : 1));
    const ghost = this.stamp(this.colours.ghost, Math.max(1, point * 0.75), 0.22), own = new Map(), strong = new Map();
    for (const c of this.slots.keys()) own.set(c, this.stamp(this.classColour(c), this.filter.size ? Math.max(4, point + 2) : point, (this.filter.size ? 1 : crowd) * (some ? 0.4 : 1), this.filter.size && !some ? this.colours.ground : ""));
    for (const c of [null, ...this.slots.keys()]) strong.set(c, this.stamp(c === null ? this.colours.accent : this.classColour(c), few ? point + 2.5 : point + 0.5, 1, few ? this.colours.ink : ""));
    const { width: wide, height: high } = ctx.canvas, picture = ctx.getImageData(0, 0, wide, high), out = picture.data;
    const place = (stamp, i) => {
      const px = Math.round((width / 2 + (xy[2 * i] - x) * scale) * ratio), py = Math.round((height / 2 - (xy[2 * i + 1] - y) * scale) * ratio);
      if (px < -40 || py < -40 || px > wide + 40 || py > high + 40) return;
      for (let k = 0; k < stamp.length; k += 6) {
        const cx = px + stamp[k], cy = py + stamp[k + 1];
        if (cx < 0 || cy < 0 || cx >= wide || cy >= high) continue;
        const at = 4 * (cy * wide + cx), a = stamp[k + 5];
        out[at] += (stamp[k + 2] - out[at]) * a;
        out[at + 1] += (stamp[k + 3] - out[at + 1]) * a;
        out[at + 2] += (stamp[k + 4] - out[at + 2]) * a;
      }
    };
    if (this.filter.size) for (let i = 0; i < this.n; i++) if (!this.visible[i]) place(ghost, i);
    for (let i = 0; i < this.n; i++) if (this.visible[i] && !this.selected[i]) place(own.get(this.classes[i]) || plain, i);
    if (some) for (let i = 0; i < this.n; i++) if (this.selected[i]) place(strong.get(this.slots.has(this.classes[i]) ? this.classes[i] : null), i);
    ctx.putImageData(picture, 0, 0);
  }

  /** A bar of round length: the unit of the picture (Euclidean distance in the projection). */
  drawScale(ctx, scale) {
    const { height, ratio } = this.size, raw = 70 / scale, power = 10 ** Math.floor(Math.log10(raw)), length = [1, 2, 5, 10].filter((k) => k * power <= raw).pop() * power;
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    const ink = this.colours.point, x = 12, y = height - 12;
    ctx.strokeStyle = ctx.fillStyle = ink;
    ctx.lineWidth = 1.5;
    ctx.beginPath();
    ctx.moveTo(x, y - 4); ctx.lineTo(x, y); ctx.lineTo(x + length * scale, y); ctx.lineTo(x + length * scale, y - 4);
    ctx.stroke();
    ctx.font = "11px system-ui, sans-serif";
    ctx.fillText(`distance ${+length.toPrecision(2)}`, x, y - 9);
  }

  drawOverlay() {
    const ctx = this.overlay.getContext("2d"), { ratio } = this.size;
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, this.overlay.width, this.overlay.height);
    const area = this.overlay.getBoundingClientRect(), origin = this.panels.map(({ canvas }) => { const box = canvas.getBoundingClientRect(); return [box.left - area.left, box.top - area.top]; });
    ctx.strokeStyle = this.colours.ink;
    if (this.brush && this.brush.polygon.length > 1) {
      const [ox, oy] = origin[this.brush.side];
      ctx.beginPath();
      this.brush.polygon.forEach(([x, y], k) => (k ? ctx.lineTo(ox + x, oy + y) : ctx.moveTo(ox + x, oy + y)));
      ctx.closePath();
      ctx.lineWidth = 1.5;
      ctx.setLineDash([5, 4]);
      ctx.fillStyle = this.colours.accent;
      ctx.globalAlpha = 0.12; ctx.fill(); ctx.globalAlpha = 1;
      ctx.stroke();
      ctx.setLineDash([]);
    }
    if (this.hovered === undefined) return;
    const ends = [0, 1].map((side) => { const [x, y] = this.toScreen(side, this.hovered); return [x + origin[side][0], y + origin[side][1]]; });
    const shown = [0, 1].map((side) => { const [x, y] = this.toScreen(side, this.hovered); return x >= 0 && y >= 0 && x <= this.size.width && y <= this.size.height; });
    if (shown[0] && shown[1]) {
      ctx.beginPath();
      ctx.moveTo(...ends[0]);
      ctx.lineTo(...ends[1]);
      ctx.globalAlpha = 0.55; ctx.lineWidth = 1; ctx.setLineDash([2, 4]);
      ctx.stroke();
      ctx.setLineDash([]); ctx.globalAlpha = 1;
    }
    ends.forEach(([x, y], side) => {
      if (!shown[side]) return;
      for (const [colour, width] of [[this.colours.ground, 5], [this.colours.ink, 2]]) {
        ctx.beginPath(); ctx.arc(x, y, this.model.get("point_size") / 2 + 5, 0, 7);
        ctx.strokeStyle = colour; ctx.lineWidth = width; ctx.stroke();
      }
      ctx.beginPath(); ctx.arc(x, y, this.model.get("point_size") / 2 + 1, 0, 7);
      ctx.fillStyle = this.classColour(this.classes[this.hovered]) || this.colours.accent; ctx.fill();
    });
  }

  // ---- hover, selection, gallery

  nearest(side, px, py, reach = 14) {
    const { width, height } = this.size, { scale, x, y } = this.look(), xy = this.xy[side];
    let best, least = reach * reach;
    for (let i = 0; i < this.n; i++) {
      if (!this.visible[i]) continue;
      const dx = width / 2 + (xy[2 * i] - x) * scale - px, dy = height / 2 - (xy[2 * i + 1] - y) * scale - py, d = dx * dx + dy * dy;
      if (d < least) { least = d; best = i; }
    }
    return best;
  }

  hover(i, anchor) {
    if (i === this.hovered && i === undefined) return;
    this.hovered = i;
    this.anchor = anchor;
    this.showTip();
    this.drawOverlay();
  }

  showTip() {
    const i = this.hovered;
    if (i === undefined) { this.tip.hidden = true; return; }
    const c = this.classes[i], swatch = h("span", { class: "mdp-swatch", "aria-hidden": "true" });
    swatch.style.background = this.classColour(c) || this.colours.point;
    const parts = [];
    if (this.sprite) {
      const size = 112, canvas = h("canvas", { class: "mdp-tip-image", role: "img", "aria-label": "the image" });
      canvas.width = canvas.height = size * this.size.ratio;
      const ctx = canvas.getContext("2d");
      ctx.imageSmoothingQuality = "high";
      this.thumbnail(ctx, i, 0, 0, canvas.width);
      parts.push(canvas);
    }
    parts.push(h("div", { class: "mdp-tip-class" }, swatch, h("strong", { text: this.names[c] })), h("div", { class: "mdp-tip-key", text: this.keys[i] ?? `image ${number.format(i)}` }));
    this.tip.replaceChildren(...parts);
    this.tip.hidden = false;
    const area = this.root.getBoundingClientRect(), box = this.tip.getBoundingClientRect(), x = this.anchor.x - area.left, y = this.anchor.y - area.top;
    const leftwards = x < area.width / 2 ? x - 20 - box.width >= 0 : x + 20 + box.width > area.width;  // outwards where there is room: the line to the other side stays free
    const left = leftwards ? x - 20 - box.width : x + 20, top = Math.min(Math.max(0, y - box.height / 2), area.height - box.height);
    this.tip.style.left = `${Math.max(0, left)}px`;
    this.tip.style.top = `${Math.max(0, top)}px`;
  }

  select(flags) { this.set("selection", new DataView(packBits(flags).buffer)); }

  reselect() {
    const mask = bytes(this.model.get("selection"));
    this.selected = unpackBits(mask, this.n);
    const chosen = [], inClasses = new Set();
    for (let i = 0; i < this.n; i++) if (this.selected[i]) { chosen.push(i); inClasses.add(this.classes[i]); }
    this.chosen = chosen;
    this.anySelected = chosen.length > 0;
    const shown = this.visible.reduce((a, b) => a + b, 0);
    const base = shown === this.n ? `${plural(this.n, "image")}, ${plural(this.names.length, "class", "classes")}.` : `${number.format(shown)} of ${plural(this.n, "image")} shown.`;
    this.summary.textContent = chosen.length ? `${number.format(chosen.length)} of ${plural(this.n, "image")} selected, from ${plural(inClasses.size, "class", "classes")}.` : `${base} Nothing selected: hold shift and draw around images on either side, or click one.`;
    this.clear.hidden = this.pickTheirs.hidden = !chosen.length;
    this.drawGallery();
    this.draw();
  }

  drawGallery() {
    if (!this.sprite || !this.chosen?.length) { this.gallery.hidden = true; return; }
    this.gallery.hidden = false;
    const tile = 48, gap = 6, width = this.gallery.parentElement.clientWidth, columns = Math.max(1, Math.floor((width + gap) / (tile + gap)));
    const shown = this.chosen.slice(0, 2 * columns), rows = Math.ceil(shown.length / columns), ratio = this.size.ratio;
    this.tiles = { shown, columns, pitch: tile + gap };
    this.gallery.style.height = `${rows * (tile + gap) - gap}px`;
    this.gallery.width = width * ratio; this.gallery.height = (rows * (tile + gap) - gap) * ratio;
    this.gallery.setAttribute("aria-label", `${plural(shown.length, "selected image")}${shown.length < this.chosen.length ? ` of ${number.format(this.chosen.length)}` : ""}`);
    const ctx = this.gallery.getContext("2d");
    ctx.scale(ratio, ratio);
    shown.forEach((i, k) => {
      const x = (k % columns) * (tile + gap), y = Math.floor(k / columns) * (tile + gap), colour = this.classColour(this.classes[i]);
      this.thumbnail(ctx, i, x, y, tile);
      if (colour) { ctx.strokeStyle = colour; ctx.lineWidth = 3; ctx.strokeRect(x + 1.5, y + 1.5, tile - 3, tile - 3); }
    });
  }

  // ---- events

  listen() {
    const changed = (names, handler) => { for (const name of names) this.on(this.model, `change:${name}`, handler); };
    changed(["class_filter"], () => this.refilter());
    changed(["selection"], () => this.reselect());
    changed(["bandwidth"], () => { this.controls.bandwidth.show(this.model.get("bandwidth")); this.once("lines", () => this.recontour()); });
    changed(["contours"], () => { this.controls.contours.show(this.model.get("contours")); this.showChips(); this.recontour(); });
    changed(["point_size"], () => { this.controls.point_size.show(this.model.get("point_size")); this.draw(); });
    changed(["projection", "projections"], () => {
      this.controls.projection.show(this.model.get("projection"));
      const problem = this.readLayout();
      if (problem) this.fail(problem); else { this.hover(); this.recontour(); }
    });
    changed(["busy", "problem"], () => this.showBusy());
    this.showBusy();
    for (const panel of this.panels) this.listenPanel(panel);
    this.on(this.gallery, "pointermove", (event) => {
      const { shown, columns, pitch } = this.tiles, i = shown[Math.floor(event.offsetY / pitch) * columns + Math.floor(event.offsetX / pitch)];
      this.hover(i, { x: event.clientX, y: event.clientY });
    });
    this.on(this.gallery, "pointerleave", () => this.hover());
    this.on(this.root, "keydown", (event) => { if (event.key === "Escape") { this.hover(); this.brush = null; if (this.anySelected) this.select(new Uint8Array(this.n)); } });
  }

  once(name, work) {
    this.waiting ||= new Set();
    if (this.waiting.has(name)) return;
    this.waiting.add(name);
    requestAnimationFrame(() => { this.waiting.delete(name); work(); });
  }

  showBusy() {
    const busy = this.model.get("busy"), problem = this.model.get("problem");
    this.busy.hidden = !busy;
    this.busy.lastChild.textContent = busy;
    this.stage.setAttribute("aria-busy", !!busy);
    this.alert.hidden = !problem;
    this.alert.textContent = problem;
  }

  listenPanel({ canvas, side }) {
    let grip = null;
    const at = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    this.on(canvas, "wheel", (event) => { event.preventDefault(); this.zoomAt(...at(event), Math.exp(-event.deltaY * 0.0015)); }, { passive: false });
    this.on(canvas, "pointerdown", (event) => {
      if (event.button) return;
      canvas.setPointerCapture(event.pointerId);
      const start = at(event), kind = this.drag === "box" ? "box" : event.shiftKey || this.drag === "lasso" ? "lasso" : "move";
      grip = { start, last: start, kind, moved: false };
      if (kind !== "move") this.brush = { side, polygon: [start] };
    });
    this.on(canvas, "pointermove", (event) => {
      const [x, y] = at(event);
      if (!grip) { this.hover(this.nearest(side, x, y), { x: event.clientX, y: event.clientY }); return; }
      grip.moved ||= Math.hypot(x - grip.start[0], y - grip.start[1]) > 3;
      if (!grip.moved) return;
      this.hover();
      const [sx, sy] = grip.start;
      if (grip.kind === "lasso") this.brush.polygon.push([x, y]);
      if (grip.kind === "box") this.brush.polygon = [[sx, sy], [x, sy], [x, y], [sx, y]];
      if (grip.kind === "move") {
        const { scale } = this.look();
        this.camera = { ...this.camera, x: this.camera.x - (x - grip.last[0]) / scale, y: this.camera.y + (y - grip.last[1]) / scale };
        this.draw();
      } else this.drawOverlay();
      grip.last = [x, y];
    });
    this.on(canvas, "pointerup", (event) => {
      if (!grip) return;
      const { moved, kind } = grip, brush = this.brush, add = event.ctrlKey || event.metaKey;
      grip = this.brush = null;
      if (moved && kind === "move") return;
      const flags = add ? this.selected.slice() : new Uint8Array(this.n);
      if (moved) {
        for (let i = 0; i < this.n; i++) if (this.visible[i] && inside(brush.polygon, ...this.toScreen(side, i))) flags[i] = 1;
      } else {
        const i = this.nearest(side, ...at(event));
        if (i === undefined && !this.anySelected) return;
        if (i !== undefined) flags[i] = 1;
      }
      this.select(flags);
    });
    this.on(canvas, "pointercancel", () => { grip = this.brush = null; this.drawOverlay(); });
    this.on(canvas, "pointerleave", () => { if (!grip) this.hover(); });
    this.on(canvas, "blur", () => this.hover());
    this.on(canvas, "keydown", (event) => this.panelKey(event, canvas, side));
  }

  panelKey(event, canvas, side) {
    const { scale } = this.look(), { width, height } = this.size, far = 40 / scale, { x, y } = this.camera;
    const move = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, far], ArrowDown: [0, -far] }[event.key];
    const step = { n: 1, p: -1 }[event.key.toLowerCase()];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (move) { this.camera = { ...this.camera, x: x + move[0], y: y + move[1] }; this.draw(); }
    else if (event.key === "+" || event.key === "=") this.zoomAt(width / 2, height / 2, 1.25);
    else if (event.key === "-") this.zoomAt(width / 2, height / 2, 0.8);
    else if (event.key === "0") this.resetCamera();
    else if (step) {
      let i = this.hovered ?? (step > 0 ? -1 : this.n);
      do i += step; while (i >= 0 && i < this.n && !this.visible[i]);
      if (i >= 0 && i < this.n) {
        const box = canvas.getBoundingClientRect(), [px, py] = this.toScreen(side, i);
        this.hover(i, { x: box.left + px, y: box.top + py });
        this.summary.textContent = `${this.names[this.classes[i]]}, ${this.keys[i] ?? `image ${i}`}`;
      }
    } else if (event.key === "Enter" && this.hovered !== undefined) { const flags = this.selected.slice(); flags[this.hovered] ^= 1; this.select(flags); }
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

function render({ model, el }) {
  let view = new View(model, el);
  const again = () => { view.destroy(); view = new View(model, el); };
  const whole = ["error", "classes", "class_names", "item_keys", "titles", "metrics", "class_spread", "sprite"];  // traits that change the structure
  for (const name of whole) model.on(`change:${name}`, again);
  return () => { for (const name of whole) model.off(`change:${name}`, again); view.destroy(); };
}

// ---------------------------------------------------------------- the exported page

/** The same get / set / on / off as a widget model, over the state that stands in the page. */
class PageModel {
  constructor(state) { this.state = state; this.handlers = new Map(); }
  get(name) { return this.state[name]; }
  set(name, value) { this.state[name] = value; for (const handler of [...(this.handlers.get(`change:${name}`) || [])]) handler(); }
  on(event, handler) { this.handlers.set(event, (this.handlers.get(event) || new Set()).add(handler)); }
  off(event, handler) { this.handlers.get(event)?.delete(handler); }
  save_changes() {}
}

/** Draw the view whose state is in the element `data` (JSON; bytes as {"base64": ...}) into the element `host`. */
export function openPage(data, host) {
  const revive = (_, value) => (value && typeof value.base64 === "string" ? Uint8Array.from(atob(value.base64), (c) => c.charCodeAt(0)) : value);
  const model = new PageModel(JSON.parse(data.textContent, revive));
  render({ model, el: host });
  return model;
}

export default { render };
