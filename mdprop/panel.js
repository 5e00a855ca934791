// mdprop: pictures of the same items before and after, and of the difference, that pan, zoom, brush and highlight together.
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

/** Half-precision numbers (as uint16) as float32. */
export function halfFloats(halves) {
  const out = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) {
    const h = halves[i], sign = h & 0x8000 ? -1 : 1, exponent = (h >> 10) & 31, part = h & 1023;
    out[i] = sign * (exponent === 0 ? part * 2 ** -24 : exponent === 31 ? (part ? NaN : Infinity) : (1 + part / 1024) * 2 ** (exponent - 15));
  }
  return out;
}

/** One number per item from 4 bytes (float32), 2 (float16) or 1 (0 to 254; 255: no value) an item. */
export function numbers(value, n) {
  const size = bytes(value).length / n;
  if (size === 4) return typed(Float32Array, value);
  if (size === 2) return halfFloats(typed(Uint16Array, value));
  if (size === 1) return Float32Array.from(bytes(value), (v) => (v === 255 ? NaN : v));
  return null;
}

/** Positions x, y, x, y ... from float32 pairs, or from uint16 pairs in the window (65535: nowhere). */
export function positions(value, n, window) {
  const size = bytes(value).length / n;
  if (size === 8) return typed(Float32Array, value);
  if (size !== 4 || !window) return null;
  const raw = typed(Uint16Array, value), out = new Float32Array(2 * n), unit = window[2] / 65534;
  for (let i = 0; i < 2 * n; i++) out[i] = raw[i] === 65535 ? NaN : window[i & 1] + raw[i] * unit;
  return out;
}

/** The names of the items: a list, or differences to the former name of the class (bytes shared at the start and at the end, what is between, a line feed). */
export function itemNames(value, classes) {
  if (Array.isArray(value)) return value;
  const data = bytes(value), names = [], decoder = new TextDecoder(), former = new Map();
  for (let at = 0; at < data.length;) {
    const c = classes?.[names.length] ?? 0, last = former.get(c) || new Uint8Array(0), stop = data.indexOf(10, at + 2), [start, end] = [data[at] - 32, data[at + 1] - 32];
    const name = new Uint8Array(start + end + stop - at - 2);
    name.set(last.subarray(0, start));
    name.set(data.subarray(at + 2, stop), start);
    if (end) name.set(last.subarray(last.length - end), name.length - end);
    names.push(decoder.decode(name));
    former.set(c, name);
    at = stop + 1;
  }
  return names;
}

/** The bounding box of all positions and the square window around it (as `mdprop.project.picture_window`). */
export function pictureWindow(layouts, margin = 0.12) {
  let x0 = Infinity, x1 = -Infinity, y0 = Infinity, y1 = -Infinity;
  for (const xy of layouts) {
    for (let i = 0; i < xy.length; i += 2) {
      const x = xy[i], y = xy[i + 1];  // comparisons are false for NaN: such a position does not count
      if (x < x0) x0 = x;
      if (x > x1) x1 = x;
      if (y < y0) y0 = y;
      if (y > y1) y1 = y;
    }
  }
  const side = Math.max(x1 - x0, y1 - y0) * (1 + 2 * margin) || 1;
  return { left: (x0 + x1 - side) / 2, bottom: (y0 + y1 - side) / 2, side, width: x1 - x0, height: y1 - y0 };
}

/** Items per cell, every item shared linearly among its four nearest cells; row 0 is at the bottom. */
export function histogramGrid(xy, keep, window, cells) {
  const grid = new Float32Array(cells * cells), unit = cells / window.side;
  for (let i = 0; i < xy.length / 2; i++) {
    if (keep && !keep[i]) continue;
    const gx = (xy[2 * i] - window.left) * unit - 0.5, gy = (xy[2 * i + 1] - window.bottom) * unit - 0.5;
    const cx = Math.floor(gx), cy = Math.floor(gy), px = gx - cx, py = gy - cy;
    for (let dy = 0; dy < 2; dy++) for (let dx = 0; dx < 2; dx++) {
      const c = cx + dx, r = cy + dy;
      if (c >= 0 && r >= 0 && c < cells && r < cells) grid[r * cells + c] += Math.abs(1 - dx - px) * Math.abs(1 - dy - py);
    }
  }
  return grid;
}

/** The grid after a Gaussian blur of `sigma` cells in all: the sharing among four cells has blurred by 1/6 of a squared cell already. */
export function blurGrid(grid, sigma, cells) {
  const width = Math.sqrt(Math.max(sigma * sigma - 1 / 6, 0.01)), reach = Math.ceil(4 * width);
  const half = new Float32Array(cells * cells), out = new Float32Array(cells * cells), kernel = [];
  for (let d = -reach; d <= reach; d++) kernel.push(Math.exp(-0.5 * (d / width) ** 2));
  const sum = kernel.reduce((a, b) => a + b, 0);
  const blur = (from, to, along, across) => {
    for (let j = 0; j < cells; j++) for (let i = 0; i < cells; i++) {
      const value = from[j * across + i * along];
      if (!value) continue;
      for (let d = Math.max(-reach, -i); d <= Math.min(reach, cells - 1 - i); d++) to[j * across + (i + d) * along] += (value * kernel[d + reach]) / sum;
    }
  };
  blur(grid, half, 1, cells);
  blur(half, out, cells, 1);
  return out;
}

/** Items per cell, blurred (as `mdprop.project.picture_density`). */
export function densityGrid(xy, keep, window, bandwidth, cells = 128) {
  return blurGrid(histogramGrid(xy, keep, window, cells), bandwidth * cells, cells);
}

/** From a blurred grid to images near a place: every image counts 1 where it is, and less the further away (a Gaussian of `sigma` cells). */
export const kernelArea = (sigma) => 2 * Math.PI * sigma * sigma;

/** log2 of after / before for two blurred grids; NaN where neither has `least` items within the blur. Half an item is added to either side, so that an empty place has a ratio. */
export function ratioGrid(before, after, sigma, least = 5) {
  const area = kernelArea(sigma), half = 0.5 / area, out = new Float32Array(before.length);
  for (let i = 0; i < out.length; i++) out[i] = Math.max(before[i], after[i]) * area < least ? NaN : Math.log2((after[i] + half) / (before[i] + half));
  return out;
}

/** The q-quantile of the finite numbers (linear between two), NaN when there are none. */
export function quantile(values, q) {
  const sorted = Float64Array.from(values).filter(Number.isFinite).sort(), at = q * (sorted.length - 1), low = Math.floor(at);
  return sorted.length ? sorted[low] + (at - low) * (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) : NaN;
}

/** At most `limit` of the items, drawn evenly by a fixed seed: the same items every time. */
export function seededSample(items, limit, seed = 1) {
  if (items.length <= limit) return items;
  const pool = Array.from(items);
  for (let k = 0; k < limit; k++) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    const other = k + Math.floor((seed / 2 ** 32) * (pool.length - k));
    [pool[k], pool[other]] = [pool[other], pool[k]];
  }
  return pool.slice(0, limit).sort((a, b) => a - b);
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

/** A test for many points against one polygon: its box first, then only the edges of the point's row of pixels. */
export function insideTest(polygon) {
  const ys = polygon.map(([, y]) => y), xs = polygon.map(([x]) => x), top = Math.floor(Math.min(...ys)), rows = [];
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const low = Math.floor(Math.min(ys[i], ys[j])) - top, high = Math.floor(Math.max(ys[i], ys[j])) - top;
    for (let r = low; r <= high; r++) (rows[r] ||= []).push(xs[i], ys[i], xs[j], ys[j]);
  }
  return (x, y) => {
    if (!(x >= x0 && x <= x1 && y >= y0 && y <= y1)) return false;
    const edges = rows[Math.floor(y) - top];
    let odd = false;
    for (let k = 0; k < edges.length; k += 4) {
      const yi = edges[k + 1], yj = edges[k + 3];
      if (yi > y !== yj > y && x < ((edges[k + 2] - edges[k]) * (y - yi)) / (yj - yi) + edges[k]) odd = !odd;
    }
    return odd;
  };
}

/** Round numbers between low and high, about `count` of them. */
export function ticks(low, high, count = 4) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].find((k) => k * power >= raw * 0.999) * power, out = [];
  if (!(raw > 0) || !Number.isFinite(step)) return [low];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) out.push(+(k * step).toPrecision(12));
  return out;
}

/** The colour at t in [0, 1] of a ramp of equally spaced colours (#rrggbb). */
export function ramp(stops, t) {
  const at = Math.min(Math.max(t, 0), 1) * (stops.length - 1), k = Math.min(Math.floor(at), stops.length - 2), part = at - k;
  const channel = (c) => { const [a, b] = [stops[k], stops[k + 1]].map((s) => parseInt(s.slice(1 + 2 * c, 3 + 2 * c), 16)); return Math.round(a + (b - a) * part); };
  return `#${[0, 1, 2].map((c) => channel(c).toString(16).padStart(2, "0")).join("")}`;
}

/** A mark to blend from its pixels [dx, dy, [red, green, blue], alpha of 256]: for each the rest that is kept, and two channels at a time what is added, rounding included. */
export function markOf(pixels, half) {
  const n = pixels.length, mark = { half, dx: new Int32Array(n), dy: new Int32Array(n), rest: new Int32Array(n), even: new Int32Array(n), odd: new Int32Array(n), at: new Int32Array(n), wide: 0 };
  pixels.forEach(([dx, dy, [r, g, b], a], k) => {
    mark.dx[k] = dx; mark.dy[k] = dy; mark.rest[k] = 256 - a;
    mark.even[k] = Math.imul(r | (b << 16), a) + 0x800080;
    mark.odd[k] = Math.imul(g | (255 << 16), a) + 0x800080;
  });
  return mark;
}

const PAIR = 0xff00ff;
const blended = (d, rest, even, odd) => (((Math.imul(d & PAIR, rest) + even) >>> 8) & PAIR) | ((Math.imul((d >>> 8) & PAIR, rest) + odd) & ~PAIR);

/** Blend a mark into opaque RGBA pixels around the pixel `here`; all of it must lie inside. */
export function blendMark(words, wide, here, mark) {
  const { at, rest, even, odd } = mark;
  if (mark.wide !== wide) { mark.wide = wide; for (let k = 0; k < at.length; k++) at[k] = mark.dy[k] * wide + mark.dx[k]; }
  for (let k = 0; k < at.length; k++) { const p = here + at[k]; words[p] = blended(words[p], rest[k], even[k], odd[k]); }
}

/** The same at the edge: what lies outside is left out. */
function blendCutMark(words, wide, high, px, py, { dx, dy, rest, even, odd }) {
  for (let k = 0; k < dx.length; k++) {
    const x = px + dx[k], y = py + dy[k];
    if (x >= 0 && y >= 0 && x < wide && y < high) { const p = y * wide + x; words[p] = blended(words[p], rest[k], even[k], odd[k]); }
  }
}

/** `part` of the pixels above and the rest of those below (opaque RGBA bytes). */
export function fade(above, below, part) {
  const [one, two] = [above, below].map(({ buffer }) => new Uint32Array(buffer)), out = new Uint32Array(one.length), a = Math.round(256 * part);
  for (let k = 0; k < out.length; k++) out[k] = blended(two[k], 256 - a, Math.imul(one[k] & PAIR, a) + 0x800080, Math.imul((one[k] >>> 8) & PAIR, a) + 0x800080);
  return new Uint8ClampedArray(out.buffer);
}

// ---------------------------------------------------------------- colours, words and DOM

const CELLS = 128;
const MAX_COLOURS = 8;
const LEAST = 5;  // images within the smoothing, below which a place has no ratio
const REACH = 3;  // the ratio's scale ends at 2 ** 3 = 8 times
const MOST_MOVES = 1500;
const MOST_ARROWS = 300;
const BINS = 32;  // colours of a scale
const FOR_THE_KERNEL = new Set(["projection", "k", "domain", "inputs", "noise_only", "measure"]);  // settings that Python must act on
const PATIENCE = 4000;  // milliseconds that an idle kernel never needs
const FADED = 0.4;  // what is left of the other points while some are selected
// Okabe and Ito's eight colours; the last one is the ink of the theme. On dark ground the dark ones are lifted and kept apart.
export const PALETTE = {
  light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#1b1f24"],
  dark: ["#56B4E9", "#E69F00", "#00b389", "#c654a8", "#F0E442", "#5f7df2", "#d9541e", "#f2f4f7"],
};
// Marks beside the colours, in a box from -1 to 1: who does not tell two colours apart tells the shapes.
const SHAPES = [
  "M1 0A1 1 0 1 1-1 0A1 1 0 1 1 1 0Z", "M-.88-.88H.88V.88H-.88Z", "M0-1.12L1.06.82H-1.06Z", "M0-1.2L1.2 0L0 1.2L-1.2 0Z",
  "M-.38-1.1H.38V-.38H1.1V.38H.38V1.1H-.38V.38H-1.1V-.38H-.38Z", "M0 1.12L1.06-.82H-1.06Z",
  "M-.5-1.05L0-.55L.5-1.05L1.05-.5L.55 0L1.05.5L.5 1.05L0 .55L-.5 1.05L-1.05.5L-.55 0L-1.05-.5Z", "M0-1.25L.35-.4L1.2-.38L.55.18L.77 1.02L0 .55L-.77 1.02L-.55.18L-1.2-.38L-.35-.4Z",
];
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const THEMES = {
  light: {
    ink: "#1b1f24", density: "#4d6580", point: "#4a5562", ghost: "#9aa4af", selected: "#d6006f", before: "#8a5a00", after: "#0067a5", arrow: "#8c2d04",
    heat: ["#d3dee9", "#9db6cd", "#648bab", "#33617f", "#123b57"], thinner: ["#fbd9ab", "#ee9a3a", "#b45f06", "#6b3200"], denser: ["#d9d3ee", "#a596d3", "#6f4fae", "#3b127a"],
    middle: "#a7adb4", values: Array.from({ length: 9 }, (_, k) => ramp(VIRIDIS, 0.84 * (1 - k / 8))), binary: ["#D55E00", "#0072B2"],
  },
  dark: {
    ink: "#f2f4f7", density: "#9fb6cd", point: "#aab4c0", ghost: "#6d7782", selected: "#ff5aa9", before: "#e0ad4b", after: "#6cbcf0", arrow: "#ffb58a",
    heat: ["#1d2c3a", "#355069", "#587d9f", "#8fb1cf", "#dcebf8"], thinner: ["#4a3310", "#8f5a12", "#dd8f2b", "#ffd394"], denser: ["#2e2750", "#57459a", "#8e7ad6", "#d2c4ff"],
    middle: "#737d88", values: Array.from({ length: 9 }, (_, k) => ramp(VIRIDIS, 0.26 + 0.74 * (k / 8))), binary: ["#E69F00", "#56B4E9"],
  },
};
const number = new Intl.NumberFormat("en");
const plural = (n, one, many = one + "s") => `${number.format(n)} ${n === 1 ? one : many}`;
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const short = (v) => (Math.abs(v) >= 1e4 ? number.format(Math.round(v)) : String(+v.toPrecision(3))).replace("-", "−");
/** A log2 ratio in words: "2.8x denser". */
export function ratioWords(log2) {
  const times = 2 ** Math.abs(log2);
  return times < 1.05 ? "as dense as before" : `${times < 9.95 ? times.toFixed(1) : Math.round(times)}× ${log2 > 0 ? "denser" : "thinner"}`;
}
const still = matchMedia("(prefers-reduced-motion: reduce)");
const views = (globalThis.mdpropViews ??= { made: 0 });  // of all dashboards in the page, each of which loads this module for itself: ids and names of radio buttons must differ

/** A DOM element; `text` is always set by textContent. */
function h(tag, { text, on, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("aria-")) node.setAttribute(name, value);
    else if (value !== false && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  for (const [name, handler] of Object.entries(on || {})) node.addEventListener(name, handler);
  node.append(...children);
  return node;
}

/** An SVG element. */
function g(tag, { text, ...attributes } = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
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

/** A labelled drop-down list; options are [value, text, explanation]. */
function choice(label, title, id, options, value, pick) {
  const select = h("select", { class: "mdp-select", id, on: { change: () => pick(select.value) } }, ...options.map(([key, text, meaning]) => h("option", { value: key, text, title: meaning })));
  const node = h("div", { class: "mdp-choice", title }, h("label", { for: id, text: label }), select);
  node.show = (key) => { select.value = key; };
  node.show(value);
  return node;
}

function button(text, title, click, more = {}) { return h("button", { type: "button", class: "mdp-button", text, title, on: { click }, ...more }); }

/** A small mark in a class's colour and shape; without a colour an empty square. */
function mark(colour, shape = 0) {
  const svg = g("svg", { class: "mdp-swatch", viewBox: "-1.4 -1.4 2.8 2.8", "aria-hidden": "true" });
  svg.append(colour ? g("path", { d: SHAPES[shape], fill: colour, class: "mdp-mark" }) : g("rect", { x: -1, y: -1, width: 2, height: 2, rx: 0.4, class: "mdp-mark-none" }));
  return svg;
}

/** One measure: before, after, difference, direction and, on hover or focus, what it means. */
function metricCard(metric, id) {
  const { label, caption = "", before, after, percent, better, digits = 3, meaning, words, direction } = metric;
  const known = (v) => typeof v === "number" && Number.isFinite(v);
  const show = (v) => (v === "inf" ? "∞" : known(v) ? (percent ? `${(100 * v).toFixed(1)} %` : v.toFixed(digits)) : "n/a");
  const both = known(before) && known(after), gap = both ? after - before : 0;
  const shown = Math.abs(percent ? 100 * gap : gap).toFixed(percent ? 1 : digits);
  const same = both && Number(shown) === 0, up = gap > 0;
  const good = (better === "higher") === up, verdict = !both ? "" : same ? "no change" : words[good ? 0 : 1];
  const tip = h("span", { class: "mdp-meaning", role: "tooltip", id, text: meaning });
  const info = h("button", { type: "button", class: "mdp-info", "aria-label": `What ${label} means`, "aria-describedby": id, text: "?" });
  const part = (name, value, cls) => h("div", { class: `mdp-value ${cls}` }, h("span", { text: name }), h("strong", { text: value }));
  return h("article", { class: "mdp-metric", "data-verdict": both && !same ? (good ? "better" : "worse") : "none" },
    h("h3", {}, h("span", { text: label }), h("span", { class: "mdp-caption", text: caption }), info, tip),
    h("div", { class: "mdp-values" }, part("before", show(before), ""), part("after", show(after), "mdp-after"),
      part("difference", both ? `${same ? "±" : up ? "+" : "−"}${shown}${percent ? " pts" : ""}` : "n/a", "mdp-gap")),
    h("p", { class: "mdp-direction" }, h("strong", { text: verdict && verdict !== "no change" ? `${up ? "▲" : "▼"} ${verdict}` : verdict }), h("span", { text: direction })));
}

/** A colour scale with its words: cells of colour, and numbers or words below it, from one end to the other. */
function scale(title, colours, words, note = "") {
  const band = h("span", { class: "mdp-band" });
  band.style.background = `linear-gradient(to right, ${colours.join(", ")})`;
  return h("div", { class: "mdp-scale" }, h("span", { class: "mdp-scale-title", text: title }), h("span", { class: "mdp-scale-body" }, band, h("span", { class: "mdp-scale-words" }, ...words.map((text) => h("span", { text })))), ...(note ? [h("span", { class: "mdp-hint", text: note })] : []));
}

/** A small chart: axes with units, lines that differ in colour and dash, values under the pointer or the arrow keys. */
export function chart({ title, x_label, y_label, log_y, note, series }, colours) {
  const W = 300, H = 176, right = 8, top = 8, bottom = 34, drawn = series.map((s) => ({ ...s, x: typed(Float32Array, s.x), y: typed(Float32Array, s.y) })).filter((s) => s.x.length);
  const figure = h("figure", { class: "mdp-chart" }, h("figcaption", { text: title }));
  if (!drawn.length) { figure.append(h("p", { class: "mdp-empty", text: note || "Nothing to show." })); return figure; }
  const finite = (name) => drawn.flatMap((s) => [...s[name]]).filter((v) => Number.isFinite(v) && (name === "x" || !log_y || v > 0));
  const span = (values) => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  let [x0, x1] = span(finite("x")), [y0, y1] = span(finite("y"));
  if (!(x1 > x0)) { x0 -= 0.5; x1 += 0.5; }
  if (log_y) { y0 = Math.log10(y0); y1 = Math.log10(y1); } else if (y0 > 0 && y0 < 0.6 * y1) y0 = 0;
  if (!(y1 > y0)) { y0 -= 0.5; y1 += 0.5; }
  const yTicks = log_y ? ticks(Math.ceil(y0), Math.floor(y1), 3).filter(Number.isInteger).map((k) => 10 ** k) : ticks(y0, y1, 3);
  const left = Math.max(44, 22 + 6 * Math.max(0, ...yTicks.map((t) => short(t).length)));  // the longest number does not run into the label
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (W - left - right), py = (y) => H - bottom - (((log_y ? Math.log10(y) : y) - y0) / (y1 - y0)) * (H - top - bottom);
  const svg = g("svg", { viewBox: `0 0 ${W} ${H}`, class: "mdp-chart-svg", role: "img", tabindex: 0, "aria-label": `${title}. ${drawn.map((s) => s.name).join(", ")}. Arrow keys read the values.` });
  for (const t of yTicks) svg.append(g("line", { class: "mdp-grid", x1: left, x2: W - right, y1: py(t), y2: py(t) }), g("text", { class: "mdp-tick", x: left - 5, y: py(t) + 3.5, "text-anchor": "end", text: short(t) }));
  for (const t of ticks(x0, x1, 4)) svg.append(g("text", { class: "mdp-tick", x: px(t), y: H - bottom + 13, "text-anchor": "middle", text: short(t) }));
  svg.append(g("line", { class: "mdp-axis", x1: left, x2: W - right, y1: H - bottom, y2: H - bottom }), g("text", { class: "mdp-label", x: (left + W - right) / 2, y: H - 4, "text-anchor": "middle", text: x_label }),
    g("text", { class: "mdp-label", transform: `translate(11 ${(top + H - bottom) / 2}) rotate(-90)`, "text-anchor": "middle", text: y_label }));
  drawn.forEach((s, k) => {
    const colour = s.side ? colours[s.side] : colours.series[k % colours.series.length], points = [];
    s.x.forEach((x, i) => {
      if (!Number.isFinite(s.y[i]) || (log_y && s.y[i] <= 0)) return;
      if (s.style === "step" && points.length) points.push([px(x), points.at(-1)[1]]);
      points.push([px(x), py(s.y[i])]);
    });
    const d = points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
    if (s.style === "area" && points.length) svg.append(g("path", { d: `${d}L${points.at(-1)[0].toFixed(1)} ${H - bottom}L${points[0][0].toFixed(1)} ${H - bottom}Z`, fill: colour, opacity: 0.16 }));
    svg.append(g("path", { d, fill: "none", stroke: colour, "stroke-width": s.strong ? 2.4 : 1.5, opacity: s.faint ? 0.55 : 1, "stroke-linejoin": "round", "stroke-dasharray": s.dash ? "5 3" : "none" }));
    s.colour = colour;
  });
  const cursor = g("line", { class: "mdp-cursor", y1: top, y2: H - bottom, x1: 0, x2: 0, visibility: "hidden" }), read = h("p", { class: "mdp-read", "aria-live": "polite" });
  svg.append(cursor);
  const plain = () => { cursor.setAttribute("visibility", "hidden"); read.textContent = note || ""; };
  let at;
  const show = (x) => {
    at = Math.min(Math.max(x, x0), x1);
    cursor.setAttribute("x1", px(at)); cursor.setAttribute("x2", px(at)); cursor.setAttribute("visibility", "visible");
    const value = (s) => { let best = 0; s.x.forEach((v, i) => { if (Math.abs(v - at) < Math.abs(s.x[best] - at)) best = i; }); return s.y[best]; };
    read.textContent = `${x_label} ${short(at)}: ${drawn.map((s) => `${s.name} ${short(value(s))}`).join(", ")}`;
  };
  svg.addEventListener("pointermove", (event) => { const box = svg.getBoundingClientRect(); show(x0 + (((event.clientX - box.left) / box.width) * W - left) / (W - left - right) * (x1 - x0)); });
  svg.addEventListener("pointerleave", plain);
  svg.addEventListener("blur", plain);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    show((at ?? (x0 + x1) / 2) + (step * (x1 - x0)) / 20);
    event.preventDefault(); event.stopPropagation();
  });
  const keys = drawn.map((s) => h("span", { class: "mdp-key" }, g("svg", { viewBox: "0 0 22 8", class: "mdp-key-line", "aria-hidden": "true" }, g("line", { x1: 0, x2: 22, y1: 4, y2: 4, stroke: s.colour, "stroke-width": s.strong ? 3 : 2, opacity: s.faint ? 0.55 : 1, "stroke-dasharray": s.dash ? "5 3" : "none" })), h("span", { text: s.name })));
  figure.append(svg, h("div", { class: "mdp-keys" }, ...keys), read);
  plain();
  return figure;
}

/** Lines of a histogram of the finite values of `keep` over equal bins: the share of these items per bin, in per cent. */
export function histogram(values, keep, low, high, bins = 36) {
  const x = new Float32Array(bins), y = new Float32Array(bins), width = (high - low) / bins;
  let total = 0;
  for (let b = 0; b < bins; b++) x[b] = low + (b + 0.5) * width;
  for (let i = 0; i < values.length; i++) {
    if ((keep && !keep[i]) || !Number.isFinite(values[i])) continue;
    y[Math.min(bins - 1, Math.max(0, Math.floor((values[i] - low) / width)))]++;
    total++;
  }
  if (total) for (let b = 0; b < bins; b++) y[b] *= 100 / total;
  return { x, y, total };
}

// ---------------------------------------------------------------- the view

class View {
  constructor(model, host) {
    this.model = model;
    this.live = typeof model.send === "function";  // a kernel answers; an exported page has none
    this.id = `mdp${++views.made}`;
    this.undo = [];
    this.morph = 1;
    this.pictures = new Map();  // larger images that the kernel has sent
    this.sort = { key: "name", down: false };
    this.told = false;  // whether the table has been told of a selection
    this.root = h("section", { class: "mdp", "data-lm-suppress-shortcuts": "true", "aria-label": "Two embeddings of the same items, side by side" });
    host.append(this.root);
    this.watchTheme();
    const problem = this.read();
    if (problem) { this.fail(problem); return; }
    this.build();
    this.frame();
    this.listen();
    this.loadSprite();
    this.recolour();
    this.refilter();
    this.tellSelection();
  }

  destroy() { this.stopPlaying(); clearTimeout(this.unanswered); for (const undo of this.undo) undo(); this.root.remove(); }

  on(target, event, handler, options) {
    if (target.on) { target.on(event, handler); this.undo.push(() => target.off(event, handler)); }
    else { target.addEventListener(event, handler, options); this.undo.push(() => target.removeEventListener(event, handler, options)); }
  }

  get(name) { return this.model.get(name); }

  set(name, value, save = true) {
    this.model.set(name, value);
    if (!save) return;
    this.model.save_changes();
    if (this.live && FOR_THE_KERNEL.has(name)) this.expectAnswer();
  }

  /** A kernel that was restarted knows nothing of this view, and nobody tells the page: ask, and say so if no answer comes. */
  expectAnswer() {
    clearTimeout(this.unanswered);
    if (this.tell({ kind: "ping" })) this.unanswered = setTimeout(() => this.missKernel(), PATIENCE);
  }

  /** Send a message; without a kernel some widget managers throw. */
  tell(message) {
    try { this.model.send(message); return true; } catch { this.missKernel(); return false; }
  }

  missKernel() { this.silent = true; this.showAside(); }

  // ---- data

  /** Take the arrays out of the model; says what is wrong, or nothing. */
  read() {
    const get = (name) => this.get(name);
    if (get("error")) return get("error");
    this.names = get("class_names");
    this.classes = typed(Uint16Array, get("classes"));
    this.n = this.classes.length;
    this.keys = itemNames(get("item_keys"), this.classes);
    this.titles = get("titles");
    this.total = Math.max(get("total") || 0, this.n);
    if (!this.n) return "There are no items to show. Pass at least one embedding.";
    if (this.keys.length && this.keys.length !== this.n) return `There are ${plural(this.keys.length, "item name")} for ${plural(this.n, "item")}. Pass one name per item, or none.`;
    this.counts = new Uint32Array(this.names.length);
    for (const c of this.classes) {
      if (c >= this.names.length) return `Class number ${c} has no name: only ${plural(this.names.length, "class", "classes")} are named.`;
      this.counts[c]++;
    }
    this.readTable();
    return this.readValues() || this.readLayout();
  }

  readTable() { this.table = (this.get("class_table") || []).map((column) => ({ ...column, values: typed(Float32Array, column.values) })); }

  readValues() {
    this.values = {};
    for (const [key, entry] of Object.entries(this.get("values") || {})) {
      const before = numbers(entry.before, this.n), after = bytes(entry.after).length ? numbers(entry.after, this.n) : before;
      if (!before || !after) return `“${entry.label}” does not have one value per item.`;
      const sides = [before, after], all = new Float32Array(2 * this.n);
      all.set(before); all.set(after, this.n);
      const far = entry.kind === "diverging" ? quantile(all.map(Math.abs), 0.98) || 1 : 0;
      const range = entry.kind === "binary" ? [0, 1] : far ? [-far, far] : [quantile(all, 0.02), quantile(all, 0.98)];
      this.values[key] = { ...entry, sides, range, whole: [quantile(all, 0.002), quantile(all, 0.998)], missing: sides.map((v) => v.reduce((sum, x) => sum + Number.isNaN(x), 0)) };
    }
    return "";
  }

  readLayout() {
    const name = this.get("projection"), p = this.get("projections")[name];
    if (!p) return this.xy ? "" : `There is no ${name} layout in this view.`;
    const part = (key) => (bytes(p[key]).length ? positions(p[key], this.n, p.window) : null);
    this.final = [part("before"), part("after")];
    for (const [side, xy] of this.final.entries()) if (!xy) {
      return `The ${name.toUpperCase()} layout ${side ? "after" : "before"} has ${plural(bytes(p[side ? "after" : "before"]).length / 8, "position")}, but there are ${plural(this.n, "item")}. Embed the same items with both models.`;
    }
    for (const xy of this.final) for (const v of xy) if (!Number.isFinite(v)) return "A position is not a finite number: the embedding holds NaN or infinity.";
    this.shown = name;
    this.rerun = part("rerun");
    this.attacked = [part("attacked_before"), part("attacked_after")];
    this.epochs = ["epochs_before", "epochs_after"].map((key) => (p[key] || []).map((xy) => positions(xy, this.n, p.window)));
    const all = [...this.final, ...this.attacked, ...this.epochs.flat()].filter(Boolean);
    this.window = pictureWindow(all);
    if (p.window) Object.assign(this.window, { left: p.window[0], bottom: p.window[1], side: p.window[2] });
    this.raw = [p.grid_before, p.grid_after].map((grid) => (bytes(grid).length ? typed(Float32Array, grid) : null));
    this.camera = null;
    this.placeItems();
    return "";
  }

  /** The positions that are shown: those of the epoch that is set, else the final ones. */
  placeItems(part = 1) {
    const e = this.get("epoch") ?? -1, former = this.xy;
    const target = this.final.map((xy, side) => (e >= 0 && this.epochs[side][e]) || xy);
    this.xy = part < 1 && former ? target.map((xy, side) => (xy === former[side] ? xy : xy.map((v, k) => former[side][k] + (v - former[side][k]) * part))) : target;
    this.placeMorph();
  }

  placeMorph() {
    const [before, after] = this.xy, t = this.morph;
    this.middle = t >= 1 ? after : t <= 0 ? before : before.map((v, k) => v + (after[k] - v) * t);
  }

  loadSprite() {
    const sheet = bytes(this.get("sprite"));
    this.sprite = null;
    if (!sheet.length) return;
    const type = { 0x89: "image/png", 0xff: "image/jpeg", 0x52: "image/webp" }[sheet[0]];
    createImageBitmap(new Blob([sheet], { type })).then((bitmap) => { this.sprite = bitmap; this.drawGallery(); this.showTip(); }, () => { this.sprite = null; });
  }

  /** Draw the thumbnail of item i into a square of a canvas. */
  thumbnail(ctx, i, x, y, size) {
    const [columns, side] = this.get("sprite_grid");
    ctx.imageSmoothingEnabled = size / side < 4;  // few pixels are shown as what they are
    ctx.drawImage(this.sprite, (i % columns) * side, Math.floor(i / columns) * side, side, side, x, y, size, size);
  }

  /** Ask the kernel for a larger image of the item under the pointer, once it has rested there. */
  requestImage(i) {
    clearTimeout(this.asking);
    if (!this.live || i === undefined || this.pictures.has(i)) return;
    this.asking = setTimeout(() => this.tell({ kind: "image", item: i }), 120);
  }

  receive(message, buffers) {
    clearTimeout(this.unanswered);  // whatever it says, it lives
    if (this.silent) { this.silent = false; this.showAside(); }
    this.receiveImage(message, buffers);
  }

  receiveImage(message, buffers) {
    if (message?.kind !== "image" || !buffers?.length) return;
    createImageBitmap(new Blob([bytes(buffers[0])])).then((bitmap) => {
      if (this.pictures.size > 60) this.pictures.delete(this.pictures.keys().next().value);
      this.pictures.set(message.item, bitmap);
      if (this.hovered === message.item) this.showTip();
    }, () => {});
  }

  // ---- theme

  watchTheme() {
    let later = 0;
    const read = () => {
      cancelAnimationFrame(later);
      const style = getComputedStyle(this.root), ctx = document.createElement("canvas").getContext("2d");
      const colour = (name) => { ctx.fillStyle = "#888888"; ctx.fillStyle = style.getPropertyValue(name).trim(); return ctx.fillStyle; };
      const ground = colour("--mdp-ground"), [r, gr, b] = [1, 3, 5].map((i) => parseInt(ground.slice(i, i + 2), 16));
      if (!style.getPropertyValue("--mdp-ground")) later = requestAnimationFrame(read);  // not in the page yet, or before its style sheet
      const theme = 0.3 * r + 0.59 * gr + 0.11 * b < 128 ? "dark" : "light";
      if (this.colours?.ground === ground && this.root.dataset.theme === theme) return;
      this.root.dataset.theme = theme;
      this.palette = PALETTE[theme];
      this.colours = { ...THEMES[theme], ground };
      if (this.panels) { this.stamps.clear(); this.recolour(); this.colourRows(); this.showChips(); this.recontour(); this.drawCharts(); this.drawGallery(); }
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
    this.drag = "move";
    this.strip = h("div", { class: "mdp-metrics" });
    this.toolbar = h("div", { class: "mdp-toolbar", role: "toolbar", "aria-label": "How the pictures are drawn" });
    this.time = h("div", { class: "mdp-time", role: "group", "aria-label": "Epoch" });
    this.suggestRow = h("div", { class: "mdp-suggestions", role: "group", "aria-label": "Suggested selections" });
    this.chips = h("div", { class: "mdp-chips", role: "group", "aria-label": "Coloured classes" });
    this.overlay = h("canvas", { class: "mdp-overlay", "aria-hidden": "true" });
    this.buildBusy();
    this.panels = [0, 1, 2].map((side) => this.buildPanel(side));
    this.legend = h("div", { class: "mdp-legend" });
    this.foot = h("div", { class: "mdp-legend mdp-legend-third" });
    this.buildMorph();
    const [before, after, third] = this.panels.map((p) => p.figure);
    this.stage = h("div", { class: "mdp-stage", "data-drag": "move" }, before, after, this.legend, third, this.foot, this.overlay, this.busy);
    this.summary = h("p", { class: "mdp-summary", role: "status", "aria-live": "polite" });
    this.clear = button("Clear selection", "Select nothing (Escape)", () => this.select(new Uint8Array(this.n)));
    this.pickTheirs = button("Colour their classes", "Pick the classes of the selected images (at most 8, the most frequent)", () => this.pickSelectedClasses());
    this.gallery = h("canvas", { class: "mdp-gallery", role: "img", hidden: true });
    this.tip = h("div", { class: "mdp-tip", hidden: true });
    this.alert = h("p", { class: "mdp-alert", role: "alert", hidden: true });
    this.aside = h("div", { class: "mdp-aside", role: "status", hidden: true });
    this.note = h("div", { class: "mdp-note" });
    this.charts = h("div", { class: "mdp-charts" });
    this.chartsFor = h("p", { class: "mdp-charts-for" });
    this.chartBox = h("section", { class: "mdp-chart-box", "aria-label": "Charts" }, this.chartsFor, this.charts);
    const bar = h("div", { class: "mdp-selection" }, this.summary, this.pickTheirs, this.clear);
    const middle = h("div", { class: "mdp-main" }, this.suggestRow, this.chips, this.stage, bar, this.gallery);
    this.root.append(this.strip, this.aside, this.toolbar, this.time, this.alert, middle, h("div", { class: "mdp-body" }, this.buildFilter(), this.chartBox), this.note, this.tip);
    this.showMetrics();
    this.buildToolbar();
    this.buildTime();
    this.showSuggestions();
  }

  showMetrics() {
    const metrics = this.get("metrics");
    this.strip.hidden = !metrics.length;
    this.strip.replaceChildren(...metrics.map((m, i) => metricCard(m, `${this.id}m${i}`)));
  }

  /** All controls in the order of a thought: what is shown, how it is coloured, how density is drawn, how the mouse works. */
  buildToolbar() {
    const get = (name) => this.get(name), pick = (name) => (v) => this.set(name, v), name = (key) => `${this.id}${key}`, values = Object.entries(this.values);
    const layouts = {
      pca: ["PCA", "Straight projection of both spaces on their two widest directions: distances mean something"],
      umap: ["UMAP", "Bent so that neighbours stay together: clusters show well, distances and sizes do not count"],
      densmap: ["densMAP", "Like UMAP, and it tries to keep how dense each region is"],
    };
    const list = (key, label, title, options) => choice(label, title, name(key), options.map((o) => (typeof o === "object" ? [o.value, o.label, o.meaning] : [o, String(o)])), get(key), (v) => this.set(key, key === "k" ? +v : v));
    const smooth = (key, label, title, min, max, step, format) => slider(label, title, { min, max, step, value: get(key), format, input: (v) => this.set(key, v, false), change: () => this.model.save_changes() });
    const inputs = (get("inputs_choices") || []).filter((o) => this.live || o.value === "clean" || o.value === get("inputs"));
    const here = (options, value) => (this.live ? options : options.filter((o) => (o.value ?? o) === value));  // without a kernel only what is here can be shown
    const domains = here(get("domain_choices") || [], get("domain")), ks = here(get("k_choices") || [], get("k"));
    const c = this.controls = {
      projection: segments("Layout", name("p"), get("projection_choices").map((k) => [k, ...(layouts[k] || [k, ""])]), get("projection"), pick("projection")),
      inputs: list("inputs", "Inputs", "Which images are embedded: clean ones, or attacked ones with arrows from where the clean ones are", inputs),
      domain: list("domain", "Norm", "Which input distribution's batch norm embeds the images", domains),
      k: list("k", "Neighbours k", "How many nearest neighbours density and neighbourhoods are measured with, in the embedding space", ks),
      colour_by: choice("Colour by", "What the colour of a mark says", name("colour_by"), [["class", "Class", "Up to eight picked classes, each with its colour and shape"], ...values.map(([key, v]) => [key, v.label, v.meaning])], get("colour_by"), pick("colour_by")),
      contours: segments("Density", name("c"), [["all", "Overall", "One density of everything shown"], ["class", "Per class", "A density for each coloured class"], ["off", "Off", "Points only"]], get("contours"), pick("contours")),
      density_style: segments("Drawn as", name("s"), [["lines", "Lines", "Lines of equal density; every line inwards is twice as dense"], ["heat", "Heat", "The stronger the colour, the more images on the same area"]], get("density_style"), pick("density_style")),
      density_scale: segments("Levels", name("l"), [["absolute", "Common", "The same levels for all classes: a small class shows fewer lines"], ["class", "Own peak", "Every class by its own peak: shapes compare, amounts do not"]], get("density_scale"), pick("density_scale")),
      third: segments("Third panel", name("t"), [["density", "Difference", "Where images became denser or thinner"], ["moves", "Moves", "From where to where each image went"], ["off", "None", "Two panels"]], get("third"), pick("third")),
      noise_only: this.buildSwitch("Only above re-run noise", "Hide changes that a second run of the layout with another seed would also show", "noise_only"),
      drag: segments("Drag to", name("d"), [["move", "Move", "Drag to move, wheel to zoom"], ["lasso", "Lasso", "Draw around images (also: shift and drag)"], ["box", "Box", "Select a rectangle"]], this.drag, (v) => { this.drag = v; this.stage.dataset.drag = v; }),
      bandwidth: smooth("bandwidth", "Smoothing", "Width of the blur behind the density, as a share of the picture", 0.01, 0.08, 0.005, (v) => `${(100 * v).toFixed(1)} %`),
      point_size: smooth("point_size", "Points", "Diameter of a point", 1, 10, 0.5, (v) => `${v} px`),
    };
    c.projection.hidden = get("projection_choices").length < 2;
    c.inputs.hidden = inputs.length < 2;
    c.domain.hidden = !domains.length;
    c.k.hidden = !ks.length;
    for (const [control, count] of [[c.domain, domains.length], [c.k, ks.length]]) control.querySelector("select").disabled = !this.live && count < 2;
    c.colour_by.hidden = !values.length;
    const held = document.activeElement, place = this.toolbar.contains(held) ? Object.keys(c).find((key) => this.toolbar.querySelector(`[data-control=${key}]`)?.contains(held)) : "";
    for (const [key, control] of Object.entries(c)) control.dataset.control = key;
    this.toolbar.replaceChildren(...Object.values(c), button("Reset view", "Show everything again (key 0)", () => this.resetCamera()));
    this.fitControls();
    if (place) c[place].querySelector("select, input:checked, input")?.focus();  // the keyboard stays where it was
  }

  buildSwitch(label, title, name) {
    const box = h("input", { type: "checkbox", on: { change: () => this.set(name, box.checked) } }), node = h("label", { class: "mdp-switch", title }, box, h("span", { text: label }));
    node.show = (value) => { box.checked = value; };
    node.show(this.get(name));
    return node;
  }

  /** Hide the controls that have nothing to act on. */
  fitControls() {
    const c = this.controls;
    c.density_scale.hidden = this.get("contours") !== "class";
    c.density_style.hidden = this.get("contours") === "off";
    const chance = this.rerun || (this.get("can_rerun") && this.get("projection") !== "pca");  // PCA has no chance in it
    c.noise_only.hidden = !chance || this.get("third") === "off";
  }

  buildBusy() {
    this.progress = h("progress", { class: "mdp-progress", max: 1, "aria-label": "Progress" });
    this.busyText = h("span");
    this.stop = button("Cancel", "Stop this and keep what was shown", () => { this.stop.disabled = true; this.set("cancel", (this.get("cancel") || 0) + 1); });
    this.busy = h("div", { class: "mdp-busy", hidden: true }, h("div", { class: "mdp-busy-box", role: "status" }, h("span", { class: "mdp-spinner", "aria-hidden": "true" }), this.busyText), this.progress, this.stop);
  }

  buildPanel(side) {
    const canvas = h("canvas", { class: "mdp-canvas", tabindex: 0, role: "application", "aria-roledescription": "scatter plot",
      "aria-label": `${side === 2 ? "Difference" : `${side ? "After" : "Before"}: ${this.titles[side]}`}, ${plural(this.n, "image")}. Arrow keys move, plus and minus zoom, 0 resets, N and P step through the images, Enter selects.` });
    const head = side === 2 ? [h("span", { class: "mdp-third-title" }), h("span", { class: "mdp-third-what" })] : [h("span", { text: side ? "After" : "Before" }), h("strong", { text: this.titles[side], title: this.titles[side] })];
    const figure = h("figure", { class: "mdp-panel" }, h("figcaption", {}, ...head), canvas);
    return { canvas, figure, side, head, ctx: canvas.getContext("2d", { willReadFrequently: true, alpha: false }) };
  }

  // ---- morph and epochs: pictures that move, and stop when asked

  /** Run `step(part)` from 0 to 1; at once to the end where motion is not wanted. */
  animate(milliseconds, step, done) {
    this.stopPlaying();
    const start = performance.now(), ease = (t) => t * t * (3 - 2 * t);
    const tick = (now) => {
      const t = still.matches ? 1 : Math.min(1, Math.max(0, now - start) / milliseconds);
      step(ease(t));
      if (t < 1) this.playing = requestAnimationFrame(tick); else { this.playing = 0; done?.(); }
    };
    this.playing = requestAnimationFrame(tick);
  }

  stopPlaying() { cancelAnimationFrame(this.playing); clearTimeout(this.nextEpoch); this.playing = 0; if (this.playEpochs) { this.playEpochs = false; this.showTime?.(); } this.showMorph?.(); }

  buildMorph() {
    const range = h("input", { type: "range", min: 0, max: 1, step: 0.01, "aria-label": "Morph from before to after", on: { input: () => { const to = +range.value; this.stopPlaying(); this.setMorph(to); } } });
    const play = h("button", { type: "button", class: "mdp-button mdp-play", on: { click: () => this.playMorph() } });
    this.morphRow = h("div", { class: "mdp-morph" }, play, h("span", { text: "before", "aria-hidden": "true" }), range, h("span", { text: "after", "aria-hidden": "true" }));
    this.showMorph = () => { range.value = this.morph; range.setAttribute("aria-valuetext", `${Math.round(100 * this.morph)} % of the way`); const on = !!this.playing && !this.playEpochs; play.textContent = on ? "❚❚" : "▶"; play.setAttribute("aria-label", on ? "Pause the morph" : "Play from before to after"); play.title = play.getAttribute("aria-label"); };
    this.showMorph();
  }

  setMorph(t) { this.morph = t; this.placeMorph(); this.showMorph(); this.hover(); this.draw(); }

  playMorph() {
    if (this.playing) { this.stopPlaying(); return; }
    const from = this.morph >= 1 ? 0 : this.morph;
    this.animate(2200 * (1 - from), (t) => this.setMorph(from + (1 - from) * t), () => this.showMorph());
    this.showMorph();
  }

  buildTime() {
    const names = this.get("epochs") || [], last = names.length;
    this.time.hidden = !last;
    if (!last) { this.showTime = null; return; }
    const label = (e) => (e >= 0 && e < last ? names[e] : "final"), at = () => { const e = this.get("epoch"); return e >= 0 && e < last ? e : last; };
    const go = (to) => this.set("epoch", to >= last ? -1 : Math.max(0, to));
    const range = h("input", { type: "range", min: 0, max: last, step: 1, "aria-label": "Epoch", on: { input: () => { const to = +range.value; this.stopPlaying(); go(to); } } }), out = h("output");
    const play = h("button", { type: "button", class: "mdp-button mdp-play", on: { click: () => { if (this.playEpochs) this.stopPlaying(); else { this.playEpochs = true; if (at() === last) go(0); else go(at() + 1); this.showTime(); this.queueEpoch(at, go, last); } } } });
    const back = h("button", { type: "button", class: "mdp-button mdp-play", text: "◂", "aria-label": "Previous epoch", title: "Previous epoch", on: { click: () => { this.stopPlaying(); go(at() - 1); } } });
    const on = h("button", { type: "button", class: "mdp-button mdp-play", text: "▸", "aria-label": "Next epoch", title: "Next epoch", on: { click: () => { this.stopPlaying(); go(at() + 1); } } });
    this.time.replaceChildren(h("span", { class: "mdp-time-label", text: "Epoch" }), back, play, on, range, out, h("span", { class: "mdp-hint", text: "Positions as training went on; colours and measures stay those of the final embedding." }));
    this.showTime = () => {
      range.value = at();
      range.setAttribute("aria-valuetext", label(at()));
      out.textContent = label(at());
      play.textContent = this.playEpochs ? "❚❚" : "▶";
      play.hidden = still.matches;
      play.setAttribute("aria-label", this.playEpochs ? "Pause" : "Play the epochs");
      back.disabled = at() === 0; on.disabled = at() === last;
    };
    this.showTime();
  }

  queueEpoch(at, go, last) {
    this.nextEpoch = setTimeout(() => {
      if (!this.playEpochs) return;
      if (at() >= last) { this.playEpochs = false; this.showTime(); return; }
      go(at() + 1);
      this.queueEpoch(at, go, last);
    }, 900);
  }

  /** Points travel to another epoch; the density follows when they have arrived. */
  goEpoch() {
    this.showTime?.();
    cancelAnimationFrame(this.playing);
    if (still.matches || this.n > 20000) { this.placeItems(); this.recontour(); this.rehover(); return; }
    const from = this.xy, start = performance.now(), step = (now) => {
      const t = Math.min(1, Math.max(0, now - start) / 380);
      this.xy = from;
      this.placeItems(t * t * (3 - 2 * t));
      if (t < 1) { this.draw(); this.playing = requestAnimationFrame(step); } else { this.playing = 0; this.recontour(); this.rehover(); }
    };
    this.playing = requestAnimationFrame(step);
  }

  // ---- the class table

  buildFilter() {
    const many = this.names.length;
    this.search = h("input", { type: "search", class: "mdp-search", placeholder: `Search ${plural(many, "class", "classes")}`, "aria-label": "Search classes", on: { input: () => this.listRows() } });
    this.picked = h("span", { class: "mdp-picked" });
    this.none = button("Clear", "Show all classes", () => this.set("class_filter", []), { "aria-label": "Clear the class filter" });
    this.rows = h("div", { class: "mdp-rows", role: "listbox", "aria-multiselectable": "true", "aria-label": "Classes" });
    this.heads = h("div", { class: "mdp-rows-head", role: "row" });
    this.on(this.rows, "click", (event) => { const row = event.target.closest("[data-class]"); if (row) { this.toggle(+row.dataset.class); this.focusRow(row); } });
    this.on(this.rows, "keydown", (event) => this.rowKey(event));
    const spot = (event) => { const row = event.target.closest?.("[data-class]"); this.spotlight(row ? +row.dataset.class : undefined); };
    this.on(this.rows, "pointerover", spot);
    this.on(this.rows, "focusin", (event) => { if (event.target.matches(":focus-visible")) spot(event); });
    this.on(this.rows, "pointerleave", () => this.spotlight());
    this.on(this.rows, "focusout", () => { if (!this.rows.matches(":hover")) this.spotlight(); });
    this.on(this.heads, "keydown", (event) => {
      const to = { ArrowRight: event.target.parentElement?.nextElementSibling, ArrowLeft: event.target.parentElement?.previousElementSibling }[event.key]?.querySelector("button");
      if (!to) return;
      for (const other of this.heads.querySelectorAll("button")) other.tabIndex = other === to ? 0 : -1;
      to.focus();
      event.preventDefault(); event.stopPropagation();
    });
    this.scroller = h("div", { class: "mdp-scroll" }, h("div", { role: "grid", class: "mdp-heads", "aria-label": "Sort the classes" }, this.heads), this.rows);
    return h("aside", { class: "mdp-filter", "aria-label": "Class table" }, h("div", { class: "mdp-filter-head" }, h("h3", { text: "Classes" }), this.picked, this.search, this.none), this.scroller);
  }

  /** The columns behind swatch and name. */
  columns() {
    const own = [{ key: "count", label: "images", meaning: "Images of the class", values: this.counts, digits: 0 }];
    if (this.anySelected) own.push({ key: "selected", label: "selected", meaning: "Selected images of the class", values: this.tally, digits: 0 });
    return [...own, ...this.table];
  }

  listHeads() {
    const columns = [{ key: "name", label: "class", meaning: "Name of the class" }, ...this.columns()];
    const sorted = columns.some((column) => column.key === this.sort.key) ? this.sort.key : "name", held = this.heads.contains(document.activeElement) ? document.activeElement.dataset.key : "";
    this.heads.replaceChildren(...columns.map((column) => {
      const on = column.key === sorted, arrow = on ? (this.sort.down ? " ▾" : " ▴") : "";
      const sortBy = h("button", { type: "button", class: "mdp-sort", "data-key": column.key, tabindex: on ? 0 : -1, title: `${column.meaning}. Click to sort.`, on: { click: () => this.sortBy(column) } }, h("span", { text: column.label }), h("span", { "aria-hidden": "true", text: arrow }));
      return h("div", { role: "columnheader", "aria-sort": on ? (this.sort.down ? "descending" : "ascending") : "none" }, sortBy);
    }));
    if (held) this.heads.querySelector(`[data-key="${CSS.escape(held)}"]`)?.focus();
    this.scroller.style.setProperty("--mdp-columns", `13px minmax(96px, 1fr) repeat(${columns.length - 1}, minmax(54px, max-content))`);
    this.scroller.style.setProperty("--mdp-count", columns.length + 1);
  }

  sortBy({ key }) {
    this.sort = { key, down: this.sort.key === key ? !this.sort.down : key !== "name" };
    this.listRows();
    this.heads.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
  }

  listRows() {
    this.listHeads();
    const wanted = this.search.value.trim().toLowerCase(), columns = this.columns(), by = columns.find((column) => column.key === this.sort.key), turn = this.sort.down ? -1 : 1;
    let found = [...this.names.keys()].filter((c) => this.counts[c] && this.names[c].toLowerCase().includes(wanted));
    if (by) found.sort((a, b) => { const [x, y] = [by.values[a], by.values[b]]; return Number.isFinite(x) && Number.isFinite(y) ? turn * (x - y) : Number.isFinite(y) - Number.isFinite(x); });
    else if (this.sort.down) found.reverse();
    const limit = 300;
    const rows = found.slice(0, limit).map((c) => h("div", { role: "option", class: "mdp-row", "data-class": c, id: `${this.id}o${c}`, tabindex: -1 }, mark(""),
      h("span", { class: "mdp-row-name", text: this.names[c], title: this.names[c] }), ...columns.map((column) => h("span", { class: "mdp-cell", "data-key": column.key, text: this.cell(column, c) }))));
    if (!found.length) rows.push(h("p", { class: "mdp-empty", text: wanted ? `No class contains “${this.search.value.trim()}”.` : "No class to list." }));
    if (found.length > limit) rows.push(h("p", { class: "mdp-empty", text: `and ${plural(found.length - limit, "more class", "more classes")}: search to find them` }));
    this.rows.replaceChildren(...rows);
    if (found.length) this.rows.firstChild.tabIndex = 0;
    this.colourRows();
  }

  cell({ values, digits = 2, percent, sign }, c) {
    const v = values[c];
    if (!Number.isFinite(v)) return "–";
    const text = percent ? `${(100 * Math.abs(v)).toFixed(digits)} %` : digits ? Math.abs(v).toFixed(digits) : number.format(Math.abs(v));
    return `${v < 0 ? "−" : sign && v > 0 ? "+" : ""}${text}`;
  }

  colourRows() {
    for (const row of this.rows.children) {
      if (!row.dataset.class) continue;
      const c = +row.dataset.class;
      row.setAttribute("aria-selected", this.filter.has(c));
      row.firstChild.replaceWith(this.classMark(c));
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

  /** Show one class above all others, as long as the pointer or the focus is on its name. */
  spotlight(c) { if (c !== this.spot) { this.spot = c; this.once("spot", () => this.drawOverlay()); } }

  pickSelectedClasses() { this.set("class_filter", this.selectedClasses().slice(0, MAX_COLOURS)); }

  /** The classes of the selected images, the most frequent first. */
  selectedClasses() { return [...this.names.keys()].filter((c) => this.tally[c]).sort((a, b) => this.tally[b] - this.tally[a]); }

  /** The colour of a class, or nothing when it has none of its own. */
  classColour(c) { const slot = this.slots.get(c); return slot === undefined ? "" : this.palette[slot]; }

  classMark(c) { return mark(this.classColour(c), this.slots.get(c)); }

  /** After a change of the class filter: visible points, colours (a class keeps its colour while it stays picked), density. */
  refilter() {
    this.filter = new Set(this.get("class_filter").filter((c) => c < this.names.length));
    const present = [...this.names.keys()].filter((c) => this.counts[c]), old = this.slots || new Map();
    const coloured = this.filter.size ? [...this.filter].slice(0, MAX_COLOURS) : present.length <= MAX_COLOURS ? present : [];
    this.slots = new Map();
    for (const c of coloured) if (old.has(c)) this.slots.set(c, old.get(c));
    for (const c of coloured) if (!this.slots.has(c)) this.slots.set(c, [...Array(MAX_COLOURS).keys()].find((slot) => ![...this.slots.values()].includes(slot)));
    this.visible = new Uint8Array(this.n);
    const shown = Uint8Array.from(this.names, (_, c) => +(!this.filter.size || this.filter.has(c)));
    for (let i = 0; i < this.n; i++) this.visible[i] = shown[this.classes[i]];
    if (this.hovered !== undefined && !this.visible[this.hovered]) this.hover();
    this.recolour();
    if (!this.rows.children.length) this.listRows(); else this.colourRows();
    this.showChips();
    this.reselect();
    this.recontour();
  }

  showChips() {
    const byClass = this.get("colour_by") === "class" || !this.values[this.get("colour_by")];
    const chips = [...this.filter].slice(0, MAX_COLOURS).map((c) => h("button", { type: "button", class: "mdp-chip", "aria-label": `Stop picking ${this.names[c]}`, title: this.names[c], on: { click: () => this.toggle(c) } }, this.classMark(c), h("span", { text: this.names[c] }), h("span", { "aria-hidden": "true", text: "×" })));
    [...this.filter].slice(0, MAX_COLOURS).forEach((c, k) => { for (const [on, off] of [["pointerenter", "pointerleave"], ["focus", "blur"]]) { chips[k].addEventListener(on, () => this.spotlight(c)); chips[k].addEventListener(off, () => this.spotlight()); } });
    const rest = this.filter.size - MAX_COLOURS;
    let hint = "";
    if (rest > 0) hint = `and ${number.format(rest)} more in one colour: eight is the most that can be told apart. Point at a name in the table to find it.`;
    else if (!this.filter.size && !this.slots.size) hint = this.get("contours") === "class" ? `Pick up to ${MAX_COLOURS} classes in the table: each gets a colour and a density of its own.`
      : `No class picked: all ${number.format(this.names.length)} are shown${byClass ? " in one colour" : ""}. Pick up to ${MAX_COLOURS} in the table to ${byClass ? "colour and " : ""}compare them.`;
    else if (!this.filter.size && this.names.length > 1) hint = "All classes are shown. Pick some in the table to compare them alone.";
    const held = [...this.chips.children].indexOf(document.activeElement);
    this.chips.replaceChildren(...chips, h("span", { class: "mdp-hint", text: hint }));
    if (held >= 0 && chips.length) chips[Math.min(held, chips.length - 1)].focus();  // the keyboard stays where it was
  }

  showSuggestions() {
    const list = this.get("suggestions") || [];
    this.suggestRow.hidden = !list.length;
    this.suggestRow.replaceChildren(h("span", { class: "mdp-hint", text: "Look at" }), ...list.map(({ label, why, mask }) => h("button", { type: "button", class: "mdp-suggest", title: why, on: { click: () => this.set("selection", new DataView(bytes(mask).slice().buffer)) } }, h("span", { text: label }))));
    this.markSuggestions();
  }

  /** Which of the suggestions is selected now. */
  markSuggestions() {
    const now = bytes(this.get("selection")), masks = (this.get("suggestions") || []).map(({ mask }) => bytes(mask));
    [...this.suggestRow.querySelectorAll("button")].forEach((chip, k) => chip.setAttribute("aria-pressed", now.length > 0 && masks[k].length === now.length && masks[k].every((v, i) => v === now[i])));
  }

  // ---- colours of the marks

  /** For every item and side the index of its style: 0 is plain; else a class's slot or a value's step on the scale. */
  recolour() {
    const by = this.get("colour_by"), values = this.values[by], { colours } = this;
    this.scaled = values || null;
    if (!values) {
      const lookup = Uint8Array.from(this.names, (_, c) => (this.slots?.has(c) ? this.slots.get(c) + 1 : 0));
      const index = Uint8Array.from(this.classes, (c) => lookup[c]);
      this.style = [index, index];
      this.styles = [{ colour: colours.point, shape: 0 }, ...this.palette.map((colour, shape) => ({ colour, shape }))];
    } else if (values.kind === "binary") {
      this.style = values.sides.map((side) => Uint8Array.from(side, (v) => (Number.isNaN(v) ? 0 : v > 0.5 ? 2 : 1)));
      this.styles = [{ colour: colours.ghost, shape: 0 }, { colour: colours.binary[0], shape: 6 }, { colour: colours.binary[1], shape: 0 }];
    } else {
      const [low, high] = values.range, unit = (BINS - 1) / (high - low || 1);
      this.style = values.sides.map((side) => Uint8Array.from(side, (v) => (Number.isNaN(v) ? 0 : 1 + Math.round(Math.min(BINS - 1, Math.max(0, (v - low) * unit))))));
      const stops = this.valueStops(values.kind);
      this.styles = [{ colour: colours.ghost, shape: 0 }, ...Array.from({ length: BINS }, (_, k) => ({ colour: ramp(stops, k / (BINS - 1)), shape: 0 }))];
    }
    this.showLegend();
  }

  valueStops(kind) {
    const { thinner, denser, middle, values } = this.colours;
    return kind === "diverging" ? [...thinner.slice(1).reverse(), middle, ...denser.slice(1)] : values;
  }

  ratioStops() { return [...this.colours.thinner.slice().reverse(), this.colours.ground, ...this.colours.denser]; }

  showLegend() {
    const parts = [], v = this.scaled, mode = this.get("contours"), heat = this.get("density_style") === "heat";
    if (v && v.kind === "binary") {
      const missing = Math.max(...v.missing);
      parts.push(h("div", { class: "mdp-scale" }, h("span", { class: "mdp-scale-title", text: `Colour: ${v.label}` }), ...[[2, v.high], [1, v.low]].map(([k, text]) => h("span", { class: "mdp-key" }, mark(this.styles[k].colour, this.styles[k].shape), h("span", { text }))),
        ...(missing ? [h("span", { class: "mdp-key" }, mark(this.colours.ghost), h("span", { text: `no value (${number.format(missing)})` }))] : [])));
    } else if (v) {
      const missing = Math.max(...v.missing), [low, high] = v.range, middle = v.kind === "diverging" ? "0" : v.unit || "";
      parts.push(scale(`Colour: ${v.label}${v.unit && v.kind === "diverging" ? `, ${v.unit}` : ""}`, this.valueStops(v.kind), [`${v.low} ${short(low)}`, middle, `${short(high)} ${v.high}`], missing ? `grey: no value (${number.format(missing)})` : ""));
    }
    const perClass = mode === "class" && this.slots?.size > 0, { ground, heat: stops } = this.colours;
    if (mode !== "off" && heat && !perClass) parts.push(scale("Images on the same area, share of the peak", [ground, ...stops], ["0", "1/16", "1/4", "9/16", "peak"]));
    else if (mode !== "off" && heat) parts.push(h("span", { class: "mdp-hint", text: "Each class in its colour: the stronger, the denser." }));
    else if (mode !== "off") parts.push(h("span", { class: "mdp-hint", text: "Every line inwards: twice as dense, at the same levels on both sides." }));
    if (this.arrows?.length) parts.push(h("span", { class: "mdp-key" }, this.arrowKey(), h("span", { text: this.arrowWords() })));
    if (this.total > this.n) parts.push(h("span", { class: "mdp-hint", text: `Points: a sample of ${number.format(this.n)} of ${number.format(this.total)} images.${this.raw[0] && !this.filter?.size ? " Density: of all." : ""}` }));
    this.legend.replaceChildren(...parts);
    this.legend.hidden = !parts.length;
  }

  arrowKey() { return g("svg", { viewBox: "0 0 22 8", class: "mdp-key-line", "aria-hidden": "true" }, g("path", { d: "M0 4H18M14 1L19 4L14 7", fill: "none", stroke: this.colours.arrow, "stroke-width": 1.6 })); }

  arrowWords() {
    const all = (this.get("inputs_choices") || []).find((o) => o.value === this.get("inputs")), from = this.anySelected ? this.chosen.length : this.attackable;
    return `clean → ${all ? all.label : "attacked"}${this.arrows.length < from ? `: ${number.format(this.arrows.length)} of ${number.format(from)} images` : ""}`;
  }

  // ---- density: lines, heat, difference

  /** Items per cell of one side: of all rows where they were sent and nothing is filtered, else of the visible points. */
  grid(side, keep) {
    const bandwidth = this.get("bandwidth"), raw = this.raw[side], all = keep === this.visible && !this.filter.size && !((this.get("epoch") ?? -1) >= 0);
    if (raw && all) { const cells = Math.sqrt(raw.length); return blurGrid(raw, bandwidth * cells, cells); }
    return densityGrid(this.xy[side], keep, this.window, bandwidth, CELLS);
  }

  recontour() {
    const mode = this.get("contours"), heat = this.get("density_style") === "heat", { colours } = this;
    const perClass = mode === "class" && this.slots.size > 0, common = this.get("density_scale") === "absolute";
    const needed = mode !== "off" || this.get("third") === "density", overall = !perClass || this.get("third") === "density";
    this.grids = needed && overall ? [0, 1].map((side) => this.grid(side, this.visible)) : null;
    const peakOf = (grids) => { let peak = 0; for (const grid of grids) for (const v of grid) if (v > peak) peak = v; return peak; };
    let groups = [];
    if (mode !== "off") groups = perClass ? [...this.slots.keys()].map((c) => { const keep = Uint8Array.from(this.classes, (other) => +(other === c)); return { c, grids: [0, 1].map((side) => this.grid(side, keep)) }; }) : [{ c: null, grids: this.grids }];
    for (const group of groups) group.peak = peakOf(group.grids);
    const highest = Math.max(0, ...groups.map((group) => group.peak));
    this.layers = [[], []];
    for (const { c, grids, peak: own } of groups) {
      const peak = perClass && common ? highest : own, cells = Math.sqrt(grids[0].length), levels = perClass && !common ? [4, 3, 2, 1] : [6, 5, 4, 3, 2, 1];
      if (!(peak > 0)) continue;
      const stops = c === null ? colours.heat : [this.classColour(c), this.classColour(c)];
      grids.forEach((grid, side) => this.layers[side].push(heat ? { c, image: this.paint(grid, cells, (v) => { const t = Math.sqrt(v / peak); return t < 0.04 ? null : [ramp(stops, t), c === null ? Math.min(1, t * 8) : 0.7 * t]; }) }
        : { c, levels: levels.map((k) => this.path(contourRings(grid, cells, peak * 2 ** -k), cells)) }));
    }
    this.compare();
    this.chooseMoves();
    this.showThird();
    this.showLegend();
    this.fitControls();
    this.explain();
    this.draw();
  }

  /** A grid as a small picture: `colour(value)` gives [#rrggbb, alpha] or nothing. */
  paint(grid, cells, colour) {
    const canvas = h("canvas"), known = new Map();
    canvas.width = canvas.height = cells;
    const ctx = canvas.getContext("2d"), picture = ctx.createImageData(cells, cells);
    for (let k = 0; k < grid.length; k++) {
      const drawn = colour(grid[k]);
      if (!drawn) continue;
      let rgb = known.get(drawn[0]);
      if (!rgb) known.set(drawn[0], (rgb = [1, 3, 5].map((i) => parseInt(drawn[0].slice(i, i + 2), 16))));
      picture.data.set([...rgb, 255 * drawn[1]], 4 * k);
    }
    ctx.putImageData(picture, 0, 0);
    return canvas;
  }

  /** The third panel's difference: log2 of the two densities, blank where there is too little to say. */
  compare() {
    this.ratio = this.edge = this.ratioImage = this.ratioFloor = null;
    if (this.get("third") !== "density") return;
    const cells = Math.sqrt(this.grids[0].length), sigma = this.get("bandwidth") * cells, stops = this.ratioStops(), [before, after] = this.grids;
    this.ratio = ratioGrid(before, after, sigma, LEAST);
    if (this.get("noise_only") && this.rerun) {
      const own = this.get("bandwidth"), [once, again] = [this.final[1], this.rerun].map((xy) => densityGrid(xy, this.visible, this.window, own, CELLS));
      this.ratioFloor = quantile(ratioGrid(once, again, own * CELLS, LEAST).map(Math.abs), 0.95) || 0;
    }
    const floor = this.ratioFloor || 0;
    const whole = ratioGrid(before, after, sigma, 0), most = before.map((v, k) => Math.max(v, after[k]));  // painted whole and cut along the line: a smooth edge
    this.ratioImage = this.paint(whole, cells, (v) => (Math.abs(v) < floor ? [this.colours.ghost, 0.18] : [ramp(stops, 0.5 + v / (2 * REACH)), 1]));
    this.edge = this.path(contourRings(most, cells, LEAST / kernelArea(sigma)), cells);
  }

  /** The items whose moves are drawn: the selected ones, else a seeded sample of the visible ones. */
  chooseMoves() {
    this.moves = [];
    this.moveFloor = null;
    if (this.get("third") !== "moves") return;
    const [before, after] = this.xy, far = (a, b, i) => Math.hypot(a[2 * i] - b[2 * i], a[2 * i + 1] - b[2 * i + 1]);
    let items = [];
    for (let i = 0; i < this.n; i++) if (this.anySelected ? this.selected[i] : this.visible[i]) items.push(i);
    this.movable = items.length;
    if (this.get("noise_only") && this.rerun) {
      this.moveFloor = quantile(Float64Array.from({ length: this.n }, (_, i) => far(this.final[1], this.rerun, i)), 0.95);
      items = items.filter((i) => far(before, after, i) >= this.moveFloor);
    }
    this.beyond = items.length;
    this.moves = seededSample(items, MOST_MOVES);
  }

  /** Title, legend and words of the third panel. */
  showThird() {
    const third = this.get("third"), { figure, head } = this.panels[2], parts = [];
    figure.hidden = this.foot.hidden = third === "off";
    head[0].textContent = third === "moves" ? "Moves" : "Difference";
    head[1].textContent = third === "moves" ? "from before to after, image by image" : "after against before: how much denser";
    if (third === "density") {
      parts.push(scale("", this.ratioStops(), ["8× thinner", "same", "8× denser"]));
      const floor = this.ratioFloor;
      parts.push(h("span", { class: "mdp-hint", text: floor === null ? `Blank: fewer than ${LEAST} images within the smoothing, before and after.` : `Grey: a change below ${(2 ** floor).toFixed(2)}×, which a second seed of the layout shows as well (in 95 % of places). Blank: too few images.` }));
    } else if (third === "moves") {
      parts.push(this.morphRow);
      const shown = this.moves.length, what = this.anySelected ? "selected images" : "images";
      const text = shown < (this.beyond ?? 0) ? `Lines: a sample of ${number.format(shown)} of ${number.format(this.beyond)} ${what}` : `Lines: ${number.format(shown)} ${what}`;
      parts.push(h("span", { class: "mdp-hint", text: `${text}${this.moveFloor === null ? "" : ` of ${number.format(this.movable)}; moves below ${short(this.moveFloor)}, which a second seed makes as well (95 %), are hidden`}.` }));
    }
    this.foot.replaceChildren(...parts);
  }

  /** Rings of the grid as one path in the picture's own coordinates. */
  path(rings, cells) {
    const { left, bottom, side } = this.window, path = new Path2D();
    for (const ring of rings) {
      ring.forEach(([i, j], k) => { const x = left + ((i - 0.5) / cells) * side, y = bottom + ((j - 0.5) / cells) * side; if (k) path.lineTo(x, y); else path.moveTo(x, y); });
      path.closePath();
    }
    return path;
  }

  explain() {
    const mode = this.get("contours"), heat = this.get("density_style") === "heat", third = this.get("third"), what = this.filter.size ? "images of the picked classes" : "images";
    const perClass = mode === "class" && this.slots.size > 0, common = this.get("density_scale") === "absolute";
    const each = heat ? "the stronger the colour, the more" : "every line inwards means twice as many";
    const line = mode === "off" ? "Every point is one image." : !perClass ? `Dense means many images on little area: ${each} ${what} on the same area, at the same scale on both sides.`
      : `Each class has its own density: ${each} of its images on the same area. ${common ? "The levels are common to all classes and both sides, so a class with few images shows little." : "Every class is measured by its own peak over both sides: compare where a class is, not how much of it."}`;
    const more = mode === "class" && !this.slots.size ? ` A density per class needs picked classes (at most ${MAX_COLOURS}); until then it is of all ${what} together.` : "";
    const difference = third === "density" ? ` The difference divides the density after by the density before; it is blank where neither side has ${LEAST} images within the smoothing, and half an image is added to both so that an empty place has a ratio.` : "";
    const trust = (this.get("trust") || {})[this.shown];
    const known = trust ? `its trustworthiness is ${trust[0].toFixed(2)} before and ${trust[1].toFixed(2)} after` : "its trustworthiness has not been measured";
    const lies = `A picture in two dimensions can lie: ${known} (1: whoever is near here is near in the embedding space; 0.5: chance).`;
    const bends = this.shown === "densmap" ? "densMAP bends the space, though it tries to keep density" : "UMAP bends the space";
    const axes = this.shown === "pca" ? " All pictures have the same axes and scale." : ` ${bends}: sizes and gaps do not count, only who is near whom.`;
    this.note.replaceChildren(h("p", {}, h("strong", { text: "How to read it. " }), h("span", { text: line + more + difference + axes })),
      h("p", {}, h("strong", { text: "How far to trust it. " }), h("span", { text: lies + (this.get("metrics").length ? " The measures at the top are taken in the embedding space, not from this picture." : "") })));
  }

  // ---- camera and drawing

  frame() {
    const measure = () => {
      const gap = 12, all = this.stage.clientWidth, third = this.get("third") !== "off", ratio = window.devicePixelRatio || 1;
      if (all <= 0) return;
      const columns = all < 460 ? 1 : third && all >= 900 ? 3 : 2, width = (all - gap * (columns - 1)) / columns, height = Math.round(Math.max(220, Math.min(width * 0.94, 620)));
      this.stage.dataset.columns = columns;
      this.stage.style.setProperty("--mdp-height", `${height}px`);
      this.size = { width: Math.round(width - 2), height, ratio };
      for (const panel of this.panels) {
        panel.size = { width: panel.side === 2 && columns === 2 ? all - 2 : this.size.width, height, ratio };
        panel.canvas.width = Math.round(panel.size.width * ratio);
        panel.canvas.height = Math.round(height * ratio);
      }
      this.overlay.width = Math.round(all * ratio);
      this.overlay.height = Math.round(this.stage.clientHeight * ratio);
      this.draw();
      this.drawGallery();
    };
    this.measure = measure;
    this.watcher = new ResizeObserver(measure);
    this.watcher.observe(this.stage);
    this.undo.push(() => this.watcher.disconnect());
    this.on(window, "resize", measure);
    measure();
  }

  shownPanels() { return this.get("third") === "off" ? this.panels.slice(0, 2) : this.panels; }

  /** Scale and origin of the shared camera: all panels show the same part of the plane around their middle. */
  look() {
    const { width, height } = this.size, { left, bottom, side } = this.window;
    if (!this.camera) this.camera = { x: left + side / 2, y: bottom + side / 2, zoom: 1 };
    const fit = 0.84 * Math.min(width / (this.window.width || side), height / (this.window.height || side));
    return { scale: fit * this.camera.zoom, x: this.camera.x, y: this.camera.y };
  }

  /** The positions that a panel shows. */
  layout(side) { return side < 2 ? this.xy[side] : this.middle; }

  place(side, x, y) {
    const { scale: s, x: cx, y: cy } = this.look(), { width, height } = this.panels[side].size;
    return [width / 2 + (x - cx) * s, height / 2 - (y - cy) * s];
  }

  toScreen(side, i) { const xy = this.layout(side); return this.place(side, xy[2 * i], xy[2 * i + 1]); }

  moveCamera(camera) { this.camera = camera; this.hover(); this.draw(); this.once("rehover", () => this.rehover()); }

  resetCamera() { this.moveCamera(null); }

  zoomAt(side, px, py, factor) {
    const { scale: s, x, y } = this.look(), { width, height } = this.panels[side].size, dx = (px - width / 2) / s, dy = (height / 2 - py) / s;
    const zoom = Math.min(60, Math.max(0.5, this.camera.zoom * factor)), real = zoom / this.camera.zoom;
    this.moveCamera({ x: x + dx - dx / real, y: y + dy - dy / real, zoom });
  }

  /** Draw everything anew. */
  draw() { this.stale = true; this.refresh(); }

  /** Draw what the selection has changed; points that were blended before are taken from memory. */
  refresh() {
    if (this.pending || !this.size) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = 0;
      const whole = this.stale;
      this.stale = false;
      for (const panel of this.shownPanels()) if (whole || this.marksSelection(panel)) this.drawPanel(panel, whole);
      this.drawOverlay();
    });
  }

  /** Does a panel look different with another selection? */
  marksSelection(panel) { return panel.side < 2 || this.get("third") === "moves" || panel.marked || this.marksThird(); }

  marksThird() { return this.anySelected && this.chosen.length <= MOST_MOVES; }

  /** A mark as the pixels that it covers: where they lie, and what is blended in (see `blendMark`). */
  stamp(colour, shape, size, alpha, ring) {
    const { ratio } = this.size, key = `${colour} ${shape} ${size} ${alpha} ${ring} ${ratio}`;
    if (!this.stamps.has(key)) {
      const edge = Math.ceil(size * ratio * 1.25) + 4, canvas = document.createElement("canvas"), pixels = [];
      canvas.width = canvas.height = edge;
      const ctx = canvas.getContext("2d", { willReadFrequently: true }), path = new Path2D(SHAPES[shape]), unit = (size * ratio) / 2;
      ctx.globalAlpha = alpha;
      ctx.fillStyle = colour;
      ctx.setTransform(unit, 0, 0, unit, edge / 2, edge / 2);
      ctx.fill(path);
      if (ring) { ctx.globalAlpha = 1; ctx.strokeStyle = ring; ctx.lineWidth = ratio / unit; ctx.stroke(path); }
      const { data } = ctx.getImageData(0, 0, edge, edge), half = Math.floor(edge / 2);
      const own = ring ? null : [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));  // faint pixels do not keep their colour exactly: say it again
      for (let k = 0; k < edge * edge; k++) if (data[4 * k + 3]) pixels.push([(k % edge) - half, Math.floor(k / edge) - half, own || data.subarray(4 * k, 4 * k + 3), Math.round((data[4 * k + 3] * 256) / 255)]);
      if (this.stamps.size > 400) this.stamps.clear();
      this.stamps.set(key, markOf(pixels, half));
    }
    return this.stamps.get(key);
  }

  drawPanel(panel, whole) {
    const { ctx, side, size: { width, height, ratio } } = panel, { scale: s, x, y } = this.look(), third = this.get("third"), { left, bottom, side: span } = this.window;
    const toPicture = () => ctx.setTransform(s * ratio, 0, 0, -s * ratio, (width / 2 - x * s) * ratio, (height / 2 + y * s) * ratio);
    ctx.globalAlpha = 1;
    ctx.imageSmoothingQuality = "high";
    if (side < 2) {
      if (whole) this.paintBase(panel, toPicture);
      this.putPoints(panel);
      toPicture();
      for (const { c, levels } of this.layers[side]) {
        ctx.strokeStyle = c === null ? this.colours.density : this.classColour(c);
        levels?.forEach((path, k) => { ctx.globalAlpha = 0.35 + (0.5 * k) / levels.length; ctx.lineWidth = 1.1 / s; ctx.stroke(path); });
      }
      this.drawArrows(ctx, side, s, ratio);
    } else if (third === "moves") {
      if (whole) this.paintBase(panel, toPicture);
      this.putPoints(panel);
      toPicture();
      this.drawMoves(ctx, s);
    } else {
      this.clearPanel(ctx);
      toPicture();
      if (this.ratioImage) {
        ctx.save();
        ctx.clip(this.edge, "evenodd");
        ctx.drawImage(this.ratioImage, left, bottom, span, span);
        ctx.restore();
        ctx.strokeStyle = this.colours.ghost;
        ctx.lineWidth = 1 / s;
        ctx.setLineDash([3 / s, 3 / s]);
        ctx.stroke(this.edge);
        ctx.setLineDash([]);
        panel.marked = this.marksThird();
        if (panel.marked) this.drawMoves(ctx, s, this.chosen, this.colours.ink);
      }
    }
    ctx.globalAlpha = 1;
    if (this.shown === "pca") this.drawScale(ctx, panel, s);
  }

  clearPanel(ctx) {
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.fillStyle = this.colours.ground;
    ctx.fillRect(0, 0, ctx.canvas.width, ctx.canvas.height);
  }

  /** What the points lie on, and all points on it as if nothing were selected: both are kept, so that a selection costs only its own points. */
  paintBase(panel, toPicture) {
    const { ctx, side } = panel, { left, bottom, side: span } = this.window, { width, height } = ctx.canvas, point = this.get("point_size");
    this.clearPanel(ctx);
    toPicture();
    for (const { c, levels, image } of side < 2 ? this.layers[side] : []) {
      ctx.fillStyle = c === null ? this.colours.density : this.classColour(c);
      ctx.globalAlpha = c === null ? 0.085 : 0.1;
      if (image) { ctx.globalAlpha = 1; ctx.drawImage(image, left, bottom, span, span); } else for (const path of levels) ctx.fill(path, "evenodd");
    }
    ctx.globalAlpha = 1;
    const below = ctx.getImageData(0, 0, width, height), above = new ImageData(new Uint8ClampedArray(below.data), width, height);
    const heat = this.get("contours") !== "off" && this.get("density_style") === "heat";
    panel.marks = side < 2 ? this.marksOf(point, heat ? 0.45 : 1) : this.marksOf(Math.max(1.5, point * 0.7), 0.5);
    this.blendPoints(panel, above);
    panel.base = { below, above, faded: null };
  }

  /** The kept points; where something is selected they step back, and the selected ones stand in front. */
  putPoints(panel) {
    const { ctx, side, base } = panel;
    if (!this.anySelected || side > 1) { ctx.putImageData(base.above, 0, 0); return; }
    base.faded ||= new ImageData(fade(base.above.data, base.below.data, FADED), ctx.canvas.width, ctx.canvas.height);
    const picture = new ImageData(new Uint8ClampedArray(base.faded.data), ctx.canvas.width, ctx.canvas.height);
    this.blendChosen(panel, picture);
    ctx.putImageData(picture, 0, 0);
  }

  /** Lines from before to where the morph has come, faint where they start; a dot at the head. */
  drawMoves(ctx, s, items = this.moves, only = "") {
    const [before] = this.xy, now = only ? this.xy[1] : this.middle, style = this.style[1], groups = new Map(), point = this.get("point_size");
    for (const i of items) { const k = only ? 0 : style[i]; if (!groups.has(k)) groups.set(k, []); groups.get(k).push(i); }
    const fade = Math.max(0.35, Math.min(1, 12 / Math.sqrt(items.length)));
    for (const [k, members] of groups) {
      const tail = new Path2D(), head = new Path2D(), dots = new Path2D(), r = (Math.max(2, point * 0.8) / 2) / s;
      for (const i of members) {
        const [x0, y0, x1, y1] = [before[2 * i], before[2 * i + 1], now[2 * i], now[2 * i + 1]], mx = (x0 + x1) / 2, my = (y0 + y1) / 2;
        tail.moveTo(x0, y0); tail.lineTo(mx, my);
        head.moveTo(mx, my); head.lineTo(x1, y1);
        dots.moveTo(x1 + r, y1); dots.arc(x1, y1, r, 0, 7);
      }
      ctx.strokeStyle = ctx.fillStyle = only || (!this.scaled && k === 0 && this.anySelected ? this.colours.selected : this.styles[k].colour);
      ctx.lineWidth = 1.1 / s;
      ctx.globalAlpha = 0.28 * fade; ctx.stroke(tail);
      ctx.globalAlpha = 0.75 * fade; ctx.stroke(head);
      ctx.globalAlpha = only ? 0.6 : 0.95; ctx.fill(dots);
    }
    ctx.globalAlpha = 1;
  }

  /** Where the attacked copies of the images land: an arrow from the clean position. */
  drawArrows(ctx, side, s) {
    const from = this.xy[side], to = this.attacked[side];
    if (!to || !this.arrows.length) return;
    const path = new Path2D(), heads = new Path2D();
    for (const i of this.arrows) {
      const [x0, y0, x1, y1] = [from[2 * i], from[2 * i + 1], to[2 * i], to[2 * i + 1]], far = Math.hypot(x1 - x0, y1 - y0) || 1, size = Math.min(6 / s, far * 0.6), ux = ((x1 - x0) / far) * size, uy = ((y1 - y0) / far) * size;
      path.moveTo(x0, y0); path.lineTo(x1 - ux * 0.6, y1 - uy * 0.6);
      heads.moveTo(x1, y1); heads.lineTo(x1 - ux - uy * 0.45, y1 - uy + ux * 0.45); heads.lineTo(x1 - ux + uy * 0.45, y1 - uy - ux * 0.45); heads.closePath();
    }
    ctx.strokeStyle = ctx.fillStyle = this.colours.arrow;
    ctx.lineWidth = 1.1 / s;
    ctx.globalAlpha = 0.65; ctx.stroke(path);
    ctx.globalAlpha = 0.95; ctx.fill(heads);
  }

  chooseArrows() {
    const [a, b] = this.attacked, inputs = this.get("inputs");
    this.arrows = [];
    if (!(a || b) || !inputs || inputs === "clean") { this.attackable = 0; return; }
    const items = [], known = (xy, i) => !xy || Number.isFinite(xy[2 * i]);
    for (let i = 0; i < this.n; i++) if ((this.anySelected ? this.selected[i] : this.visible[i]) && known(a, i) && known(b, i)) items.push(i);
    this.attackable = items.length;
    this.arrows = seededSample(items, MOST_ARROWS);
  }

  /** The stamps of every style: of points, of selected ones, and of those that a filter leaves out. */
  marksOf(point, strength) {
    const { styles, colours, scaled } = this, picked = this.filter.size > 0, crowd = Math.max(0.28, Math.min(0.75, 900 / this.n + 0.25));
    const large = (k) => (scaled ? point + (scaled.kind === "binary" ? 1.5 : 0.5) : k && picked ? Math.max(4.5, point + 2) : k ? point + 0.5 : point);
    const opacity = (k) => (scaled ? (k ? Math.max(crowd, 0.6) : 0.35) : k && picked ? 1 : crowd) * strength;
    const ring = (k) => (strength === 1 && !scaled && k && picked ? (k === 7 && colours.ink < "#8" ? colours.ink : colours.ground) : "");
    return {
      ghost: this.stamp(colours.ghost, 0, Math.max(1, point * 0.75), 0.22 * strength),
      plain: styles.map(({ colour, shape }, k) => this.stamp(colour, shape, large(k), opacity(k), ring(k))),
      chosen: (few) => styles.map(({ colour, shape }, k) => this.stamp(scaled || k ? colour : colours.selected, shape, few ? Math.max(large(k), point + 2.5) : point + 0.5, 1, few ? colours.ink : "")),
    };
  }

  /** Blend the mark of every item into a picture of the panel; `eachItem` calls back with items and their marks. As fast without a graphics processor as with one. */
  blend({ side, size: { width, height, ratio } }, picture, eachItem, once = false) {
    const { scale: s, x, y } = this.look(), xy = this.layout(side), { width: wide, height: high } = picture, words = new Uint32Array(picture.data.buffer);
    const fx = s * ratio, ox = (width / 2 - x * s) * ratio, oy = (height / 2 + y * s) * ratio, seen = once ? new Uint8Array(wide * high) : null;
    eachItem((mark, i, style) => {
      const px = Math.round(ox + xy[2 * i] * fx), py = Math.round(oy - xy[2 * i + 1] * fx), { half } = mark;
      if (px >= half && py >= half && px < wide - half && py < high - half) {
        const here = py * wide + px;
        if (seen) { if (seen[here] === style + 1) return; seen[here] = style + 1; }
        blendMark(words, wide, here, mark);
      } else if (px >= -half && py >= -half && px <= wide + half && py <= high + half) blendCutMark(words, wide, high, px, py, mark);
    });
  }

  blendPoints(panel, picture) {
    const { visible, n } = this, style = this.style[Math.min(panel.side, 1)], { ghost, plain } = panel.marks;
    this.blend(panel, picture, (place) => {
      if (this.filter.size) for (let i = 0; i < n; i++) if (!visible[i]) place(ghost, i, 0);
      for (let i = 0; i < n; i++) if (visible[i]) place(plain[style[i]], i, 0);
    });
  }

  /** Opaque marks: of two alike on the same pixel one is enough. */
  blendChosen(panel, picture) {
    const style = this.style[Math.min(panel.side, 1)], marks = panel.marks.chosen(this.chosen.length <= 150);
    this.blend(panel, picture, (place) => { for (const i of this.chosen) place(marks[style[i]], i, style[i]); }, true);
  }

  /** A bar of round length: the unit of the picture (Euclidean distance in the projection). */
  drawScale(ctx, { size: { height, ratio } }, s) {
    const raw = 70 / s, power = 10 ** Math.floor(Math.log10(raw)), length = [1, 2, 5, 10].filter((k) => k * power <= raw).pop() * power;
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    const ink = this.colours.point, x = 12, y = height - 12;
    ctx.strokeStyle = ctx.fillStyle = ink;
    ctx.lineWidth = 1.5;
    ctx.beginPath();
    ctx.moveTo(x, y - 4); ctx.lineTo(x, y); ctx.lineTo(x + length * s, y); ctx.lineTo(x + length * s, y - 4);
    ctx.stroke();
    ctx.font = "11px system-ui, sans-serif";
    ctx.fillText(`distance ${+length.toPrecision(2)}`, x, y - 9);
  }

  drawOverlay() {
    if (!this.size) return;  // not in the page yet: a notebook may draw before there is room
    const ctx = this.overlay.getContext("2d", { willReadFrequently: true }), { ratio } = this.size;  // in memory: a graphics processor was seen to keep the former rings after the clearing
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.clearRect(0, 0, this.overlay.width, this.overlay.height);
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    const area = this.overlay.getBoundingClientRect(), origin = this.panels.map(({ canvas }) => { const box = canvas.getBoundingClientRect(); return [box.left - area.left, box.top - area.top]; });
    ctx.strokeStyle = this.colours.ink;
    if (this.brush && this.brush.polygon.length > 1) {
      const [ox, oy] = origin[this.brush.side];
      ctx.beginPath();
      this.brush.polygon.forEach(([x, y], k) => (k ? ctx.lineTo(ox + x, oy + y) : ctx.moveTo(ox + x, oy + y)));
      ctx.closePath();
      ctx.lineWidth = 1.5;
      ctx.setLineDash([5, 4]);
      ctx.fillStyle = this.colours.selected;
      ctx.globalAlpha = 0.1; ctx.fill(); ctx.globalAlpha = 1;
      ctx.stroke();
      ctx.setLineDash([]);
    }
    if (this.spot !== undefined) this.drawSpot(ctx, origin);
    if (this.hovered === undefined) return;
    const within = (side, x, y) => { const { width, height } = this.panels[side].size; return x >= 0 && y >= 0 && x <= width && y <= height; };
    const third = this.get("third"), ends = [0, 1].map((side) => { const [x, y] = this.toScreen(side, this.hovered); return within(side, x, y) ? [x + origin[side][0], y + origin[side][1]] : null; });
    const join = (a, b) => { ctx.beginPath(); ctx.moveTo(...a); ctx.lineTo(...b); ctx.globalAlpha = 0.55; ctx.lineWidth = 1; ctx.setLineDash([2, 4]); ctx.stroke(); ctx.setLineDash([]); ctx.globalAlpha = 1; };
    if (ends[0] && ends[1]) join(...ends);
    if (third !== "off") {
      const both = [0, 1].map((side) => this.place(2, this.xy[side][2 * this.hovered], this.xy[side][2 * this.hovered + 1])).map(([x, y]) => (within(2, x, y) ? [x + origin[2][0], y + origin[2][1]] : null));
      if (both[0] && both[1]) join(...both);
      ends.push(third === "moves" ? both[1] && this.toScreen(2, this.hovered).map((v, k) => v + origin[2][k]) : both[1]);
    }
    ends.forEach((end, side) => {
      if (!end) return;
      ctx.strokeStyle = this.colours.ink;
      for (const [colour, width] of [[this.colours.ground, 5], [this.colours.ink, 2]]) {
        ctx.beginPath(); ctx.arc(...end, this.get("point_size") / 2 + 5, 0, 7);
        ctx.strokeStyle = colour; ctx.lineWidth = width; ctx.stroke();
      }
      const k = this.style[Math.min(side, 1)][this.hovered];
      ctx.beginPath(); ctx.arc(...end, this.get("point_size") / 2 + 1, 0, 7);
      ctx.fillStyle = !this.scaled && !k ? this.colours.point : this.styles[k].colour; ctx.fill();
    });
  }

  /** The class under the pointer in the table, above all others. */
  drawSpot(ctx, origin) {
    const colour = this.classColour(this.spot) || this.colours.selected, r = this.get("point_size") / 2 + 1;
    for (const side of this.get("third") === "moves" ? [0, 1, 2] : [0, 1]) {
      const { width, height } = this.panels[side].size, path = new Path2D();
      for (let i = 0; i < this.n; i++) {
        if (this.classes[i] !== this.spot) continue;
        const [x, y] = this.toScreen(side, i);
        if (x < 0 || y < 0 || x > width || y > height) continue;
        path.moveTo(origin[side][0] + x + r, origin[side][1] + y);
        path.arc(origin[side][0] + x, origin[side][1] + y, r, 0, 7);
      }
      ctx.fillStyle = colour; ctx.strokeStyle = this.colours.ground; ctx.lineWidth = 1;
      ctx.fill(path); ctx.stroke(path);
    }
    ctx.strokeStyle = this.colours.ink;
  }

  // ---- hover, selection, gallery

  nearest(side, px, py, reach = 14) {
    const { width, height } = this.panels[side].size, { scale: s, x, y } = this.look(), xy = this.layout(side);
    const wx = (px - width / 2) / s + x, wy = y - (py - height / 2) / s;
    let best, least = (reach / s) ** 2;
    for (let i = 0; i < this.n; i++) {
      const dx = xy[2 * i] - wx, dy = xy[2 * i + 1] - wy, d = dx * dx + dy * dy;
      if (d < least && this.visible[i]) { least = d; best = i; }
    }
    return best;
  }

  hover(i, anchor) {
    if (i === undefined && this.hovered === undefined && !this.cellTip) return;
    this.hovered = i;
    this.cellTip = null;
    this.anchor = anchor;
    this.requestImage(i);
    this.showTip();
    this.once("overlay", () => this.drawOverlay());
  }

  /** Where the pointer rests, after the picture below it has changed: the ring and the card never stay behind. */
  rehover() {
    if (!this.pointer || !this.size) { this.hover(); return; }
    const { side, x, y, clientX, clientY } = this.pointer;
    this.hoverAt(side, x, y, { x: clientX, y: clientY });
  }

  hoverAt(side, x, y, anchor) {
    if (side === 2 && this.get("third") === "density") this.hoverCell(x, y, anchor); else this.hover(this.nearest(side, x, y), anchor);
  }

  /** The ratio and the counts of the place under the pointer in the difference panel. */
  hoverCell(px, py, anchor) {
    if (!this.ratio) return;
    const { width, height } = this.panels[2].size, { scale: s, x, y } = this.look(), { left, bottom, side } = this.window, cells = Math.sqrt(this.ratio.length);
    const c = Math.floor((((px - width / 2) / s + x - left) / side) * cells), r = Math.floor(((y - (py - height / 2) / s - bottom) / side) * cells);
    this.hover();
    if (c < 0 || r < 0 || c >= cells || r >= cells) return;
    const k = r * cells + c, area = kernelArea(this.get("bandwidth") * cells), counts = this.grids.map((grid) => grid[k] * area), ratio = this.ratio[k];
    if (counts[0] < 0.5 && counts[1] < 0.5) return;
    const blank = Number.isNaN(ratio) ? "too few images to compare" : this.ratioFloor && Math.abs(ratio) < this.ratioFloor ? `${ratioWords(ratio)}, within re-run noise` : ratioWords(ratio);
    this.cellTip = [blank, `about ${plural(Math.round(counts[0]), "image")} here before, ${number.format(Math.round(counts[1]))} after`];
    this.anchor = anchor;
    this.showTip();
  }

  showTip() {
    const i = this.hovered, parts = [];
    if ((i === undefined && !this.cellTip) || !this.size) { this.tip.hidden = true; return; }
    if (this.cellTip) parts.push(h("div", { class: "mdp-tip-class" }, h("strong", { text: this.cellTip[0] })), h("div", { class: "mdp-tip-key", text: this.cellTip[1] }));
    else {
      const large = this.pictures.get(i);
      if (this.sprite || large) {
        const size = 128, canvas = h("canvas", { class: "mdp-tip-image", role: "img", "aria-label": "the image" });
        canvas.width = canvas.height = size * this.size.ratio;
        const ctx = canvas.getContext("2d");
        ctx.imageSmoothingQuality = "high";
        if (large) { const fit = Math.min(canvas.width / large.width, canvas.height / large.height); ctx.imageSmoothingEnabled = fit < 4; ctx.drawImage(large, (canvas.width - large.width * fit) / 2, (canvas.height - large.height * fit) / 2, large.width * fit, large.height * fit); }
        else this.thumbnail(ctx, i, 0, 0, canvas.width);
        canvas.dataset.large = !!large;
        parts.push(canvas);
      }
      const c = this.classes[i];
      parts.push(h("div", { class: "mdp-tip-class" }, this.classMark(c), h("strong", { text: this.names[c] })), h("div", { class: "mdp-tip-key", text: this.keys[i] ?? `image ${number.format(i)}` }));
      if (this.scaled) {
        const { label, unit, kind, sides, low, high } = this.scaled, say = (v) => (Number.isNaN(v) ? "no value" : kind === "binary" ? (v > 0.5 ? high : low) : `${short(v)}${unit ? ` ${unit}` : ""}`);
        parts.push(h("div", { class: "mdp-tip-value", text: `${label}: ${sides[0] === sides[1] || sides[0][i] === sides[1][i] ? say(sides[0][i]) : `${say(sides[0][i])} → ${say(sides[1][i])}`}` }));
      }
    }
    this.tip.replaceChildren(...parts);
    this.tip.hidden = false;
    const area = this.root.getBoundingClientRect(), box = this.tip.getBoundingClientRect(), x = this.anchor.x - area.left, y = this.anchor.y - area.top;
    const leftwards = x < area.width / 2 ? x - 20 - box.width >= 0 : x + 20 + box.width > area.width;  // outwards where there is room: the line to the other side stays free
    const left = leftwards ? x - 20 - box.width : x + 20, top = Math.min(Math.max(0, y - box.height / 2), area.height - box.height);
    this.tip.style.left = `${Math.max(0, left)}px`;
    this.tip.style.top = `${Math.max(0, top)}px`;
  }

  select(flags) { this.set("selection", new DataView(packBits(flags).buffer)); }

  /** Another selection: first the points, which the eye waits for; the words, the table and the charts in the time after that frame. */
  reselect() {
    this.selected = unpackBits(this.get("selection"), this.n);
    const chosen = [];
    this.tally = new Uint32Array(this.names.length);
    for (let i = 0; i < this.n; i++) if (this.selected[i]) { chosen.push(i); this.tally[this.classes[i]]++; }
    this.chosen = chosen;
    this.anySelected = chosen.length > 0;
    this.chooseArrows();
    this.chooseMoves();
    this.refresh();
    this.once("selected", () => setTimeout(() => { if (this.root.isConnected) this.tellSelection(); }));
  }

  tellSelection() {
    const before = this.told;
    this.told = this.anySelected;
    this.summary.textContent = this.summaryText();
    this.clear.hidden = this.pickTheirs.hidden = !this.anySelected;
    if (before !== this.anySelected || this.sort.key === "selected") this.listRows();
    else if (this.anySelected) for (const row of this.rows.children) if (row.dataset.class) row.querySelector("[data-key=selected]").textContent = number.format(this.tally[+row.dataset.class]);
    if (this.get("third") === "moves") this.showThird();
    this.showLegend();
    this.markSuggestions();
    this.drawCharts();
    this.drawGallery();
  }

  /** The selection in words: how many, of which classes, and what it means in the values at hand. */
  summaryText() {
    const n = this.chosen.length;
    if (!n) {
      const shown = this.visible.reduce((a, b) => a + b, 0);
      const base = shown === this.n ? `${plural(this.n, "image")}, ${plural(this.names.length, "class", "classes")}.` : `${number.format(shown)} of ${plural(this.n, "image")} shown.`;
      return `${base} Nothing selected: hold shift and draw around images on either side, or click one.`;
    }
    const classes = this.selectedClasses(), top = classes.slice(0, 3).map((c) => `${this.names[c]} ${number.format(this.tally[c])}`).join(", "), rest = classes.length - 3;
    const mean = ({ sides }, side) => { let sum = 0, count = 0; for (const i of this.chosen) if (!Number.isNaN(sides[side][i])) { sum += sides[side][i]; count++; } return sum / count; };
    const density = this.values.density, means = density ? [0, 1].map((side) => mean(density, side)) : [];
    const words = means.length && means.every(Number.isFinite) ? ` ${capital(density.label)} on average ${short(means[0])} before, ${short(means[1])} after.` : "";
    const part = this.total > this.n, stand = part ? ` (they stand for about ${number.format(Number(((n / this.n) * this.total).toPrecision(2)))} of ${number.format(this.total)})` : "";
    return `${number.format(n)} of ${plural(this.n, part ? "drawn image" : "image")} selected${stand}, from ${plural(classes.length, "class", "classes")}${this.names.length > 1 ? ` (${top}${rest > 0 ? ` and ${number.format(rest)} more` : ""})` : ""}.${words}`;
  }

  drawGallery() {
    if (!this.sprite || !this.size || !this.chosen?.length) { this.gallery.hidden = true; return; }
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

  // ---- charts

  /** The histogram of local density, drawn here so that it follows the selection at once, and what Python has sent. */
  drawCharts() {
    const specs = [], density = this.values.density, { before, after, point } = this.colours, some = this.anySelected;
    if (density && Number.isFinite(density.whole[0])) {
      const [low, high] = density.whole, count = some ? this.chosen.length : this.n, bins = Math.max(10, Math.min(40, Math.round(1.4 * Math.sqrt(count))));
      const line = (side, keep, name, more) => ({ ...histogram(density.sides[side], keep, low, high, bins), name, side: side ? "after" : "before", dash: !side, style: "step", ...more });
      const all = [line(0, this.visible, some ? "all before" : "before", { faint: some }), line(1, this.visible, some ? "all after" : "after", { faint: some })];
      specs.push({ title: capital(density.label), x_label: density.unit ? `${density.label}, ${density.unit}` : density.label, y_label: "% of images", series: some ? [...all, line(0, this.selected, "selected before", { strong: true }), line(1, this.selected, "selected after", { strong: true })] : all });
    }
    const sent = this.get("charts") || [], about = this.get("charts_for") || "";
    this.charts.replaceChildren(...[...specs, ...sent].map((spec) => chart(spec, { before, after, series: [point, ...this.palette] })));
    this.chartsFor.textContent = !sent.length ? (density ? `Charts of ${some ? plural(this.chosen.length, "selected image") : plural(this.n, "image")}.` : "") : `Charts of ${about || "all images"}.${this.live || !some ? "" : ` Only the first follows the selection in a saved page.`}`;
    this.chartBox.hidden = !specs.length && !sent.length;
    this.root.dataset.charts = !this.chartBox.hidden;
  }

  // ---- events

  listen() {
    const changed = (names, handler) => { for (const name of names) this.on(this.model, `change:${name}`, handler); };
    const shows = (name, handler) => changed([name], () => { this.controls[name].show(this.get(name)); handler(); });
    changed(["class_filter"], () => this.refilter());
    changed(["selection"], () => this.reselect());
    shows("bandwidth", () => this.once("lines", () => this.recontour()));
    shows("contours", () => { this.showChips(); this.recontour(); });
    for (const name of ["density_style", "density_scale", "noise_only"]) shows(name, () => this.recontour());
    shows("third", () => { this.stopPlaying(); this.hover(); this.recontour(); this.measure(); });
    shows("point_size", () => this.draw());
    shows("colour_by", () => { this.recolour(); this.showChips(); this.chooseMoves(); this.showThird(); this.draw(); });
    shows("k", () => {});
    shows("domain", () => {});
    changed(["projection", "projections"], () => {
      this.controls.projection.show(this.get("projection"));
      const problem = this.readLayout();
      if (problem) this.fail(problem); else { this.hover(); this.chooseArrows(); this.recontour(); }
    });
    shows("inputs", () => { this.chooseArrows(); this.showLegend(); this.draw(); });
    changed(["epoch"], () => { this.showTime?.(); this.goEpoch(); });
    changed(["epochs"], () => this.buildTime());
    changed(["values"], () => {
      const colours = () => JSON.stringify(Object.entries(this.values).map(([key, { label }]) => [key, label])), former = colours(), problem = this.readValues();
      if (problem) { this.fail(problem); return; }
      this.recolour();
      if (colours() !== former) this.buildToolbar();
      this.reselect();
    });
    changed(["projection_choices", "inputs_choices", "domain_choices", "k_choices"], () => this.once("toolbar", () => this.buildToolbar()));
    changed(["class_table"], () => { this.readTable(); this.listRows(); });
    changed(["metrics"], () => { this.showMetrics(); this.explain(); });
    changed(["trust"], () => this.explain());
    changed(["charts", "charts_for"], () => this.once("charts", () => this.drawCharts()));
    changed(["suggestions"], () => this.showSuggestions());
    changed(["sprite", "sprite_grid"], () => this.once("sprite", () => this.loadSprite()));
    changed(["item_keys"], () => { this.keys = itemNames(this.get("item_keys"), this.classes); });
    changed(["busy", "problem", "progress"], () => this.showBusy());
    changed(["measuring", "unmeasured"], () => this.showAside());
    if (this.live) this.on(this.model, "msg:custom", (message, buffers) => this.receive(message, buffers));
    this.on(still, "change", () => this.showTime?.());
    this.showBusy();
    this.showAside();
    for (const panel of this.panels) this.listenPanel(panel);
    this.on(this.gallery, "pointermove", (event) => {
      const { shown, columns, pitch } = this.tiles, i = shown[Math.floor(event.offsetY / pitch) * columns + Math.floor(event.offsetX / pitch)];
      this.hover(i, { x: event.clientX, y: event.clientY });
    });
    this.on(this.gallery, "pointerleave", () => this.hover());
    this.on(this.root, "keydown", (event) => {
      if (event.key === "Escape") { this.hover(); this.brush = null; if (this.anySelected) this.select(new Uint8Array(this.n)); }
      if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation();  // JupyterLab takes the arrow keys from sliders and radio buttons, though told not to
    });
  }

  once(name, work) {
    this.waiting ||= new Set();
    if (this.waiting.has(name)) return;
    this.waiting.add(name);
    requestAnimationFrame(() => { this.waiting.delete(name); if (this.root.isConnected) work(); });
  }

  showBusy() {
    const busy = this.get("busy"), problem = this.get("problem"), part = this.get("progress") ?? -1;
    if (busy && this.busy.hidden) { this.stop.disabled = false; this.pointer = null; this.hover(); }
    this.busy.hidden = !busy;
    this.busyText.textContent = busy;
    if (part >= 0) this.progress.value = part; else this.progress.removeAttribute("value");
    this.stop.hidden = !this.live;
    this.stage.setAttribute("aria-busy", !!busy);
    this.alert.hidden = !problem;
    this.alert.textContent = problem;
  }

  /** What is still being measured, or was left out, while the pictures can be used. */
  showAside() {
    const measuring = this.get("measuring") || "", left = this.get("unmeasured") || "";
    const silent = this.silent ? "The kernel does not answer: it is busy, or it was restarted. Filters, selections and pictures that are here go on; other layouts, k and norms wait for it. After a restart, run the cell again." : "";
    this.aside.hidden = !this.live || !(measuring || left || silent);
    if (silent) { this.aside.replaceChildren(h("span", { text: silent })); return; }
    const start = button("Find neighbours", "Start now; the pictures can be used meanwhile", () => { start.disabled = true; this.set("measure", (this.get("measure") || 0) + 1); });
    this.aside.replaceChildren(...(measuring ? [h("span", { class: "mdp-spinner", "aria-hidden": "true" }), h("span", { text: measuring })] : [h("span", { text: left }), start]));
  }

  listenPanel({ canvas, side }) {
    let grip = null;
    const at = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    const drop = () => { grip = this.brush = null; this.drawOverlay(); };
    this.on(canvas, "wheel", (event) => { event.preventDefault(); this.zoomAt(side, ...at(event), Math.exp(-event.deltaY * 0.0015)); }, { passive: false });
    this.on(canvas, "pointerdown", (event) => {
      if (event.button) return;
      canvas.setPointerCapture(event.pointerId);
      const start = at(event), kind = this.drag === "box" ? "box" : event.shiftKey || this.drag === "lasso" ? "lasso" : "move";
      grip = { start, last: start, kind, moved: false };
      if (kind !== "move") this.brush = { side, polygon: [start] };
    });
    this.on(canvas, "pointermove", (event) => {
      const [x, y] = at(event);
      this.pointer = { side, x, y, clientX: event.clientX, clientY: event.clientY };
      if (!grip) { this.once("hover", () => this.pointer && this.rehover()); return; }
      grip.moved ||= Math.hypot(x - grip.start[0], y - grip.start[1]) > 3;
      if (!grip.moved) return;
      this.hover();
      const [sx, sy] = grip.start;
      if (grip.kind === "lasso") this.brush.polygon.push([x, y]);
      if (grip.kind === "box") this.brush.polygon = [[sx, sy], [x, sy], [x, y], [sx, y]];
      if (grip.kind === "move") {
        const { scale: s } = this.look();
        this.camera = { ...this.camera, x: this.camera.x - (x - grip.last[0]) / s, y: this.camera.y + (y - grip.last[1]) / s };
        this.draw();
      } else this.drawOverlay();
      grip.last = [x, y];
    });
    this.on(canvas, "pointerup", (event) => {
      if (!grip) return;
      const { moved, kind } = grip, brush = this.brush, add = event.ctrlKey || event.metaKey;
      grip = this.brush = null;
      this.drawOverlay();
      if (moved && kind === "move") return;
      const flags = add ? this.selected.slice() : new Uint8Array(this.n);
      if (moved) this.enclose(side, brush.polygon, flags);
      else {
        const i = side === 2 && this.get("third") === "density" ? undefined : this.nearest(side, ...at(event));
        if (i === undefined && !this.anySelected) return;
        if (i !== undefined) flags[i] = 1;
      }
      this.select(flags);
    });
    this.on(canvas, "pointercancel", drop);
    this.on(canvas, "pointerleave", () => { this.pointer = null; if (!grip) this.hover(); });
    this.on(canvas, "blur", () => { if (!this.pointer) this.hover(); });
    this.on(canvas, "keydown", (event) => this.panelKey(event, canvas, side));
  }

  /** Flag the visible items inside the drawn line; in the difference panel those that are there before or after. */
  enclose(side, polygon, flags) {
    const { width, height } = this.panels[side].size, { scale: s, x, y } = this.look(), test = insideTest(polygon);
    const ox = width / 2 - x * s, oy = height / 2 + y * s, layouts = side === 2 && this.get("third") === "density" ? this.xy : [this.layout(side)];
    for (const xy of layouts) for (let i = 0; i < this.n; i++) if (this.visible[i] && test(ox + xy[2 * i] * s, oy - xy[2 * i + 1] * s)) flags[i] = 1;
  }

  panelKey(event, canvas, side) {
    const { scale: s } = this.look(), { width, height } = this.panels[side].size, far = 40 / s, { x, y } = this.camera;
    const move = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, far], ArrowDown: [0, -far] }[event.key];
    const step = { n: 1, p: -1 }[event.key.toLowerCase()];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (move) this.moveCamera({ ...this.camera, x: x + move[0], y: y + move[1] });
    else if (event.key === "+" || event.key === "=") this.zoomAt(side, width / 2, height / 2, 1.25);
    else if (event.key === "-") this.zoomAt(side, width / 2, height / 2, 0.8);
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

function drawView({ model, el }) {
  let view = new View(model, el), waiting = false;
  const again = () => {  // several of these traits may change together: once is enough
    if (waiting) return;
    waiting = true;
    queueMicrotask(() => { waiting = false; view.destroy(); view = new View(model, el); });
  };
  const whole = ["error", "classes", "class_names", "titles", "total"];  // traits that change the structure
  for (const name of whole) model.on(`change:${name}`, again);
  return () => { for (const name of whole) model.off(`change:${name}`, again); view.destroy(); };
}

function render(place) { return drawWhole(place, drawView); }

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
