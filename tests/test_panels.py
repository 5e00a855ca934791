"The view's state, its page and its still picture, without a browser."

import base64
import hashlib
import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("anywidget", reason="needs the extra lab")

from mdprop.panels import (
    PANEL_CSS, PANEL_JS, PairedView, class_column, item_values, line_chart, metric, pack_names, pack_positions, page_html, projection, save_html, save_png,
    save_svg, selected_indices, selection_mask, series, sprite_sheet, still_png, still_svg, suggestion, unpack_positions, view_state,
)  # fmt: skip
from mdprop.project import picture_window


def view(n=50, **kwargs):
    xy = np.random.default_rng(0).normal(size=(n, 2))
    return PairedView(**view_state({"pca": projection(xy, xy * 0.5)}, np.arange(n) % 3, trust={"pca": (0.9, 0.8)}, **kwargs))


def page_data(page):
    return json.loads(re.search(r'id="mdprop-data">(.*?)</script>', page, re.S).group(1))


@given(st.sets(st.integers(0, 99)), st.integers(100, 117))
@settings(max_examples=40, deadline=None)
def test_mask_and_indices_are_one_thing(wanted, n):
    mask = selection_mask(sorted(wanted, reverse=True), n)
    assert len(mask) == -(-n // 8) and selected_indices(mask, n).tolist() == sorted(wanted)


@pytest.mark.parametrize("index", [-1, 100])
def test_an_index_outside_is_refused(index):
    with pytest.raises(ValueError, match=f"index {index} is outside 0..99"):
        selection_mask([3, index], 100)


@pytest.mark.parametrize("shape", [(7, 1, 10, 10), (7, 3, 10, 10), (7, 10, 10, 3), (7, 10, 10), (7, 3, 12, 20)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_every_image_stands_in_its_square(shape, kind):
    grey = (np.arange(7) * 30).astype(np.uint8)
    images = np.broadcast_to(grey.reshape(-1, *[1] * (len(shape) - 1)), shape)
    sheet, (columns, side) = sprite_sheet(images if kind is np.uint8 else images.astype(np.float32) / 255, quality=95)
    picture = np.asarray(Image.open(io.BytesIO(sheet)).convert("L"))
    assert columns == 3 and picture.shape == (3 * side, 3 * side)
    centres = picture[side // 2 :: side, side // 2 :: side].ravel()[:7]
    assert np.abs(centres.astype(int) - grey).max() < 8


def test_a_large_sheet_stays_within_its_limit():
    sheet, (columns, side) = sprite_sheet(np.zeros((300, 32, 32), np.uint8), limit=500)
    assert (columns, side) == (18, 27) and Image.open(io.BytesIO(sheet)).width == columns * side


def test_state_survives_the_page_unchanged():
    shown = view(class_names=["ash", "beech", "cedar"], keys=[f"{i}.png" for i in range(50)], metrics=[metric("R", (0.1, float("nan")), "higher", "m")])
    shown.class_filter, shown.contours, shown.selection = [1], "class", selection_mask([4, 9], 50)
    data = page_data(page_html(shown))
    for name in ("class_names", "item_keys", "class_filter", "contours", "bandwidth", "point_size", "metrics", "titles", "sprite_grid"):
        assert data[name] == getattr(shown, name), name
    for name in ("classes", "selection"):
        assert base64.b64decode(data[name]["base64"]) == getattr(shown, name)
    assert base64.b64decode(data["projections"]["pca"]["before"]["base64"]) == shown.projections["pca"]["before"]
    assert data["metrics"][0]["after"] is None


def test_the_page_holds_the_same_module_and_allows_nothing_else():
    page = page_html(view())
    script = re.search(r'<script type="module">(.*?)</script>', page, re.S).group(1)
    assert script.startswith(PANEL_JS) and PairedView._esm == PANEL_JS and PairedView._css == PANEL_CSS
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
    for text in (script, PANEL_CSS):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    loads = r"""(?:src|href)\s*=\s*["'](?!data:)|https?://|url\(|@import|\bfetch\(|XMLHttpRequest|WebSocket"""
    assert not re.search(loads, page.replace("http://www.w3.org/2000/svg", "the name of SVG, which nobody loads"))
    assert "innerHTML" not in PANEL_JS and "insertAdjacentHTML" not in PANEL_JS and "eval(" not in PANEL_JS


@given(st.lists(st.text(max_size=30), min_size=3, max_size=3))
@settings(max_examples=12, deadline=None)
def test_no_name_can_close_the_script_or_open_a_tag(names):
    hostile = [f"</script><!--<script>{name}" for name in names]
    page = page_html(view(class_names=hostile, titles=("</title>", "<b>")), title="</title><script>", subtitle="<img>")
    assert page_data(page)["class_names"] == hostile
    assert page.count("</script>") == 2 and page.count("</title>") == 1 and "<img>" not in page


def test_a_failed_write_leaves_the_former_file(tmp_path, monkeypatch):
    path = save_html(view(), tmp_path / "a.html")
    former = path.read_bytes()
    monkeypatch.setattr("mdprop.panels.page_html", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_html(view(), path)
    assert path.read_bytes() == former and [p.name for p in tmp_path.iterdir()] == ["a.html"]


def test_size_of_the_page():
    n = 10_000
    xy = np.random.default_rng(0).normal(size=(n, 2))
    bare = PairedView(**view_state({"pca": projection(xy, xy)}, np.arange(n) % 100))
    assert len(page_html(bare)) < 600_000


def weigh(value):
    "Bytes on the wire, near enough."
    if isinstance(value, bytes):
        return len(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return len(str(value)) if parts is None else sum(map(weigh, parts))


def test_a_hundred_thousand_items_cost_a_megabyte_a_panel():
    rng = np.random.default_rng(0)
    n, xy = 100_000, rng.normal(size=(100_000, 2)).astype(np.float32)
    values = {"density": item_values("d", xy[:, 0], xy[:, 1]), "right": item_values("r", xy[:, 0] > 0, xy[:, 1] > 0, "binary")}
    images = rng.integers(0, 255, (n, 4, 4), dtype=np.uint8)
    keys = [f"photos/{i % 200:03d}.warbler/{i:06d}.jpg" for i in range(n)]
    view = PairedView(**view_state({"pca": projection(xy, xy)}, np.arange(n) % 200, keys=keys, images=images, values=values))
    state = view.get_state() | view._data(view.heavy)  # the second part by message
    assert sum(weigh(v) for name, v in state.items() if not name.startswith("_")) < 3e6
    assert len(state["sprite"]) <= 600_000 and isinstance(state["item_keys"], bytes)


# Packing


@given(st.lists(st.floats(-1e3, 1e3, width=32) | st.just(float("nan")), min_size=2, max_size=60))
@settings(max_examples=60, deadline=None)
def test_positions_survive_packing(flat):
    xy = np.array(flat[: len(flat) // 2 * 2], np.float32).reshape(-1, 2)
    xy[np.isnan(xy).any(1)] = np.nan
    known = xy[~np.isnan(xy[:, 0])]
    window = picture_window(known) if len(known) else (0.0, 0.0, 1.0)
    back = unpack_positions(pack_positions(xy, window), len(xy), window)
    assert np.array_equal(np.isnan(back), np.isnan(xy))
    assert np.allclose(back, xy, atol=window[2] / 65534 + 1e-4, equal_nan=True)
    assert np.array_equal(unpack_positions(pack_positions(xy), len(xy)), xy, equal_nan=True)


def test_bytes_that_are_no_positions_are_refused():
    with pytest.raises(ValueError, match="12 bytes are not 3 positions"):
        unpack_positions(bytes(12), 3)


@given(st.lists(st.tuples(st.text(max_size=20), st.integers(0, 2)), max_size=30))
@settings(max_examples=60, deadline=None)
def test_names_survive_packing(rows):
    names, classes = [name for name, _ in rows], [c for _, c in rows]
    data, at, former, back = pack_names(names, classes), 0, {}, []
    while at < len(data):
        stop, last = data.index(b"\n", at + 2), former.get(classes[len(back)], b"")
        name = last[: data[at] - 32] + data[at + 2 : stop] + last[len(last) - (data[at + 1] - 32) :]
        former[classes[len(back)]] = name
        back.append(name.decode())
        at = stop + 1
    assert back == [name.replace("\n", " ").encode("utf-8", "replace").decode() for name in names]


@pytest.mark.parametrize("n, size", [(100, 4), (20_001, 2)])
def test_many_values_travel_in_half_precision(n, size):
    values = np.linspace(-3, 3, n)
    assert len(item_values("d", values)["before"]) == size * n and item_values("d", values)["after"] == b""
    assert len(item_values("d", values * 1e6)["before"]) == 4 * n, "beyond half precision"
    binary = np.frombuffer(item_values("r", [1, 0, np.nan], kind="binary")["before"], np.uint8)
    assert binary.tolist() == [1, 0, 255]


def test_optional_layouts_must_be_of_the_same_items():
    xy, hole = np.zeros((4, 2)), np.full((4, 2), np.nan)
    entry = projection(xy, xy, rerun=xy, attacked=(hole, xy), epochs=([xy, xy], []), compact=True)
    assert len(entry["epochs_before"]) == 2 and "epochs_after" not in entry and entry["n"] == 4 and len(entry["before"]) == 16
    for wrong in (dict(rerun=xy[:3]), dict(attacked=(xy, xy[:3])), dict(epochs=([xy[:3]], []))):
        with pytest.raises(ValueError, match=r"\(4, 2\), got shape \(3, 2\)"):
            projection(xy, xy, **wrong)
    with pytest.raises(ValueError, match="another seed holds NaN"):
        projection(xy, xy, rerun=hole)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="'rainbow'"):
        item_values("hue", [1, 2], kind="rainbow")
    with pytest.raises(ValueError, match="2 values before and 3 after"):
        item_values("d", [1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="3 x for 2 y"):
        series("line", [1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="index 9 is outside"):
        suggestion("far", [9], 5)
    with pytest.raises(ValueError, match="'spread' has 2 values for 3 classes"):
        view(class_table=[class_column("spread", [1, 2])])


def test_a_sheet_keeps_its_budget():
    noise = np.random.default_rng(0).integers(0, 256, (2500, 24, 24), dtype=np.uint8)
    for budget in (400_000, 200_000):
        sheet, (columns, side) = sprite_sheet(noise, budget=budget)
        assert budget / 4 < len(sheet) <= budget and columns == 50 and 8 <= side < 24
    assert sprite_sheet(noise, budget=1000) == (b"", (0, 0))
    assert sprite_sheet(np.zeros((0, 8, 8))) == (b"", (0, 0))


# What the user sets, and what the kernel says


def test_every_trait_is_explained_and_travels():
    own = [name for name in PairedView.class_trait_names(sync=True) if name in PairedView.__dict__]
    assert {"third", "noise_only", "density_style", "density_scale", "colour_by", "epoch", "inputs", "domain", "k", "cancel", "progress"} <= set(own)
    shown = view()
    settings = dict(third="moves", noise_only=True, density_style="heat", density_scale="class", colour_by="density", epoch=2, inputs="multi", k=5)
    for name, value in settings.items():
        shown.set_state({name: value})
        assert getattr(shown, name) == value and page_data(page_html(shown))[name] == value
    for name in ("third", "density_style", "density_scale"):
        with pytest.raises(Exception, match="sometimes"):
            setattr(shown, name, "sometimes")


# Still pictures


def picture(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def test_still_picture_shows_all_panels():
    three = picture(still_png(view(400), width=620))
    assert three.shape == (285, 620) and all(three[30:220, left : left + 190].std() > 5 for left in (4, 216, 426))
    two = view(400)
    two.third = "off"
    assert picture(still_png(two, width=420)).shape == (291, 420)


CHANGES = [dict(third="moves"), dict(density_style="heat"), dict(contours="class"), dict(contours="off"), dict(class_filter=[1]), dict(colour_by="d")]


@pytest.mark.parametrize("change", [*CHANGES, dict(epoch=0), dict(inputs="multi"), dict(noise_only=True), dict(selection=selection_mask(range(9), 400))])
def test_still_pictures_follow_the_settings(change):
    rng = np.random.default_rng(0)
    xy = rng.normal(size=(400, 2))
    layout = projection(xy, xy * 0.5, epochs=([xy * 0.2], [xy * 0.3]), rerun=xy * 0.6, attacked=(xy + 1, xy))
    values = {"d": item_values("d", xy[:, 0], kind="diverging")}
    plain, changed = (PairedView(**view_state({"pca": layout}, np.arange(400) % 3, values=values)) for _ in range(2))
    for name, value in change.items():
        setattr(changed, name, value)
    assert still_png(plain, 600) != still_png(changed, 600) and still_svg(plain) != still_svg(changed)


def test_the_drawing_is_valid_and_holds_names_as_text(tmp_path):
    names = ["<b>&amp;", "\x00 nul", "x" * 40]
    shown = view(300, class_names=names, titles=("<script>", "after & all"))
    root = ElementTree.fromstring(still_svg(shown))
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "Before: <script>" in texts and "After: after & all" in texts and "<b>&amp;" in texts and any(t.endswith("…") for t in texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 2 * 300 + 3
    assert save_svg(shown, tmp_path / "a.svg").read_bytes() == still_svg(shown)
    assert save_png(shown, tmp_path / "a.png").read_bytes() == still_png(shown)


def test_a_drawing_of_many_points_holds_a_sample():
    xy = np.random.default_rng(0).normal(size=(50_000, 2))
    drawing = still_svg(PairedView(**view_state({"pca": projection(xy, xy)})))
    assert 2 * 15_000 < drawing.count(b"<circle") <= 2 * 20_000


def test_the_difference_is_known_where_both_sides_are():
    "Twice as many images on one spot: the ratio there is 2."
    from mdprop.panels import _ratio, _scene

    spots = np.array([[0.0, 0], [1, 1]])
    before, after = spots[np.repeat([0, 1], [100, 200])], spots[np.repeat([0, 1], [200, 100])]
    scene = _scene(PairedView(**view_state({"pca": projection(before, after)})))
    ratio, count = _ratio(scene)
    window, cells = np.array(scene.window), len(ratio)
    column, row = ((spots - window[:2]) / window[2] * cells).astype(int).T
    assert np.allclose(ratio[row, column], [1, -1], atol=0.02) and np.allclose(count[row, column], 200, rtol=0.05) and count[0, -1] < 1


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(labels=[0, 1]), r"labels must be \(3,\)"),
        (dict(labels=[0, 1, 5], class_names=["a", "b"]), "2 class names for 3 classes"),
        (dict(keys=["a"]), "1 keys for 3 items"),
        (dict(images=np.zeros((2, 4, 4))), "2 images for 3 items"),
        (dict(labels=[0, 1, 1], class_spread=np.zeros((3, 2))), "3 rows for 2 classes"),
        (dict(labels=[0, 1, 1], class_table=[class_column("spread", [1, 2, 3])]), "3 values for 2 classes"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        view_state({"pca": projection(np.zeros((3, 2)), np.ones((3, 2)))}, **change)


def test_a_chart_says_its_axes_and_lines():
    chart = line_chart("Spectrum", "direction", "share", [series("before", [1, 2], [3, 4], "before")], log_y=True)
    assert chart["series"][0]["dash"] and chart["log_y"] and np.frombuffer(chart["series"][0]["y"], np.float32).tolist() == [3, 4]


def test_a_still_of_a_sample_shows_the_density_of_all():
    from mdprop.panels import _scene
    from mdprop.project import picture_density, picture_histogram

    rng = np.random.default_rng(0)
    everything = rng.normal(size=(5000, 2)).astype(np.float32)
    window = picture_window(everything)
    histogram = picture_histogram(everything, window)
    sample = PairedView(**view_state({"pca": projection(everything[:100], everything[:100], grids=(histogram, histogram), window=window)}, total=5000))
    assert np.allclose(_scene(sample).grids[0], picture_density(everything, window), atol=1e-4)
    sample.class_filter = [0]
    assert abs(float(_scene(sample).grids[0].sum()) - 100) < 5
