"""Time from a click in the class filter to the redrawn panels, in a real headless browser: with density lines, and beside it with points alone.

    python benchmarks/panel.py --points 10000 --chromium /usr/bin/chromium
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

from mdprop.dashboards import DensityDashboard

CLICKS = """async (count) => {
    const rows = [...document.querySelectorAll('.mdp-row')], times = [], frame = () => new Promise(requestAnimationFrame);
    for (const row of rows.slice(0, count)) {
        await frame();
        const start = performance.now();
        row.click();
        await frame();
        times.push(performance.now() - start);
    }
    return times;
}"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--chromium", help="the browser's program; not given: playwright's own")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    labels = np.arange(args.points) % 50
    z = rng.normal(size=(50, 16))[labels] + rng.normal(size=(args.points, 16))
    z = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = DensityDashboard(z, z, labels).save_html(Path(folder) / "panel.html")
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        medians = {}
        for lines in ("Overall", "Off"):
            page = browser.new_page()
            page.goto(path.as_uri())
            page.wait_for_selector(".mdp-row")
            page.get_by_role("radio", name=lines).check()
            medians[lines] = statistics.median(page.evaluate(CLICKS, 8))
            page.close()
        browser.close()
    print(f"{args.points} points: {medians['Overall']:.0f} ms with density lines, {medians['Off']:.0f} ms with points alone")
    print(f"ratio {medians['Overall'] / medians['Off']:.2f} (median of 8 clicks, both panels)")


if __name__ == "__main__":
    main()
