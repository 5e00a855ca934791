"""Every dashboard on one page of a real JupyterLab: drawn, saved, reloaded five times, run again, seen twice, and left by its kernel.

What each control does is tested beside its dashboard (test_browser, test_neighbours_attack_browser, test_training_browser); here is what must hold for all.
"""

import json
import shutil
import time

import pytest

pytest.importorskip("anywidget", reason="needs the extra lab")
pytest.importorskip("playwright", reason="pip install playwright")

from browser import Complaints, ask_kernel, jupyter_lab, open_notebook, run_all_cells, wait_for_kernel, write_notebook
from test_dashboards_every import folder, runs  # noqa: F401 - fixtures

pytestmark = pytest.mark.browser

WAIT = 120_000
CELLS = [
    "from mdprop.dashboards import *\nplain, mdprop = 'runs/plain', 'runs/mdprop'",
    "density = DensityDashboard(plain, mdprop)\ndensity",
    "near = NeighbourDashboard(plain, mdprop)\nnear",
    "attack = AttackDashboard(plain, mdprop, steps=2, count=2)\nattack.work.wait()\nattack",
    "training = TrainingDashboard(plain, mdprop)\ntraining",
    "norms = NormDashboard(mdprop)\nnorms",
    "robust = RobustnessDashboard(plain, mdprop)\nrobust",
    "near  # a second view",
]
STATES = "print(json.dumps([one.state.as_dict() for one in (density, near, attack, training, norms, robust)]))"


def part(page, cell):
    "The output of a cell."
    return page.locator(".jp-Notebook .jp-CodeCell").nth(cell).locator(".jp-OutputArea")


THERE = {1: {".mdp-canvas": 3}, 2: {".mdp-query": 1}, 3: {".mdp-tiles": 3, ".mdp-plotly": 3}, 7: {".mdp-query": 1}}
THERE |= {cell: {".mdp-plotly": 4} for cell in (4, 5, 6)}
COUNTED = """(there) => Object.fromEntries(Object.entries(there).map(([cell, parts]) => [cell, Object.fromEntries(Object.keys(parts).map((what) => {
    const found = [...(document.querySelectorAll('.jp-Notebook .jp-CodeCell')[cell]?.querySelectorAll(what) || [])];
    return [what, found.filter((one) => what !== '.mdp-plotly' || one.querySelector('.main-svg')).length];
}))]))"""
TO_ITS_END = "(cell) => { window.turn = !window.turn; cell.scrollIntoView({ block: window.turn ? 'end' : 'start' }); }"  # what is out of sight is not drawn
COLOURS = """() => [...document.querySelectorAll('.mdp-canvas')].map((canvas) =>
    new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size)"""


def wait_until(page, look, expected, seconds=120):
    "Wait until `look()` is what is expected; says what it was instead."
    until = time.monotonic() + seconds
    while (found := look()) != expected:
        assert time.monotonic() < until, f"{found}, not {expected}"
        page.wait_for_timeout(250)


def see_all(page):
    "Wait until everything is drawn, and no more of it than there should be."
    for cell, parts in THERE.items():
        look = lambda cell=cell, parts=parts: (part(page, cell).evaluate(TO_ITS_END), page.evaluate(COUNTED, {cell: parts}))[1]
        wait_until(page, look, {str(cell): parts})
    assert page.evaluate(COUNTED, THERE) == {str(cell): parts for cell, parts in THERE.items()}
    wait_until(page, lambda: min(page.evaluate(COLOURS)) > 2, True)


def wait_for_last_cell(page):
    last = page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt").last
    wait_until(page, last.inner_text, f"[{len(CELLS)}]:", 240)


# What a screen reader says of a control, as far as the page itself sets it: enough to see a control without any name.
NAMELESS = """() => {
    const name = (one) => one.getAttribute('aria-label') || one.getAttribute('title') || one.textContent?.trim() || one.placeholder
        || (one.getAttribute('aria-labelledby') || '').split(' ').map((id) => document.getElementById(id)?.textContent).join('')
        || [...(one.labels || [])].map((label) => label.textContent.trim()).join('') || one.closest('label')?.textContent.trim() || '';
    const roles = ['button', 'slider', 'checkbox', 'radio', 'option', 'tab', 'img', 'figure', 'listbox'].map((role) => `[role=${role}]`);
    const controls = ['button', 'input', 'select', 'textarea', 'summary', ...roles].join();
    const seen = (one) => one.getClientRects().length > 0 && !one.closest('[aria-hidden=true]');
    return [...document.querySelectorAll('.jp-OutputArea')].flatMap((cell, k) => [...cell.querySelectorAll(controls)].filter((one) => seen(one) && !name(one))
        .map((one) => `${k}: ${one.outerHTML.slice(0, 160)}`));
}"""
UNREACHABLE = """() => [...document.querySelectorAll('.jp-OutputArea')].flatMap((cell) => {
    const controls = [...cell.querySelectorAll('button, input, select, textarea, summary, [role=slider], [role=option], a[href]')];
    const stops = new Set(controls.filter((one) => one.tabIndex >= 0).map((one) => one.className));  // a group may have one stop, and arrow keys from there
    return controls.filter((one) => one.getClientRects().length && !one.disabled && !stops.has(one.className)).map((one) => one.outerHTML.slice(0, 160));
})"""


def command(page, name):
    page.evaluate("(name) => { window.jupyterapp.commands.execute(name); }", name)


def prompt(page, cell):
    return page.locator(".jp-Notebook .jp-CodeCell").nth(cell).locator(".jp-InputPrompt").first.inner_text()


def run_cell(page, cell):
    "Run one cell again and wait for it."
    before = prompt(page, cell)
    page.evaluate("(cell) => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = cell; }", cell)
    command(page, "notebook:run-cell")
    page.wait_for_function(
        "([cell, before]) => { const now = document.querySelectorAll('.jp-Notebook .jp-CodeCell')[cell].querySelector('.jp-InputPrompt').innerText;"
        " return now !== before && /\\[\\d+\\]/.test(now); }",
        arg=[cell, before],
        timeout=WAIT,
    )


def test_all_dashboards_in_one_notebook(browser, runs, tmp_path):  # noqa: F811
    shutil.copytree(runs[0].parent, tmp_path / "runs")
    write_notebook(tmp_path / "every.ipynb", CELLS)
    with jupyter_lab(tmp_path, notebook={"windowingMode": "none"}, widgets={"saveState": True}) as (address, token):
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        complaints = Complaints(page)
        open_notebook(page, address, token, "every.ipynb")
        run_all_cells(page)
        wait_for_last_cell(page)
        see_all(page)
        page.wait_for_timeout(1000)
        assert not (nameless := page.evaluate(NAMELESS)), "\n".join(nameless)
        assert not (unreachable := page.evaluate(UNREACHABLE)), "\n".join(unreachable)
        change_something(page)
        saved_notebook_is_small(page, tmp_path / "every.ipynb")
        five_reloads(page)
        a_cell_run_again(page)
        assert complaints.found == []
        a_kernel_that_is_started_again(page)
        page.close()


def change_something(page):
    "One setting of each, by its control; the second view of the neighbours follows."
    ask_kernel(page, "import json")
    part(page, 1).get_by_role("button", name="Moves").or_(part(page, 1).get_by_role("radio", name="Moves")).first.click()
    part(page, 2).get_by_role("button", name="Next").click()
    handle = part(page, 3).get_by_role("slider", name="K", exact=True)
    handle.focus()
    page.keyboard.press("ArrowRight")
    part(page, 4).get_by_role("button", name="rho", exact=True).click()
    part(page, 5).get_by_role("button", name="weight").click()
    part(page, 6).get_by_role("button", name="MAP@R").click()
    expected = "['moves', True, 3, 'rho', 'weight', 'MAP@R']"
    said = "[density.state.third, near.item > 0, attack.state.count, training.state.density, norms.state.quantity, robust.state.measure]"
    wait_for_kernel(page, f"print({said})", expected)
    names = [part(page, cell).locator(".mdp-query-name").inner_text() for cell in (2, 7)]
    assert names[0] == names[1]


def saved_notebook_is_small(page, path):
    "With the state of its widgets kept, which is not Jupyter's default: under 1 MB for each dashboard, and without plotly."
    command(page, "docmanager:save")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty", timeout=WAIT)
    page.wait_for_timeout(1000)
    saved = json.loads(path.read_text())
    assert saved["metadata"]["widgets"], "the state is kept"
    assert path.stat().st_size < 6 * 1_000_000, f"{path.stat().st_size:,} bytes for six dashboards"
    pictures = [sum(len(output.get("data", {}).get("image/png", "")) for output in cell["outputs"]) for cell in saved["cells"]]
    assert all(1_000 < size < 700_000 for size in pictures[1:]), pictures


def five_reloads(page):
    "Everything is drawn again, and nothing that was set is lost."
    kept = ask_kernel(page, STATES)
    for _ in range(5):
        page.reload()
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=WAIT)
        see_all(page)
    assert ask_kernel(page, STATES) == kept
    assert part(page, 6).get_by_text("noise: MAP@R by severity").count() == 1


def a_cell_run_again(page):
    "One dashboard, not two; the views of the others stay."
    run_cell(page, 5)
    run_cell(page, 2)
    see_all(page)
    wait_for_kernel(page, "print(norms.state.quantity, near.item)", "running_mean 0")
    part(page, 2).get_by_role("button", name="Next").click()
    wait_for_kernel(page, "print(near.item > 0)", "True")


def a_kernel_that_is_started_again(page):
    "What stands there is dead, but the page goes on: run again, everything is alive."
    page.evaluate("() => { window.restarted = window.jupyterapp.shell.currentWidget.sessionContext.restartKernel(); }")
    page.wait_for_function("() => window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'", timeout=WAIT)
    assert ask_kernel(page, "print('near' in globals())") == "False"
    faults = []
    page.on("pageerror", lambda error: faults.append(f"{error}"))
    page.wait_for_timeout(500)
    run_all_cells(page)
    wait_for_last_cell(page)
    see_all(page)
    part(page, 2).get_by_role("button", name="Next").click()
    wait_for_kernel(page, "print(near.item > 0)", "True")
    assert faults == []
