"The neighbour dashboard's logic without a browser: tables, mistakes, what it accepts, shares and refuses."

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("anywidget", reason="needs the extra lab")

from mdprop.dashboards.neighbours import MISTAKES, NeighbourDashboard, first_right, neighbour_table
from mdprop.data import glyphs
from mdprop.retrieval import nearest_neighbours, retrieval_metrics
from mdprop.runs import Snapshot

HOSTILE = ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "{{7*7}}&amp;<b>bold</b>"]


def unit(z):
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def spaces(n=90, classes=6, dim=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    before = unit(rng.normal(size=(classes, dim))[labels] + rng.normal(size=(n, dim)))
    return before, unit(before + 0.4 * rng.normal(size=(n, dim))), labels


@pytest.fixture(scope="module")
def dashboard():
    before, after, labels = spaces()
    labels[:6] = range(6)
    return NeighbourDashboard(before, after, labels, np.zeros((90, 1, 12, 12)), [*HOSTILE, "d", "e", "f"], k=4, names=("plain", "<b>mdprop</b>"))


@given(st.integers(2, 40), st.integers(1, 12), st.integers(1, 5), st.integers(0, 3))
def test_first_right_is_that_of_a_full_sort(n, classes, k, seed):
    z, _, labels = spaces(n, classes, 3, seed)
    near = nearest_neighbours(z, min(k, n - 1))
    full = nearest_neighbours(z, n - 1)
    hits = labels[full.indices] == labels[:, None]
    expected = np.where(hits.any(1), hits.argmax(1) + 1, 0)
    got = first_right(z, labels, near, block=7)
    assert (got == expected).mean() > 0.95 and ((got == 0) == (expected == 0)).all()  # ties beyond the list may round otherwise
    assert np.abs(got - expected).max() <= 1


def test_mistakes_are_what_recall_at_1_counts():
    before, after, labels = spaces(300, 20)
    table = neighbour_table(before, after, labels)
    for side, z in (("wrong_before", before), ("wrong_after", after)):
        counted = np.bincount(labels)[labels] > 1
        assert 1 - len(table.mistakes(side)) / counted.sum() == pytest.approx(retrieval_metrics(z, labels)["recall_at_1"])
    both, mended, broken = (set(table.mistakes(kind)) for kind in ("wrong_both", "mended", "broken"))
    assert both | mended == set(table.mistakes("wrong_before")) and both | broken == set(table.mistakes("wrong_after"))
    assert not mended & broken and not both & (mended | broken)


def test_an_image_alone_in_its_class_makes_no_mistake():
    z = unit(np.random.default_rng(0).normal(size=(5, 3)))
    table = neighbour_table(z, z, np.array([0, 0, 0, 0, 1]))
    assert all(4 not in table.mistakes(kind) for kind in MISTAKES) and table.first_before[4] == 0


def test_the_table_of_an_image_tells_kept_lost_and_gained():
    before, after, labels = spaces()
    table = neighbour_table(before, after, labels, 8).of(3, 5)
    lists = {side: part["item"].tolist() for side, part in table.groupby("side")}
    for row in table.itertuples():
        other = lists["after" if row.side == "before" else "before"]
        assert row.there == (other.index(row.item) + 1 if row.item in other else 0)
        z = before if row.side == "before" else after
        assert row.distance == pytest.approx(1 - float(z[3] @ z[row.item]), abs=1e-5) and row.right == (labels[row.item] == labels[3])
    assert [part["distance"].is_monotonic_increasing for _, part in table.groupby("side")] == [True, True]


def test_the_packed_table_holds_what_the_table_holds():
    before, after, labels = spaces()
    table = neighbour_table(before, after, labels, 7)
    packed = table.packed()
    assert packed["width"] == 7 and (np.frombuffer(packed["labels"], "<u4") == labels).all()
    for side, near in (("before", table.before), ("after", table.after)):
        assert (np.frombuffer(packed[f"neighbours_{side}"], "<u2").reshape(90, 7) == near.indices).all()
        distances = np.frombuffer(packed[f"distances_{side}"], "<u2").reshape(90, 7) / 65535 * 2
        assert np.abs(distances - (1 - near.similarities)).max() < 2e-5
    assert (np.frombuffer(packed["first_after"], "<u4") == table.first_after).all()


def test_two_thousand_images_take_less_than_two_megabytes():
    rng = np.random.default_rng(0)
    z, labels = unit(rng.normal(size=(2000, 32))), np.arange(2000) % 100
    shown = NeighbourDashboard(z, z, labels, rng.integers(0, 255, (2000, 3, 48, 48), dtype=np.uint8))  # noise: nothing compresses worse
    sent = [value for name in shown.widget.trait_names(sync=True) if isinstance(value := getattr(shown.widget, name), bytes)]
    assert sum(map(len, sent)) + len("".join(shown.widget.item_keys)) < 2_000_000 and shown.widget.sprite


def test_state_is_shared_both_ways_and_goes_through_json(dashboard):
    dashboard.item = np.int64(17)
    dashboard.widget.set_state({"k": 3, "source": "wrong_after", "search": "image"})
    assert dashboard.state.as_dict() == {"item": 17, "k": 3, "source": "wrong_after", "search": "image"}
    assert len(dashboard.neighbours) == 6
    dashboard.state.load(json.loads(json.dumps({"item": 0, "k": 4, "source": "own", "search": ""})))
    assert dashboard.widget.item == 0 and dashboard.widget.source == "own"


@pytest.mark.parametrize("values", [{"item": 90}, {"item": -1}, {"k": 17}, {"k": 0}, {"source": "class 6"}, {"source": "<b>"}])
def test_settings_that_do_not_fit_are_refused_and_change_nothing(dashboard, values):
    before = dashboard.state.as_dict()
    with pytest.raises(ValueError, match="cannot be"):
        dashboard.state.load(values)
    assert dashboard.state.as_dict() == before


def test_an_image_from_a_selection(dashboard):
    for index in (3, np.int64(3), np.array([3, 9])[0]):
        dashboard.item = index
        assert dashboard.item == 3
    with pytest.raises(ValueError, match="there are images 0 to 89"):
        dashboard.item = 90


def test_the_page_holds_no_markup_of_names(dashboard, tmp_path):
    text = dashboard.save_html(tmp_path / "neighbours.html").read_text()
    assert "<img src=x" not in text and "<script>alert" not in text and "&lt;b&gt;mdprop" in text
    assert "kinds.neighbours =" in text and "plotly.js" not in text


def test_runs_bring_names_keys_and_thumbnails_and_may_get_larger_images():
    data = glyphs(classes=3, per_class=4)
    z, _, _ = spaces(12)
    one = Snapshot(z, data.labels.numpy(), data.class_names, data.keys, data.thumbnails(16), run="plain")
    small, large = NeighbourDashboard(one, one), NeighbourDashboard(one, one, images=data)
    assert small.names == ("plain", "plain") and small.widget.item_keys == data.keys
    assert small.widget.sprite_grid == [4, 16] and large.widget.sprite_grid == [4, 32]
    with pytest.raises(ValueError, match="in the same order"):
        NeighbourDashboard(one, one, images=data.subset([*range(1, 12), 0]))
    with pytest.raises(ValueError, match="5 images for 12 items"):
        NeighbourDashboard(one, one, images=np.zeros((5, 8, 8)))


def test_images_as_a_list():
    z = np.eye(3, dtype=np.float32)
    assert NeighbourDashboard(z, z, images=[np.zeros((8, 8))] * 3).widget.sprite_grid == [2, 8]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_few_images(n, tmp_path):
    z = np.eye(3, dtype=np.float32)[:n]
    shown = NeighbourDashboard(z, z, np.arange(n))
    assert shown.widget.width == n - 1 and len(shown.neighbours) == 2 * (n - 1) and shown.save_html(tmp_path / "few.html").exists()


@pytest.mark.parametrize("settings", [dict(k=0), dict(width=0)])
def test_no_neighbours_are_refused(settings):
    z = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match="give 1 or more"):
        NeighbourDashboard(z, z, **settings)
