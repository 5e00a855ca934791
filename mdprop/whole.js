// mdprop: what is heavy travels by message, so that a notebook that keeps its widgets' state stays small.
// Stands before the module of a `LightWidget`; in an exported page everything is in the state already.

const SILENCE = 4000;  // milliseconds after which a kernel that should send the data is taken for gone

/** A widget's model as its view reads it: what came by message, or else what is in the state. */
class WholeModel {
  constructor(model) {
    this.model = model;
    this.id = `${Date.now()}-${Math.random()}`;
    this.came = new Map();
    this.bound = [];  // [event, handler, what the widget's model calls]
    if (typeof model.send === "function") this.send = (...message) => model.send(...message);
    model.on("msg:custom", this.hear = (message, buffers) => this.receive(message, buffers));
  }

  get complete() { return !this.model.get("by_message") || this.came.size > 0; }
  get(name) { return this.came.has(name) ? this.came.get(name) : this.model.get(name); }
  set(name, value) { this.model.set(name, value); }
  save_changes() { this.model.save_changes(); }

  on(event, handler) {
    const own = (...told) => { if (!this.came.has(event.replace("change:", ""))) handler(...told); };  // of what came by message the message tells
    this.bound.push([event, handler, own]);
    this.model.on(event, own);
  }

  off(event, handler) {
    const gone = this.bound.filter(([one, other]) => one === event && other === handler);
    for (const [, , own] of gone) this.model.off(event, own);
    this.bound = this.bound.filter((one) => !gone.includes(one));
  }

  /** Ask the kernel for everything; `then` is called when it is here. */
  ask(then) {
    this.then = then;
    this.model.send({ kind: "whole", for: this.id });
  }

  receive(message, buffers) {
    if (message?.kind !== "data" || (message.for && message.for !== this.id) || (!message.whole && !this.complete)) return;
    const { state, paths, changed } = message;
    paths.forEach((path, k) => { path.slice(0, -1).reduce((at, step) => at[step], state)[path.at(-1)] = buffers[k]; });
    for (const [name, value] of Object.entries(state)) this.came.set(name, value);
    for (const name of changed) for (const [event, handler] of [...this.bound]) if (event === `change:${name}`) handler();
    if (message.for) this.then?.();
  }

  destroy() {
    this.model.off("msg:custom", this.hear);
    for (const [event, , own] of this.bound) this.model.off(event, own);
  }
}

/** What stands there while the data are on their way, and where no kernel sends them: the still picture, and why it is still. */
function makeStandIn(model, el) {
  const root = document.createElement("section"), said = document.createElement("p"), still = model.get("still");
  root.className = "mdp mdp-stand-in";
  said.setAttribute("role", "status");
  said.textContent = "Loading …";
  root.append(said);
  let address = "";
  if (still?.byteLength) {
    const picture = document.createElement("img");
    picture.src = address = URL.createObjectURL(new Blob([still], { type: "image/png" }));
    picture.alt = "A still picture of this view";
    root.append(picture);
  }
  el.append(root);
  const say = () => { said.textContent = `${address ? "A still picture: the" : "The"} notebook does not keep the data of so many images. Run the cell to bring the view alive.`; };
  return { say, remove: () => { root.remove(); URL.revokeObjectURL(address); } };
}

/** Let `draw` make the view as soon as everything is here; gives back how to end it. */
function drawWhole({ model, el }, draw) {
  const whole = new WholeModel(model);
  let end = null, standIn = null, silence = 0;
  const start = () => { clearTimeout(silence); standIn?.remove(); standIn = null; end ??= draw({ model: whole, el }); };
  if (whole.complete) start();
  else {
    standIn = makeStandIn(model, el);
    silence = setTimeout(() => standIn?.say(), SILENCE);
    try { whole.ask(start); } catch { standIn.say(); }  // without a kernel some widget managers throw
  }
  return () => { clearTimeout(silence); standIn?.remove(); end?.(); whole.destroy(); };
}

