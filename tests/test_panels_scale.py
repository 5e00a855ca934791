"Ten thousand, two hundred thousand, a million images: what is shown first, what travels, what is saved and what is left until somebody asks."

import json

import numpy as np
import pytest

pytest.importorskip("anywidget", reason="needs the extra lab")

from ipywidgets.embed import dependency_state
from ipywidgets.widgets.widget import _instances, _remove_buffers

from mdprop.dashboards import DensityDashboard, NeighbourDashboard, density, pair
from mdprop.panels import KEPT, PairedView, projection, unpack_positions, view_state

CLASSES = 50


def spaces(n: int, dim: int = 8, classes: int = CLASSES) -> tuple:
    "Two embeddings of n items, with their labels."
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    centres = rng.normal(size=(classes, dim)).astype(np.float32)
    rows = [spread * centres[labels] + rng.normal(size=(n, dim)).astype(np.float32) for spread in (0.5, 0.8)]
    return *(z / np.linalg.norm(z, axis=1, keepdims=True) for z in rows), labels


def pictures(n: int) -> np.ndarray:
    "(n, 1, 32, 32) uint8 pictures as smooth as photographs are when they are small."
    coarse = np.random.default_rng(1).random((n, 4, 4), np.float32)
    fade = np.stack([np.interp(np.linspace(0, 3, 32), range(4), corner) for corner in np.eye(4)], 1).astype(np.float32)
    return (255 * np.einsum("xi,nij,yj->nxy", fade, coarse, fade)).astype(np.uint8)[:, None]


def labels_of(board: DensityDashboard) -> set[str]:
    return {card["label"] for card in board.view.metrics}


def saved(board) -> int:
    "Bytes that a displayed dashboard adds to a notebook which keeps the state of its widgets."
    output = json.dumps(board._repr_mimebundle_()[0])
    return len(output) + len(json.dumps(dependency_state([board.widget], drop_defaults=False)))


def heard(view, message: dict) -> tuple[dict, list]:
    "What the view answers to a page."
    told = []
    view.send = lambda content, buffers=None: told.append((content, buffers))
    view._handle_custom_msg(message, [])
    del view.send
    return told[0]


def test_ten_thousand_images_add_less_than_a_megabyte_to_a_notebook_and_stay_alive_in_it():
    board = DensityDashboard(*spaces(10_000), images=pictures(10_000))
    board.wait()
    assert board.view.sprite_grid[1] >= 8 and set(board.view.values) == {"density", "density_change", "correct", "kept"}  # nothing was left out to save bytes
    assert saved(board) < 1_000_000
    assert not board.view.by_message and board.view.get_state()["classes"], "a notebook without its kernel can still be zoomed and brushed"


def test_a_hundred_thousand_points_are_few_bytes_on_the_wire_and_in_a_notebook(monkeypatch):
    monkeypatch.setattr(density, "UNASKED", 0)
    board = DensityDashboard(*spaces(100_000), images=pictures(100_000))
    board.wait()
    n = board.pair.n
    quantity = np.random.default_rng(0).random(n, np.float32)
    values = {"density": (quantity, quantity + 1), "density_change": (quantity, quantity), "correct": (quantity > 0.5,) * 2, "kept": (quantity, quantity)}
    board.view.values = pair.shown_values(values, 10)  # as heavy as the true ones, which would take minutes
    state, _, buffers = _remove_buffers(board.view.get_state())
    told, data = heard(board.view, {"kind": "whole", "for": "this page"})
    sent = len(json.dumps(state)) + len(json.dumps(told)) + sum(map(len, buffers)) + sum(map(len, data))
    assert sent < 3_000_000, f"{sent:,} bytes"
    assert told["for"] == "this page" and len(data) == len(told["paths"]) and {path[0] for path in told["paths"]} >= {"projections", "classes", "values"}
    assert saved(board) < 1_000_000 and board.view.still.startswith(b"\x89PNG"), "and there is a picture where no kernel is"


def test_the_neighbours_of_many_images_add_less_than_a_megabyte_to_a_notebook():
    board = NeighbourDashboard(*spaces(6000), images=pictures(6000))
    assert saved(board) < 1_000_000 and board.widget.still.startswith(b"\x89PNG")
    told, data = heard(board.widget, {"kind": "whole", "for": "this page"})
    assert set(told["state"]) == {"class_names", "item_keys"} and len(data) == 8 and sum(map(len, data)) > KEPT
    assert board.neighbours.item.max() < 6000, "in Python nothing is gone"
    assert len(board.blocks()[0]["labels"]) == 4 * 6000, "and an exported page has it all"


def test_data_that_grow_beyond_what_is_kept_leave_the_state():
    rng = np.random.default_rng(0)
    xy = rng.random((12_000, 2), np.float32)
    view = PairedView(**view_state({"pca": projection(xy, xy)}))
    assert not view.by_message
    told, held = [], dict(view.get_state())
    view.send = lambda content, buffers=None: told.append((content["whole"] if "whole" in content else False, content["changed"], len(buffers)))
    epochs = [rng.random((12_000, 2), np.float32) for _ in range(8)]
    view.projections = {"pca": projection(xy, xy, epochs=(epochs, epochs))}
    assert view.by_message and told == [(True, ["projections"], 20)] and view.get_state()["projections"] == {} and held["projections"]
    with view.hold_sync():
        view.suggestions, view.third = [dict(label="a", why="", mask=b"1")], "moves"
    assert told[1:] == [(False, ["suggestions"], 1)], "what changes later is told alone, and settings are no data"


def test_the_pictures_come_before_what_takes_longer():
    n = density.SOON + 1
    board = DensityDashboard(*spaces(n), images=pictures(n))
    assert labels_of(board) == {"pi_ratio", "rho"} and not board.view.values and not board.view.charts and not board.view.sprite
    assert board.view.measuring.startswith(f"Measuring {n:,} images")
    board._repr_mimebundle_()
    board.wait()
    assert labels_of(board) == {"Recall@1", "MAP@R", "pi_ratio", "rho", "trustworthiness"} and set(board.view.trust) == {"pca"}
    assert board.view.values and board.view.charts and board.view.sprite and board.view.suggestions and board.view.charts_for.startswith("2,000 of all 5,001")
    assert (board.view.measuring, board.view.unmeasured, board.view.problem) == ("", "", "")


def test_neighbours_of_many_are_found_when_asked(monkeypatch):
    monkeypatch.setattr(density, "UNASKED", 1000)
    n = density.SOON + 1
    board = DensityDashboard(*spaces(n))
    board.wait()
    assert "finding the neighbours of 5,001 images takes minutes" in board.view.unmeasured and not board.pair.found and not board.view.values
    board.state.k = 5  # nothing to measure anew yet
    board.wait()
    assert not board.pair.found and board.view.trust
    board.view.measure += 1  # as the button does it
    board.wait()
    assert board.pair.found and board.view.unmeasured == "" and board.view.values["density"]["unit"].endswith("neighbour 5") and "Recall@1" in labels_of(board)


def test_two_hundred_thousand_as_density_of_all_and_a_faithful_sample(monkeypatch):
    searched = []
    monkeypatch.setattr(pair, "nearest_neighbours", lambda *args, **kwargs: searched.append(args))
    before, after, labels = spaces(200_000, dim=4)
    labels = np.where(np.arange(len(labels)) < 1000, CLASSES, labels)  # and a small class
    board = DensityDashboard(before, after, labels)
    board.wait()
    entry, n = board.view.projections["pca"], board.pair.n
    assert (n, board.view.total, len(board.rows)) == (100_000, 200_000, 100_000)
    shares = np.bincount(labels[board.rows], minlength=CLASSES + 1) / np.bincount(labels)
    assert np.abs(shares - 0.5).max() < 0.002, "every class is drawn by its share"
    for side in ("before", "after"):
        assert np.frombuffer(entry[f"grid_{side}"], np.float32).sum() == pytest.approx(200_000, rel=1e-4), "the density counts all rows"
    assert np.isfinite(unpack_positions(entry["after"], n, entry["window"])).all()
    board.view.selection = bytes([255]) + bytes(n // 8 - 1)  # a lasso around the first eight points that are drawn
    assert board.selection.tolist() == board.rows[:8].tolist(), "indices are of the 200,000, not of the sample"
    hidden = np.setdiff1d(np.arange(100), board.rows)[0]
    with pytest.raises(ValueError, match=rf"item {hidden} is not among the 100,000 of 200,000 that are drawn"):
        board.selection = [hidden]
    assert searched == [] and board.view.unmeasured, "nobody has asked for neighbours"


def test_a_closed_dashboard_leaves_nothing_and_opens_again():
    before = set(_instances)
    board = DensityDashboard(*spaces(40))
    board._repr_mimebundle_()
    board.close()
    assert set(_instances) == before and board.view.comm is None
    board.selection = [1, 2]  # still a dashboard
    data, _ = board._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == board.view.model_id and len(set(_instances) - before) == 2
    board.close()
