"The dashboard's logic without a browser: what it accepts, measures, shares and refuses."

import json
import threading
import time

import numpy as np
import pytest
import torch

pytest.importorskip("anywidget", reason="needs the extra lab")

from mdprop.dashboards import DensityDashboard, density
from mdprop.dashboards.density import sample_rows as density_sample
from mdprop.data import glyphs
from mdprop.density import density_metrics
from mdprop.retrieval import retrieval_metrics
from mdprop.runs import Snapshot


def unit(z):
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def snapshot(run="plain", seed=0, n=60, dim=6, **change):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 5
    values = dict(
        z=unit(rng.normal(size=(5, dim))[labels] + rng.normal(size=(n, dim))), labels=labels, class_names=list("abcde"),
        keys=[f"{c}/{i}.png" for i, c in enumerate(labels)], thumbnails=np.zeros((n, 8, 8, 3), np.uint8), name="test", run=run,
    )  # fmt: skip
    return Snapshot(**(values | change))


@pytest.fixture(scope="module")
def dashboard():
    return DensityDashboard(snapshot(), snapshot("mdprop", seed=1, dim=4))


def test_measures_are_those_of_the_full_space(dashboard):
    for side, at in ((dashboard.before, "before"), (dashboard.after, "after")):
        expected = density_metrics(side.z, side.labels) | retrieval_metrics(side.z, side.labels)
        shown = {m["label"]: m[at] for m in dashboard.view.metrics}
        named = {"Recall@1": "recall_at_1", "MAP@R": "map_at_r", "pi_ratio": "pi_ratio", "rho": "rho"}
        assert {label: shown[label] for label in named} == pytest.approx({label: expected[name] for label, name in named.items()})
        assert 0.5 < shown["trustworthiness"] <= 1
    spread = np.frombuffer(dashboard.view.class_table[0]["values"], np.float32)
    assert spread.mean() == pytest.approx(density_metrics(dashboard.before.z, dashboard.before.labels)["pi_intra"], abs=1e-5)


def test_names_keys_and_images_reach_the_view(dashboard):
    assert dashboard.view.titles == ["plain", "mdprop"] and dashboard.view.item_keys[3] == "3/3.png" and dashboard.view.sprite
    assert repr(dashboard).startswith("DensityDashboard('plain' -> 'mdprop', 60 items, 5 classes; Recall@1 ")


def test_state_is_shared_both_ways(dashboard):
    assert all(getattr(dashboard.view, name) == getattr(dashboard.state, name) for name in dashboard.state.trait_names())
    dashboard.state.bandwidth = 0.05
    assert dashboard.view.bandwidth == 0.05
    dashboard.view.set_state({"class_filter": [4], "selection": memoryview(b"\x06" + bytes(7))})
    assert dashboard.state.class_filter == [4] and dashboard.selection.tolist() == [1, 2]
    dashboard.selection = torch.tensor([59])
    assert json.loads(json.dumps(dashboard.state.as_dict()))["selection"] == [59]


def test_a_layout_is_computed_once_and_beside_the_page(monkeypatch):
    calls = []
    shown = DensityDashboard(snapshot(), snapshot("mdprop", seed=1))
    original = density.fit_layouts
    monkeypatch.setattr(density, "fit_layouts", lambda one, two, layout, seed, progress: (calls.append(layout), original(one, two, "pca", seed))[1])
    shown.state.projection = "umap"
    assert "UMAP layout of 60 images" in shown.view.busy
    shown.wait()
    shown.state.projection = "pca"
    shown.view.projection = "umap"
    shown.wait()
    shown.add_layout("umap")
    assert calls == ["umap"] and set(shown.view.projections) == {"pca", "umap"} and shown.view.busy == ""


def test_a_layout_that_fails_is_a_message(monkeypatch):
    shown = DensityDashboard(snapshot(), snapshot())

    def fail(*args, **kwargs):
        raise ImportError("umap is not installed: pip install 'mdprop[lab]'")

    monkeypatch.setattr(density, "fit_layouts", fail)
    shown.view.projection = "umap"
    shown.wait()
    assert "pip install 'mdprop[lab]'" in shown.view.problem and shown.state.projection == "pca" == shown.view.projection and shown.view.busy == ""


def test_cancel_goes_back_to_what_is_shown(monkeypatch):
    shown = DensityDashboard(snapshot(), snapshot())
    begun = threading.Event()

    def endless(*args, progress, **kwargs):
        while True:
            begun.set()
            progress(0.5)
            time.sleep(0.01)

    monkeypatch.setattr(density, "fit_layouts", endless)
    shown.view.projection = "densmap"
    assert begun.wait(10)
    shown.view.cancel += 1  # as the page's button does it
    shown.wait(10)
    assert shown.state.projection == "pca" == shown.view.projection and shown.view.busy == shown.view.problem == ""


@pytest.mark.parametrize("back", ["pca", "umap"])  # what is shown, and another one that is at hand
def test_what_is_no_longer_asked_for_is_not_shown(monkeypatch, back):
    shown = DensityDashboard(snapshot(), snapshot("mdprop", seed=1))
    begun, go_on, original = threading.Event(), threading.Event(), density.fit_layouts

    def slow(one, two, layout, seed, progress):
        if layout == "densmap":  # it does not hear that it is cancelled before its end
            begun.set()
            assert go_on.wait(60)
        return original(one, two, "pca", seed)

    monkeypatch.setattr(density, "fit_layouts", slow)
    shown.add_layout("umap")
    shown.state.projection = "densmap"
    assert begun.wait(60)
    shown.state.projection = back
    go_on.set()
    shown.wait(60)
    assert shown._shown["projection"] == back == shown.view.projection and shown.view.busy == ""
    assert "densmap" not in shown.view.projections


def test_values_and_charts_follow_k_and_the_selection(dashboard):
    dashboard.state.k = 5
    assert "neighbour 5" in dashboard.view.values["density"]["unit"]
    dashboard.selection = []
    dashboard.wait()
    every = dashboard.view.charts
    dashboard.selection = range(10, 30)
    dashboard.wait()
    assert dashboard.view.charts_for == "the 20 selected images" and dashboard.view.charts != every
    dashboard.selection = []
    dashboard.wait()
    assert dashboard.view.charts_for == "all 60 images" and dashboard.view.charts == every
    dashboard.state.k = 10


def test_large_sets_are_shown_before_their_neighbours_are_found(monkeypatch):
    monkeypatch.setattr(density, "SOON", 50)
    shown = DensityDashboard(snapshot(), snapshot("mdprop", seed=1))
    shown.selection = [3, 4]  # drawing its charts does not end the search
    shown.wait()
    assert list(shown.view.values) == ["density", "density_change", "correct", "kept"] and shown.view.charts_for == "the 2 selected images"
    assert [m["label"] for m in shown.view.metrics][:2] == ["Recall@1", "MAP@R"] and len(shown.view.class_table) == 6


def test_the_state_comes_back_from_json():
    one = DensityDashboard(snapshot(), snapshot("mdprop", seed=1))
    one.state.load({"third": "moves", "colour_by": "kept", "bandwidth": 0.04})
    one.selection = [2, 7]
    two = DensityDashboard(snapshot(), snapshot("mdprop", seed=1))
    two.state.load(json.loads(json.dumps(one.state.as_dict())))
    assert two.state.as_dict() == one.state.as_dict() and two.view.third == "moves" and two.selection.tolist() == [2, 7]
    with pytest.raises(ValueError, match="'third' cannot be 'fourth'"):
        two.state.load({"colour_by": "class", "third": "fourth"})
    assert two.state.colour_by == "kept"


def test_a_larger_image_is_sent_when_the_page_asks(dashboard, monkeypatch):
    sent = []
    monkeypatch.setattr(dashboard.view, "send", lambda content, buffers: sent.append((content, buffers)))
    for message in ({"kind": "image", "item": 3}, {"kind": "image", "item": 60}, {"kind": "image", "item": "3"}, {"kind": "other"}):
        dashboard._answer(dashboard.view, message, [])
    assert [content for content, _ in sent] == [{"kind": "image", "item": 3}] and sent[0][1][0].startswith(b"\x89PNG")


def test_more_rows_than_points_are_drawn_as_a_sample(monkeypatch):
    monkeypatch.setattr(density, "MOST_POINTS", 50)
    monkeypatch.setattr(density, "sample_rows", lambda labels: density_sample(labels, 50))
    shown = DensityDashboard(snapshot(n=200), snapshot("mdprop", seed=1, n=200))
    assert (shown.pair.n, shown.n, shown.view.total, shown.view.n) == (50, 200, 200, 50)
    assert np.bincount(shown.pair.labels).tolist() == [10] * 5
    grid = np.frombuffer(shown.view.projections["pca"]["grid_before"], np.float32)
    assert grid.sum() == pytest.approx(200, rel=0.01)  # counted from all
    shown.selection = shown.rows[[3, 8]]
    assert shown.selection.tolist() == shown.rows[[3, 8]].tolist()
    hidden = np.setdiff1d(np.arange(200), shown.rows)[0]
    with pytest.raises(ValueError, match=f"item {hidden} is not among the 50 of 200 that are drawn"):
        shown.selection = [hidden]
    assert {m["label"]: m["before"] for m in shown.view.metrics}["pi_ratio"] == pytest.approx(density_metrics(shown.before.z, shown.before.labels)["pi_ratio"])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(keys=[f"x{i}" for i in range(60)]), "60 differ, first the key of item 0, '0/0.png' and 'x0'.*measure both runs on the same images"),
        (dict(class_names=list("abcdz")), "first the class of item 4, 'e' and 'z'"),
        (dict(n=55), "hold 60 and 55 items"),
    ],
)
def test_other_items_are_refused_with_the_remedy(change, message):
    with pytest.raises(ValueError, match=message):
        DensityDashboard(snapshot(), snapshot("mdprop", **change))


def test_mixtures_and_wrong_arrays_are_refused():
    one = snapshot()
    with pytest.raises(ValueError, match="two arrays with labels"):
        DensityDashboard(one.z, one)
    with pytest.raises(ValueError, match="bring their own labels"):
        DensityDashboard(one, one, labels=one.labels)
    with pytest.raises(ValueError, match="length"):
        DensityDashboard(2 * one.z, one.z, one.labels)
    with pytest.raises(ValueError, match="3 class names for 5 classes"):
        DensityDashboard(one.z, one.z, one.labels, class_names=["a", "b", "c"])


def test_tensors_of_any_length_labels_with_gaps_and_no_labels():
    one = snapshot()
    shown = DensityDashboard(torch.tensor(3 * one.z), one.z, one.labels * 10 - 7, normalize=True)
    assert shown.view.class_names == ["-7", "3", "13", "23", "33"] and shown.names == ("embedding 1", "embedding 2")
    bare = DensityDashboard(one.z, one.z)
    assert [m["label"] for m in bare.view.metrics] == ["rho", "trustworthiness"] and bare.view.class_names == ["all images"]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_few_items(n, tmp_path):
    z = np.eye(3, dtype=np.float32)[:n]
    shown = DensityDashboard(z, z, np.arange(n))
    assert all(m["before"] is None or m["label"] != "Recall@1" for m in shown.view.metrics)
    assert shown.save_html(tmp_path / "few.html").exists()


def test_shown_by_jupyter_with_a_picture_for_places_without_widgets(dashboard):
    data, _ = dashboard._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"} <= set(data)


def test_runs_and_their_folders(tmp_path):
    from mdprop.runs import Run, save_snapshot

    for name, seed in (("plain", 0), ("mdprop", 1)):
        folder = tmp_path / name
        save_snapshot(folder, snapshot(name, seed))
        (folder / "config.json").write_text(json.dumps({"format": 1}))
    by_path, by_run = DensityDashboard(str(tmp_path / "plain"), tmp_path / "mdprop"), DensityDashboard(Run(tmp_path / "plain"), Run(tmp_path / "mdprop"))
    assert by_path.names == by_run.names == ("plain", "mdprop")
    assert by_path.view.projections == by_run.view.projections and by_path.view.sprite == by_run.view.sprite


def test_domains_attacked_inputs_and_epochs_of_runs(demo_folder):
    before, after = demo_folder / "plain", demo_folder / "mdprop"
    test = glyphs().split_classes()[1]
    shown = DensityDashboard(before, after, data=test, steps=1)
    assert [choice["value"] for choice in shown.view.domain_choices] == ["", "clean", "attacked"]
    assert [choice["value"] for choice in shown.view.inputs_choices] == ["clean", "single", "multi"]
    clean = shown.view.projections["pca"]
    shown.state.inputs = "single"
    shown.wait()
    arrows = shown.view.projections["pca"]
    assert shown.view.problem == "" and arrows["before"] == clean["before"] and arrows["attacked_after"] != clean["after"]
    shown.state.load({"inputs": "clean", "domain": "attacked"})
    shown.wait()
    other = shown.view.projections["pca"]
    assert shown.view.problem == "" and other["after"] != clean["after"] and "attacked_after" not in other
    shown.state.domain = "clean"
    shown.state.domain = "attacked"  # back, before the other one is there
    shown.wait()
    assert shown._shown["domain"] == "attacked" == shown.view.domain and shown.view.projections["pca"]["after"] == other["after"]
    epochs = DensityDashboard(before, after, snapshot="valid")
    assert epochs.view.epochs == ["epoch 0", "epoch 1"] and len(epochs.view.projections["pca"]["epochs_after"]) == 2
    last = [np.frombuffer(packed, np.float32) for packed in (epochs.view.projections["pca"]["epochs_after"][1], epochs.view.projections["pca"]["after"])]
    np.testing.assert_allclose(*last, atol=1e-4)
    with pytest.raises(ValueError, match="not those of the snapshot 'test'"):
        DensityDashboard(before, after, data=test.subset(range(20)))
    with pytest.raises(ValueError, match="validated on the same images"):
        DensityDashboard(snapshot(), snapshot(), snapshot="valid")
