"Common layouts: what a rotation must not change, what a picture must not hide, and the measure of its error."

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mdprop.project import common_layout, picture_density, picture_window, procrustes, trustworthiness


def unit(z):
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


@given(st.integers(2, 40), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_rotated_space_gives_the_same_picture(n, dim, seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, dim))
    turned = z @ np.linalg.qr(rng.normal(size=(dim, dim)))[0] + 3
    before, after = common_layout(z, turned)
    assert before.dtype == np.float32 and before.shape == after.shape == (n, 2)
    assert np.abs(before - after).max() < 1e-4


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_procrustes_keeps_distances_and_cannot_be_beaten(dim_before, dim_after, seed):
    rng = np.random.default_rng(seed)
    one, two = rng.normal(size=(30, dim_before)), rng.normal(size=(30, dim_after))
    a, b = procrustes(one, two)
    assert np.allclose(np.linalg.norm(b[:, None] - b, axis=-1), np.linalg.norm(two[:, None] - two, axis=-1), atol=1e-9)
    for _ in range(5):
        other = b @ np.linalg.qr(rng.normal(size=(a.shape[1], a.shape[1])))[0]
        assert np.square(a - b).sum() <= np.square(a - other).sum() + 1e-9


def test_pca_is_that_of_both_spaces_together():
    "No other two axes through the two spaces, as they lie in the common basis, hold more of their spread; no distance is stretched."
    rng = np.random.default_rng(0)
    one = rng.normal(size=(200, 6)) * [5, 3, 1, 1, 1, 1]
    two = one @ np.linalg.qr(rng.normal(size=(6, 6)))[0] * 1.5 + 4
    both = np.concatenate(common_layout(one, two))
    best = np.linalg.svd(np.concatenate([one - one.mean(0), (one - one.mean(0)) * 1.5]))[1][:2]
    assert np.isclose(np.square(both - both.mean(0)).sum(), np.square(best).sum(), rtol=0.02)
    far = lambda m: np.linalg.norm(m[:, None] - m, axis=-1)
    for z, xy in zip((one, two), common_layout(one, two), strict=True):
        assert (far(xy) <= far(z) + 1e-4).all()


@given(st.integers(60, 200), st.integers(2, 8), st.integers(0, 99), st.booleans())
@settings(max_examples=30, deadline=None)
def test_what_did_not_change_stays_in_pca(n, dim, seed, together):
    "A quarter of the items goes a long way together, or half of them each its own way: the others keep their places (least squares moves them all)."
    rng = np.random.default_rng(seed)
    z, changed = rng.normal(size=(n, dim)), np.arange(n) % (4 if together else 2) == 0
    other = z + np.where(changed[:, None], 10 * rng.normal(size=dim) if together else 3 * rng.normal(size=(n, dim)), 0)
    before, after = common_layout(z, other @ np.linalg.qr(rng.normal(size=(dim, dim)))[0])
    moved = np.linalg.norm(before - after, axis=1)
    assert moved[~changed].mean() < 0.05 * np.linalg.norm(other - z, axis=1)[changed].mean()


def test_same_input_same_layout_for_tensors_and_arrays():
    z = unit(np.random.default_rng(0).normal(size=(50, 5)))
    for a, b in zip(common_layout(z, -z), common_layout(torch.tensor(z), torch.tensor(-z)), strict=True):
        assert np.array_equal(a, b)


def test_umap_does_not_move_what_did_not_change():
    pytest.importorskip("umap", reason="needs the extra lab")
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(5), 40)
    centres = rng.normal(size=(5, 12)) * 3
    z = centres[cluster] + rng.normal(size=(200, 12))
    before, after = common_layout(unit(z), unit(z @ np.linalg.qr(rng.normal(size=(12, 12)))[0]), method="umap", cache=None)
    moved = np.linalg.norm(before - after, axis=1)
    assert np.median(moved) < 0.1 * np.ptp(before, axis=0).max()
    assert trustworthiness(unit(z), before) > 0.9


def test_umap_with_doubles_and_few_items():
    pytest.importorskip("umap", reason="needs the extra lab")
    z = unit(np.repeat(np.random.default_rng(0).normal(size=(4, 3)), 3, axis=0))
    before, after = common_layout(z, z, method="umap", cache=None)
    assert np.isfinite(before).all() and np.isfinite(after).all()


@pytest.mark.parametrize("rows, k", [(None, 5), (None, 12), (40, 5)])
def test_trustworthiness_agrees_with_the_definition(rows, k):
    rng = np.random.default_rng(0)
    z, xy = rng.normal(size=(60, 7)), rng.normal(size=(60, 2))
    n, penalty = 60, []
    for i in range(n):
        true, seen = (np.argsort(np.where(np.arange(n) == i, np.inf, np.linalg.norm(m - m[i], axis=1))) for m in (z, xy))
        rank = {j: r for r, j in enumerate(true, 1)}
        penalty.append(sum(max(0, rank[j] - k) for j in seen[:k]))
    exact = 1 - 2 * np.mean(penalty) / (k * (2 * n - 3 * k - 1))
    assert np.isclose(trustworthiness(z, xy, k, rows, block=7), exact, atol=1e-6 if rows is None else 0.05)


def test_bad_input_says_what_to_do():
    z = np.eye(6)
    with pytest.raises(ValueError, match="before has 6 rows and after has 5: embed the same items"):
        common_layout(z, z[:5])
    with pytest.raises(ValueError, match="the first is row 2"):
        common_layout(z, np.where(np.arange(6)[:, None] == 2, np.nan, z))
    with pytest.raises(ValueError, match=r"shape \(6,\)"):
        common_layout(z[0], z[0])
    with pytest.raises(ValueError, match="method must be"):
        common_layout(z, z, method="isomap")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="below n / 2"):
        trustworthiness(z, z[:, :2], k=3)


def test_edges_of_size():
    one = np.ones((1, 3))
    assert np.array_equal(common_layout(one, one)[0], np.zeros((1, 2)))
    line = np.arange(5.0)[:, None]
    before, after = common_layout(line, -line)
    assert np.allclose(before, after) and np.allclose(before[:, 1], 0)


def test_density_counts_every_item_inside_the_window():
    rng = np.random.default_rng(0)
    xy = rng.normal(size=(1000, 2)).astype(np.float32)
    window = picture_window(xy, xy * 2)
    assert np.isclose(picture_density(xy, window, 0.02).sum(), 1000, rtol=1e-3)
    assert picture_window(np.zeros((1, 2), np.float32))[2] == 1
