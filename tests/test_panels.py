"The view's state, its page and its still picture, without a browser."

import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("anywidget", reason="needs the extra lab")

from mdprop.panels import (
    PANEL_CSS, PANEL_JS, PairedView, metric, page_html, projection, save_html, selected_indices, selection_mask, sprite_sheet, still_png, view_state,
)  # fmt: skip


def view(n=50, **kwargs):
    xy = np.random.default_rng(0).normal(size=(n, 2))
    return PairedView(**view_state({"pca": projection(xy, xy * 0.5, 0.9, 0.8)}, np.arange(n) % 3, **kwargs))


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
    for name in ("classes", "selection", "class_spread"):
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
    assert not re.search(
        r"""(?:src|href)\s*=\s*["'](?!data:)|https?://|url\(|@import|\bfetch\(|XMLHttpRequest|WebSocket""", page.replace(PANEL_JS, "") + PANEL_JS
    )
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


def test_size_of_the_page(tmp_path):
    n = 10_000
    xy = np.random.default_rng(0).normal(size=(n, 2))
    bare = PairedView(**view_state({"pca": projection(xy, xy)}, np.arange(n) % 100))
    assert len(page_html(bare)) < 500_000


def test_still_picture_shows_both_sides():
    picture = np.asarray(Image.open(io.BytesIO(still_png(view(400), width=420))).convert("L"))
    assert picture.shape == (228, 420) and picture[28:, :200].std() > 5 and picture[28:, 220:].std() > 5


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(labels=[0, 1]), r"labels must be \(3,\)"),
        (dict(labels=[0, 1, 5], class_names=["a", "b"]), "2 class names for 3 classes"),
        (dict(keys=["a"]), "1 keys for 3 items"),
        (dict(images=np.zeros((2, 4, 4))), "2 images for 3 items"),
        (dict(labels=[0, 1, 1], class_spread=np.zeros((3, 2))), "3 rows for 2 classes"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        view_state({"pca": projection(np.zeros((3, 2)), np.ones((3, 2)))}, **change)
