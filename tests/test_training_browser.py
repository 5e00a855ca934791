"Training, norms and robustness in a real browser: the saved pages with the network cut, and all three in one JupyterLab."

import json

import pytest

pytest.importorskip("anywidget", reason="needs the extra lab")

pytest.importorskip("playwright", reason="pip install playwright")

from browser import Complaints, ask_kernel, jupyter_lab, open_notebook, run_all_cells, wait_for_kernel, write_notebook
from playwright.sync_api import Error as PlaywrightError
from test_dashboards_robustness import hand_made

from mdprop.dashboards.norms import NormDashboard
from mdprop.dashboards.robustness import RobustnessDashboard
from mdprop.dashboards.training import TrainingDashboard
from mdprop.data import glyphs
from mdprop.recipes import RECIPES
from mdprop.runs import write_json
from mdprop.train import fit

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=alert(1)>"
WAIT = 60_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Two runs, of which one has a hostile name, with reports on their robustness that are made up."
    place = tmp_path_factory.mktemp("lab")
    few = glyphs(classes=60, per_class=8, size=24).keep_classes(range(0, 60, 5))
    for k, (recipe, name) in enumerate((("plain", HOSTILE), (RECIPES["mdprop"](share=None), "mdprop"))):
        run = fit(few, recipe, place / "runs" / name, epochs=2, width=4, dim=8, batch_size=16, per_class=2, valid_domains=True, progress=False)
        write_json(run.path / "robustness.json", hand_made(k, ["GTM: more steps do not help"] * k, transfer=k == 1, run=name).to_json())
    return place


def drawn(scope):
    "How many charts of a page, or of a part of it, hold a picture."
    return scope.locator(".js-plotly-plot > .plot-container .main-svg:first-child").count()


# Saved pages


@pytest.mark.parametrize(("kind", "charts"), [("training", 6), ("norms", 4), ("robustness", 4)])
def test_saved_pages_work_without_a_network(browser, folder, tmp_path, kind, charts):
    runs = [folder / "runs" / HOSTILE, folder / "runs" / "mdprop"]
    board = {"training": lambda: TrainingDashboard(*runs), "norms": lambda: NormDashboard(runs[1]), "robustness": lambda: RobustnessDashboard(*runs)}[kind]()
    path = board.save_html(tmp_path / "page.html")
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    complaints, dialogs = Complaints(page), []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri())
    page.wait_for_function(f"document.querySelectorAll('.js-plotly-plot .main-svg').length >= {charts}", timeout=WAIT)
    assert page.locator(".js-plotly-plot").count() == charts and page.locator("img, b").count() == 0
    if kind != "norms":
        assert HOSTILE in page.locator("h1").inner_text() and page.locator(".legendtext", has_text=HOSTILE).count() >= 1
    overflow = page.evaluate(
        "() => { const bottom = (node) => node.getBoundingClientRect().bottom;"
        " return [...document.querySelectorAll('.mdp-chart')].map((chart) => bottom(chart.querySelector('.main-svg')) - bottom(chart)); }"
    )
    assert max(overflow) <= 2, "no chart is higher than its place"
    table = page.locator("table").first
    head, cells = table.locator("th button").nth(3 if kind == "training" else 1), table.locator("tbody tr td:nth-child(2)")
    head.click()
    up = cells.all_inner_texts()
    head.click()
    assert sorted(up) == sorted(cells.all_inner_texts())
    says_what_is_under_the_pointer(page, page.locator(".js-plotly-plot").nth(2 if kind == "norms" else 1 if kind == "training" else 3))
    ink = lambda: page.locator(".js-plotly-plot .xtick text, .js-plotly-plot .x2tick text").first.evaluate("t => getComputedStyle(t).fill")
    light = ink()
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(500)
    assert ink() != light
    assert complaints.found == [] and dialogs == []
    context.close()


def says_what_is_under_the_pointer(page, plot):
    "Hover over a chart, then hide its first line by a click on the legend."
    plot.scroll_into_view_if_needed()
    point = plot.locator(".scatterlayer .points path:visible").first
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 - 3, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    plot.locator(".hoverlayer text").first.wait_for(timeout=WAIT)
    toggle = plot.locator(".legendtoggle").first
    if toggle.count():
        toggle.click()
        page.wait_for_function("(plot) => plot._fullData.some((trace) => trace.visible === 'legendonly')", arg=plot.element_handle(), timeout=WAIT)


# JupyterLab

CELLS = [
    """from mdprop.dashboards.training import TrainingDashboard
from mdprop.dashboards.norms import NormDashboard
from mdprop.dashboards.robustness import RobustnessDashboard
from mdprop.data import glyphs
few = glyphs(classes=60, per_class=8, size=24).keep_classes(range(0, 60, 5))
HOSTILE = '<img src=x onerror=alert(1)>'
live = TrainingDashboard('runs/mdprop')
live.fit(few, 'mdprop', 'runs/live', epochs=200, width=4, dim=8, batch_size=16, per_class=2)""",
    "both = TrainingDashboard(f'runs/{HOSTILE}', 'runs/mdprop')\nboth",
    "norms = NormDashboard('runs/mdprop')\nnorms",
    "robust = RobustnessDashboard(f'runs/{HOSTILE}', 'runs/mdprop')\nrobust",
    "both  # a second view",
]


def part(page, cell):
    "The output of a cell."
    return page.locator(".jp-Notebook .jp-CodeCell").nth(cell).locator(".jp-OutputArea")


def scroll_to(page, place):
    "The notebook takes cells that are out of sight out of the page and puts them back: try again."
    for _ in range(20):
        try:
            return place.scroll_into_view_if_needed(timeout=5000)
        except PlaywrightError:
            page.wait_for_timeout(250)
    raise AssertionError(f"{place} does not come into view")


def look_at(page, cell, charts=4):
    "Scroll there (what is far away is not drawn), and wait until its charts are there."
    place = part(page, cell)
    scroll_to(page, place)
    for k in range(charts):
        place.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=WAIT)
        scroll_to(page, place.locator(".mdp-plotly").nth(k))
        place.locator(".mdp-plotly").nth(k).locator(".main-svg").first.wait_for(timeout=WAIT)
    assert place.locator(".mdp-plotly").count() == charts
    return place


def use_live(page):
    place = look_at(page, 0)
    wait_for_kernel(page, "print(live.live.standing)", "running")
    place.get_by_role("button", name="Pause").click()
    wait_for_kernel(page, "print(live.live.standing)", "paused")
    step = ask_kernel(page, "print(live.live.now.get('step', 0))")
    place.get_by_text("Paused: epoch").wait_for(timeout=WAIT)
    assert ask_kernel(page, "import time; time.sleep(.3); print(live.live.now.get('step', 0))") == step
    place.get_by_role("button", name="Resume").click()
    wait_for_kernel(page, f"print(live.live.now.get('step', 0) > {step} and live.live.standing)", "running")
    wait_for_kernel(page, "print(len(live.live.rows) > 0)", "True")
    place.get_by_role("button", name="Stop and keep").click()
    wait_for_kernel(page, "print(live.live.standing, len(live.run.metrics) == len(live.live.rows))", "stopped True")
    place.get_by_text("the same fit(...) goes on from there").wait_for(timeout=WAIT)
    assert place.get_by_role("button", name="Stop and keep").is_disabled()


def use_training(page):
    place = look_at(page, 1)
    assert place.get_by_text(HOSTILE).count() >= 1 and place.locator("img").count() == 0
    place.get_by_label("Loss of").select_option("multi")
    wait_for_kernel(page, "print(both.state.loss_of, len(both._view.charts[0].data))", "multi 1")
    place.get_by_role("button", name="rho", exact=True).click()
    place.get_by_role("button", name="learning rate").click()
    wait_for_kernel(page, "print(both.state.density, both.state.pace)", "rho lr")
    place.get_by_text("rho: unevenness").wait_for(timeout=WAIT)
    place.get_by_role("button", name="Read again").click()


def use_norms(page):
    place = look_at(page, 2)
    heat = place.locator(".mdp-plotly").first
    scroll_to(page, heat)
    box = heat.locator(".nsewdrag").first.bounding_box()
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 0.5 / 12 * box["height"])
    wait_for_kernel(page, "print(norms.state.layer, norms.state.domain)", "backbone.bn1 multi")
    place.get_by_text("bn1: running mean of every channel", exact=True).wait_for(timeout=WAIT)
    place.get_by_label("Channels of").select_option("layer1.0.bn2")
    place.get_by_role("button", name="weight").click()
    wait_for_kernel(page, "print(norms.state.layer, norms.state.quantity)", "backbone.layer1.0.bn2 weight")
    place.get_by_label("Compare with").select_option("multi")
    wait_for_kernel(page, "print(norms.found.domains)", "('clean', 'single')")
    place.get_by_label("Model of the").select_option("last epoch")
    wait_for_kernel(page, "norms._work.wait(); print(norms.state.checkpoint, norms._status.problem)", "last")


def use_robustness(page):
    place = look_at(page, 3)
    assert "its gradients may be masked" in place.inner_text() and place.locator("img").count() == 0
    place.get_by_label("Growing attack", exact=True).select_option("GTM")
    place.get_by_label("Natural shift", exact=True).select_option("blur")
    place.get_by_role("button", name="MAP@R").click()
    wait_for_kernel(page, "print(robust.state.attack, robust.state.shift, robust.state.measure)", "GTM blur MAP@R")
    place.get_by_text("blur: MAP@R by severity").wait_for(timeout=WAIT)
    place.get_by_text("Attacked through one domain").click()
    place.get_by_role("button", name="Read again").click()


def test_all_three_in_jupyterlab(browser, folder):
    "Every control used, its effect seen in Python; the theme followed; a reload and a second view: nothing doubles, nothing is lost."
    write_notebook(folder / "dashboards.ipynb", CELLS)
    with jupyter_lab(folder) as (address, token):
        page = browser.new_page(viewport={"width": 1500, "height": 1100})
        complaints = Complaints(page)
        open_notebook(page, address, token, "dashboards.ipynb")
        run_all_cells(page)
        use_live(page)
        use_training(page)
        use_norms(page)
        use_robustness(page)
        second = look_at(page, 4)
        second.get_by_role("button", name="pi_ratio").click()
        wait_for_kernel(page, "print(both.state.density)", "pi_ratio")
        page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
        wait_for_kernel(page, "print({board.theme for board in (both._view.ground, norms._view.ground, robust._ground)})", "{'dark'}")
        kept = ask_kernel(page, "import json; print(json.dumps([both.state.as_dict(), norms.state.as_dict(), robust.state.as_dict()]))")
        page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
        page.wait_for_timeout(500)
        page.reload()
        for cell in range(5):
            look_at(page, cell)
        assert part(page, 2).get_by_label("Channels of").evaluate("s => s.options[s.selectedIndex].text") == "layer1.0.bn2"
        again = ask_kernel(page, "print(json.dumps([both.state.as_dict(), norms.state.as_dict(), robust.state.as_dict()]))")
        assert json.loads(again) == json.loads(kept)
        page.close()
    assert complaints.found == []
    assert (folder / "dashboards.ipynb").stat().st_size < 1_000_000, "a saved notebook stays small"
