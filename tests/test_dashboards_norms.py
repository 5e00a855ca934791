"NormDashboard and the distances behind it; without a browser."

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("anywidget", reason="needs the extra lab")

from mdprop.dashboards.norms import NormDashboard, affine_distance, norm_distances, short_names, statistics_distance
from mdprop.data import glyphs
from mdprop.model import Embedder
from mdprop.norm import convert_multi_norm
from mdprop.recipes import RECIPES
from mdprop.train import fit

QUICK = dict(epochs=1, width=4, dim=8, batch_size=16, per_class=2, progress=False)
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def few():
    return glyphs(classes=60, per_class=8, size=24).keep_classes(range(0, 60, 5))


@pytest.fixture(scope="module")
def run(few, tmp_path_factory):
    return fit(few, RECIPES["mdprop"](share=None), tmp_path_factory.mktemp("runs") / "mdprop", **QUICK)


def model(domains=("clean", "single", "multi"), share=None):
    torch.manual_seed(0)
    return convert_multi_norm(Embedder("resnet10", dim=8, image_shape=(1, 24, 24), width=4), domains, share=share)


number = st.floats(-3, 3)
positive = st.floats(0.01, 9)


@given(number, positive, number, positive)
def test_statistics_distance_is_the_symmetric_divergence_of_gaussians(m1, v1, m2, v2):
    one, two = (torch.distributions.Normal(torch.tensor(m, dtype=torch.float64), torch.tensor(v, dtype=torch.float64).sqrt()) for m, v in ((m1, v1), (m2, v2)))
    expected = torch.distributions.kl_divergence(one, two) + torch.distributions.kl_divergence(two, one)
    arrays = [np.array([x]) for x in (m1, v1, m2, v2)]
    assert statistics_distance(*arrays, eps=0)[0] == pytest.approx(float(expected), rel=1e-6, abs=1e-9)
    assert statistics_distance(*arrays[2:], *arrays[:2], eps=0)[0] == pytest.approx(float(expected), rel=1e-6, abs=1e-9)


@given(st.lists(st.tuples(number, number, number, number), min_size=1, max_size=5))
def test_affine_distance_is_what_one_would_measure(rows):
    w, b, v, c = np.array(rows).T
    if (v**2 + c**2).sum() < 1e-3:
        return
    x = np.array([-1.0, 1.0])[:, None]  # mean 0, variance 1
    measured = np.sqrt(((w * x + b - v * x - c) ** 2).mean()) / np.sqrt(((v * x + c) ** 2).mean())
    assert np.sqrt((affine_distance(w, b, v, c) ** 2).mean()) == pytest.approx(measured, rel=1e-9, abs=1e-12)


def test_only_what_was_pushed_shows():
    built = model()
    norm = built.backbone.layer2[0].bn1
    norm.domain_norms["multi"].running_var *= 4
    norm.domain_norms["single"].bias.data += 1
    found = norm_distances(built)
    row = found.layers.index("backbone.layer2.0.bn1")
    assert found.domains == ("single", "multi") and np.count_nonzero(found.statistics) == np.count_nonzero(found.affine) == 1
    assert found.statistics[row, 1] == pytest.approx((4 + 1 / 4) / 2 - 1, rel=1e-3)
    assert found.affine[row, 0] == pytest.approx(1, rel=1e-6)  # weights 1, biases 0: all of the output's size
    assert found.tensors[found.layers[row]]["bias"]["single"].tolist() == [1] * norm.num_features
    back = norm_distances(built, "single")
    assert back.domains == ("clean", "multi") and back.affine[row, 0] == pytest.approx(1 / np.sqrt(2))  # a share of the other's output
    assert found.table().loc[found.layers[row], "statistics, multi"] == found.statistics[row, 1]


def test_the_model_is_left_as_it_is():
    built = model()
    before = {name: value.clone() for name, value in built.state_dict().items()}
    built.train()
    norm_distances(built)
    assert built.training and all(torch.equal(before[name], value) for name, value in built.state_dict().items())


def test_what_is_shared_or_not_there_is_no_number():
    shared = norm_distances(model(share="statistics"))
    assert np.isnan(shared.statistics).all() and (shared.affine == 0).all() and "running_mean" not in shared.tensors[shared.layers[0]]
    shared = norm_distances(model(share="affine"))
    assert np.isnan(shared.affine).all() and (shared.statistics == 0).all()
    layers = convert_multi_norm(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm((4,)), nn.GroupNorm(2, 4), nn.BatchNorm1d(4, affine=False)))
    found = norm_distances(layers)
    assert np.isnan(found.statistics[:2]).all() and np.isnan(found.affine[2]).all() and np.isfinite(found.affine[:2]).all()
    board = NormDashboard(layers)
    for row in range(3):
        for quantity in ("running_mean", "running_var", "weight", "bias"):
            board.pick(row)
            board.state.quantity = quantity
    assert "n/a" in str(board._view.charts[0].figure.data[0].text)


def test_names():
    assert short_names(("a.b.c", "a.b.d.e")) == ["c", "d.e"] and short_names(("a.b", "a.b.c")) == ["b", "b.c"]


def test_controls_and_clicks_reach_the_state(run):
    board = NormDashboard(run)
    assert (board.state.layer, board.state.reference) == ("", ""), "to draw is no choice of the user's"
    board._view.charts[1]._heard(None, {"kind": "click", "trace": 0, "point": [4, 0]}, [])
    assert (board.state.layer, board.state.domain) == (board.found.layers[4], "single") and board._view.layer.value == board.found.layers[4]
    frame = board._view.charts[0].figure.layout.shapes[0]
    assert (frame.y0, frame.x0) == (3.5, -0.5)
    board._view.layer.value = board.found.layers[2]
    board._view.quantity.value = "weight"
    assert board.state.layer == board.found.layers[2] and "weight" in board._view.charts[2].figure.layout.title.text
    board._view.reference.value = "multi"
    assert board.found.domains == ("clean", "single") and board.state.reference == "multi" and board.state.layer == board.found.layers[2]
    board._view.checkpoint.value = "last"
    board._work.wait(30)
    assert board.state.checkpoint == "last" and board._status.problem == ""
    again = NormDashboard(run)
    again.state.load(json.loads(json.dumps(board.state.as_dict())))
    again._work.wait(30)
    assert again.found.reference == "multi" and again._view.layer.value == board.found.layers[2]
    board._view.ground.theme = "dark"
    assert board._view.charts[2].figure.data[0].marker.color == "#56B4E9"


def test_mistakes_are_told(run, few, tmp_path):
    with pytest.raises(ValueError, match="unknown domain 'dirty'"):
        NormDashboard(run, "dirty")
    with pytest.raises(ValueError, match="give a run, its folder, or a converted model"):
        NormDashboard(np.zeros(3))
    board = NormDashboard(run)
    board.state.reference = "dirty"
    assert "unknown domain 'dirty'" in board._status.problem and board.found.reference == "clean"
    (run.path / "last.safetensors").rename(tmp_path / "last")
    board.state.checkpoint = "last"
    board._work.wait(30)
    assert "last.safetensors is missing" in board._status.problem
    (tmp_path / "last").rename(run.path / "last.safetensors")
    plain = NormDashboard(fit(few, "plain", tmp_path / "plain", **QUICK))
    assert "with the one domain" in plain._view.words.value and plain.found is None
    plain.pick(0)
    assert plain.save_html(tmp_path / "plain.html").exists()


def test_hostile_layer_names_are_text(tmp_path):
    layers = nn.ModuleDict({HOSTILE: nn.BatchNorm1d(3), "other": nn.BatchNorm1d(3)})
    board = NormDashboard(convert_multi_norm(layers))
    board.pick(0)
    assert board.state.layer == HOSTILE and "<img" not in board._view.words.value
    assert all("<img" not in str(name) for name in board._view.charts[0].figure.data[0].y)
    assert all("<img" not in chart.figure.layout.title.text for chart in board._view.charts)
    assert "<img src=x" not in board.save_html(tmp_path / "page.html").read_text(encoding="utf-8")
