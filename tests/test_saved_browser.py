"""A notebook of many images that keeps the state of its widgets: small on disk, alive with its kernel, a still picture without it; and errors in its cells."""

import json
import re

import pytest

pytest.importorskip("anywidget", reason="needs the extra lab")
pytest.importorskip("playwright", reason="pip install playwright")

from browser import Complaints, ask_kernel, ink, jupyter_lab, open_notebook, run_all_cells, wait_for_kernel, write_notebook

pytestmark = pytest.mark.browser

WAIT = 90_000
CELLS = [
    """import numpy as np
from mdprop.dashboards import DensityDashboard, NeighbourDashboard
rng = np.random.default_rng(0)
def spaces(n, dim=4):
    labels = np.arange(n) % 30
    rows = [spread * rng.normal(size=(30, dim))[labels] + rng.normal(size=(n, dim)) for spread in (0.5, 2)]
    return *((z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32) for z in rows), labels""",
    "density = DensityDashboard(*spaces(40_000))\ndensity",
    "near = NeighbourDashboard(*spaces(5_000))\nnear",
]
WRONG = "DensityDashboard(*spaces(40)[:2], [0, 1])"


def cell(page, number):
    return page.locator(".jp-Notebook .jp-CodeCell").nth(number)


def wait_until_alive(page):
    cell(page, 1).locator(".mdp-canvas").first.wait_for(timeout=WAIT)
    page.wait_for_function("() => /40,000/.test(document.querySelector('.mdp-summary')?.textContent)", timeout=WAIT)
    cell(page, 2).locator(".mdp-query").wait_for(timeout=WAIT)
    assert page.locator(".mdp-stand-in").count() == 0


def test_a_saved_notebook_is_small_and_shows_a_picture_without_its_kernel(browser, tmp_path):
    write_notebook(tmp_path / "many.ipynb", [*CELLS, WRONG])
    with jupyter_lab(tmp_path, notebook={"windowingMode": "none"}, widgets={"saveState": True}) as (address, token):
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        complaints = Complaints(page)
        open_notebook(page, address, token, "many.ipynb")
        run_all_cells(page)
        wait_until_alive(page)
        error = cell(page, 3).locator(".jp-OutputArea-output")
        error.wait_for(timeout=WAIT)
        assert re.fullmatch(r"DensityDashboard: .*labels.*", error.inner_text().strip()), "one line, not a traceback"
        ask_kernel(page, "density.wait(); density.selection = [1, 2]")
        assert complaints.found == []

        size = save(page, tmp_path / "many.ipynb")
        state = json.loads((tmp_path / "many.ipynb").read_text())["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
        views = {one["state"]["_anywidget_id"].rpartition(".")[2]: one["state"] for one in state.values() if "_anywidget_id" in one["state"]}
        assert set(views) == {"PairedView", "NeighbourView"} and all(one["by_message"] for one in views.values())
        assert size < 2 * 1_000_000, f"{size:,} bytes for two dashboards"

        page.reload()  # the kernel lives: everything comes again
        wait_until_alive(page)
        page.wait_for_function("() => document.querySelector('.mdp-summary').textContent.startsWith('2 of 40,000')", timeout=WAIT)
        before = ink(page, 0)
        ask_kernel(page, "one = density.view.projections['pca']; density.view.projections = {'pca': one | dict(before=one['after'], after=one['before'])}")
        page.wait_for_function("(before) => document.querySelector('.mdp-canvas').toDataURL() !== before", arg=before, timeout=WAIT)
        cell(page, 2).get_by_role("button", name="Next").click()
        wait_for_kernel(page, "print(near.item > 0)", "True")

        page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")  # and now it is gone
        page.goto("about:blank")
        page.goto(f"{address}/doc/tree/many.ipynb?token={token}&reset")
        stand_ins = page.locator(".mdp-stand-in")
        stand_ins.nth(1).wait_for(timeout=WAIT)
        page.wait_for_function("() => [...document.querySelectorAll('.mdp-stand-in')].every((one) => /Run the cell/.test(one.textContent))", timeout=WAIT)
        assert stand_ins.count() == 2
        for picture in stand_ins.locator("img").all():
            assert picture.evaluate("(img) => img.complete && img.naturalWidth") == 1200 and picture.get_attribute("alt")
        page.close()


def save(page, path) -> int:
    page.evaluate("() => { window.jupyterapp.commands.execute('docmanager:save'); }")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty", timeout=WAIT)
    page.wait_for_timeout(1000)
    return path.stat().st_size
