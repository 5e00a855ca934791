// mdprop: the neighbours of one image in two spaces, side by side. Stands behind ground.js and tiles.js in one ES module,
// in the notebook and in an exported page; every answer is made here, from one table, so that none waits for a kernel.

const SIDES = ["before", "after"];
const MISTAKES = {
  wrong_before: "wrong before",
  wrong_after: "wrong after",
  wrong_both: "wrong before and after",
  mended: "mended: wrong before, right after",
  broken: "broken: right before, wrong after",
};
const GALLERY = 40;  // tiles shown at a time

/** The table as typed arrays: neighbours and distances (n x width) of both sides, first right places (n), labels (n). */
export function unpackTable(get) {
  const read = (name, Type) => new Type(bytes(get(name)).slice().buffer), n = get("item_keys").length, width = get("width");
  const Index = n > 65536 ? Uint32Array : Uint16Array, both = (name, Type) => SIDES.map((side) => read(`${name}_${side}`, Type));
  return { n, width, labels: read("labels", Uint32Array), neighbours: both("neighbours", Index), distances: both("distances", Uint16Array), first: both("first", Uint32Array) };
}

/** Distance of the neighbour at a place (0 to width - 1), in 0 to 2. */
export const distanceAt = (table, side, item, place) => (table.distances[side][item * table.width + place] / 65535) * 2;

/** Items of every kind of mistake; the images without another one of their class can make none. */
export function findMistakes(table) {
  const found = Object.fromEntries(Object.keys(MISTAKES).map((name) => [name, []]));
  for (let i = 0; i < table.n; i++) {
    const [before, after] = table.first.map((first) => first[i] === 1);
    if (!table.first[0][i]) continue;
    if (!before) found.wrong_before.push(i);
    if (!after) found.wrong_after.push(i);
    if (!before && !after) found.wrong_both.push(i);
    if (!before && after) found.mended.push(i);
    if (before && !after) found.broken.push(i);
  }
  return found;
}

/** The k nearest of an item on both sides: for each {item, right, distance, other: place on the other side or 0}. */
export function neighboursOf(table, item, k) {
  const lists = table.neighbours.map((all) => [...all.subarray(item * table.width, item * table.width + Math.min(k, table.width))]);
  return lists.map((list, side) => list.map((near, place) => ({
    item: near, right: table.labels[near] === table.labels[item], distance: distanceAt(table, side, item, place), other: lists[1 - side].indexOf(near) + 1,
  })));
}

export class NeighbourView {
  constructor(model, host) {
    this.model = model;
    this.past = [];
    this.root = h("section", { class: "mdp mdp-tiles mdp-near", "data-lm-suppress-shortcuts": "true", "aria-label": "Neighbours before and after" });
    host.append(this.root);
    this.unwatch = watchGround(host, (theme) => { this.root.dataset.theme = theme; });
    this.handlers = { item: () => this.show(), k: () => this.show(), source: () => this.show(), search: () => this.show(), sprite: () => this.load(), neighbours_after: () => this.build() };
    for (const [name, handler] of Object.entries(this.handlers)) model.on(`change:${name}`, handler);
    this.build();
    this.load();
  }

  destroy() {
    for (const [name, handler] of Object.entries(this.handlers)) this.model.off(`change:${name}`, handler);
    this.unwatch();
    this.root.remove();
  }

  load() {
    this.bitmap = null;
    readSheet(this.model.get("sprite")).then((bitmap) => { this.bitmap = bitmap; this.paint(); });
  }

  paint() { paintTiles(this.root, this.bitmap, this.model.get("sprite_grid")); }

  set(values) {
    for (const [name, value] of Object.entries(values)) this.model.set(name, value);
    this.model.save_changes();
  }

  /** The frame: controls, gallery, the image, the two lists. */
  build() {
    this.table = unpackTable((name) => this.model.get(name));
    const { n, width } = this.table, names = this.model.get("class_names");
    if (!width) {
      this.root.replaceChildren(h("p", { class: "mdp-empty", text: "One image alone has no neighbours: give two images or more." }));
      return;
    }
    this.mistakes = findMistakes(this.table);
    this.members = names.map(() => []);
    this.table.labels.forEach((label, i) => this.members[label].push(i));
    const button = (text, title, act) => { const made = h("button", { type: "button", class: "mdp-button", text, title }); made.addEventListener("click", act); return made; };
    const field = (text, control, title) => h("label", { class: "mdp-field", title }, h("span", { text }), control);
    const count = (list) => list.length.toLocaleString("en");
    this.source = h("select", { class: "mdp-order", "aria-label": "Images to pick from" },
      h("option", { value: "own", text: "the class of this image" }), h("option", { value: "all", text: `all images (${n.toLocaleString("en")})` }),
      h("optgroup", { label: "Mistakes: the nearest neighbour is of another class" }, ...Object.entries(MISTAKES).map(([value, text]) => h("option", { value, text: `${text} (${count(this.mistakes[value])})` }))),
      h("optgroup", { label: "Classes" }, ...names.map((name, c) => h("option", { value: `class ${c}`, text: `${name} (${count(this.members[c])})` }))));
    this.source.addEventListener("change", () => this.choose(this.source.value));
    this.search = h("input", { type: "search", class: "mdp-search", placeholder: "class or file name", spellcheck: "false" });
    this.search.addEventListener("input", () => this.set({ search: this.search.value }));
    this.k = h("input", { type: "range", min: 1, max: width, step: 1, "aria-label": "Neighbours" });
    this.k.addEventListener("input", () => this.set({ k: +this.k.value }));
    this.kText = h("output");
    this.position = h("span", { class: "mdp-muted", role: "status" });
    this.back = button("Back", "The image that was shown before", () => { const item = this.past.pop(); this.set({ item }); });
    this.random = button("Random", "Any image of the row below", () => this.step("random"));
    this.steps = [button("Previous", "The image before this one in the row below", () => this.step(-1)), this.random, button("Next", "The image after this one in the row below", () => this.step(1))];
    this.gallery = h("div", { class: "mdp-tile-row mdp-strip", role: "listbox", "aria-label": "Images of the row" });
    this.query = h("div", { class: "mdp-query" });
    this.lists = SIDES.map((side) => h("div", { class: "mdp-side" }));
    this.root.replaceChildren(
      h("div", { class: "mdp-toolbar" }, field("Images to pick from", this.source, "What stands in the row below: a class, everything, or the images whose nearest neighbour is wrong"),
        field("Search", this.search, "Looks through the names of all images and classes"), h("div", { class: "mdp-buttons" }, ...this.steps, this.back),
        h("label", { class: "mdp-slider", title: "How many nearest neighbours are shown and counted" }, h("span", { text: "Neighbours" }), this.k, this.kText), this.position),
      h("p", { class: "mdp-muted mdp-overall", text: this.overall() }), this.gallery, this.query, h("div", { class: "mdp-sides" }, ...this.lists),
      h("p", { class: "mdp-tile-note", text: "Nearest first. ✓ the class of the image, ✗ another class. Kept: among the nearest on both sides; lost, gained: only before, only after. The number is the cosine distance: 0 for the same direction, 1 for a right angle, 2 for the opposite." }));
    if (!this.listening) this.listen();
    this.show();
  }

  /** How many find their class, in a sentence. */
  overall() {
    const counted = this.table.n - this.table.first[0].filter((place) => !place).length, number = (x) => x.toLocaleString("en");
    if (!counted) return "No image has another one of its class: there is nothing to be right or wrong about.";
    const share = (kind) => `${(100 * (1 - this.mistakes[kind].length / counted)).toFixed(1)} %`;
    return `The nearest neighbour is right for ${share("wrong_before")} of ${number(counted)} images before and ${share("wrong_after")} after: ${number(this.mistakes.mended.length)} mended, ${number(this.mistakes.broken.length)} broken.`;
  }

  listen() {
    this.listening = true;
    tileKeys(this.root, (tile) => this.go(+tile.dataset.item));
    const twin = (event) => {
      const tile = event.target.closest?.(".mdp-side [data-item]");
      for (const other of this.root.querySelectorAll(".mdp-side [data-item]")) other.toggleAttribute("data-twin", Boolean(tile) && tile !== other && tile.dataset.item === other.dataset.item);
    };
    for (const name of ["pointerover", "focusin"]) this.root.addEventListener(name, twin);
    this.root.addEventListener("pointerleave", twin);
  }

  /** The items of the row, in order. */
  list() {
    const search = this.model.get("search").trim().toLowerCase(), source = this.model.get("source"), names = this.model.get("class_names"), keys = this.model.get("item_keys");
    if (search) {
      const fits = names.map((name) => name.toLowerCase().includes(search));
      return keys.flatMap((key, i) => (fits[this.table.labels[i]] || key.toLowerCase().includes(search) ? [i] : []));
    }
    if (source === "all") return keys.map((_, i) => i);
    return this.mistakes[source] || this.members[source === "own" ? this.table.labels[this.model.get("item")] : +source.slice(6)] || [];
  }

  choose(source) {
    this.set({ source, search: "" });
    const list = this.list();
    if (list.length && !list.includes(this.model.get("item"))) this.go(list[0]);
  }

  step(by) {
    const list = this.list(), at = list.indexOf(this.model.get("item")), others = list.filter((_, i) => i !== at);
    if (by === "random") { if (others.length) this.go(others[Math.floor(Math.random() * others.length)]); }
    else if (list.length) this.go(list[at < 0 ? 0 : (at + by + list.length) % list.length]);
  }

  go(item) {
    const now = this.model.get("item");
    if (item === now) return;
    this.past.push(now);
    this.set({ item });
  }

  show() {
    if (!this.table.width) return;
    const item = this.model.get("item"), source = this.model.get("source"), search = this.model.get("search"), k = Math.min(this.model.get("k"), this.table.width);
    this.source.value = source;
    if (this.search.value !== search) this.search.value = search;
    this.k.value = k;
    this.kText.textContent = `${k}`;
    this.back.disabled = !this.past.length;
    const focused = document.activeElement?.closest?.("[data-item]"), row = focused && this.root.contains(focused) ? focused.parentElement : null;
    this.showGallery(item, search, source);
    this.showQuery(item, neighboursOf(this.table, item, k), k);
    this.paint();
    if (row && !row.isConnected) this.root.querySelector(".mdp-side [data-item]")?.focus();
    else if (row && !focused.isConnected) (row.querySelector(`[aria-selected="true"]`) || row.firstElementChild)?.focus?.();
  }

  name(item) { return this.model.get("class_names")[this.table.labels[item]]; }

  showGallery(item, search, source) {
    const list = this.list(), at = list.indexOf(item), first = Math.max(0, Math.min(Math.floor(Math.max(at, 0) / GALLERY) * GALLERY, list.length - 1));
    const shown = list.slice(first, first + GALLERY), number = (x) => x.toLocaleString("en");
    for (const one of this.steps) one.disabled = !list.length || (list.length === 1 && at === 0);
    this.position.textContent = !list.length ? "" : `${at < 0 ? "" : `image ${number(at + 1)} of `}${number(list.length)}${search ? " that match" : ""}${list.length > GALLERY ? `, ${number(first + 1)} to ${number(first + shown.length)} are shown` : ""}`;
    this.gallery.replaceChildren(...shown.map((i) => {
      const wrong = this.table.first.map((places) => places[i] > 1), said = !this.table.first[0][i] ? "alone in its class" : `before ${wrong[0] ? "wrong" : "right"}, after ${wrong[1] ? "wrong" : "right"}`;
      return makeTile({ item: i, title: `${this.name(i)}, ${this.model.get("item_keys")[i]}: ${said}` }, i === item);
    }));
    if (!list.length) this.gallery.append(h("p", { class: "mdp-empty", text: search ? `No class and no image contains “${search}”.` : MISTAKES[source] ? `No image is ${MISTAKES[source]}.` : "This class has no image." }));
    else (this.gallery.querySelector("[aria-selected='true']") || this.gallery.firstElementChild).tabIndex = 0;
    const current = this.gallery.querySelector("[aria-selected='true']");
    if (current) this.gallery.scrollLeft = current.offsetLeft - this.gallery.offsetLeft - this.gallery.clientWidth / 2;
  }

  showQuery(item, sides, k) {
    const titles = this.model.get("titles"), kept = sides[0].filter((near) => near.other).length, alone = !this.table.first[0][item];
    const facts = SIDES.map((_, side) => [
      sides[side].filter((near) => near.right).length, this.table.first[side][item], sides[side][0].distance,
    ]);
    const cell = (text) => h("td", { text }), row = (text, values) => h("tr", {}, h("th", { scope: "row", text }), ...values.map(cell));
    const place = (first) => (first ? first.toLocaleString("en") : "none: alone in its class");
    this.query.replaceChildren(
      makeTile({ item, title: `The image: ${this.name(item)}, ${this.model.get("item_keys")[item]}` }, false, "div"),
      h("div", { class: "mdp-query-name" }, h("strong", { text: this.name(item) }), h("span", { class: "mdp-muted", text: this.model.get("item_keys")[item] }),
        h("p", { text: `${kept} of ${k} neighbours kept, ${sides[0].length - kept} lost, ${sides[1].length - kept} gained.${alone ? " No other image is of its class, so none can be right." : ""}` })),
      h("table", { class: "mdp-table mdp-facts" }, h("thead", {}, h("tr", {}, h("td"), ...titles.map((text, side) => h("th", { scope: "col", title: text, text: `${["Before", "After"][side]}: ${text}` })))),
        h("tbody", {}, row(`Right among the ${k} nearest`, facts.map((fact) => `${fact[0]}`)), row("Place of the first right one", facts.map((fact) => place(fact[1]))), row("Cosine distance of the nearest", facts.map((fact) => fact[2].toFixed(3))))));
    sides.forEach((list, side) => {
      const tiles = h("div", { class: "mdp-tile-row", role: "listbox", "aria-label": `The ${list.length} nearest images ${SIDES[side]}` }, ...list.map((near, i) => {
        const state = near.other ? "kept" : ["lost", "gained"][side], there = near.other ? `kept, place ${near.other} ${SIDES[1 - side]}` : ["lost: not among them after", "gained: not among them before"][side];
        const title = `Place ${i + 1}: ${this.name(near.item)}, ${this.model.get("item_keys")[near.item]}; ${near.right ? "right" : "wrong"} class, cosine distance ${near.distance.toFixed(3)}, ${there}`;
        return makeTile({ item: near.item, mark: near.right ? "right" : "wrong", caption: this.name(near.item), detail: near.distance.toFixed(3), state, title });
      }));
      tiles.firstElementChild.tabIndex = 0;
      this.lists[side].replaceChildren(h("h3", {}, h("span", { text: ["Before", "After"][side] }), h("span", { class: "mdp-muted", text: ` ${titles[side]}` })), tiles);
    });
  }
}

/** The widget. */
export const neighbours = {
  render({ model, el }) {
    const view = new NeighbourView(model, el);
    return () => view.destroy();
  },
};
