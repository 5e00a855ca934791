"The panels in a real browser: the exported page with the network cut, and the dashboard in JupyterLab."

from functools import lru_cache

import numpy as np
import pytest

pytest.importorskip("anywidget", reason="needs the extra lab")

from browser import Complaints, ask_kernel, ink, jupyter_lab, open_notebook, run_all_cells, wait_for_kernel, write_notebook

from mdprop.dashboards import DensityDashboard
from mdprop.panels import PANEL_JS
from mdprop.project import picture_density, picture_window

pytestmark = pytest.mark.browser

HOSTILE = ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "{{7*7}}&amp;<b>bold</b>"]


def arrays(n=240, classes=12):
    "Two spaces of the same items (dims 8 and 5), their classes and images of one grey level a class."
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    unit = lambda z: (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    before = unit(rng.normal(size=(classes, 8))[labels] + 0.6 * rng.normal(size=(n, 8)))
    after = unit(rng.normal(size=(classes, 5))[labels] + 0.3 * rng.normal(size=(n, 5)))
    images = np.broadcast_to((labels / classes)[:, None, None, None], (n, 1, 12, 12)).astype(np.float32)
    return before, after, labels, images


@lru_cache
def dashboard():
    names = HOSTILE + [f"class {c}" for c in range(3, 12)]
    built = DensityDashboard(*arrays(), class_names=names, names=("plain", "<b>mdprop</b>"))
    built.add_layout("umap")
    return built


@pytest.fixture
def page(browser, tmp_path):
    "The exported page, opened from its file with the network cut."
    path = dashboard().save_html(tmp_path / "density.html")
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    opened = context.new_page()
    complaints = Complaints(opened)
    opened.goto(path.as_uri())
    opened.wait_for_selector(".mdp-row")
    yield opened
    assert complaints.found == []
    context.close()


def both(page):
    return ink(page, 0), ink(page, 1)


def test_class_filter_changes_both_panels(page):
    full = both(page)
    row = page.get_by_role("option", name="class 5")
    row.click()
    one = both(page)
    assert full[0] != one[0] and full[1] != one[1]
    assert row.get_attribute("aria-selected") == "true" and page.locator(".mdp-chip").inner_text().startswith("class 5")
    page.get_by_role("option", name="class 7").click()
    two = both(page)
    assert two[0] != one[0] and two[1] != one[1]
    page.get_by_role("button", name="Clear the class filter").click()
    assert both(page) == full


def test_the_demos_page_answers_to_the_class_filter(browser, demo_folder):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    opened = context.new_page()
    complaints = Complaints(opened)
    opened.goto((demo_folder / "demo.html").as_uri())
    opened.wait_for_selector(".mdp-row")
    full = both(opened)
    opened.locator(".mdp-row").first.click()
    picked = both(opened)
    opened.get_by_role("radio", name="UMAP").check()
    bent = both(opened)
    assert all(a != b for old, new in ((full, picked), (picked, bent)) for a, b in zip(old, new, strict=True))
    assert complaints.found == []
    context.close()


def test_search_and_keyboard_in_the_class_list(page):
    page.get_by_label("Search classes").fill("class 1")
    assert page.locator(".mdp-row-name").all_inner_texts() == ["class 10", "class 11"]
    before = both(page)
    page.keyboard.press("Tab"), page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    assert page.locator(".mdp-chip").inner_text().startswith("class 11") and both(page) != before
    page.get_by_label("Search classes").fill("no such")
    assert page.locator(".mdp-empty").inner_text() == "No class contains “no such”."


def test_hover_shows_image_class_and_both_ends(page):
    canvas = page.locator(".mdp-canvas").first
    box, (x, y) = canvas.bounding_box(), screen_of_first_item(page)
    page.mouse.move(box["x"] + x, box["y"] + y)
    tip = page.locator(".mdp-tip")
    tip.wait_for(state="visible")
    assert tip.locator("strong").inner_text() in dashboard().before.class_names and tip.locator(".mdp-tip-key").inner_text().startswith("image ")
    colours = tip.locator("canvas").evaluate("c => [...c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data]")
    assert colours[3] == 255, "the thumbnail is drawn"
    drawn = page.locator(".mdp-overlay").evaluate(
        "c => { const w = c.width, d = c.getContext('2d').getImageData(0, 0, w, c.height).data, sides = [0, 0];"
        " for (let i = 3; i < d.length; i += 4) if (d[i] > 200) sides[+((i >> 2) % w > w / 2)]++; return sides; }"
    )
    assert min(drawn) > 20, "a ring on either side"
    page.mouse.move(2, 2)
    tip.wait_for(state="hidden")


def screen_of_first_item(page):
    "Where item 0 stands in the left panel: the camera fits the bounding box of both sides into 84 % of the panel."
    from mdprop.project import common_layout

    xy = common_layout(dashboard().before.z, dashboard().after.z)
    points = np.concatenate(xy).astype(float)
    low, high = points.min(0), points.max(0)
    size = page.locator(".mdp-canvas").first.evaluate("c => [c.clientWidth, c.clientHeight]")
    scale = 0.84 * (np.array(size) / (high - low)).min()
    return np.array(size) / 2 + (xy[0][0] - (low + high) / 2) * [scale, -scale]


def test_hostile_names_are_text(page):
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    for name in HOSTILE:
        page.get_by_label("Search classes").fill(name[:9])
        row = page.locator(".mdp-row").first
        assert row.locator(".mdp-row-name").inner_text() == name
        row.click()
    assert [chip.split("\n")[0] for chip in page.locator(".mdp-chip").all_inner_texts()] == HOSTILE
    assert page.locator("figcaption strong").all_inner_texts() == ["plain", "<b>mdprop</b>"]
    assert page.locator("h1").inner_text().endswith("plain and <b>mdprop</b>")
    assert dialogs == [] and page.locator(".mdp img, .mdp b, .mdp script").count() == 0


def test_lasso_on_one_side_selects_on_both(page):
    full, box = both(page), page.locator(".mdp-canvas").nth(1).bounding_box()
    page.keyboard.down("Shift")
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    for x, y in ((1, 0), (1, 1), (0, 1)):
        page.mouse.move(box["x"] + 5 + x * (box["width"] / 2), box["y"] + 5 + y * (box["height"] - 10), steps=3)
    page.mouse.up()
    page.keyboard.up("Shift")
    page.locator(".mdp-summary", has_text="selected, from").wait_for()
    some = both(page)
    assert some[0] != full[0] and some[1] != full[1] and page.locator(".mdp-gallery").is_visible()
    page.get_by_role("button", name="Clear selection").click()
    assert both(page) == full


def test_zoom_is_linked_and_reset_brings_it_back(page):
    full, box = both(page), page.locator(".mdp-canvas").first.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.wheel(0, -400)
    page.mouse.move(2, 2)
    near = both(page)
    assert near[0] != full[0] and near[1] != full[1]
    page.get_by_role("button", name="Reset view").click()
    assert both(page) == full


@pytest.mark.parametrize("control", ["UMAP", "Per class", "Off"])
def test_every_choice_redraws(page, control):
    page.get_by_role("option", name="class 5").click()
    before = both(page)
    page.get_by_role("radio", name=control).check()
    after = both(page)
    assert before[0] != after[0] and before[1] != after[1]


def test_sliders_answer_to_the_keyboard(page):
    for label in ("Smoothing", "Points"):
        before = both(page)
        page.get_by_label(label).focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(60)
        after = both(page)
        assert before[0] != after[0] and before[1] != after[1]


def test_the_theme_follows_the_system_live(page):
    light = both(page)
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(100)
    assert page.locator(".mdp").get_attribute("data-theme") == "dark" and both(page) != light
    page.emulate_media(color_scheme="light")
    page.wait_for_timeout(100)
    assert both(page) == light


def test_density_of_the_page_is_the_density_of_the_package(page):
    rng = np.random.default_rng(1)
    xy = rng.normal(size=(500, 2)).astype(np.float32)
    window = picture_window(xy)
    got = page.context.browser.new_page().evaluate(
        """async ([source, xy, window]) => {
            const panel = await import(URL.createObjectURL(new Blob([source], { type: 'text/javascript' })));
            const own = panel.pictureWindow([xy]), grid = panel.densityGrid(xy, null, own, 0.03, 64);
            const rings = panel.contourRings(grid, 64, 0.3 * Math.max(...grid));
            return { grid: [...grid], window: [own.left, own.bottom, own.side], closed: rings.every((ring) => ring.length > 3), rings: rings.length };
        }""",
        [PANEL_JS, xy.ravel().tolist(), list(window)],
    )
    exact = picture_density(xy, window, 0.03, 64)
    assert np.allclose(got["window"], window)
    assert np.abs(np.reshape(got["grid"], (64, 64)) - exact).max() < 1e-3 * exact.max()
    assert got["closed"] and got["rings"] >= 1


def test_ten_thousand_points_answer_to_the_filter(browser, tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(10_000) % 50
    unit = lambda z: (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    z = unit(rng.normal(size=(50, 16))[labels] + rng.normal(size=(10_000, 16)))
    path = DensityDashboard(z, z, labels).save_html(tmp_path / "many.html")
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector(".mdp-row")
    for row in (0, 7):
        before = [ink(page, panel) for panel in (0, 1)]
        page.locator(".mdp-row").nth(row).click()
        assert all(ink(page, panel) != old for panel, old in zip((0, 1), before, strict=True))
    page.close()


def settled(page):
    "Both panels' pictures, once they have not changed for a second: what arrives late has been drawn."
    before, alike = both(page), 0
    for _ in range(150):
        page.wait_for_timeout(200)
        now = both(page)
        alike = alike + 1 if now == before else 0
        before = now
        if alike == 5:
            return now
    raise AssertionError("the panels do not come to rest")


NOTEBOOK = [
    """import numpy as np
from mdprop.dashboards import DensityDashboard
rng = np.random.default_rng(0)
labels = np.arange(240) % 12
unit = lambda z: (z / np.linalg.norm(z, axis=1, keepdims=True)).astype('float32')
before = unit(rng.normal(size=(12, 8))[labels] + .6 * rng.normal(size=(240, 8)))
after = unit(rng.normal(size=(12, 5))[labels] + .3 * rng.normal(size=(240, 5)))
dashboard = DensityDashboard(before, after, labels, rng.random((240, 1, 12, 12)), [f'class {c}' for c in range(12)])
dashboard""",
    "print('second cell')",
]


def test_dashboard_in_jupyterlab(browser, tmp_path):
    "All cells run, the filter clicked in the page is seen in Python and the reverse, and a reload of the saved notebook restores the view."
    write_notebook(tmp_path / "density.ipynb", NOTEBOOK)
    with jupyter_lab(tmp_path) as (address, token):
        page = browser.new_page(viewport={"width": 1500, "height": 1100})
        complaints = Complaints(page)
        open_notebook(page, address, token, "density.ipynb")
        run_all_cells(page)
        page.wait_for_selector(".mdp-row", timeout=60_000)
        full = both(page)
        page.get_by_role("option", name="class 5").click()
        picked = both(page)
        assert full[0] != picked[0] and full[1] != picked[1]
        wait_for_kernel(page, "print(dashboard.state.class_filter)", "[5]")
        assert ask_kernel(page, "dashboard.selection = [5, 17]; dashboard.state.contours = 'class'; print(dashboard.selection)") == "[ 5 17]"
        page.wait_for_function("document.querySelector('.mdp-summary').textContent.startsWith('2 of 240')")
        assert page.get_by_role("radio", name="Per class").is_checked()
        page.get_by_role("button", name="Clear selection").click()
        page.wait_for_function("document.querySelector('.mdp-summary').textContent.includes('Nothing selected')")
        wait_for_kernel(page, "print(len(dashboard.selection))", "0")
        light = both(page)
        page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
        page.wait_for_selector(".mdp[data-theme=dark]")
        assert both(page) != light
        page.get_by_role("radio", name="UMAP").check()
        page.wait_for_function("document.querySelector('.mdp-note').textContent.includes('UMAP bends')", timeout=120_000)
        wait_for_kernel(page, "print(sorted(dashboard.view.projections), dashboard.view.busy)", "['pca', 'umap']")
        page.get_by_label("Only above re-run noise").check()
        wait_for_kernel(page, "print('rerun' in dashboard.view.projections['umap'], dashboard.view.busy)", "True")
        page.get_by_label("Neighbours k").select_option("5")
        wait_for_kernel(page, "print(dashboard.state.k, dashboard.view.values['density']['unit'][-1])", "5 5")
        page.get_by_label("Colour by").select_option("kept")
        wait_for_kernel(page, "print(dashboard.state.colour_by)", "kept")
        page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
        seen = settled(page)
        for _ in range(5):
            page.reload()
            page.wait_for_selector(".mdp[data-theme=dark] .mdp-row", timeout=60_000)
            assert settled(page) == seen and page.locator(".mdp-chip").inner_text().startswith("class 5")
        page.close()
    assert complaints.found == []
    assert (tmp_path / "density.ipynb").stat().st_size < 300_000, "a saved notebook stays small"


AGAIN = [
    "from comm import get_comm_manager\nfrom ipywidgets.widgets.widget import _instances\nheld = lambda: (len(_instances), len(get_comm_manager().comms))",
    NOTEBOOK[0],
    "dashboard",
]


def test_run_again_seen_twice_and_without_its_kernel(browser, tmp_path):
    "Ten runs of its cells leave one dashboard, two views of it are one, and after a restart of the kernel the page goes on and says what it cannot do."
    write_notebook(tmp_path / "again.ipynb", AGAIN)
    with jupyter_lab(tmp_path) as (address, token):
        page = browser.new_page(viewport={"width": 1500, "height": 1100})
        complaints = Complaints(page)
        open_notebook(page, address, token, "again.ipynb")
        for _ in range(10):
            page.evaluate("for (const view of document.querySelectorAll('.mdp')) view.dataset.former = true")
            run_all_cells(page)
            fresh = "document.querySelectorAll('.mdp:not([data-former]) .mdp-row').length === 24 && !document.querySelector('.mdp[data-former]')"
            page.wait_for_function(fresh, timeout=90_000)
        assert ask_kernel(page, "print(held())") == "(2, 2)", "the view and its layout, once"
        page.get_by_role("option", name="class 5").first.click()
        page.wait_for_function("document.querySelectorAll('.mdp-chip').length === 2")  # one in each view
        page.evaluate("async () => { await window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart(); }")
        page.wait_for_function("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'", timeout=60_000)
        page.get_by_role("option", name="class 7").first.click()
        page.wait_for_function("document.querySelectorAll('.mdp-chip').length === 4")
        assert page.locator(".mdp-aside:visible").count() == 0
        page.get_by_label("Neighbours k").first.select_option("5")
        page.locator(".mdp-aside", has_text="After a restart, run the cell again").first.wait_for(timeout=20_000)
        page.close()
    assert complaints.found == []
