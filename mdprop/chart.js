// mdprop: a plotly chart as a widget. plotly itself comes once from the kernel, packed, in a model that all charts of a page share.
// Stands behind ground.js. A chart takes the width of its place, and whatever it shows is drawn from a whole figure, so that nothing of an earlier one stays.

const wait = (ms) => new Promise((done) => setTimeout(done, ms));

/** plotly, loaded once for the page and this version of it; another plotly of the page keeps its name. What is read is let go, so that it is not saved with a notebook's widgets. */
async function plotly(model) {
  const page = globalThis, id = model.get("library"), version = model.get("version"), manager = model.widget_manager;
  const loaded = (page.mdpropPlotly ??= {});
  for (let tries = 0; tries < 200 && !manager.has_model(id); tries++) await wait(50);
  const library = await manager.get_model(id);
  loaded[version] ??= (async () => {
    const packed = library.get("code");
    if (!packed.byteLength) throw new Error("its library is not in this page");
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const url = URL.createObjectURL(new Blob([await new Response(stream).text()], { type: "text/javascript" })), other = page.Plotly;
    try { await import(url); } finally { URL.revokeObjectURL(url); }
    const own = page.Plotly;
    delete page.moduleName;
    if (other) page.Plotly = other;
    return { Plotly: own, grounds: JSON.parse(library.get("grounds")) };
  })();
  loaded[version].catch(() => delete loaded[version]);
  const found = await loaded[version];
  if (library.get("code").byteLength) library.set("code", new DataView(new ArrayBuffer(0)));
  return found;
}

class ChartView {
  constructor(model, el) {
    this.model = model;
    this.place = document.createElement("div");
    this.place.setAttribute("role", "figure");
    this.place.setAttribute("data-lm-suppress-shortcuts", "true");
    this.place.className = "mdp-plotly";
    this.el = el;
    el.style.minWidth = "0";
    el.append(this.place);
    this.width = 0;
    this.queue = Promise.resolve();
    this.asked = false;
    this.redraw = () => this.ask();
    for (const name of ["change:shown", "change:label"]) model.on(name, this.redraw);
    this.observer = new ResizeObserver(() => { if (Math.floor(el.clientWidth) !== this.width) this.ask(); });
    this.observer.observe(el);
    this.unwatch = watchGround(el, (theme) => { this.theme = theme; this.ask(); });
  }

  /** Draw soon, one drawing after the other; what is asked for meanwhile is drawn once. */
  ask() {
    if (this.asked) return;
    this.asked = true;
    this.queue = this.queue.then(() => { this.asked = false; return this.draw(); }).catch((error) => this.say(error));
  }

  async draw() {
    const { data, layout } = JSON.parse(this.model.get("shown")), height = layout.height || 360;
    this.place.setAttribute("aria-label", this.model.get("label"));
    this.place.style.minHeight = `${height}px`;
    const width = Math.floor(this.el.clientWidth);
    if (!width || this.gone) return;  // not in its place yet: the observer asks again
    const { Plotly, grounds } = await plotly(this.model);
    if (this.gone) return;
    this.width = width;
    const first = !this.place.classList.contains("js-plotly-plot");
    await Plotly.react(this.place, data, { uirevision: layout.title?.text, ...layout, template: grounds[this.theme], width, height }, { displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] });
    if (first) this.place.on("plotly_click", ({ points }) => this.model.send({ kind: "click", trace: points[0].curveNumber, point: points[0].pointNumber }));
    this.purge = () => Plotly.purge(this.place);
  }

  say(error) {
    this.place.textContent = `This chart cannot be drawn (${error?.message || error}): reload the page, or run the cell again.`;
  }

  destroy() {
    this.gone = true;
    this.observer.disconnect();
    this.unwatch();
    for (const name of ["change:shown", "change:label"]) this.model.off(name, this.redraw);
    this.purge?.();
  }
}

export default {
  render({ model, el }) {
    const view = new ChartView(model, el);
    return () => view.destroy();
  },
};
