"The dashboard's logic without a browser: what it accepts, measures, shares and refuses."

import json

import numpy as np
import pytest
import torch

pytest.importorskip("anywidget", reason="needs the extra lab")

from mdprop.dashboards import DensityDashboard
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
        assert shown == pytest.approx({"Recall@1": expected["recall_at_1"], "pi_ratio": expected["pi_ratio"], "rho": expected["rho"]})
    spread = np.frombuffer(dashboard.view.class_spread, np.float32).reshape(-1, 2)
    assert spread[:, 0].mean() == pytest.approx(density_metrics(dashboard.before.z, dashboard.before.labels)["pi_intra"], abs=1e-5)


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


def test_a_layout_is_computed_once(monkeypatch):
    calls = []
    shown = DensityDashboard(snapshot(), snapshot("mdprop", seed=1))
    original = shown._project
    monkeypatch.setattr(shown, "_project", lambda layout: (calls.append(layout), original("pca"))[1])
    shown.state.projection = "umap"
    shown.state.projection = "pca"
    shown.view.projection = "umap"
    shown.add_layout("umap")
    assert calls == ["umap"] and set(shown.view.projections) == {"pca", "umap"} and shown.view.busy == ""


def test_a_layout_that_fails_is_a_message(monkeypatch):
    shown = DensityDashboard(snapshot(), snapshot())
    monkeypatch.setattr(shown, "_project", lambda layout: (_ for _ in ()).throw(ImportError("umap is not installed: pip install 'mdprop[lab]'")))
    shown.view.projection = "umap"
    assert "pip install 'mdprop[lab]'" in shown.view.problem and shown.state.projection == "pca" == shown.view.projection and shown.view.busy == ""


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
    assert [m["label"] for m in bare.view.metrics] == ["rho"] and bare.view.class_names == ["all images"]


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
    assert by_path.view.projections == by_run.view.projections and by_path.view.sprite
