"""DensityDashboard in a real JupyterLab: from running its cell to all panels drawn, from a brush in the page to Python, and what it weighs.

    python benchmarks/dashboard.py --points 10000 100000

The kernel and the page have been used before the cell is run (imports, thread pools), and nothing else runs in either. Beside the time by the clock
stands processor time, which neighbours on the machine lengthen less: of the kernel's main thread, and of the page's (Chromium's own count).
`in the file` is by how much the notebook grows when JupyterLab saves it: the output alone, as JupyterLab does it by default, and with the widget state,
which it adds when its setting "Save Widget State Automatically" is on.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from browser import ask_kernel, jupyter_lab, open_browser, open_notebook, run_all_cells, write_notebook

SETUP = """
import json, time
import numpy as np
from ipywidgets.embed import dependency_state
from mdprop.dashboards import DensityDashboard
from ipywidgets.widgets.widget import _remove_buffers
rng = np.random.default_rng(0)
labels = np.arange({points}) % 50
unit = lambda z: (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
centres = rng.normal(size=(50, 128))
before, after = (unit(spread * centres[labels] + rng.normal(size=({points}, 128))) for spread in (0.5, 0.8))
fade = np.stack([np.interp(np.linspace(0, 3, 32), range(4), corner) for corner in np.eye(4)], 1).astype(np.float32)
images = (255 * np.einsum("xi,nij,yj->nxy", fade, rng.random(({points}, 4, 4), np.float32), fade)).astype(np.uint8)[:, None]  # smooth, as photographs are
warm = DensityDashboard(before[:6000], after[:6000], labels[:6000], images[:6000])
warm.wait()
warm._repr_mimebundle_()
"""
WATCH = """() => {
    const shown = () => document.querySelectorAll('.mdp-canvas').length === 3 && document.querySelectorAll('.mdp-row').length > 0;
    const watcher = new MutationObserver(() => {
        if (!shown()) return;
        watcher.disconnect();
        requestAnimationFrame(() => requestAnimationFrame(() => { window.seen = Date.now() / 1000; }));  // after the frame that draws
    });
    watcher.observe(document.body, { childList: true, subtree: true });
}"""
BRUSH = """() => {
    window.turn = (window.turn || 0) + 1;
    const canvas = document.querySelector('.mdp-canvas'), box = canvas.getBoundingClientRect();
    canvas.setPointerCapture = () => {};
    const radius = 0.15 + 0.02 * window.turn, at = (t) => ({
        bubbles: true, shiftKey: true,
        clientX: box.left + box.width * (0.5 + radius * Math.cos(t)), clientY: box.top + box.height * (0.5 + radius * Math.sin(t)),
    });
    const send = (type, t) => canvas.dispatchEvent(new PointerEvent(type, at(t)));
    send('pointerdown', 0);
    for (let t = 0.05; t < 6.2; t += 0.05) send('pointermove', t);
    const start = Date.now() / 1000;
    send('pointerup', 6.2);
    return start;
}"""


CELL = """
started, spent = time.time(), time.thread_time()
dashboard = DensityDashboard(before, after, labels, images)
built, worked = time.time(), time.thread_time() - spent
arrived = []
dashboard.state.observe(lambda change: arrived.append(time.time()), "selection")
dashboard
"""
REPORT = """
saved, output = dependency_state([dashboard.view], drop_defaults=False), dashboard._repr_mimebundle_()[0]
state, _, buffers = _remove_buffers(dashboard.view.get_state() | dashboard.view._data(dashboard.view.heavy))  # much data go by message, not in the state
wire = len(json.dumps(state)) + sum(map(len, buffers))
print(json.dumps([started, built, worked, arrived, len(dashboard.selection), len(json.dumps(saved)), len(json.dumps(output)), wire]))
"""


def measure(browser, points: int, repeats: int, threads: int) -> None:
    "One fresh kernel and page; the brush several times."
    with tempfile.TemporaryDirectory() as folder:
        write_notebook(Path(folder) / "b.ipynb", [CELL])
        with jupyter_lab(Path(folder), threads) as (address, token):
            page = browser.new_page(viewport={"width": 1500, "height": 1200})
            chrome = page.context.new_cdp_session(page)
            chrome.send("Performance.enable", {"timeDomain": "threadTicks"})
            busy = lambda: {m["name"]: m["value"] for m in chrome.send("Performance.getMetrics")["metrics"]}["TaskDuration"]
            open_notebook(page, address, token, "b.ipynb")
            ask_kernel(page, SETUP.format(points=points))
            page.wait_for_timeout(4000)  # until the page has come to rest
            page.evaluate(WATCH)
            spent = busy()
            run_all_cells(page)
            page.wait_for_function("window.seen > 0", timeout=600_000, polling=50)
            spent = busy() - spent
            ask_kernel(page, "dashboard.wait()")
            page.wait_for_timeout(1500)
            sent = []
            for _ in range(repeats):
                sent.append(page.evaluate(BRUSH))
                page.wait_for_timeout(1500)
                ask_kernel(page, "dashboard.wait()")
            started, built, worked, arrived, selected, state, shown, wire = json.loads(ask_kernel(page, REPORT))
            seen = page.evaluate("window.seen")
            late = [arrival - start for arrival, start in zip(arrived, sent, strict=False)]
            print(
                f"{points:,} points: {seen - started:.2f} s from the start of the cell to all panels, {built - started:.2f} s of it until the dashboard is "
                f"made (processor time: kernel {worked:.2f} s, page {spent:.2f} s); {selected:,} brushed items in Python after "
                f"{1000 * statistics.median(late):.0f} ms (median of {len(late)})\n"
                f"    on the wire {wire / 3e6:.2f} MB for each of three panels; "
                f"in the file {shown / 1e6:.2f} MB, with the widget state {(shown + state) / 1e6:.2f} MB"
            )
            page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[10_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the kernel; more than one wait for each other where the machine has other work")
    wanted = parser.parse_args()
    with open_browser() as browser:
        for points in wanted.points:
            measure(browser, points, wanted.repeats, wanted.threads)


if __name__ == "__main__":
    main()
