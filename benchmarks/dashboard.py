"""DensityDashboard in a real JupyterLab: from running its cell to all panels drawn, from a brush in the page to Python, and what a saved notebook gains.

    python benchmarks/dashboard.py --points 10000 100000
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from browser import ask_kernel, jupyter_lab, open_browser, open_notebook, run_all_cells

SETUP = """
import time
import numpy as np
from mdprop.dashboards import DensityDashboard
rng = np.random.default_rng(0)
labels = np.arange({points}) % 50
unit = lambda z: (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
centres = rng.normal(size=(50, 128))
before, after = (unit(spread * centres[labels] + rng.normal(size=({points}, 128))) for spread in (0.5, 0.8))
images = (rng.random(({points}, 1, 8, 8)) * 255).astype(np.uint8)
warm = DensityDashboard(before[:100], after[:100], labels[:100])  # imports and thread pools
"""
WATCH = """() => {
    const shown = () => document.querySelectorAll('.mdp-canvas').length === 3 && document.querySelectorAll('.mdp-row').length > 0;
    const look = () => { if (shown()) window.seen = Date.now() / 1000; else requestAnimationFrame(look); };
    look();
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
started = time.time()
dashboard = DensityDashboard(before, after, labels, images)
built = time.time()
arrived = []
dashboard.state.observe(lambda change: arrived.append(time.time()), "selection")
dashboard
"""
REPORT = """
import json
from ipywidgets.embed import dependency_state
state = dependency_state([dashboard.view], drop_defaults=False)
print(json.dumps([started, built, arrived, len(dashboard.selection), len(json.dumps(state))]))
"""


def measure(browser, points: int, repeats: int) -> None:
    "One fresh kernel and page; the brush several times."
    with tempfile.TemporaryDirectory() as folder:
        cells = [nbformat.v4.new_code_cell(source) for source in (SETUP.format(points=points), CELL)]
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), Path(folder) / "b.ipynb")
        with jupyter_lab(Path(folder), os.cpu_count() or 1) as (address, token):
            page = browser.new_page(viewport={"width": 1500, "height": 1200})
            open_notebook(page, address, token, "b.ipynb")
            page.evaluate(WATCH)
            run_all_cells(page)
            page.wait_for_function("window.seen > 0", timeout=600_000)
            ask_kernel(page, "dashboard.wait()")
            page.wait_for_timeout(1500)
            sent = []
            for _ in range(repeats):
                sent.append(page.evaluate(BRUSH))
                page.wait_for_timeout(1500)
                ask_kernel(page, "dashboard.wait()")
            started, built, arrived, selected, size = json.loads(ask_kernel(page, REPORT))
            seen = page.evaluate("window.seen")
            late = [arrival - start for arrival, start in zip(arrived, sent, strict=False)]
            print(f"{points:,} points: {seen - started:.2f} s from the start of the cell to all panels ({built - started:.2f} s of it in Python); "
                  f"{selected:,} brushed items in Python after {1000 * statistics.median(late):.0f} ms (median of {len(late)}); "
                  f"saved with the notebook {size / 1e6:.2f} MB")  # fmt: skip
            page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[10_000])
    parser.add_argument("--repeats", type=int, default=5)
    wanted = parser.parse_args()
    with open_browser() as browser:
        for points in wanted.points:
            measure(browser, points, wanted.repeats)


if __name__ == "__main__":
    main()
