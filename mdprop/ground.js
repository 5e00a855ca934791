// mdprop: says whether the page is light or dark, and when that changes.
// Comes before the modules that need it (`tiles.js`), or alone as the widget `Ground`.

/** "light" or "dark": JupyterLab's theme, VS Code's, or else the colour behind the element and the system's wish. */
export function themeOf(node) {
  for (const at of [document.body, document.documentElement]) {
    const lab = at.dataset.jpThemeLight, code = at.dataset.vscodeThemeKind;
    if (lab) return lab === "false" ? "dark" : "light";
    if (code) return code.includes("dark") ? "dark" : "light";
  }
  for (let at = node; at; at = at.parentElement) {
    const [r, g, b, a = 1] = (getComputedStyle(at).backgroundColor.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
    if (a > 0.5) return 0.3 * r + 0.59 * g + 0.11 * b < 128 ? "dark" : "light";
  }
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

/** Call `tell(theme)` now and whenever it changes; gives back how to stop. */
export function watchGround(node, tell) {
  let told, later = 0;
  const look = () => {
    const theme = themeOf(node);
    if (theme !== told) tell((told = theme));
  };
  const soon = () => { clearTimeout(later); later = setTimeout(look, 60); };
  const observer = new MutationObserver(soon), system = matchMedia("(prefers-color-scheme: dark)");
  for (const at of [document.body, document.documentElement]) observer.observe(at, { attributes: true, attributeFilter: ["class", "style", "data-jp-theme-light", "data-vscode-theme-kind"] });
  system.addEventListener("change", soon);
  look();
  soon();  // once more, when the element is in its place
  return () => { clearTimeout(later); observer.disconnect(); system.removeEventListener("change", soon); };
}

/** ipywidgets leaves the handle of a slider and the number beside it without a name that a screen reader could say: they take that of their label. */
function nameSliders(root) {
  const sliders = [...root.querySelectorAll(".widget-slider")];
  for (const slider of sliders) {
    const name = slider.querySelector(".widget-label")?.textContent;
    for (const part of slider.querySelectorAll("[role='slider'], .widget-readout")) if (name) part.setAttribute("aria-label", name);
  }
  return sliders.every((slider) => slider.querySelector("[role='slider'][aria-label]"));
}

const ARROW = `url("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'%3E%3Cpath d='M5 7l4 4 4-4' fill='none' stroke='%23ddd' stroke-width='1.6'/%3E%3C/svg%3E")`;

/** The widget: it shows nothing, keeps the trait `theme`, and, as soon as they are there, names the sliders beside it and gives drop-down lists on a dark page an arrow that can be seen (ipywidgets' is dark on either). */
export const ground = {
  render({ model, el }) {
    el.hidden = true;
    let looks = 0, theme = "";
    const drawArrows = () => el.parentElement?.style.setProperty("--jp-widgets-dropdown-arrow", theme === "dark" ? ARROW : "");
    const named = setInterval(() => {
      looks += el.isConnected;
      if (looks === 1) drawArrows();
      if (el.isConnected && nameSliders(el.parentElement) && looks > 10) clearInterval(named);
    }, 200);
    const unwatch = watchGround(el.parentElement || el, (now) => { theme = now; drawArrows(); model.set("theme", theme); model.save_changes(); });
    return () => { clearInterval(named); unwatch(); };
  },
};
