"""The paired view in a real headless browser: how long from an action to the redrawn panels, and how much goes over the wire.

    python benchmarks/panel.py --points 10000 100000 --chromium /usr/bin/chromium

Times are taken in the page, from the event: `drawn` until the panels hold the new picture, `shown` until the browser's next frame after that; the median of
several, with the spread of the second. Beside them stands the processor time of the page's main thread for the same action, with all that follows it
(words, table, charts; Chromium's own count), which neighbours on the machine do not lengthen much. `redraw` is the same page that draws once more with
nothing changed: the floor that the other lines stand on. `opened` is from the start of loading the exported file to the first full picture.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

from mdprop.panels import PairedView, class_column, item_values, projection, save_html, view_state

CLASSES = 50
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]

ACTIONS = {  # `nothing` is what the measuring itself costs; what is done at the k-th repetition; `prepare` is not timed
    "nothing": ("", ""),
    "redraw": ("", "window.dispatchEvent(new Event('resize'))"),
    "class filter": ("", "document.querySelectorAll('.mdp-row')[k].click()"),
    "bandwidth": (
        "slider = document.querySelector('[data-control=bandwidth] input')",
        "slider.value = 0.02 + 0.005 * (k % 6); slider.dispatchEvent(new Event('input'))",
    ),
    "colour by": (
        "list = document.querySelector('[data-control=colour_by] select')",
        "list.selectedIndex = (k + 1) % 3; list.dispatchEvent(new Event('change'))",
    ),
    "brush to linked highlight": (
        """canvas = document.querySelector('.mdp-canvas'); canvas.setPointerCapture = () => {}; box = canvas.getBoundingClientRect();
        send = (type, t) => canvas.dispatchEvent(new PointerEvent(type, { bubbles: true, shiftKey: true,
            clientX: box.left + box.width * (0.5 + (0.1 + 0.02 * k) * Math.cos(t)), clientY: box.top + box.height * (0.5 + (0.1 + 0.02 * k) * Math.sin(t)) }));
        send('pointerdown', 0); for (let t = 0.05; t < 6.2; t += 0.05) send('pointermove', t)""",
        "send('pointerup', 6.2)",
    ),
    "hover": (
        "canvas = document.querySelector('.mdp-canvas'); box = canvas.getBoundingClientRect()",
        "canvas.dispatchEvent(new PointerEvent('pointermove', { clientX: box.left + box.width * (0.4 + 0.02 * k), clientY: box.top + box.height / 2 }))",
    ),
}  # fmt: skip

TIMED = """async (count) => {
    const times = [], frame = () => new Promise(requestAnimationFrame);
    let slider, list, canvas, box, send;
    for (let k = 0; k < count; k++) {
        PREPARE;
        for (let i = 0; i < 3; i++) await frame();
        const start = performance.now();
        ACTION;
        await frame();  // drawing was asked for before this frame, so it is done in it
        const drawn = performance.now() - start;
        await frame();
        times.push([drawn, performance.now() - start]);
    }
    return times;
}"""


def dashboard(points: int) -> PairedView:
    "A view of as many points, with values to colour them and a column to sort by."
    rng = np.random.default_rng(0)
    labels = np.arange(points) % CLASSES
    before = rng.normal(size=(CLASSES, 2))[labels] * 2 + rng.normal(size=(points, 2)) * 0.6
    after = before * 0.9 + rng.normal(size=(points, 2)) * 0.3
    values = {
        "density": item_values("Local density", *rng.normal(size=(2, points))),
        "density_change": item_values("Change of density", rng.normal(size=points), kind="diverging"),
        "correct": item_values("Right", rng.random(points) < 0.5, rng.random(points) < 0.6, kind="binary"),
        "kept": item_values("Neighbours kept", rng.random(points)),
    }
    keys = [f"photos/{c:03d}/{i:06d}.jpg" for i, c in enumerate(labels)]
    columns = [class_column("spread", rng.random(CLASSES))]
    return PairedView(**view_state({"pca": projection(before, after)}, labels, keys=keys, values=values, class_table=columns), point_size=2.0)


def weigh(value) -> int:
    "Bytes on the wire, near enough."
    if isinstance(value, bytes):
        return len(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return len(str(value)) if parts is None else sum(map(weigh, parts))


def measure(browser, points: int, repeats: int, folder: Path) -> None:
    "Print one line for every action."
    view = dashboard(points)
    state = view.get_state() | {name: getattr(view, name) for name in view.heavy}  # much data go by message, not in the state
    sent = sum(weigh(v) for name, v in state.items() if not name.startswith("_"))
    print(f"{points:,} points, {CLASSES} classes: {sent / 3e6:.2f} MB for each of three panels on the wire")
    path = save_html(view, folder / f"{points}.html")
    page = browser.new_page(viewport={"width": 1500, "height": 1100})
    start = time.perf_counter()
    page.goto(path.as_uri())
    page.wait_for_selector(".mdp-row")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    print(f"  {'opened':<28} {1000 * (time.perf_counter() - start):7.0f} ms, a file of {path.stat().st_size / 1e6:.1f} MB")
    chrome = page.context.new_cdp_session(page)
    chrome.send("Performance.enable", {"timeDomain": "threadTicks"})
    busy = lambda: {m["name"]: m["value"] for m in chrome.send("Performance.getMetrics")["metrics"]}["TaskDuration"] * 1000
    floor = 0.0
    for name, (prepare, action) in ACTIONS.items():
        script = TIMED.replace("PREPARE", prepare).replace("ACTION", action)
        page.evaluate(script, 2)  # warm
        spent = busy()
        times = page.evaluate(script, repeats)
        spent = (busy() - spent) / repeats
        if name == "nothing":
            floor = spent
            continue
        drawn, shown = zip(*times, strict=True)
        quartiles = statistics.quantiles(shown, n=4)
        spread = f"(middle half {quartiles[0]:.0f} to {quartiles[2]:.0f})"
        times = f"drawn {statistics.median(drawn):5.0f} ms, shown {statistics.median(shown):5.0f} ms"
        print(f"  {name:<28} {times} {spread:<28} main thread {spent - floor:6.0f} ms")
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--chromium", help="path of the browser's program; not given: playwright's own")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=FLAGS)
        for points in args.points:
            measure(browser, points, args.repeats, Path(folder))
        browser.close()


if __name__ == "__main__":
    main()
