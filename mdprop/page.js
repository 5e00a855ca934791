// mdprop: an exported page of charts, image tiles and tables. Stands behind plotly, ground.js and tiles.js; every text of the
// page's data reaches the document by textContent, or through plotly, which knows no script in its labels.

/** The same get / set / on / off as a widget model, over the state that stands in the page. */
class PageModel {
  constructor(state) { this.state = state; this.handlers = new Map(); }
  get(name) { return this.state[name]; }
  set(name, value) { this.state[name] = value; for (const handler of [...(this.handlers.get(`change:${name}`) || [])]) handler(); }
  on(event, handler) { this.handlers.set(event, (this.handlers.get(event) || new Set()).add(handler)); }
  off(event, handler) { this.handlers.get(event)?.delete(handler); }
  save_changes() {}
}

const kinds = {
  text(host, { text }) { host.append(h("p", { text })); },

  chart(host, { figure, dark, grounds }) {
    const place = h("div", { class: "mdp-chart" });
    host.append(place);
    place.style.minHeight = `${figure.layout.height || 320}px`;
    const draw = (theme) => {
      const { data, layout } = theme === "dark" && dark ? dark : figure;
      Plotly.react(place, data, { ...layout, template: grounds[theme], paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" }, { responsive: true, displaylogo: false });
    };
    watchGround(document.body, draw);
  },

  /** Sorts by a click on a column's head. */
  table(host, { columns, rows }) {
    const body = h("tbody"), heads = columns.map((text, c) => h("th", { scope: "col", "aria-sort": "none" }, h("button", { type: "button", "data-column": c, text })));
    const fill = (shown) => body.replaceChildren(...shown.map((row) => h("tr", {}, ...row.map((cell) => h("td", { "data-number": typeof cell === "number", text: cell === null ? "n/a" : typeof cell === "number" ? String(+cell.toPrecision(5)) : cell })))));
    const table = h("table", { class: "mdp-table" }, h("thead", {}, h("tr", {}, ...heads)), body);
    table.addEventListener("click", (event) => {
      if (event.target.dataset.column === undefined) return;
      const c = +event.target.dataset.column, up = heads[c].getAttribute("aria-sort") !== "ascending";
      for (const head of heads) head.setAttribute("aria-sort", "none");
      heads[c].setAttribute("aria-sort", up ? "ascending" : "descending");
      const order = (a, b) => (typeof a[c] === "number" && typeof b[c] === "number" ? a[c] - b[c] : String(a[c]).localeCompare(String(b[c]), "en", { numeric: true }));
      fill([...rows].sort((a, b) => (up ? order(a, b) : order(b, a))));
    });
    fill(rows);
    host.append(table);
  },

  tiles(host, state) { tiles.render({ model: new PageModel(state), el: host }); },
};

/** Build the page from the JSON in `data` (bytes as {"base64": ...}) inside `host`. */
function openBlocks(data, host) {
  const revive = (_, value) => (value && typeof value.base64 === "string" ? Uint8Array.from(atob(value.base64), (c) => c.charCodeAt(0)) : value);
  const root = h("div", { class: "mdp mdp-blocks" });
  host.append(root);
  watchGround(document.body, (theme) => { root.dataset.theme = document.documentElement.dataset.theme = theme; });
  for (const { kind, heading, note, half, ...content } of JSON.parse(data.textContent, revive)) {
    const block = h("section", { "data-half": half }, heading ? h("h2", { text: heading }) : "", note ? h("p", { class: "mdp-block-note", text: note }) : "");
    root.append(block);
    kinds[kind](block, content);
  }
}
