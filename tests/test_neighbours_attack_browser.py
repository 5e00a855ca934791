"The neighbour and the attack dashboard in a real browser: the exported pages with the network cut, and JupyterLab."

from functools import lru_cache

import numpy as np
import pytest
import torch

pytest.importorskip("anywidget", reason="needs the extra lab")

from browser import Complaints, ask_kernel, jupyter_lab, open_notebook, run_all_cells, wait_for_kernel, write_notebook

from mdprop.dashboards.attack import AttackDashboard
from mdprop.dashboards.base import GROUND_JS, TILES_JS
from mdprop.dashboards.neighbours import MISTAKES, NEIGHBOURS_JS, NeighbourDashboard
from mdprop.data import ImageSet, glyphs
from mdprop.model import Embedder

pytestmark = pytest.mark.browser

HOSTILE = ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "{{7*7}}&amp;<b>bold</b>"]


def unit(z):
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


@lru_cache
def neighbours():
    "Nine classes of ten images, and one image that is alone in its class."
    rng = np.random.default_rng(0)
    labels = np.r_[np.arange(90) % 9, 9]
    before = unit(rng.normal(size=(10, 6))[labels] + 0.7 * rng.normal(size=(91, 6)))
    after = unit(before + 0.35 * rng.normal(size=(91, 6)))
    images = np.broadcast_to((labels / 10)[:, None, None, None], (91, 1, 12, 12)).astype(np.float32)
    names = HOSTILE + [f"class {c}" for c in range(3, 9)] + ["alone"]
    return NeighbourDashboard(before, after, labels, images, names, k=5, names=("plain", "<b>mdprop</b>"))


@lru_cache
def attack():
    data = glyphs(classes=4, per_class=6)
    torch.manual_seed(0)
    models = [Embedder("resnet10", image_shape=data.shape, width=4, dim=8) for _ in range(2)]
    named = ImageSet(data.images, data.labels, [*HOSTILE, "d"], data.keys, "few")
    shown = AttackDashboard(*models, images=named, names=("plain", "<b>mdprop</b>"), item=3, count=2, steps=3)
    shown.work.wait()
    return shown


@pytest.fixture
def opened(browser, tmp_path):
    "Open a dashboard's exported page from its file with the network cut; it must not complain."
    contexts, complaints, dialogs = [], [], []

    def open_page(dashboard, **options):
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 900}, offline=True, **options))
        page = contexts[-1].new_page()
        complaints.append(Complaints(page))
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto(dashboard.save_html(tmp_path / "page.html").as_uri())
        page.wait_for_selector(".mdp-tile")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [complaint.found for complaint in complaints] == [[]] * len(complaints) and dialogs == []


def items(page, place):
    return [int(item) for item in page.locator(f"{place} [data-item]").evaluate_all("tiles => tiles.map((tile) => tile.dataset.item)")]


def query(page):
    return items(page, ".mdp-query")[0]


def assert_shows(page, item, k=5):
    "The page shows this image, with the neighbours, marks and numbers of the table."
    shown, table = neighbours(), neighbours().table.of(item, k)
    assert query(page) == item and page.locator(".mdp-query-name strong").inner_text() == shown.before.class_names[shown.before.labels[item]]
    for number, side in enumerate(("before", "after")):
        expected, tiles = table[table.side == side], page.locator(".mdp-side").nth(number).locator("[data-item]")
        read = tiles.evaluate_all(
            "all => all.map((t) => [+t.dataset.item, t.dataset.mark, t.dataset.state, t.querySelector('.mdp-tile-detail').firstChild.textContent])"
        )
        states = ["kept" if there else ("lost", "gained")[number] for there in expected.there]
        assert [tile[:3] for tile in read] == [[i, "right" if r else "wrong", s] for i, r, s in zip(expected.item, expected.right, states, strict=True)]
        assert [float(tile[3]) for tile in read] == pytest.approx(expected.distance.tolist(), abs=6e-4)
        first = (shown.table.first_before, shown.table.first_after)[number][item]
        cells = page.locator(f".mdp-facts tbody td:nth-child({number + 2})").all_inner_texts()
        assert cells[:2] == [str(expected.right.sum()), str(first) if first else "none: alone in its class"]
    kept = (table[table.side == "before"].there > 0).sum()
    assert page.locator(".mdp-query-name p").inner_text().startswith(f"{kept} of {k} neighbours kept, {k - kept} lost, {k - kept} gained.")


# The exported page of neighbours


def test_a_click_shows_that_images_neighbours_and_back_returns(opened):
    page = opened(neighbours())
    assert_shows(page, 0)
    near = items(page, ".mdp-side:nth-child(2)")[2]
    page.locator(".mdp-side").nth(1).locator("[data-item]").nth(2).click()
    assert_shows(page, near)
    page.get_by_role("button", name="Back").click()
    assert_shows(page, 0)
    assert page.get_by_role("button", name="Back").is_disabled()
    page.locator(".mdp-strip [data-item='27']").click()
    assert_shows(page, 27)


def test_mistakes_can_be_walked_through(opened):
    page, count = opened(neighbours()), {kind: len(neighbours().mistakes(kind)) for kind in MISTAKES}
    said = page.locator(".mdp-overall").inner_text()
    assert f"right for {100 * (1 - count['wrong_before'] / 90):.1f} % of 90 images before and {100 * (1 - count['wrong_after'] / 90):.1f} % after" in said
    assert said.endswith(f"{count['mended']} mended, {count['broken']} broken.")
    for kind in ("wrong_before", "wrong_after", "wrong_both", "mended", "broken"):
        expected = neighbours().mistakes(kind).tolist()
        page.get_by_label("Images to pick from", exact=True).select_option(kind)
        assert f"({len(expected)})" in page.locator(f"option[value={kind}]").inner_text()
        assert items(page, ".mdp-strip") == expected[:40] and query(page) in expected
    for _ in range(len(expected)):
        at = expected.index(query(page))
        page.get_by_role("button", name="Next").click()
        assert query(page) == expected[(at + 1) % len(expected)]
    page.get_by_role("button", name="Previous").click()
    assert_shows(page, expected[(at + 0) % len(expected)])
    seen = {(page.get_by_role("button", name="Random").click(), query(page))[1] for _ in range(12)}
    assert seen <= set(expected) and len(seen) > 1
    assert page.locator(".mdp-toolbar [role=status]").inner_text() == f"image {expected.index(query(page)) + 1} of {len(expected)}"


def test_a_class_and_an_image_alone_in_its_class(opened):
    page = opened(neighbours())
    page.locator(".mdp-order").select_option("class 4")
    assert items(page, ".mdp-strip") == list(range(4, 90, 9))
    page.locator(".mdp-order").select_option("class 9")
    assert_shows(page, 90)
    assert "No other image is of its class" in page.locator(".mdp-query-name p").inner_text()


def test_search_finds_names_and_says_when_there_is_none(opened):
    page = opened(neighbours())
    search = page.get_by_label("Search")
    search.fill("image 8")
    assert items(page, ".mdp-strip") == [8, *range(80, 90)]
    search.fill("CLASS 5")
    assert items(page, ".mdp-strip") == list(range(5, 90, 9)) and page.locator(".mdp-toolbar [role=status]").inner_text() == "10 that match"
    page.get_by_role("button", name="Next").click()
    assert_shows(page, 5)
    search.fill("no such <b>")
    assert page.locator(".mdp-strip .mdp-empty").inner_text() == "No class and no image contains “no such <b>”."
    assert page.get_by_role("button", name="Next").is_disabled()


def test_the_number_of_neighbours_by_keyboard(opened):
    page = opened(neighbours())
    page.get_by_label("Neighbours", exact=True).focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert_shows(page, 0, k=8)
    page.keyboard.press("Home")
    assert_shows(page, 0, k=1)


def test_tiles_by_keyboard_and_the_same_image_on_the_other_side(opened):
    page = opened(neighbours())
    page.get_by_role("button", name="Next").focus()
    page.keyboard.press("Tab")  # Back is disabled: the slider
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert_shows(page, 9)
    table = neighbours().table.of(9, 5)
    kept = table[(table.side == "before") & (table.there > 0)].iloc[0]
    page.locator(".mdp-side").first.locator(f"[data-item='{kept['item']}']").hover()
    twins = page.locator("[data-twin]").evaluate_all("tiles => tiles.map((t) => +t.dataset.item)")
    assert twins == [kept["item"]]


def test_hostile_names_are_text_in_the_page_of_neighbours(opened):
    page = opened(neighbours())
    for name in HOSTILE:
        page.get_by_label("Search").fill(name)
        page.locator(".mdp-strip [data-item]").first.click()
        assert page.locator(".mdp-query-name strong").inner_text() == name
    assert page.locator(".mdp-side h3").nth(1).inner_text() == "After <b>mdprop</b>"
    assert page.locator(".mdp img, .mdp b, .mdp script").count() == 0


def test_thumbnails_are_drawn_and_the_theme_follows(opened):
    page = opened(neighbours(), color_scheme="dark")
    assert page.locator(".mdp-near").get_attribute("data-theme") == "dark"
    page.locator(".mdp-strip [data-item='27']").click()
    grey = page.locator(".mdp-query canvas").evaluate("c => c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data[0]")
    page.locator(".mdp-order").select_option("class 8")
    light = page.locator(".mdp-query canvas").evaluate("c => c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data[0]")
    assert grey < 20 and 190 < light < 220
    page.emulate_media(color_scheme="light")
    page.wait_for_selector(".mdp-near[data-theme=light]")


def test_the_page_computes_what_python_computes(browser):
    table = neighbours().table
    state = {name: list(value) if isinstance(value, bytes) else value for name, value in table.packed().items()} | {"item_keys": ["x"] * 91}
    page = browser.new_page()
    got = page.evaluate(
        """async ([source, state]) => {
            const near = await import(URL.createObjectURL(new Blob([source], { type: 'text/javascript' })));
            const table = near.unpackTable((name) => Array.isArray(state[name]) && name !== 'item_keys' ? Uint8Array.from(state[name]) : state[name]);
            return { mistakes: near.findMistakes(table), lists: near.neighboursOf(table, 33, 7), distance: near.distanceAt(table, 1, 33, 2) };
        }""",
        [GROUND_JS + TILES_JS + NEIGHBOURS_JS, state],
    )
    page.close()
    assert got["mistakes"] == {kind: table.mistakes(kind).tolist() for kind in got["mistakes"]}
    expected = table.of(33, 7)
    flat = [near for side in got["lists"] for near in side]
    assert [(n["item"], n["right"], n["other"]) for n in flat] == [(r.item, r.right, r.there) for r in expected.itertuples()]
    assert got["distance"] == pytest.approx(expected[expected.side == "after"].distance.iloc[2], abs=2e-5)


# The exported page of an attack


def test_the_page_of_an_attack_shows_all_of_it(opened):
    page = opened(attack())
    page.wait_for_selector(".js-plotly-plot .main-svg")
    assert page.locator(".js-plotly-plot").count() == 3
    titles = page.locator(".js-plotly-plot .gtitle").all_text_contents()
    assert titles == ["plain (attacked)", "<b>mdprop</b> (transfer)", "Distance to the targets"]
    captions = page.locator(".mdp-tiles").first.locator(".mdp-tile-caption").all_inner_texts()
    assert captions == ["image", "perturbation × 15.9", "attacked image"]
    assert "is attacked in plain" in page.locator(".mdp-blocks p").first.inner_text() and HOSTILE[0] in page.locator(".mdp-blocks p").first.inner_text()
    assert page.locator(".mdp-tiles [role=listbox]").count() == 4 and page.locator(".mdp img, .mdp b").count() == 0
    captions = lambda: page.locator("[role=listbox]").nth(1).locator(".mdp-tile-detail").all_inner_texts()
    place = "p => { const t = p._fullData.find((t) => t.name === 'attacked'); return [t.x[0], t.y[0]]; }"
    marked = lambda: page.locator(".js-plotly-plot").first.evaluate(place)
    line = lambda: page.locator(".js-plotly-plot").nth(2).evaluate("p => p._fullLayout.shapes[0].x0")
    assert page.get_by_text("After step 3 of 3").is_visible() and line() == 3
    seen = [(captions(), marked())]
    page.get_by_label("Show step").focus()
    for step in (2, 1, 0):
        page.keyboard.press("ArrowLeft")
        assert page.get_by_text(f"After step {step} of 3").is_visible() and line() == step
        seen.append((captions(), marked()))
    path = attack().shown.paths[0].figure.data[3]
    assert [place for _, place in seen] == [pytest.approx([path.x[s], path.y[s]]) for s in (3, 2, 1, 0)]
    assert len({tuple(found) for found, _ in seen}) > 1
    page.keyboard.press("End")
    page.wait_for_timeout(100)
    pixels = page.locator(".mdp-tile canvas").nth(1).evaluate("c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
    assert len(set(pixels)) > 3, "the perturbation is drawn"


# JupyterLab

NOTEBOOK = [
    """import numpy as np, torch
from mdprop.dashboards.neighbours import NeighbourDashboard
from mdprop.dashboards.attack import AttackDashboard
from mdprop.data import glyphs
from mdprop.model import Embedder
from mdprop.norm import convert_multi_norm
rng = np.random.default_rng(0)
data = glyphs(classes=6, per_class=8)
unit = lambda z: (z / np.linalg.norm(z, axis=1, keepdims=True)).astype('float32')
labels = data.labels.numpy()
before = unit(rng.normal(size=(6, 8))[labels] + .6 * rng.normal(size=(48, 8)))
near = NeighbourDashboard(before, unit(before + .3 * rng.normal(size=(48, 8))), labels, data, data.class_names)
near""",
    """torch.manual_seed(0)
model = convert_multi_norm(Embedder('resnet10', image_shape=data.shape, width=4, dim=8), ('clean', 'multi'))
attack = AttackDashboard(model, Embedder('resnet10', image_shape=data.shape, width=4, dim=8), images=data, names=('plain', 'mdprop'), steps=4)
attack""",
    "near",
]


def test_both_dashboards_in_jupyterlab(browser, tmp_path):
    "Every control changes Python's state and what is seen; a second view and a reload lose nothing and double nothing."
    write_notebook(tmp_path / "lab.ipynb", NOTEBOOK)
    with jupyter_lab(tmp_path) as (address, token):
        page = browser.new_context(viewport={"width": 1280, "height": 2400}).new_page()
        complaints = Complaints(page)
        open_notebook(page, address, token, "lab.ipynb")
        run_all_cells(page)
        drawn(page)
        use_neighbours(page)
        use_attack(page)
        settled = "print(near.state.as_dict() == kept[0] and attack.state.as_dict() == kept[1], attack.status.problem)"
        ask_kernel(page, "kept = near.state.as_dict(), attack.state.as_dict()")
        page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
        page.wait_for_timeout(1500)
        page.reload()
        drawn(page)
        assert ask_kernel(page, settled) == "True" and page.locator(".mdp-order").first.input_value() == "mended"
        run_all_cells(page)  # cells that run again: new dashboards take the place of the old ones
        page.wait_for_function("[...document.querySelectorAll('.mdp-order')].every((select) => select.value === 'own')")
        drawn(page)
        assert complaints.found == []


def drawn(page):
    "Two views of the neighbours and one of the attack, no more."
    page.wait_for_function("document.querySelectorAll('.mdp-near .mdp-query [data-item]').length === 2", timeout=60_000)
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length >= 3", timeout=60_000)
    assert page.locator(".mdp-near").count() == 2 and page.locator(".js-plotly-plot").count() == 3


def use_neighbours(page):
    "Each control once, in the first of two views; the second one follows."
    views = page.locator(".mdp-near")
    view, shown = views.first, lambda number: items(views.nth(number), ".mdp-query")[0]
    view.locator(".mdp-order").select_option("mended")
    wait_for_kernel(page, "print(near.state.source, near.item in near.mistakes('mended'))", "mended True")
    view.get_by_role("button", name="Next", exact=True).click()
    wait_for_kernel(page, "print(near.item == near.mistakes('mended')[1])", "True")
    view.get_by_label("Neighbours", exact=True).focus()
    page.keyboard.press("ArrowLeft")
    wait_for_kernel(page, "print(near.state.k)", "7")
    assert view.locator(".mdp-side").first.locator("[data-item]").count() == 7
    view.locator("input[type=search]").fill("/b/")
    wait_for_kernel(page, "print(near.state.search)", "/b/")
    view.locator("input[type=search]").fill("")
    view.locator(".mdp-side [data-item]").first.click()
    wait_for_kernel(page, f"print(near.item == {shown(0)})", "True")
    view.locator(".mdp-strip [tabindex='0']").focus()
    page.keyboard.press("ArrowRight"), page.keyboard.press("ArrowRight"), page.keyboard.press("ArrowLeft"), page.keyboard.press("Enter")
    wait_for_kernel(page, f"print(near.item == {shown(0)})", "True")
    ask_kernel(page, "near.item = 21")
    page.wait_for_function("[...document.querySelectorAll('.mdp-query [data-item]')].map((tile) => tile.dataset.item).join() === '21,21'")


def use_attack(page):
    "Each control once."
    done = lambda what: wait_for_kernel(page, f"attack.work.wait(); print({what})", "True")
    seen = lambda what: wait_for_kernel(page, f"print({what})", "True")
    chosen = lambda label, value: page.get_by_label(label, exact=True).select_option(label=value)
    done("attack.outcome is not None")
    chosen("Domain", "multi")
    seen("attack.state.domain == 'multi'")
    chosen("Goal", "away from the targets")
    seen("attack.state.objective == 'away'")
    chosen("Targets", "images of its own class")
    done("(attack.settings.domain, attack.settings.objective, attack.settings.policy) == ('multi', 'away', 'own_class')")
    chosen("Attack", "mdprop")
    done("attack.outcome.attacked == 1 and attack.state.domain == ''")
    for label, name, value in (("K", "count", 6), ("Steps", "steps", 5), ("eps (/255)", "eps", 8.5)):
        page.locator(".widget-hslider", has=page.get_by_text(label, exact=True)).locator("[role=slider], .noUi-handle").first.focus()
        page.keyboard.press("ArrowRight")
        seen(f"attack.state.{name} == {value}")
    page.get_by_role("button", name="Draw again").click()
    done("(attack.settings.count, attack.settings.steps, attack.settings.eps, attack.settings.seed) == (6, 5, 8.5, 1)")
    page.get_by_label("Class", exact=True).select_option(index=2)
    wait_for_kernel(page, "print(attack.state.shown)", "2")
    gallery = page.get_by_role("listbox", name="Images of family00/c")
    gallery.locator("[data-item='18']").click()
    done("attack.item == 18 == attack.outcome.item")
    assert gallery.locator("[data-item='18']").get_attribute("aria-selected") == "true"
    page.get_by_label("A click picks", exact=True).select_option(label="targets")
    for item in ("20", "22"):
        gallery.locator(f"[data-item='{item}']").click()
        seen(f"{item} in attack.state.picked")
    done("attack.outcome.target_items == [20, 22]")
    page.get_by_role("listbox", name="Targets: the images that I pick").locator("[data-item='20']").click()
    done("attack.outcome.target_items == [22]")
    before = page.locator("[aria-label^='After step'] canvas").nth(1).evaluate("c => c.toDataURL()")
    page.locator(".widget-hslider", has=page.get_by_text("Show step", exact=True)).locator("[role=slider], .noUi-handle").first.focus()
    page.keyboard.press("ArrowLeft")
    wait_for_kernel(page, "print(attack.state.step)", "4")
    page.get_by_text("After step 4 of 5").wait_for()
    page.wait_for_timeout(300)
    assert page.locator("[aria-label^='After step'] canvas").nth(1).evaluate("c => c.toDataURL()") != before
    page.get_by_role("button", name="Random image").click()
    done("attack.outcome.item == attack.item")
    page.get_by_label("A click picks", exact=True).select_option(label="the image to attack")
    found = page.get_by_role("listbox", name="plain").first.locator("[data-item]").nth(1)
    item = found.get_attribute("data-item")
    found.click()
    done(f"attack.item == {item} == attack.outcome.item")
    ask_kernel(page, "attack.state.picked = []")
    page.get_by_role("alert").get_by_text("no target is picked yet").wait_for()
    chosen("Targets", "any images")
    done("attack.status.problem == ''")
    assert page.get_by_role("alert").count() == 0
