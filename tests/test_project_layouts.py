"Layouts that bend: what is held, what is kept on disk, how somebody is told and can stop, and more than two spaces in one picture."

import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mdprop import project
from mdprop.project import (
    METHODS,
    common_layout,
    fit_layouts,
    picture_density,
    picture_histogram,
    picture_window,
    place_epoch,
    place_rows,
    rerun_layout,
    trustworthiness,
)

pytest.importorskip("umap", reason="needs the extra lab")
BENDING = [method for method in METHODS if method != "pca"]


def unit(z):
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def clusters(n=240, dim=12, classes=6, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return unit(3 * rng.normal(size=(classes, dim))[labels] + rng.normal(size=(n, dim))), labels


def moved(one, two):
    return np.linalg.norm(one - two, axis=1) / np.ptp(one, axis=0).max()


@pytest.fixture
def short(monkeypatch):
    "Few epochs, where a test is not about the picture."
    monkeypatch.setattr(project, "_epochs", lambda n: 12)


# What did not change does not move


@pytest.mark.parametrize("method", BENDING)
def test_equal_embeddings_give_nearly_equal_pictures(method):
    z, _ = clusters()
    before, after = common_layout(z, z, method, cache=None)
    assert moved(before, after).mean() < (0.01 if method == "umap" else 0.03)


def test_half_that_did_not_change_stays_and_the_picture_stays_true():
    z, labels = clusters(600)
    changed = labels % 2 == 0
    other = np.where(changed[:, None], unit(np.random.default_rng(1).normal(size=z.shape)), z)
    made = fit_layouts(z, other, "umap", cache=None)
    far = moved(made.before, made.after)
    assert far[~changed].mean() < 0.03 and far[changed].mean() > 3 * far[~changed].mean()
    alone, _ = common_layout(other, other, "umap", cache=None)
    assert trustworthiness(other, made.after) > trustworthiness(other, alone) - 0.05


def test_before_does_not_depend_on_what_it_is_compared_with(short):
    z, _ = clusters()
    assert np.array_equal(common_layout(z, z, "umap", cache=None)[0], common_layout(z, -z[::-1], "umap", cache=None)[0])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_as_trustworthy_as_umap_learn_from_the_same_start():
    from umap import UMAP

    z, _ = clusters(600, classes=4)
    space = project._Space(z)
    indices = np.column_stack([np.arange(600), space.nearest(lambda share: None)])
    distances = np.linalg.norm(z[indices] - z[:, None], axis=2)
    theirs = UMAP(init=project._first_start(z, 0), random_state=0, n_epochs=300, precomputed_knn=(indices, distances)).fit_transform(z)
    ours = common_layout(z, z, "umap", cache=None)[0]
    assert trustworthiness(z, ours) > trustworthiness(z, theirs) - 0.01


def test_densmap_shows_crowding_that_umap_hides():
    rng = np.random.default_rng(0)
    wide = np.where(np.arange(400) % 2 == 0, 0.3, 3.0)
    z = (np.where(np.arange(400)[:, None] % 2 == 0, 20, -20) + wide[:, None] * rng.normal(size=(400, 8))).astype(np.float32)
    spread = {}
    for method in BENDING:
        xy = common_layout(z, z, method, cache=None)[0]
        sizes = [np.median(np.linalg.norm(part - part.mean(0), axis=1)) for part in (xy[wide > 1], xy[wide < 1])]
        spread[method] = sizes[0] / sizes[1]
    assert spread["densmap"] > 1.5 * spread["umap"]


def test_density_forces_are_the_gradient_of_the_correlation():
    "Along every edge, against a difference quotient of the correlation of the log radii (densMAP's second wish)."
    z, _ = clusters(40)
    space, n = project._Space(z), 40
    graph = project._graph(space, 300, lambda share: None)
    xy = np.random.default_rng(0).normal(size=(n, 2)) * 3
    wanted = project._log_radius(graph, n, graph.weight, space.lengths(graph.head, graph.tail) ** 2)[0]
    wanted = (wanted - wanted.mean()) / wanted.std()
    a, b = map(float, graph.curve)

    def wish(places):
        d2 = np.square(places[graph.head] - places[graph.tail]).sum(1)
        radius = project._log_radius(graph, n, 1 / (1 + a * d2**b), d2)[0]
        return radius @ wanted / (n - 1) / np.sqrt(radius.var() + 0.1)

    lift = project._density_forces(xy, graph, wanted).astype(float)
    difference = xy[graph.head] - xy[graph.tail]
    d2 = np.square(difference).sum(1)
    p = a * d2**b
    along = (lift[graph.head] + lift[graph.tail]) * np.column_stack([b * p / (d2 * (1 + p)), 1 - b * p / (1 + p)])
    force = (along.sum(1) / (1 + p))[:, None] * difference
    total = np.stack([np.bincount(graph.head, force[:, d], n) - np.bincount(graph.tail, force[:, d], n) for d in (0, 1)], axis=1)
    step = 1e-5
    slope = np.array([[(wish(xy + step * e) - wish(xy - step * e)) / (2 * step) for e in np.eye(2 * n).reshape(-1, n, 2)[2 * i : 2 * i + 2]] for i in range(n)])
    assert np.corrcoef(total.ravel(), slope.ravel())[0, 1] > 0.99


@given(st.integers(5, 40), st.integers(1, 6), st.integers(0, 99), st.sampled_from(METHODS), st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_odd_sizes_are_laid_out(short, n, dim, seed, method, doubles):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, dim))[rng.integers(0, 2 if doubles else n, n)]
    made = fit_layouts(z, z[:, :1], method, seed, cache=None)
    for xy in (made.before, made.after, rerun_layout(made), place_epoch(made, z), place_rows(made, z[:3], "before")):
        assert xy.dtype == np.float32 and xy.shape[1] == 2 and np.isfinite(xy).all()


@pytest.mark.parametrize("method", METHODS)
def test_equal_rows_and_five_of_them(method):
    assert all(np.isfinite(xy).all() for xy in common_layout(np.ones((5, 1)), np.ones((5, 3)), method, cache=None))


@pytest.mark.parametrize("method", METHODS)
def test_bad_rows_are_refused(method):
    z, _ = clusters(30)
    with pytest.raises(ValueError, match="the first is row 4"):
        common_layout(z, np.where(np.arange(30)[:, None] == 4, np.nan, z), method, cache=None)
    made = fit_layouts(z, z, "pca")
    for place in (place_rows, place_epoch):
        with pytest.raises(ValueError, match="finite"):
            place(made, np.full_like(z, np.inf))
        with pytest.raises(ValueError, match="side must be 'before' or 'after', got 'both'"):
            place(made, z, "both")
    with pytest.raises(ValueError, match="has 12 dimensions, the rows have 3"):
        place_rows(made, z[:, :3])
    with pytest.raises(ValueError, match="same items"):
        place_epoch(made, z[:5])
    with pytest.raises(ValueError, match="needs at least 5 items, got 4: use method='pca'"):
        common_layout(z[:4], z[:4], "umap", cache=None)


# More than two spaces


@pytest.mark.parametrize("side", ["before", "after"])
def test_pca_places_rows_and_epochs_exactly(side):
    z, _ = clusters()
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    made = fit_layouts(z, z @ basis + 0.05 * rng.normal(size=z.shape), "pca")
    rows = made.drawn[side].space.rows
    assert np.allclose(place_rows(made, rows[::-1], side), getattr(made, side)[::-1], atol=1e-5)
    assert np.allclose(place_epoch(made, rows @ basis + 1, side), getattr(made, side), atol=1e-4)
    half = place_rows(made, (rows[:1] + rows[1:2]) / 2, side)
    assert np.allclose(half, getattr(made, side)[:2].mean(0), atol=1e-5)


def test_umap_places_rows_among_their_neighbours(short):
    z, _ = clusters()
    made = fit_layouts(z, z, "umap", cache=None)
    assert np.allclose(place_rows(made, z), made.after, atol=1e-3)
    near = place_rows(made, unit(z + 0.02 * np.random.default_rng(0).normal(size=z.shape)))
    assert np.median(moved(made.after, near)) < 0.05


def test_epochs_follow_in_the_same_picture():
    z, _ = clusters()
    made = fit_layouts(z, z, "umap", cache=None)
    drift = [moved(made.after, place_epoch(made, unit(z + noise * np.random.default_rng(0).normal(size=z.shape)))).mean() for noise in (0.0, 0.3)]
    assert drift[0] < 0.01 and drift[0] < drift[1]


def test_rerun_is_noise_alone():
    z, _ = clusters()
    pca = fit_layouts(z, z, "pca")
    assert rerun_layout(pca) is pca.after
    made = fit_layouts(z, z, "umap", cache=None)
    again = rerun_layout(made)
    assert 0 < moved(made.after, again).mean() < 0.02
    assert np.array_equal(again, rerun_layout(made, seed=1)) and not np.array_equal(again, rerun_layout(made, seed=2))


# Kept by content


def count_bends(monkeypatch):
    calls, bend = [], project._bend
    monkeypatch.setattr(project, "_bend", lambda *args: calls.append(1) or bend(*args))
    return calls


def test_a_second_opening_computes_nothing(short, tmp_path, monkeypatch):
    z, _ = clusters()
    calls = count_bends(monkeypatch)
    first = fit_layouts(z, z + 1, "umap", cache=tmp_path)
    epoch, rerun = place_epoch(first, z), rerun_layout(first)
    assert len(calls) == 4 and len([*tmp_path.iterdir()]) == 4
    second = fit_layouts(z, z + 1, "umap", cache=str(tmp_path))
    assert np.array_equal(first.after, second.after) and np.array_equal(epoch, place_epoch(second, z)) and np.array_equal(rerun, rerun_layout(second))
    assert len(calls) == 4
    for changes in ({"seed": 1}, {"method": "densmap"}, {"z_before": z * 2}):
        fit_layouts(**{"z_before": z, "z_after": z + 1, "method": "umap", "cache": tmp_path} | changes)
    assert len(calls) == 10
    monkeypatch.setattr(project, "version", lambda name: "another")
    fit_layouts(z, z + 1, "umap", cache=tmp_path)
    assert len(calls) == 12


def test_pca_writes_nothing(tmp_path):
    z, _ = clusters()
    fit_layouts(z, z, cache=tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half a file", None, np.zeros((3, 2), np.float32), np.array([{}], object)])
def test_a_damaged_file_is_made_again_with_a_warning(short, tmp_path, damage):
    z, _ = clusters()
    good = fit_layouts(z, z, "umap", cache=tmp_path)
    path = tmp_path / f"{good.drawn['after'].key}.npz"
    if isinstance(damage, np.ndarray):
        np.savez(path, xy=damage)
    else:
        path.write_bytes(path.read_bytes()[:-40] if damage is None else damage)
    with pytest.warns(UserWarning, match="cannot be read .*: it is computed again"):
        again = fit_layouts(z, z, "umap", cache=tmp_path)
    assert np.array_equal(good.after, again.after)
    assert np.array_equal(project._recall(tmp_path, good.drawn["after"].key, len(z)), good.after)


def test_a_folder_that_cannot_be_written_costs_a_warning(short, tmp_path):
    (tmp_path / "file").write_text("")
    z, _ = clusters()
    with pytest.warns(UserWarning, match="pass cache=None or a folder that can be written"):
        assert np.isfinite(fit_layouts(z, z, "umap", cache=tmp_path / "file" / "folder").after).all()


def test_the_folder_stays_small_and_keeps_what_was_used_last(tmp_path):
    xy = np.zeros((10, 2), np.float32)
    for number in range(3):
        project._keep(tmp_path, str(number), xy)
        project.os.utime(tmp_path / f"{number}.npz", (number, number))
    assert project._recall(tmp_path, "0", 10) is not None
    project._keep(tmp_path, "3", xy, files=2)
    assert {path.stem for path in tmp_path.iterdir()} == {"0", "3"}
    project._keep(tmp_path, "4", xy, size=400)
    assert {path.stem for path in tmp_path.iterdir()} <= {"4"}


FOLDERS = [("linux", {"XDG_CACHE_HOME": "x"}, "x"), ("win32", {"LOCALAPPDATA": "l"}, "l"), ("darwin", {}, "Library/Caches"), ("linux", {}, ".cache")]


@pytest.mark.parametrize("system, settings_, folder", FOLDERS)
def test_the_users_folder(monkeypatch, system, settings_, folder):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings_.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(project.sys, "platform", system)
    assert project._cache_folder("user").as_posix().endswith(f"{folder}/mdprop/layouts")
    assert project._cache_folder(None) is None


def test_a_kept_layout_needs_no_umap(short, tmp_path):
    "A second opening in another process reads the files and does not even import umap-learn, which takes seconds."
    z, _ = clusters()
    fit_layouts(z, z, "umap", cache=tmp_path)
    np.save(tmp_path / "z.npy", z)
    code = f"""
import sys, numpy as np
from mdprop import project
project._epochs = lambda n: 12
z = np.load({str(tmp_path / "z.npy")!r})
project.fit_layouts(z, z, "umap", cache={str(tmp_path)!r})
assert "umap" not in sys.modules and "numba" not in sys.modules
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


# Told, and stopped


@pytest.mark.parametrize("method", METHODS)
def test_progress_rises_to_one(short, method):
    z, _ = clusters()
    told = []
    made = fit_layouts(z, z, method, cache=None, progress=told.append)
    assert told == sorted(told) and told[-1] == 1 and 0 <= told[0]
    for more in (place_epoch(made, z, progress=told.append), rerun_layout(made, progress=told.append)):
        assert told[-1] == 1 and len(more) == len(z)


def test_cancelling_keeps_what_was_finished_and_nothing_else(short, tmp_path):
    z, _ = clusters()

    class Cancelled(Exception):
        pass

    def stop_at(share):
        def progress(done):
            if done > share:
                raise Cancelled

        return progress

    with pytest.raises(Cancelled):
        fit_layouts(z, z, "umap", cache=tmp_path, progress=stop_at(0.3))
    assert not [*tmp_path.iterdir()]
    with pytest.raises(Cancelled):
        fit_layouts(z, z, "umap", cache=tmp_path, progress=stop_at(0.8))
    assert len([*tmp_path.iterdir()]) == 1
    fit_layouts(z, z, "umap", cache=tmp_path)
    assert len([*tmp_path.iterdir()]) == 2


def test_two_threads_at_a_time_give_the_same_pictures(short):
    z, _ = clusters()
    alone = common_layout(z, z, "umap", cache=None)[1]
    found = {}
    work = [threading.Thread(target=lambda name=name: found.update({name: common_layout(z, z, "umap", cache=None)[1]})) for name in range(3)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert all(np.array_equal(alone, found[name]) for name in range(3))


# Density of a picture


@given(st.integers(0, 60), st.integers(1, 4), st.integers(2, 20), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_histogram_is_that_of_a_loop(n, classes, cells, seed):
    rng = np.random.default_rng(seed)
    xy, labels = rng.normal(size=(n, 2)).astype(np.float32), rng.integers(0, classes, n)
    window = (-1.0, -1.2, 2.1)
    exact = np.zeros((classes, cells, cells))
    for (x, y), label in zip(xy.astype(float), labels, strict=True):
        across, up = (x + 1.0) / 2.1 * cells - 0.5, (y + 1.2) / 2.1 * cells - 0.5
        for column in (int(np.floor(across)), int(np.floor(across)) + 1):
            for row in (int(np.floor(up)), int(np.floor(up)) + 1):
                if 0 <= column < cells and 0 <= row < cells:
                    exact[label, row, column] += (1 - abs(across - column)) * (1 - abs(up - row))
    assert np.allclose(picture_histogram(xy, window, cells), exact.sum(0), atol=1e-4)
    found = picture_histogram(xy, window, cells, labels)
    assert np.allclose(found, exact[: len(found)], atol=1e-4) and np.allclose(exact[len(found) :], 0)


def test_density_of_classes_adds_up_and_is_near_scipy():
    from scipy.stats import gaussian_kde

    rng = np.random.default_rng(0)
    xy, labels = rng.normal(size=(2_000, 2)), np.arange(2_000) % 4
    xy = ((xy - xy.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(xy.T))).T).astype(np.float32)
    window = picture_window(xy)
    grids = picture_density(xy, window, labels=labels)
    whole = picture_density(xy, window)
    assert grids.shape == (4, 128, 128) and grids.dtype == whole.dtype == np.float32 and np.allclose(grids.sum(0), whole, atol=1e-4)
    at = (np.arange(128) + 0.5) / 128 * window[2]
    points = np.stack(np.meshgrid(window[0] + at, window[1] + at)).reshape(2, -1)
    exact = gaussian_kde(xy.T, bw_method=0.025 * window[2])(points).reshape(128, 128) * 2_000 * (window[2] / 128) ** 2
    assert np.abs(whole - exact).max() < 0.01 * exact.max()


def test_density_of_nothing():
    assert picture_density(np.zeros((0, 2), np.float32), (0.0, 0.0, 1.0)).sum() == 0
    with pytest.raises(ValueError, match="2 numbers from 0 up"):
        picture_density(np.zeros((2, 2), np.float32), (0.0, 0.0, 1.0), labels=[-1, 0])
