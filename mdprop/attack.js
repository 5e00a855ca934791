// mdprop: the steps of an attack in an exported page. Stands behind page.js; in a notebook Python does the same.

/** A slider over the steps that the page holds: pictures, what is found, and the marks in the charts. */
kinds.steps = (host, { steps, pictures, found }) => {
  const last = steps.length - 1, slider = h("input", { type: "range", min: 0, max: last, step: 1, "aria-label": "Show step" }), said = h("output");
  slider.value = last;
  host.append(h("label", { class: "mdp-slider", title: "Which step the pictures, the found images and the marks in the charts show; 0 is the clean image" }, h("span", { text: "Show step" }), slider, said));
  const models = [pictures, found].map(({ rows, ...state }) => new PageModel({ ...state, all: rows, rows: rows[last], picked: -1 }));
  for (const model of models) tiles.render({ model, el: host });
  const show = () => {
    const at = +slider.value, step = steps[at];
    said.textContent = `${step}`;
    for (const model of models) model.set("rows", model.get("all")[at]);
    for (const plot of document.querySelectorAll(".js-plotly-plot")) {
      const path = plot._fullData.find((trace) => trace.name === "path"), mark = plot._fullData.findIndex((trace) => trace.name === "attacked");
      if (path && mark >= 0) Plotly.restyle(plot, { x: [[path.x[step]]], y: [[path.y[step]]] }, [mark]);
      else Plotly.relayout(plot, { "shapes[0].x0": step, "shapes[0].x1": step });
    }
  };
  said.textContent = `${steps[last]}`;
  slider.addEventListener("input", show);
};
