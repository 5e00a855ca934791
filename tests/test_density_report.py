"""Neighbour views and the report against naive loops; statistics that travel between processes and to disk; coverage of the intervals."""

import os
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from test_density import stats_of, unit_rows

from mdprop import density
from mdprop.density import (
    DIRECTIONS, DensityStats, _nearest_class, _nearest_pairs, _radius_ranks, _spread_without, class_density, class_pairs, density_report,
    distance_overlap, intrinsic_dimension, local_intrinsic_dimension, local_log_density, uniformity,
)
from mdprop.retrieval import nearest_neighbours


def same_statistics(a, b, tolerance=0.0):
    theirs = b.arrays()
    for name, value in a.arrays().items():
        assert value.shape == theirs[name].shape and value.dtype == theirs[name].dtype
        assert np.allclose(value, theirs[name], rtol=0, atol=tolerance), name


def test_one_public_class_of_statistics():
    classes = [name for name in density.__all__ if isinstance(getattr(density, name), type)]
    assert classes == ["Direction", "DensityStats", "DistanceOverlap", "DensityReport"]
    public = {name for name in dir(DensityStats) if not name.startswith("_")}
    assert public == {
        "update", "merge", "all_reduce", "arrays", "from_arrays", "save", "load", "n", "classes", "counts", "class_spread",
        "pi_intra", "pi_inter", "pi_ratio", "alignment", "rho", "spectrum", "rank", "effective_rank",
    }
    assert all(getattr(DensityStats, name).__doc__ for name in public)


# Statistics that travel


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(-(2**62), 2**62), max_size=30), st.integers(1, 6))
def test_arrays_and_files_round_trip(tmp_path_factory, labels, dim):
    stats = stats_of(unit_rows(len(labels), dim), np.array(labels)) if labels else DensityStats()
    same_statistics(DensityStats.from_arrays(stats.arrays()), stats)
    file = tmp_path_factory.mktemp("density") / "stats.npz"
    stats.save(file)
    back = DensityStats.load(str(file))
    assert isinstance(back, DensityStats)
    same_statistics(back, stats)
    back.update(unit_rows(4, dim, seed=1), np.arange(4))
    assert back.n == stats.n + 4


def test_a_loaded_file_goes_on_counting(tmp_path):
    z, labels = unit_rows(90, 5), np.arange(90) % 7
    half = stats_of(z[:50], labels[:50])
    half.save(tmp_path / "half.npz")
    half = DensityStats.load(tmp_path / "half.npz")
    half.update(z[50:], labels[50:])
    same_statistics(half, stats_of(z, labels), 1e-12)


def test_save_is_all_or_nothing(tmp_path, monkeypatch):
    file = tmp_path / "stats.npz"
    stats_of(unit_rows(10, 3), np.arange(10)).save(file)
    old = file.read_bytes()

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        stats_of(unit_rows(20, 3), np.arange(20)).save(file)
    assert [path.name for path in tmp_path.iterdir()] == ["stats.npz"] and file.read_bytes() == old


def test_what_is_not_ours_is_refused(tmp_path):
    file = tmp_path / "stats.npz"
    good = stats_of(unit_rows(10, 3), np.arange(10) % 4).arrays()
    with pytest.raises(FileNotFoundError):
        DensityStats.load(file)
    for content in b"", b"not a zip file", b"PK\x03\x04 cut off":
        file.write_bytes(content)
        with pytest.raises(ValueError, match="holds no density statistics"):
            DensityStats.load(file)
    np.savez(file, **{**good, "labels": np.array([{"a": 1}], dtype=object)}, allow_pickle=True)
    with pytest.raises(ValueError, match="holds no density statistics"):
        DensityStats.load(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("labels.npy", b"nothing")
    with pytest.raises(ValueError, match="holds no density statistics"):
        DensityStats.load(file)
    np.save(tmp_path / "array.npy", np.arange(3))
    with pytest.raises(ValueError, match="holds no density statistics"):
        DensityStats.load(tmp_path / "array.npy")
    for name, bad, why in [
        ("sums", good["sums"][:, :2], "do not belong together"), ("counts", good["counts"][:-1], "do not belong together"),
        ("gram", good["gram"].astype(np.float32), "give int64"), ("labels", good["labels"][::-1], "must rise"),
        ("counts", good["counts"] * 0, "positive"), ("gram", good["gram"] * np.nan, "finite"), ("labels", np.int64(3), "do not belong together"),
    ]:
        with pytest.raises(ValueError, match=why):
            DensityStats.from_arrays({**good, name: bad})


PROCESS = """
import sys
import numpy as np, torch
from torch import distributed
from mdprop.density import DensityStats
rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
data = np.load(f"{folder}/data.npz")
z, labels, owner = data["z"], data["labels"], data["owner"]
mine = DensityStats()
if (owner == rank).any():
    mine.update(z[owner == rank], labels[owner == rank])
n = mine.n
mine.all_reduce().save(f"{folder}/first-{rank}.npz")
assert mine.n == n
mine.all_reduce().save(f"{folder}/second-{rank}.npz")
assert DensityStats().all_reduce().n == 0
other = DensityStats()
other.update(np.eye(2 + rank % 2), np.arange(2 + rank % 2))
try:
    other.all_reduce()
except ValueError as error:
    assert "[2, 3] dimensions" in str(error), error
else:
    raise AssertionError("other dimensions were added up")
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("world", [2, 3])
def test_all_reduce_equals_one_process(tmp_path, world):
    "Classes are spread unevenly, some live in one process only, and the last of three processes has no rows at all."
    z, labels = unit_rows(200, 6), np.random.default_rng(1).integers(-3, 20, 200) * 10**10
    owner = np.where(labels > 0, 0, 1)
    owner[:30] = 0
    np.savez(tmp_path / "data.npz", z=z, labels=labels, owner=owner)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-c", PROCESS]
    running = [subprocess.Popen([*command, str(rank), str(world), str(tmp_path)], env=env, stderr=subprocess.PIPE, text=True) for rank in range(world)]
    try:
        for process in running:
            _, errors = process.communicate(timeout=100)
            assert process.returncode == 0, errors
    finally:
        for process in running:
            process.kill()
    whole = stats_of(z, labels)
    for rank in range(world):
        for turn in "first", "second":  # a second call does not count twice
            found = DensityStats.load(tmp_path / f"{turn}-{rank}.npz")
            same_statistics(found, whole, 1e-11)
            assert found.pi_ratio == pytest.approx(whole.pi_ratio, abs=1e-9) and found.rho() == pytest.approx(whole.rho(), abs=1e-9)


def test_all_reduce_alone_is_a_copy():
    stats = stats_of(unit_rows(20, 4), np.arange(20) % 3)
    copy = stats.all_reduce()
    same_statistics(copy, stats)
    copy.update(unit_rows(5, 4), np.zeros(5, int))
    assert stats.n == 20 and copy.n == 25 and isinstance(copy, DensityStats)


# Measures


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.integers(1, 9), st.floats(0, 3))
def test_effective_rank_alignment_and_uniformity_equal_naive_loops(labels, dim, pull):
    z, labels = unit_rows(len(labels), dim, pull=pull), np.array(labels)
    stats = stats_of(z, labels)
    s = np.linalg.svd(z, compute_uv=False)
    s = s[s > 1e-6 * s[0]] / s[s > 1e-6 * s[0]].sum()
    assert stats.effective_rank == pytest.approx(np.exp(-np.sum(s * np.log(s))), abs=1e-5)
    assert 1 - 1e-9 <= stats.effective_rank <= min(len(z), dim) + 1e-9
    squared = [(np.sum((z[i] - z[j]) ** 2), labels[i] == labels[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
    positive = [d for d, alike in squared if alike]
    assert stats.alignment == (pytest.approx(np.mean(positive), abs=1e-9) if positive else pytest.approx(np.nan, nan_ok=True))
    for t in 0.5, 2.0:
        assert uniformity(z, t) == pytest.approx(np.log(np.mean([np.exp(-t * d) for d, _ in squared])), abs=1e-9)


def test_uniformity_by_blocks_and_by_queries():
    z = unit_rows(3_000, 8).astype(np.float32)
    exact = uniformity(z, queries=3_000)
    wide = z.astype(np.float64)
    squares = 2 - 2 * wide @ wide.T
    assert exact == pytest.approx(np.log((np.exp(-2 * squares).sum() - 3_000) / (3_000 * 2_999)), abs=1e-6)
    drawn = [uniformity(z, queries=500, seed=seed) for seed in range(3)]
    assert len(set(drawn)) == 3 and np.allclose(drawn, exact, atol=0.05)
    assert uniformity(torch.as_tensor(z), queries=500, seed=1) == drawn[1]


@settings(deadline=None, max_examples=25)
@given(st.integers(4, 40), st.integers(2, 6), st.integers(2, 8), st.booleans())
def test_intrinsic_dimension_equals_the_formula(n, dim, k, twice):
    z = unit_rows(n, dim)
    z = np.concatenate([z, z]) if twice else z
    k = min(k, len(z) - 1)
    found = local_intrinsic_dimension(z, k)
    for row, value in enumerate(found):
        r = np.delete(np.linalg.norm(z - z[row], axis=1), row)
        r = np.sort(r)[:k]
        r = r[r > 0]
        expected = 1 / np.mean(np.log(r[-1] / r[:-1])) if len(r) > 1 and r[0] < r[-1] else np.nan
        if np.isfinite(expected):
            assert value == pytest.approx(expected, rel=1e-4)
    finite = found[np.isfinite(found)]
    if len(finite):
        assert intrinsic_dimension(finite) == pytest.approx(1 / np.mean(1 / finite))
    assert np.isnan(intrinsic_dimension(np.array([np.nan])))


def test_nearest_centres_equal_all_pairs(monkeypatch):
    z = torch.as_tensor(unit_rows(40, 5))
    pairs = sorted((float(1 - z[a] @ z[b]), a, b) for a in range(40) for b in range(a + 1, 40))
    for top in 1, 17, 780, 5_000:
        first, second, distance = _nearest_pairs(z, top)
        assert distance == pytest.approx([d for d, _, _ in pairs[:top]], abs=1e-12)
        assert [*zip(first.tolist(), second.tolist(), strict=True)] == [(a, b) for _, a, b in pairs[:top]]
    place, distance = _nearest_class(z)
    for a in range(40):
        assert (distance[a], place[a]) == pytest.approx(min((float(1 - z[a] @ z[b]), b) for b in range(40) if b != a))


def test_many_centres_go_by_blocks():
    z = torch.as_tensor(unit_rows(3_000, 3))
    first, second, distance = _nearest_pairs(z, 50)
    cosines = (z @ z.T).masked_fill(torch.ones(3_000, 3_000).tril().bool(), -2).flatten().topk(50).values
    assert distance == pytest.approx((1 - cosines).numpy(), abs=1e-12) and (first < second).all()
    assert _nearest_class(z)[1].min() == pytest.approx(distance[0])


def test_class_tables_equal_the_definitions():
    z, labels = unit_rows(150, 5, pull=1), np.random.default_rng(1).integers(0, 6, 150) * 11
    table, k = class_density(z, labels, k=7), 7
    near = nearest_neighbours(z, 10)
    pd.testing.assert_frame_equal(class_density(z, labels, k, near), table)
    density, local = local_log_density(z, k), local_intrinsic_dimension(z, k)
    for row in table.itertuples(index=False):
        own = labels == row[0]
        assert row.n == own.sum()
        assert row.local_log_density == pytest.approx(np.median(density[own])) and row.intrinsic_dimension == pytest.approx(1 / np.mean(1 / local[own]))
    assert set(table.columns[2:]) - {"nearest_class"} <= set(DIRECTIONS)
    pairs = class_pairs(z, labels, top=4)
    assert len(pairs) == 4 and pairs.centre_distance.is_monotonic_increasing and pairs.centre_distance[0] == pytest.approx(table.centre_distance.min())
    for pair in pairs.itertuples():
        both = (labels == pair.class_a) | (labels == pair.class_b)
        assert pair.distance_overlap == pytest.approx(distance_overlap(z[both], labels[both]).overlap)
    with pytest.raises(ValueError, match="at least one pair"):
        class_pairs(z, labels, top=0)


# The report


def rotated(z, seed=3):
    return z @ np.linalg.qr(np.random.default_rng(seed).normal(size=(z.shape[1],) * 2))[0]


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 8), min_size=4, max_size=60), st.integers(2, 8))
def test_a_space_compared_with_itself_has_not_changed(labels, dim):
    z = unit_rows(len(labels), dim).astype(np.float32)
    report = density_report(z, z, np.array(labels), k=2, resamples=50)
    for table in report.overall, report.classes, report.regions, report.items:
        change = table["change"].to_numpy()
        assert (change[~np.isnan(change)] == 0).all()
        known = table[table["low"].notna() & table["high"].notna()]
        assert (known["low"] <= 0).all() and (known["high"] >= 0).all()
        assert set(table["shown"]) <= {"not shown", "no interval"}
    assert len(report.classes) == len(report.regions) == len(set(labels)) and len(report.items) == len(labels)
    assert "nan" not in " ".join(report.overall["reading"]) and set(report.overall.index) <= set(DIRECTIONS)


def test_a_rotation_is_no_change():
    "Only rounding differs, and no table takes that for a finding."
    z, labels = unit_rows(300, 16), np.arange(300) % 12
    report = density_report(z.astype(np.float32), rotated(z).astype(np.float32), labels)
    assert set(report.overall["shown"]) <= {"not shown", "no interval"} and np.abs(report.overall["change"]).max() < 1e-4
    assert set(report.classes["shown"]) == {"not shown"} and set(report.items["shown"]) == {"not shown"}


def test_changes_equal_the_measures():
    before, after, labels = unit_rows(200, 8), unit_rows(200, 5, seed=4, pull=1), np.random.default_rng(0).integers(0, 9, 200)
    report = density_report(before, after, labels, k=6, resamples=30)
    one, two = stats_of(before, labels), stats_of(after, labels)
    for name in "pi_intra", "pi_inter", "pi_ratio", "effective_rank", "alignment":
        row = report.overall.loc[name]
        assert (row["before"], row["after"]) == pytest.approx((getattr(one, name), getattr(two, name)), abs=1e-12)
    assert report.overall.loc["uniformity", "after"] == pytest.approx(uniformity(after))
    items = report.items.set_index("item").sort_index()
    assert items["before"].to_numpy() == pytest.approx(local_log_density(before, 6)) and items["after"].to_numpy() == pytest.approx(local_log_density(after, 6))
    assert (items["class"] == labels).all() and (items["low"] <= items["change"]).all() and (items["change"] <= items["high"]).all()
    regions = report.regions.set_index("class").sort_index()
    assert regions["change"].to_numpy() == pytest.approx([items["change"][labels == name].mean() for name in regions.index])
    assert regions["before"].to_numpy() == pytest.approx([items["before"][labels == name].mean() for name in regions.index])
    again = density_report(before, after, labels, k=6, resamples=30)
    pd.testing.assert_frame_equal(again.overall, report.overall)
    assert repr(again) == repr(report) and "<table" in report._repr_html_() and "collapsed" in repr(report)


def test_intervals_of_classes_equal_a_naive_jackknife():
    before, after, labels = unit_rows(60, 8), unit_rows(60, 8, seed=4, pull=1), np.repeat([5, 6, 7, 8], [30, 27, 2, 1])
    table = density_report(before, after, labels, k=3, resamples=20).classes.set_index("class")
    spread = lambda rows: np.mean([1 - rows[i] @ rows[j] for i in range(len(rows)) for j in range(len(rows)) if i != j])
    for name, n in (5, 30), (6, 27):
        a, b = before[labels == name], after[labels == name]
        without = np.array([spread(np.delete(b, i, 0)) - spread(np.delete(a, i, 0)) for i in range(n)])
        half = scipy_stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * np.sum((without - without.mean()) ** 2))
        assert (table["high"] - table["low"])[name] / 2 == pytest.approx(half, rel=1e-3)
        assert table["change"][name] == pytest.approx(spread(b) - spread(a))
    assert table.loc[[7, 8], ["low", "high"]].isna().all(axis=None) and np.isnan(table["change"][8]) and table["shown"][7] == "not shown"


def test_intervals_of_regions_equal_a_naive_jackknife():
    "Row by row taken away, and everything measured anew."
    before, after, labels = unit_rows(60, 4), unit_rows(60, 3, seed=4, pull=1), np.repeat([5, 6, 7, 8], [30, 27, 2, 1])
    table, k = density_report(before, after, labels, k=4, resamples=20).regions.set_index("class"), 4
    for name, n in (5, 30), (6, 27), (7, 2):
        without = []
        for row in np.flatnonzero(labels == name):
            rest = np.delete(labels, row) == name
            change = local_log_density(np.delete(after, row, 0), k) - local_log_density(np.delete(before, row, 0), k)
            without.append(change[rest].mean())
        half = scipy_stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * np.sum((without - np.mean(without)) ** 2))
        assert (table["high"] - table["low"])[name] / 2 == pytest.approx(half, rel=1e-6)
    assert table.loc[8, ["low", "high"]].isna().all() and table["shown"][8] == "not shown"


def test_ranks_equal_scipy():
    for n in 3, 10, 50, 1_000, 100_000:
        for k in {1, 2, 3, min(10, n), min(50, n), n}:
            lower, upper = _radius_ranks(n, k)
            inside = scipy_stats.binom.cdf(upper - 1, n, k / n) - scipy_stats.binom.cdf(lower - 1, n, k / n)
            assert 0 <= lower <= k <= upper <= n + 1 and inside >= 0.975 - 1e-9


def test_intervals_of_classes_cover():
    "500 classes of 15 from one distribution: about 95 % of the intervals hold the change of that distribution."
    random, labels = np.random.default_rng(0), np.repeat(np.arange(500), 15)
    noise = random.normal(size=(7_500, 6))
    spaces = [np.eye(6)[0] * pull + noise * (1, 1, 1, 1, 0.5, 0.5) for pull in (1.0, 1.5)]
    table = density_report(*spaces, labels, normalize=True, k=2, resamples=5).classes
    truth = table["change"].mean()  # of 500 classes: far nearer to the truth than any single one
    assert 0.92 < ((table["low"] < truth) & (truth < table["high"])).mean() < 0.98


@pytest.mark.parametrize("classes, members", [(6, 12), (20, 15)])
def test_two_draws_of_one_distribution_show_little(classes, members):
    "Same classes, other members: about 5 in 100 intervals may leave out 0, whatever the number of classes; a class that shrinks by half is found."
    labels, found = np.repeat(np.arange(classes), members), {}
    for seed in range(60):
        random = np.random.default_rng(seed)
        centres, shrunk = random.normal(size=(classes, 8)), np.where(labels == 0, 0.5, 1)[:, None]
        draws = [centres[labels] + 0.7 * random.normal(size=(len(labels), 8)) for _ in range(2)]
        report = density_report(*draws, labels, normalize=True, k=8, resamples=200)
        for name, shown in report.overall["shown"].items():
            found.setdefault(name, []).append(shown in ("lower", "higher"))
        for name in "classes", "regions":
            found.setdefault(name, []).extend(getattr(report, name)["shown"] != "not shown")
        report = density_report(draws[0], centres[labels] + shrunk * (draws[1] - centres[labels]), labels, normalize=True, k=8, resamples=2)
        for name, shown in ("classes", "collapsed"), ("regions", "crowded"):
            table = getattr(report, name).set_index("class")
            found.setdefault(f"{name}: real", []).append(table["shown"][0] == shown)
    share = {name: float(np.mean(shown)) for name, shown in found.items()}
    assert all(share.pop(f"{name}: real") > 0.9 for name in ("classes", "regions"))
    assert share.pop("classes") < 0.075 and share.pop("regions") < 0.075
    assert max(share.values()) <= 0.15, share  # of 60: with 5 % each, more than 9 are found once in a thousand tries


def test_a_change_of_every_class_is_found():
    random, labels = np.random.default_rng(0), np.repeat(np.arange(12), 20)
    centres, noise = random.normal(size=(12, 8)), random.normal(size=(2, 240, 8))
    report = density_report(centres[labels] + 0.7 * noise[0], centres[labels] + 0.5 * noise[1], labels, normalize=True)
    shown = report.overall["shown"]
    assert shown["pi_intra"] == shown["pi_ratio"] == shown["alignment"] == "lower" and shown["local_log_density"] == "higher"
    assert (report.classes["shown"] == "collapsed").mean() > 0.5 and (report.regions["shown"] == "crowded").mean() > 0.5


def test_one_class_has_no_interval_over_classes():
    report = density_report(unit_rows(40, 4), unit_rows(40, 4, seed=1), np.zeros(40, int), resamples=20)
    assert set(report.overall["shown"]) == {"no interval"} and report.classes["low"].notna().all()


def test_intervals_of_items_cover():
    "The radius that holds the share k / (n - 1) of a large population lies in at least 95 % of the intervals."
    random, n, k = np.random.default_rng(0), 400, 10
    widths = np.array([1, 1, 1, 0.5]), np.array([1, 0.4, 1, 1.5])
    noise, crowd = random.normal(size=(n, 4)) + np.eye(4)[0], random.normal(size=(20_000, 4)) + np.eye(4)[0]
    table = density_report(*(noise * width for width in widths), np.arange(n) % 5, normalize=True, k=k, resamples=5).items.sort_values("item")
    true = []
    for width in widths:
        rows, others = (values * width / np.linalg.norm(values * width, axis=1, keepdims=True) for values in (noise, crowd))
        radii = np.sqrt(2 - 2 * np.clip(rows @ others.T, -1, 1))
        true.append(-np.log(np.quantile(radii, k / (n - 1), axis=1)))
    covered = (table["low"] <= true[1] - true[0]) & (true[1] - true[0] <= table["high"])
    assert covered.mean() > 0.95


def test_spread_without_each_row():
    z, labels = unit_rows(30, 4), np.repeat([0, 1, 2], [20, 8, 2])
    found = _spread_without(torch.as_tensor(z), labels, stats_of(z, labels))
    for row in range(28):
        rest = np.delete(z, row, 0)[np.delete(labels, row) == labels[row]]
        assert found[row] == pytest.approx(stats_of(rest, np.zeros(len(rest), int)).pi_intra, abs=1e-12)
    assert np.isnan(found[28:]).all()


def test_one_class_duplicates_and_one_sample_classes_are_reported():
    z = np.repeat(unit_rows(8, 4), 4, axis=0)
    for labels in np.zeros(32, int), np.arange(32), np.repeat(np.arange(8), 4):
        report = density_report(z, z[::-1].copy(), labels, k=3, resamples=20)
        assert len(report.items) == 32 and repr(report)
    assert report.items["change"].isna().all() and set(report.items["shown"]) == {"not shown"}  # three equal rows: infinite before and after
    assert report.regions["change"].isna().all() and np.isnan(report.overall.loc["local_log_density", "change"])
    with pytest.raises(ValueError, match="the same items"):
        density_report(z, z[:5], labels)
    with pytest.raises(ValueError, match="choose k from 2 to 31"):
        density_report(z, z, labels, k=32)


def test_rows_that_became_equal_do_not_spoil_the_rest():
    "Twelve rows fall onto one point: infinite log-density after, and left out of the means of both spaces."
    before, labels = unit_rows(200, 6), np.arange(200) % 4
    after = unit_rows(200, 6, seed=1)
    after[:12] = after[0]
    report = density_report(before, after, labels, k=5, resamples=50)
    items = report.items.sort_values("item")
    assert (items["change"][:12] == np.inf).all() and np.isfinite(items["change"][12:]).all() and not items[["low", "high"]].isna().any(axis=None)
    assert (report.items["change"].tail(12) == np.inf).all()
    row = report.overall.loc["local_log_density"]
    assert row["before"] == pytest.approx(local_log_density(before, 5)[12:].mean()) and row["after"] == pytest.approx(local_log_density(after, 5)[12:].mean())
    assert row["low"] < row["change"] < row["high"]
    assert (report.regions["n"] == 47).all() and np.isfinite(report.regions[["before", "after", "change", "low", "high"]]).all(axis=None)
    assert "inf" in repr(report) and "<table" in report._repr_html_()


def test_equal_distances_everywhere_are_reported():
    "The corners of a simplex: no dimension can be told, every neighbour is equally far, and k may be all of the others."
    for k in 2, 5:
        report = density_report(np.eye(6), np.eye(6)[::-1].copy(), np.arange(6) % 2, k=k, resamples=20)
        assert report.overall.loc["intrinsic_dimension", "before"] == np.inf and report.overall.loc["intrinsic_dimension", "reading"] == "not defined"
        assert set(report.regions["shown"]) == set(report.items["shown"]) == {"not shown"} and repr(report)
