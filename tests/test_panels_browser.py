"The paired view in a real browser: its functions, every control of the exported page with the network cut, and the widget in JupyterLab."

import json
from functools import lru_cache
from itertools import combinations

import numpy as np
import pytest

pytest.importorskip("anywidget", reason="needs the extra lab")

from browser import Complaints, ask_kernel, ink, jupyter_lab, open_notebook, run_all_cells, wait_for_kernel, write_notebook

from mdprop.panels import (
    PANEL_CSS, PANEL_JS, PairedView, _ratio, _scene, class_column, item_values, line_chart, metric, pack_names, pack_positions, projection, save_html,
    selection_mask, series, suggestion, unpack_positions, view_state,
)  # fmt: skip

pytestmark = pytest.mark.browser

LONG = "a class with a name that is far too long for its column in the table, and still is to be read"


@lru_cache
def whole(n=360, classes=12):
    "A view with everything in it."
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    centres, turned = 2 * rng.normal(size=(2, classes, 2))
    noise = rng.normal(size=(n, 2))
    before, after = centres[labels] + 0.5 * noise, (centres + 0.5 * turned)[labels] + 0.3 * noise
    attacked = np.where(rng.random((n, 1)) < 0.3, before + 0.6, np.nan)
    density = rng.normal(size=n), rng.normal(size=n) + 1
    density[0][:4] = np.nan
    values = {
        "density": item_values("Local density", *density, meaning="How near the neighbours are.", unit="log", ends=("thin", "dense")),
        "density_change": item_values("Change of density", density[1] - density[0], kind="diverging", ends=("thinner", "denser")),
        "correct": item_values("Nearest is right", rng.random(n) < 0.5, rng.random(n) < 0.7, kind="binary", ends=("wrong", "right")),
        "kept": item_values("Neighbours kept", rng.random(n), ends=("none", "all")),
    }
    spread = rng.random(classes)
    spread[3] = np.nan
    x = np.linspace(0, 1, 20)
    state = view_state(
        {
            "pca": projection(
                before, after, rerun=after + 0.1 * rng.normal(size=(n, 2)), attacked=(attacked, attacked), epochs=([before * 0.3, before * 0.7], [])
            ),
            "umap": projection(before[:, ::-1], after[:, ::-1]),
        },
        labels,
        [LONG] + [f"class {c}" for c in range(1, classes)],
        keys=[f"photos/{c:02d}/{i:04d}.png" for i, c in enumerate(labels)],
        images=rng.random((n, 8, 8)).astype(np.float32),
        titles=("plain", "mdprop"),
        trust={"pca": (0.8, 0.9)},
        metrics=[metric("Recall@1", (0.5, 0.6), "higher", "Share of right neighbours.", percent=True)],
        values=values,
        class_table=[class_column("spread", spread, "Mean distance inside the class.")],
        charts=[line_chart("Spectrum", "direction", "share", [series("before", x, x + 1, "before"), series("after", x, 2 - x, "after")], log_y=True)],
        suggestions=[suggestion("class 5 grew", np.flatnonzero(labels == 5), n, "It moved furthest.")],
        epochs=["1", "2"],
    )
    inputs = [{"value": "clean", "label": "clean", "meaning": "as they are"}, {"value": "single", "label": "one target", "meaning": "attacked"}]
    return PairedView(**state, inputs_choices=inputs, inputs="single", k_choices=[5, 10], domain_choices=[{"value": "clean", "label": "clean"}], domain="clean")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return save_html(whole(), tmp_path_factory.mktemp("panels") / "whole.html")


@pytest.fixture
def open_page(browser, file):
    "Open an exported page with the network cut; at the end nothing may have complained."
    contexts, complaints = [], []

    def opening(path=None, wait=".mdp-row", **options):
        context = browser.new_context(viewport={"width": 1280, "height": 1000}, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        complaints.append(Complaints(page))
        page.goto((path or file).as_uri())
        page.wait_for_selector(wait)
        return page

    yield opening
    assert [line for one in complaints for line in one.found] == []
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_page):
    return open_page()


def radio(page, name):
    page.get_by_role("radio", name=name, exact=True).check()


def three(page):
    return [ink(page, panel) for panel in range(3)]


def changed(page, act):
    "Which of the three panels look different after `act`."
    before = three(page)
    act()
    page.wait_for_timeout(60)
    return [a != b for a, b in zip(before, three(page), strict=True)]


def until(page, said, wanted, seconds=6):
    "Wait until the page's expression `said` is `wanted`; the page forbids what `wait_for_function` does."
    for _ in range(seconds * 20):
        if page.evaluate(f"() => {said}") == wanted:
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{said} is {page.evaluate(f'() => {said}')!r}, not {wanted!r}")


def overlay_ink(page):
    "Pixels that are drawn above the panels."
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.locator(".mdp-overlay").evaluate(
        """c => {
            const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let k = 0;
            for (let i = 3; i < d.length; i += 4) k += d[i] > 100;
            return k;
        }"""
    )


def point_at(page, panel, x, y):
    box = page.locator(".mdp-canvas").nth(panel).bounding_box()
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])


def find_item(page, panel=0):
    "Move the pointer over a panel until it meets an image."
    for y in np.linspace(0.2, 0.8, 25):
        for x in np.linspace(0.2, 0.8, 12):
            point_at(page, panel, x, y)
            page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            if page.locator(".mdp-tip-image").count():
                return
    raise AssertionError("no image under the pointer anywhere")


def run_module(browser, body, *given):
    "What `body(panel, ...given)` returns, with the module loaded into an empty page."
    page = browser.new_page()
    try:
        load = "const panel = await import(URL.createObjectURL(new Blob([source], { type: 'text/javascript' })));"
        return page.evaluate(f"async ([source, given]) => {{ {load} return ({body})(panel, ...given); }}", [PANEL_JS, list(given)])
    finally:
        page.close()


# Functions


def test_bytes_are_read_as_they_were_packed(browser):
    rng = np.random.default_rng(0)
    flags, values = rng.random(21) < 0.5, rng.normal(size=9).astype(np.float16)
    values[:4] = [np.nan, np.inf, 0, 6e-8]
    xy = rng.normal(size=(5, 2))
    xy[2] = np.nan
    window = (-4.0, -4.0, 8.0)
    names, classes = ["a/1.png", "b/ü1.png", "a/12.png", "a/1.png", ""], [0, 1, 0, 0, 1]
    got = run_module(
        browser,
        """(p, mask, halves, bytes, short, long, window, names, classes) => {
            const u8 = (list) => Uint8Array.from(list), flags = p.unpackBits(u8(mask), 21);
            const words = (list) => [...list].map(String);
            return { flags: [...flags], again: [...p.packBits(flags)], halves: words(p.numbers(u8(halves), 9)), bytes: words(p.numbers(u8(bytes), 3)),
                wrong: p.numbers(u8([1, 2, 3, 4, 5]), 3), short: words(p.positions(u8(short), 5, window)), long: words(p.positions(u8(long), 5)),
                names: p.itemNames(u8(names), classes) };
        }""",
        list(selection_mask(np.flatnonzero(flags), 21)), list(values.tobytes()), [0, 1, 255], list(pack_positions(xy, window)), list(pack_positions(xy)),
        list(window), list(pack_names(names, classes)), classes,
    )  # fmt: skip
    assert got["flags"] == flags.astype(int).tolist() and got["again"] == list(selection_mask(np.flatnonzero(flags), 21)) and got["wrong"] is None
    assert np.allclose(np.array(got["halves"], float), values.astype(float), equal_nan=True, rtol=1e-6)
    assert got["bytes"] == ["0", "1", "NaN"] and got["names"] == names
    assert np.allclose(np.array(got["short"], float).reshape(5, 2), unpack_positions(pack_positions(xy, window), 5, window), equal_nan=True, atol=1e-6)
    assert np.allclose(np.array(got["long"], float).reshape(5, 2), xy, equal_nan=True, atol=1e-6)


def test_difference_and_noise_are_those_of_the_package(browser):
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(400, 2)), 0.6 * rng.normal(size=(400, 2))
    scene = _scene(PairedView(**view_state({"pca": projection(before, after)})))
    ratio, count = _ratio(scene)
    expected = np.where(count >= 5, ratio, np.nan)
    got = run_module(
        browser,
        "(p, a, b, sigma) => [...p.ratioGrid(Float32Array.from(a), Float32Array.from(b), sigma)].map(String)",
        *[grid.ravel().tolist() for grid in scene.grids], scene.bandwidth * len(ratio),
    )  # fmt: skip
    got = np.array(got, float).reshape(ratio.shape)
    assert np.array_equal(np.isnan(got), np.isnan(expected)) and 50 < np.isfinite(got).sum() < got.size
    assert np.nanmax(np.abs(got - expected)) < 1e-3
    values = [*rng.normal(size=50).tolist(), None]
    quantiles = run_module(browser, "(p, v) => [0, 0.3, 0.95, 1].map((q) => p.quantile(v.map((x) => x ?? NaN), q))", values)
    assert np.allclose(quantiles, np.quantile(values[:-1], [0, 0.3, 0.95, 1]))


def test_samples_lines_and_scales(browser):
    got = run_module(
        browser,
        """(p) => {
            const all = Array.from({ length: 1000 }, (_, i) => 3 * i), some = p.seededSample(all, 50), far = (k) => (k % 2 ? 20 : 45);
            const star = Array.from({ length: 9 }, (_, k) => [50 + far(k) * Math.cos(k * 0.7), 50 + far(k) * Math.sin(k * 0.7)]);
            const test = p.insideTest(star); let differ = 0;
            for (let x = -5; x < 105; x += 1.3) for (let y = -5; y < 105; y += 1.7) differ += test(x, y) !== p.inside(star, x, y);
            const bars = p.histogram(Float32Array.from([0, 0.5, 1, NaN, 9]), [1, 1, 1, 1, 0], 0, 1, 4);
            return { some, again: p.seededSample(all, 50), few: p.seededSample([4, 2], 5), differ, ticks: [p.ticks(0, 1), p.ticks(-3.2, 7.9), p.ticks(2, 2)],
                ramp: [0, 0.5, 1, 7].map((t) => p.ramp(['#000000', '#0000ff', '#ffffff'], t)), words: [0, 1, -3].map(p.ratioWords),
                bars: [...bars.y], total: bars.total };
        }""",
    )
    assert got["some"] == got["again"] == sorted(set(got["some"])) and len(got["some"]) == 50 and all(v % 3 == 0 for v in got["some"]) and got["few"] == [4, 2]
    assert min(got["some"]) < 600 and max(got["some"]) > 2400 and got["differ"] == 0
    assert got["ticks"][0] == [0, 0.5, 1] and got["ticks"][1] == [0, 5] and got["ticks"][2] == [2]
    assert got["ramp"] == ["#000000", "#0000ff", "#ffffff", "#ffffff"] and got["words"] == ["as dense as before", "2.0× denser", "8.0× thinner"]
    assert np.allclose(got["bars"], [100 / 3, 0, 100 / 3, 100 / 3]) and got["total"] == 3


def lightness(colour):
    "OKLab of '#rrggbb' as seen with normal, deuteranope and protanope eyes (Machado et al. 2009)."
    srgb = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    protan = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    to_lms = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566], [0.0883024619, 0.2817188376, 0.6299787005]]
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099], [0.0259040371, 0.7827717662, -0.8086757660]]
    return [np.array(to_lab) @ np.cbrt(np.array(to_lms) @ np.clip(np.array(eye) @ linear, 0, 1)) for eye in (np.eye(3), deutan, protan)]


def test_class_colours_can_be_told_apart(browser):
    for colours in run_module(browser, "(p) => [p.PALETTE.light, p.PALETTE.dark]"):
        assert len(set(colours)) == 8
        for (one, a), (two, b) in combinations([(colour, lightness(colour)) for colour in colours], 2):
            near = [float(np.linalg.norm(x - y)) for x, y in zip(a, b, strict=True)]
            assert near[0] > 0.12 and min(near[1:]) > 0.07, (one, two, near)


# The third panel


def test_the_third_panel_changes_with_its_choice(page):
    assert len(set(three(page))) == 3 and page.locator(".mdp-third-title").inner_text() == "Difference"
    assert page.locator(".mdp-legend-third").inner_text().split("\n")[:3] == ["8× thinner", "same", "8× denser"]
    wide = page.locator(".mdp-canvas").first.bounding_box()["width"]
    assert changed(page, lambda: radio(page, "Moves")) == [False, False, True]
    assert "360 images" in page.locator(".mdp-legend-third").inner_text()
    radio(page, "None")
    assert page.locator(".mdp-canvas").first.bounding_box()["width"] > 1.3 * wide and page.locator(".mdp-panel").nth(2).is_hidden()
    radio(page, "Difference")
    assert page.locator(".mdp-canvas").first.bounding_box()["width"] == wide


def test_hover_on_the_difference_says_ratio_and_counts(page):
    seen = set()
    for y in np.linspace(0.25, 0.75, 7):
        for x in np.linspace(0.25, 0.75, 5):
            point_at(page, 2, x, y)
            page.wait_for_timeout(20)
            if page.locator(".mdp-tip").is_visible():
                seen.add(page.locator(".mdp-tip strong").inner_text().split("× ")[-1])
                assert "here before" in page.locator(".mdp-tip-key").inner_text()
    assert {"denser", "thinner"} <= seen
    page.mouse.move(2, 2)
    page.locator(".mdp-tip").wait_for(state="hidden")


def test_only_change_above_noise(page):
    switch = page.get_by_label("Only above re-run noise")
    assert changed(page, switch.check) == [False, False, True]
    assert "which a second seed of the layout shows as well" in page.locator(".mdp-legend-third").inner_text()
    radio(page, "Moves")
    words = page.locator(".mdp-legend-third").inner_text()
    assert "moves below 0.2" in words and "of 360" in words
    assert changed(page, switch.uncheck) == [False, False, True]
    radio(page, "UMAP")
    assert switch.is_hidden(), "no second seed in this layout"


def test_morph_slides_and_plays(page):
    radio(page, "Moves")
    slider = page.get_by_label("Morph from before to after")
    slider.focus()
    assert changed(page, lambda: [page.keyboard.press("ArrowLeft") for _ in range(30)]) == [False, False, True]
    assert float(slider.input_value()) == pytest.approx(0.7)
    page.keyboard.press("Home")
    page.get_by_role("button", name="Play from before to after").click()
    held = page.evaluate(
        """async () => {
            const [play, slider] = document.querySelectorAll('.mdp-morph :is(button, input)');
            while (+slider.value < 0.02) await new Promise(requestAnimationFrame);
            const name = play.getAttribute('aria-label');
            play.click();
            return name === 'Pause the morph' && slider.value;
        }"""
    )
    page.wait_for_timeout(150)
    assert slider.input_value() == held and held != "1"
    page.get_by_role("button", name="Play from before to after").click()
    until(page, "document.querySelector('.mdp-morph input').value", "1")
    page.get_by_role("button", name="Play from before to after").wait_for()


def test_reduced_motion_jumps_and_steps(open_page):
    page = open_page(reduced_motion="reduce")
    radio(page, "Moves")
    slider = page.get_by_label("Morph from before to after")
    slider.focus()
    page.keyboard.press("Home")
    page.get_by_role("button", name="Play from before to after").click()
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert slider.input_value() == "1"
    assert page.get_by_role("button", name="Play the epochs").count() == 0
    page.get_by_role("button", name="Previous epoch").click()
    assert page.locator(".mdp-time output").inner_text() == "2"


# Density and colours


def test_heat_is_another_picture_with_a_scale(page):
    assert changed(page, lambda: radio(page, "Heat")) == [True, True, False]
    assert page.locator(".mdp-legend").first.inner_text().split("\n")[1:6] == ["0", "1/16", "1/4", "9/16", "peak"]
    page.get_by_role("option", name="class 5").click()
    page.get_by_role("option", name="class 7").click()
    assert changed(page, lambda: radio(page, "Per class")) == [True, True, False]
    assert "The levels are common" in page.locator(".mdp-note").inner_text()
    radio(page, "Lines")
    assert changed(page, lambda: radio(page, "Own peak")) == [True, True, False]
    assert "by its own peak" in page.locator(".mdp-note").inner_text()
    assert changed(page, lambda: radio(page, "Off")) == [True, True, False]
    assert page.get_by_role("radio", name="Heat").is_hidden()


@pytest.mark.parametrize(
    "key, words",
    [
        ("density", ["Colour: Local density", "dense", "log", "grey: no value (4)"]),
        ("density_change", ["thinner −", "denser", "0"]),
        ("correct", ["right", "wrong"]),
        ("kept", ["none", "all"]),
    ],
)
def test_points_are_coloured_by_values_with_a_legend(page, key, words):
    assert changed(page, lambda: page.get_by_label("Colour by").select_option(key))[:2] == [True, True]
    legend = page.locator(".mdp-legend").first.inner_text()
    assert all(word in legend for word in words), legend
    find_item(page)
    assert page.locator(".mdp-tip-value").inner_text().startswith(f"{whole().values[key]['label']}: ")
    assert changed(page, lambda: page.get_by_label("Colour by").select_option("class"))[:2] == [True, True]


def test_a_ninth_class_leaves_the_eight_coloured(page):
    rows = page.locator(".mdp-row").filter(has_text="class ").filter(has_not_text="too long")
    for c in range(8):
        rows.nth(c).click()
    colours = [rows.nth(c).locator("path").get_attribute("fill") for c in range(8)]
    shapes = [rows.nth(c).locator("path").get_attribute("d") for c in range(8)]
    assert len(set(colours)) == len(set(shapes)) == 8
    rows.nth(8).click()
    assert [rows.nth(c).locator("path").get_attribute("fill") for c in range(8)] == colours and rows.nth(8).locator("path").count() == 0
    assert page.locator(".mdp-chip").count() == 8 and "and 1 more in one colour" in page.locator(".mdp-chips").inner_text()
    assert overlay_ink(page) > 50, "the class under the pointer stands out"
    page.mouse.move(2, 2)
    page.evaluate("document.activeElement.blur()")
    assert overlay_ink(page) == 0


# Table, charts, suggestions


def names(page):
    return page.locator(".mdp-row-name").all_inner_texts()


def test_the_table_sorts_and_says_so(page):
    head = page.get_by_role("columnheader", name="spread")
    assert head.get_attribute("aria-sort") == "none" and page.get_by_role("columnheader", name="class").get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    shown = [text for text in page.locator(".mdp-cell[data-key=spread]").all_inner_texts()]
    assert shown[-1] == "–" and [float(v) for v in shown[:-1]] == sorted([float(v) for v in shown[:-1]], reverse=True)
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending" and page.locator(".mdp-cell[data-key=spread]").last.inner_text() == "–"
    order = names(page)
    page.get_by_label("Search classes").fill("class 1")
    assert names(page) == [name for name in order if "class 1" in name]
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.get_by_role("columnheader", name="images").get_attribute("aria-sort") == "descending"


def test_a_long_name_is_read_in_full(page):
    page.set_viewport_size({"width": 620, "height": 1000})
    row = page.get_by_role("option", name=LONG)
    height = row.bounding_box()["height"]
    row.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert row.bounding_box()["height"] > height
    name = row.locator(".mdp-row-name")
    assert name.evaluate("e => e.scrollWidth <= e.clientWidth")


def test_charts_have_axes_and_read_values(page):
    charts = page.locator(".mdp-chart")
    assert charts.locator("figcaption").all_inner_texts() == ["Local density", "Spectrum"]
    assert charts.first.locator(".mdp-label").all_text_contents() == ["Local density, log", "% of images"]
    charts.nth(1).locator("svg").first.hover()
    assert charts.nth(1).locator(".mdp-read").inner_text().startswith("direction 0.") and "after 1." in charts.nth(1).locator(".mdp-read").inner_text()
    page.mouse.move(2, 2)
    charts.nth(1).locator("svg").first.focus()
    page.keyboard.press("ArrowLeft")
    assert charts.nth(1).locator(".mdp-read").inner_text().startswith("direction 0.3")
    dashes = charts.nth(1).locator(".mdp-chart-svg path").evaluate_all("paths => paths.map((p) => p.getAttribute('stroke-dasharray'))")
    assert sorted(dashes) == ["5 3", "none"]


def test_a_suggestion_selects_and_everything_follows(page):
    chip = page.get_by_role("button", name="class 5 grew")
    assert changed(page, chip.click) == [True, True, True]
    assert chip.get_attribute("aria-pressed") == "true"
    words = page.locator(".mdp-summary").inner_text()
    assert words.startswith("30 of 360 images selected, from 1 class (class 5 30). Local density on average")
    assert page.locator(".mdp-keys").first.locator(".mdp-key").all_inner_texts() == ["all before", "all after", "selected before", "selected after"]
    assert page.locator(".mdp-row", has_text="class 5").locator("[data-key=selected]").inner_text() == "30"
    assert "Only the first follows" in page.locator(".mdp-charts-for").inner_text()
    assert page.locator(".mdp-gallery").is_visible()
    page.keyboard.press("Escape")
    page.locator("[data-key=selected]").first.wait_for(state="detached")
    assert chip.get_attribute("aria-pressed") == "false"


@pytest.mark.parametrize("panel", [0, 2])
def test_box_selects_in_any_panel(page, panel):
    radio(page, "Box")
    box = page.locator(".mdp-canvas").nth(panel).bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 10, steps=4)
    page.mouse.up()
    page.locator(".mdp-summary", has_text="selected, from").wait_for()  # in the time after the frame that shows it
    page.get_by_role("button", name="Colour their classes").click()
    assert 1 <= page.locator(".mdp-chip").count() <= 8


# Epochs, inputs, kernel-bound controls


def test_epochs_step_play_and_end(page):
    slider = page.get_by_label("Epoch", exact=True).and_(page.locator("input"))
    shown = page.locator(".mdp-time output")
    assert shown.inner_text() == "final"
    radio(page, "Off")  # density has the same levels on both sides, so it changes on both
    before = three(page)
    slider.focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(600)
    now = three(page)
    assert shown.inner_text() == "1" and now[0] != before[0] and now[1] == before[1] and now[2] != before[2], "only the side before has epochs here"
    page.get_by_role("button", name="Play the epochs").click()
    until(page, "document.querySelector('.mdp-time output').textContent", "final")
    page.get_by_role("button", name="Play the epochs").wait_for()
    page.wait_for_timeout(500)
    assert three(page) == before


def test_arrows_to_the_attacked_images(page):
    assert "clean → one target" in page.locator(".mdp-legend").first.inner_text()
    assert changed(page, lambda: page.get_by_label("Inputs").select_option("clean")) == [True, True, False]
    assert "clean →" not in page.locator(".mdp-legend").first.inner_text()


def test_without_a_kernel_only_what_is_here_can_be_chosen(page):
    for label in ("Norm", "Neighbours k"):
        assert page.get_by_label(label).is_disabled() and page.get_by_label(label).locator("option").count() == 1
    assert page.get_by_role("button", name="Cancel").is_hidden()


# What must not happen


def test_no_ring_stays_behind(page):
    find_item(page)
    assert overlay_ink(page) > 20
    page.mouse.wheel(0, -900)
    page.mouse.wheel(0, -900)
    page.wait_for_timeout(80)
    tip, rings = page.locator(".mdp-tip").is_visible(), overlay_ink(page)
    assert tip == (rings > 0)
    page.get_by_role("button", name="Reset view").click()
    assert overlay_ink(page) == 0 and page.locator(".mdp-tip").is_hidden()
    canvas = page.locator(".mdp-canvas").first
    canvas.focus()
    page.keyboard.press("n")
    assert overlay_ink(page) > 20
    page.evaluate("document.querySelector('[data-class=\"5\"]').click()")  # item 0 is of class 0: it is filtered away
    page.mouse.move(2, 2)
    page.evaluate("document.activeElement.blur()")
    assert overlay_ink(page) == 0 and page.locator(".mdp-tip").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_and_controls_have_names(open_page, scheme):
    page = open_page(color_scheme=scheme)
    page.get_by_role("button", name="class 5 grew").click()
    page.get_by_role("option", name="class 7").click()
    low = page.evaluate(
        """() => {
            const ctx = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
            const rgb = (text) => { ctx.clearRect(0, 0, 1, 1); ctx.fillStyle = text; ctx.fillRect(0, 0, 1, 1); return [...ctx.getImageData(0, 0, 1, 1).data]; };
            const f = (v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
            const light = ([r, g, b]) => 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b);
            const found = [];
            for (const node of document.querySelectorAll('.mdp *')) {
                const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
                if (!own || !node.checkVisibility({ visibilityProperty: true }) || node.matches(':disabled, .mdp-meaning, option')) continue;
                const style = getComputedStyle(node), ink = rgb(node.closest('svg') ? style.fill : style.color);
                let ground = node; while (rgb(getComputedStyle(ground).backgroundColor)[3] < 250 && ground.parentElement) ground = ground.parentElement;
                const [a, b] = [light(ink), light(rgb(getComputedStyle(ground).backgroundColor))].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
                if (ratio < 4.5) found.push([node.className.baseVal ?? node.className, node.textContent.slice(0, 30), +ratio.toFixed(2)]);
            }
            return found;
        }"""
    )
    assert low == []
    nameless = page.evaluate(
        """() => {
            const controls = 'button, input, select, canvas[tabindex], [role=group], [role=listbox], svg[tabindex]';
            const named = (node) => node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.[0]?.textContent.trim();
            const seen = [...document.querySelectorAll(`.mdp :is(${controls})`)].filter((node) => node.checkVisibility());
            return seen.filter((node) => !named(node)).map((node) => node.outerHTML.slice(0, 80));
        }"""
    )
    assert nameless == []


def test_every_control_is_reached_by_the_keyboard(page):
    seen = set()
    page.locator(".mdp-info").first.focus()
    for _ in range(60):
        seen.add(page.evaluate("() => { const e = document.activeElement; return e.getAttribute('class') || e.type || e.tagName; }"))
        page.keyboard.press("Tab")
    wanted = "mdp-info radio checkbox range mdp-select mdp-button mdp-suggest mdp-canvas mdp-search mdp-sort mdp-row mdp-chart-svg"
    assert set(wanted.split()) <= seen


def test_a_sample_is_called_a_sample(open_page, tmp_path):
    rng = np.random.default_rng(0)
    xy = rng.normal(size=(200, 2))
    grids = rng.random((2, 64, 64))
    view = PairedView(**view_state({"pca": projection(xy, xy, grids=(grids[0], grids[1]))}, total=1_000_000))
    page = open_page(save_html(view, tmp_path / "sample.html"))
    assert "a sample of 200 of 1,000,000 images. Density: of all." in page.locator(".mdp-legend").first.inner_text()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda data: data.update(classes={"base64": ""}), "There are no items to show."),
        (lambda data: data.update(class_names=["only one"]), "has no name"),
        (lambda data: data["projections"]["pca"].update(after={"base64": "AAAAAAAAAAA="}), "1 position, but there are 360 items"),
        (lambda data: data.update(error="The run has no snapshot. Train with snapshots=True."), "no snapshot"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(open_page, file, tmp_path, spoil, message):
    head, rest = file.read_text(encoding="utf-8").split('id="mdprop-data">')
    data, tail = rest.split("</script>", 1)
    state = json.loads(data)
    spoil(state)
    (tmp_path / "bad.html").write_text(f'{head}id="mdprop-data">{json.dumps(state)}</script>{tail}', encoding="utf-8")
    page = open_page(tmp_path / "bad.html", wait=".mdp-error")
    assert message in page.get_by_role("alert").inner_text()


def test_without_scripts_there_is_a_still_picture(browser, file):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector("noscript img")
    assert page.locator("noscript img").bounding_box()["width"] > 600
    context.close()


@pytest.mark.parametrize("width, columns", [(1920, "3"), (1280, "3"), (800, "2"), (420, "1")])
def test_panels_fit_the_width(open_page, width, columns):
    page = open_page()
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_selector(f".mdp-stage[data-columns='{columns}']")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert all(page.locator(".mdp-canvas").nth(k).bounding_box()["width"] > 150 for k in range(3))


def test_a_view_opened_while_hidden_draws_when_it_is_shown(browser, file):
    "A notebook may build the view before it has room for it; by then images and a selection have come."
    data = file.read_text(encoding="utf-8").split('id="mdprop-data">')[1].split("</script>")[0]
    page = browser.new_page()
    complaints = Complaints(page)
    page.evaluate(
        """async ([source, style, data]) => {
            document.head.append(Object.assign(document.createElement('style'), { textContent: style }));
            const panel = await import(URL.createObjectURL(new Blob([source], { type: 'text/javascript' })));
            const state = Object.assign(document.createElement('script'), { type: 'application/json', textContent: data });
            const host = document.createElement('div');
            host.style.display = 'none';
            document.body.append(host);
            window.model = panel.openPage(state, host);
            window.host = host;
            window.model.set('selection', Uint8Array.from([7]));
        }""",
        [PANEL_JS, PANEL_CSS, data],
    )
    page.wait_for_timeout(200)
    page.evaluate("() => { window.model.set('class_filter', [1, 2]); window.host.style.display = ''; }")
    page.wait_for_timeout(200)
    assert len(set(three(page))) == 3 and page.locator(".mdp-summary").inner_text().startswith("3 of 360")
    assert complaints.found == []
    page.close()


def test_two_dashboards_in_a_page_keep_their_own_settings(browser, file):
    "A notebook loads the module once for each; what carries the same name in both would be one group of radio buttons to the browser."
    data = file.read_text(encoding="utf-8").split('id="mdprop-data">')[1].split("</script>")[0]
    page = browser.new_page()
    page.evaluate(
        """async ([source, data]) => {
            for (let k = 0; k < 2; k++) {
                const panel = await import(URL.createObjectURL(new Blob([source], { type: 'text/javascript' })));
                const state = Object.assign(document.createElement('script'), { type: 'application/json', textContent: data });
                const host = document.createElement('div');
                document.body.append(host);
                panel.openPage(state, host);
            }
        }""",
        [PANEL_JS, data],
    )
    groups = "() => [...document.querySelectorAll('fieldset')].map((group) => group.querySelectorAll('input:checked').length)"
    checked = page.evaluate(groups)
    assert len(checked) > 8 and set(checked) == {1}
    twice = "() => { const ids = [...document.querySelectorAll('[id]')].map((one) => one.id); return ids.length - new Set(ids).size; }"
    assert page.evaluate(twice) == 0
    page.close()


# JupyterLab

NOTEBOOK = [
    """import io
import numpy as np
from PIL import Image
from mdprop.panels import PairedView, item_values, class_column, line_chart, metric, projection, selection_mask, series, suggestion, view_state
rng = np.random.default_rng(0)
labels = np.arange(240) % 12
b = rng.normal(size=(12, 2))[labels] * 2 + 0.5 * rng.normal(size=(240, 2))
a = b * 0.8 + 0.2 * rng.normal(size=(240, 2))
view = PairedView(**view_state(
    {'pca': projection(b, a, rerun=a + 0.05, attacked=(b + 0.4, a + 0.1), epochs=([b * 0.5], [a * 0.5])), 'umap': projection(a, b)},
    labels, [f'class {c}' for c in range(12)], trust={'pca': (0.8, 0.9)},
    images=rng.random((240, 8, 8)), metrics=[metric('Recall@1', (0.5, 0.6), 'higher', 'Right.', percent=True)],
    values={'density': item_values('Local density', b[:, 0], a[:, 0])}, class_table=[class_column('spread', rng.random(12))], epochs=['1'],
    charts=[line_chart('Spectrum', 'direction', 'share', [series('before', [1, 2], [3, 4], 'before')])],
    suggestions=[suggestion('class 5', np.flatnonzero(labels == 5), 240)]))
view.inputs_choices = [dict(value='clean', label='clean', meaning=''), dict(value='single', label='one target', meaning='')]
view.domain_choices = [dict(value='clean', label='clean'), dict(value='multi', label='multi')]
view.domain, view.k_choices, asked = 'clean', [5, 10, 20], []
def answer(_, message, buffers):
    asked.append(message)
    picture = io.BytesIO()
    Image.new('RGB', (64, 64), 'red').save(picture, 'PNG')
    view.send(message, [picture.getvalue()])
view.on_msg(answer)
view""",
]


def test_the_widget_in_jupyterlab(browser, tmp_path):
    "Every control reaches Python, Python reaches the page, images come on demand, work can be cancelled, and a reload of the page keeps everything."
    write_notebook(tmp_path / "panels.ipynb", NOTEBOOK)
    with jupyter_lab(tmp_path) as (address, token):
        page = browser.new_page(viewport={"width": 1700, "height": 1200})
        complaints = Complaints(page)
        open_notebook(page, address, token, "panels.ipynb")
        run_all_cells(page)
        page.wait_for_selector(".mdp-row", timeout=60_000)
        for name in ("UMAP", "Per class", "Heat", "Own peak", "Moves"):
            radio(page, name)
        for label, value in (("Inputs", "single"), ("Norm", "multi"), ("Neighbours k", "20"), ("Colour by", "density")):
            page.get_by_label(label, exact=True).select_option(value)
        for label in ("Smoothing", "Points"):
            page.get_by_role("slider", name=label).focus()
            page.keyboard.press("ArrowRight")
        page.get_by_role("button", name="Previous epoch").click()
        page.get_by_role("option", name="class 7").click()
        page.get_by_role("button", name="class 5", exact=True).click()
        wait_for_kernel(
            page,
            "v = view; print(v.projection, v.contours, v.density_style, v.density_scale, v.third, v.inputs, v.domain, v.k, v.colour_by)",
            "umap class heat class moves single multi 20 density",
        )
        count = "np.unpackbits(np.frombuffer(view.selection, 'u1')).sum()"
        wait_for_kernel(page, f"print(round(view.bandwidth, 3), view.point_size, view.epoch, view.class_filter, {count})", "0.03 4.5 0 [7] 20")
        # Python to the page
        ask_kernel(page, "view.projection, view.third, view.colour_by, view.class_filter, view.epoch = 'pca', 'density', 'class', [], -1")
        page.wait_for_function("document.querySelector('.mdp-third-title').textContent === 'Difference'")
        page.get_by_label("Only above re-run noise").check()
        wait_for_kernel(page, "print(view.noise_only, view.epoch)", "True -1")
        ask_kernel(page, "view.metrics = [metric('MAP@R', (0.1, 0.2), 'higher', 'm')]; view.selection = selection_mask([1, 2], 240); view.k_choices = [5, 20]")
        page.wait_for_function("document.querySelector('.mdp-metric').textContent.includes('MAP@R')")
        page.wait_for_function("document.querySelector('.mdp-summary').textContent.startsWith('2 of 240')")
        page.wait_for_function("document.querySelectorAll('[data-control=k] option').length === 2")
        # a larger image
        canvas = page.locator(".mdp-canvas").first
        canvas.scroll_into_view_if_needed()
        find_item(page)
        page.wait_for_selector(".mdp-tip-image[data-large=true]")
        assert page.locator(".mdp-tip-image").evaluate("c => [...c.getContext('2d').getImageData(9, 9, 1, 1).data]") == [255, 0, 0, 255]
        assert json.loads(ask_kernel(page, "import json; print(json.dumps(asked[-1]))"))["kind"] == "image"
        # work that can be cancelled, and what went wrong
        ask_kernel(page, "view.busy, view.progress = 'Computing the UMAP layout', 0.25")
        page.wait_for_function("document.querySelector('.mdp-progress').value === 0.25")
        assert overlay_ink(page) == 0 and page.locator(".mdp-stage").get_attribute("aria-busy") == "true"
        page.get_by_role("button", name="Cancel").click()
        wait_for_kernel(page, "print(view.cancel)", "1")
        ask_kernel(page, "view.busy, view.problem = '', 'The layout could not be computed: too few images.'")
        page.wait_for_function("document.querySelector('.mdp-alert').textContent.includes('too few images')")
        assert page.locator(".mdp-busy").is_hidden()
        # reload
        ask_kernel(page, "view.problem = ''")
        page.mouse.move(2, 2)
        page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
        page.reload()
        page.wait_for_selector(".mdp-row", timeout=60_000)
        assert page.locator(".mdp-summary").inner_text().startswith("2 of 240") and page.get_by_role("radio", name="Own peak").is_checked()
        assert page.get_by_label("Only above re-run noise").is_checked() and page.get_by_label("Inputs", exact=True).input_value() == "single"
        ask_kernel(page, "view.error = 'The run is gone. Train again.'")
        page.wait_for_selector(".mdp-error")
        ask_kernel(page, "view.error = ''")
        page.wait_for_selector(".mdp-row")
        assert page.locator(".mdp").count() == 1, "nothing doubles"
        page.close()
    assert complaints.found == []
