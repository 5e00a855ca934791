"""Density against naive loops in float64; merging, order, duplicates and edges."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mdprop.density import DIRECTIONS, DensityStats, density_metrics, distance_overlap, hubness, local_log_density
from mdprop.retrieval import nearest_neighbours


def unit_rows(n, dim, seed=0, pull=0.0):
    "Random directions; `pull` draws them towards one."
    z = np.random.default_rng(seed).normal(size=(n, dim))
    z[:, 0] += pull
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def stats_of(z, labels):
    stats = DensityStats()
    stats.update(z, labels)
    return stats


def mean_distance(rows):
    return np.mean([1 - rows[i] @ rows[j] for i in range(len(rows)) for j in range(len(rows)) if i != j])


def naive(z, labels):
    "Roth et al.'s definitions, pair by pair, and the singular values themselves."
    z = np.asarray(z, np.float64)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    classes = [z[labels == label] for label in np.unique(labels)]
    intra = np.mean([mean_distance(rows) for rows in classes if len(rows) > 1])
    inter = mean_distance([rows.mean(0) / np.linalg.norm(rows.mean(0)) for rows in classes])
    return {"pi_intra": intra, "pi_inter": inter, "pi_ratio": intra / max(inter, 1e-8), "rho": naive_rho(z)}


def naive_rho(z, k=1):
    s = torch.linalg.svdvals(torch.as_tensor(np.asarray(z, np.float64))).numpy()[k - 1 :]
    s, uniform = s / s.sum(), 1 / len(s)
    return sum(uniform * np.log(uniform / value) for value in s)


def assert_close(mine, theirs, tolerance=1e-6):
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        assert mine[name] == pytest.approx(value, abs=tolerance), name


@pytest.mark.parametrize("n, dim, classes, pull", [(200, 16, 9, 0), (200, 16, 9, 3), (12, 40, 4, 1), (64, 64, 64 // 3, 0), (50, 2, 5, 0.5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_naive_loops(n, dim, classes, pull, dtype):
    z = unit_rows(n, dim, pull=pull).astype(dtype)
    labels = np.random.default_rng(1).integers(0, classes, n) * 12_345_678_901 - 3
    stats = stats_of(z, labels)
    assert_close(density_metrics(z, labels), naive(z, labels))
    for k in 1, 2, 3:
        if k <= min(n, dim):
            assert stats.rho(k) == pytest.approx(naive_rho(z, k), abs=1e-6)
    for spread, label in zip(stats.class_spread, stats.classes, strict=True):
        rows = np.asarray(z[labels == label], np.float64)
        if len(rows) > 1:
            assert spread == pytest.approx(mean_distance(rows), abs=1e-6)


def test_nearly_collapsed_classes_keep_their_digits():
    "A spread of 1e-6: the closed form must not drown it in cancellation."
    labels = np.repeat(np.arange(5), 20)
    z = unit_rows(5, 16)[labels] + 1e-3 * unit_rows(100, 16, seed=2)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    assert density_metrics(z, labels)["pi_intra"] == pytest.approx(naive(z, labels)["pi_intra"], rel=1e-6)


def test_rho_is_good_to_1e_6_down_to_weak_directions():
    z = unit_rows(400, 12) * np.logspace(0, -3.5, 12)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    stats = stats_of(z, np.zeros(400, int))
    assert stats.spectrum[-1] / stats.spectrum[0] < 1e-3
    assert stats.rho() == pytest.approx(naive_rho(z), abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=50), st.data())
def test_merging_parts_is_one_pass_in_any_order(labels, data):
    labels = np.array(labels)
    z = unit_rows(len(labels), 6)
    whole = stats_of(z, labels)
    order = np.array(data.draw(st.permutations(range(len(labels)))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(labels)), max_size=4)))
    merged = DensityStats()
    for part in np.split(order, cuts):
        other = stats_of(z[part], labels[part]) if len(part) else DensityStats()
        if data.draw(st.booleans()):
            merged.merge(other)
        else:
            other.merge(merged)
            merged = other
    assert merged.n == whole.n and (merged.classes == whole.classes).all() and (merged.counts == whole.counts).all()
    assert np.allclose(merged.spectrum**2, whole.spectrum**2, atol=1e-10)
    for name in "pi_intra", "pi_inter", "pi_ratio":
        assert getattr(merged, name) == pytest.approx(getattr(whole, name), abs=1e-9, nan_ok=True)


def test_batches_on_the_way_are_one_pass():
    z, labels = torch.tensor(unit_rows(500, 8)), torch.arange(500) % 37
    stats = DensityStats()
    for part in torch.arange(500).split(33):
        stats.update(z[part], labels[part])
    whole = stats_of(z, labels)
    assert stats.rho() == pytest.approx(whole.rho(), abs=1e-12) and stats.pi_ratio == pytest.approx(whole.pi_ratio, abs=1e-12)


def test_merging_leaves_the_other_alone_and_does_not_share_memory():
    a, b = stats_of(unit_rows(10, 3), np.arange(10) % 2), stats_of(unit_rows(9, 3, seed=1), np.arange(9) % 3)
    before = b.pi_ratio, b.rho(), b.n
    fresh = DensityStats()
    fresh.merge(b)
    fresh.merge(a); a.merge(b)
    fresh.update(unit_rows(5, 3), np.zeros(5, int))
    assert (b.pi_ratio, b.rho(), b.n) == before


def test_a_refused_batch_adds_nothing():
    stats = stats_of(unit_rows(10, 3), np.arange(10) % 2)
    long = np.ones((2**16 + 5, 3)) / 3**0.5
    long[2**16 + 2] = np.nan
    with pytest.raises(ValueError, match=f"row {2**16 + 2} of the embeddings holds NaN"):
        stats.update(long, np.zeros(len(long), int))
    with pytest.raises(ValueError, match="4 dimensions after others of 3"):
        stats.update(unit_rows(10, 4), np.arange(10))
    assert stats.n == 10 and len(stats.classes) == 2


def test_edges():
    z = unit_rows(30, 5)
    one = stats_of(z, np.full(30, 7))
    assert one.pi_intra > 0 and np.isnan([one.pi_inter, one.pi_ratio]).all() and np.isfinite(one.rho())
    lonely = stats_of(z, np.arange(30))
    assert np.isnan([lonely.pi_intra, lonely.pi_ratio]).all() and lonely.pi_inter > 0 and np.isnan(lonely.class_spread).all()
    single = stats_of(z[:1], [4])
    assert np.isnan([single.pi_intra, single.pi_inter, single.pi_ratio, single.rho(2)]).all() and single.rho() == pytest.approx(0)
    empty = DensityStats()
    assert empty.n == 0 and empty.rank == 0 and np.isnan([empty.pi_intra, empty.pi_inter, empty.pi_ratio, empty.rho()]).all()
    line = stats_of(np.array([[1.0], [-1.0], [1.0]]), [0, 0, 1])
    assert line.pi_intra == 2 and line.pi_inter == 1 and line.rho() == 0  # class 0 cancels out: it has no centre


def test_mixed_one_sample_classes_are_left_out_of_pi_intra_only():
    z, labels = unit_rows(20, 5), np.array([0] * 8 + [1] * 8 + [2, 3, 4, 5])
    assert stats_of(z, labels).pi_intra == pytest.approx(stats_of(z[:16], labels[:16]).pi_intra, abs=1e-12)
    assert_close(density_metrics(z, labels), naive(z, labels))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dim, used", [(8, 1), (8, 3), (128, 1), (128, 60), (512, 100)])
def test_unused_directions_make_rho_infinite(dim, used, dtype):
    random = np.random.default_rng(0)
    z = random.normal(size=(3_000, used)) @ random.normal(size=(used, dim))
    stats = DensityStats()
    stats.update((z / np.linalg.norm(z, axis=1, keepdims=True)).astype(dtype), np.arange(3_000) % 7)
    assert stats.rank == used and stats.rho() == np.inf and stats.rho(2) == (np.inf if used > 1 else pytest.approx(np.nan, nan_ok=True))


def test_duplicates():
    z = np.repeat(unit_rows(6, 4), 5, axis=0)
    stats = stats_of(z, np.repeat(np.arange(6), 5))
    assert stats.pi_intra == pytest.approx(0, abs=1e-12) and 0 <= stats.pi_ratio < 1e-12
    assert stats.rho() == pytest.approx(stats_of(z[::5], np.arange(6)).rho(), abs=1e-9)
    near = local_log_density(z, k=4)
    assert (near == np.inf).all() and np.isfinite(local_log_density(z, k=5)).all()


def test_local_density_equals_the_definition():
    z = unit_rows(80, 6)
    distances = np.sort(np.linalg.norm(z[:, None] - z, axis=2), axis=1)
    for k in 1, 10, 79:
        assert local_log_density(z, k) == pytest.approx(-np.log(distances[:, k]), abs=1e-6)
    with pytest.raises(ValueError, match="choose k from 1 to 79"):
        local_log_density(z, 80)


def test_hubness_equals_the_definition():
    near = nearest_neighbours(unit_rows(200, 20, pull=1), 10)
    found = [sum(i in row for row in near.indices) for i in range(200)]
    assert hubness(near) == pytest.approx(np.mean((np.array(found) - 10.0) ** 3) / np.std(found) ** 3)
    assert hubness(near.first(1)) != hubness(near)


def test_overlap_equals_all_pairs():
    z, labels = unit_rows(120, 4, pull=1), np.arange(120) % 7
    found = distance_overlap(z, labels, bins=20)
    pairs = [(1 - z[i] @ z[j], labels[i] == labels[j]) for i in range(120) for j in range(120) if i != j]
    same, other = (np.histogram([d for d, alike in pairs if alike == kind], bins=found.edges)[0] for kind in (True, False))
    assert found.intra == pytest.approx(same / same.sum(), abs=1e-12) and found.inter == pytest.approx(other / other.sum(), abs=1e-12)
    assert found.overlap == pytest.approx(np.minimum(same / same.sum(), other / other.sum()).sum())
    assert np.isnan(distance_overlap(z, np.arange(120)).overlap)


def test_every_measure_has_its_direction():
    assert set(density_metrics(unit_rows(9, 3), np.arange(9) % 3)) <= set(DIRECTIONS)
    assert {direction.generalises for direction in DIRECTIONS.values()} <= {"higher", "lower", ""}
