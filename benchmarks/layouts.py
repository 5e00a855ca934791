"""Common layouts beside umap-learn's AlignedUMAP, and the density of a picture beside scipy's gaussian_kde, in one process.

    python benchmarks/layouts.py layout                         # 10,000 x 128, half of the items unchanged
    python benchmarks/layouts.py layout --noise 1 2 3 --rows 10000
    python benchmarks/layouts.py density                        # 100,000 points in 20 classes on a grid of 128 x 128
    python benchmarks/layouts.py trust --rows 100000            # time and peak memory of trustworthiness
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: waiting threads must not count as work
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import resource
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import gaussian_kde

from mdprop.project import Layout, fit_layouts, picture_density, picture_window, rerun_layout, trustworthiness


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    "CPU seconds of all threads, wall seconds, result."
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def two_runs(rows: int, dim: int, classes: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Unit rows before and after, and which items changed: the classes of the second half moved and were blurred, the others are the same to the last bit."
    random = np.random.default_rng(0)
    labels = np.arange(rows) % classes
    before = random.normal(size=(classes, dim))[labels] + noise * random.normal(size=(rows, dim))
    changed = labels >= classes // 2
    after = before + np.where(changed[:, None], random.normal(size=(classes, dim))[labels] + 0.7 * random.normal(size=(rows, dim)), 0)
    unit = lambda z: (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    return unit(before), unit(after), changed


def moved(before: Layout, after: Layout) -> np.ndarray:
    "How far every item moved, as a share of the width of the picture before."
    return np.linalg.norm(before - after, axis=1) / float(np.ptp(before, axis=0).max())


def layout(rows: int, dim: int, classes: int, noise: float, method: str) -> None:
    "One line for each contestant. The first call of ours is timed with its imports and compilation, like that of the peer."
    from umap import AlignedUMAP  # noqa: PLC0415  seconds to import, and only this part needs it

    before, after, changed = two_runs(rows, dim, classes, noise)

    def peer() -> tuple[Layout, Layout]:
        model = AlignedUMAP(random_state=0, n_neighbors=15)
        one, two = model.fit_transform([before, after], relations=[{i: i for i in range(rows)}])
        return np.asarray(one), np.asarray(two)

    fit = lambda seed: lambda: fit_layouts(before, after, method, seed=seed, cache=None)
    found = {"first call": timed(fit(0)), "second call, another seed": timed(fit(1)), "AlignedUMAP": timed(peer)}
    base = found["AlignedUMAP"]
    print(f"{rows:,} x {dim}, {classes} classes, noise {noise:g}, {method}; a displacement is a share of the picture's width")
    for name, (cpu, wall, made) in found.items():
        pictures = made if isinstance(made, tuple) else (made.before, made.after)
        trust = [trustworthiness(z, xy, rows=2_000) for z, xy in zip((before, after), pictures, strict=True)]
        far = moved(*pictures)
        print(f"  {name:<26} CPU {cpu:6.1f} s ({base[0] / cpu:4.1f}x less)  wall {wall:6.1f} s ({base[1] / wall:4.1f}x less)  "
              f"trustworthiness {trust[0]:.4f} {trust[1]:.4f}  displacement: unchanged {far[~changed].mean():.4f}, changed {far[changed].mean():.4f}")
    made = found["first call"][2]
    print(f"  re-run by another seed: displacement of the unchanged {moved(made.after, rerun_layout(made))[~changed].mean():.4f}")


def exact_density(xy: Layout, window: tuple[float, float, float], bandwidth: float, cells: int) -> np.ndarray:
    "scipy's estimate at the centres of the cells, in items per cell. Its kernel has the shape of the data, so the data must be round to have ours."
    left, bottom, side = window
    covariance = np.cov(xy.T.astype(np.float64))
    wide = np.sqrt(covariance[0, 0])
    if not np.allclose(covariance, wide**2 * np.eye(2), atol=1e-3 * wide**2):
        raise ValueError(f"scipy's kernel would not be round: make the covariance a multiple of the unit matrix, it is {covariance.tolist()}")
    at = (np.arange(cells) + 0.5) / cells * side
    grid = np.stack(np.meshgrid(left + at, bottom + at)).reshape(2, -1)
    return (gaussian_kde(xy.T, bw_method=bandwidth * side / wide)(grid) * len(xy) * (side / cells) ** 2).reshape(cells, cells)


def round_classes(points: int, classes: int) -> tuple[Layout, np.ndarray]:
    "Classes of different widths, each with a covariance that is exactly a multiple of the unit matrix."
    random = np.random.default_rng(0)
    labels = np.arange(points) % classes
    xy = np.empty((points, 2))
    for c in range(classes):
        part = random.normal(size=(int((labels == c).sum()), 2)) ** 3  # heavy tails: not a Gaussian
        part -= part.mean(0)
        part @= np.linalg.inv(np.linalg.cholesky(np.cov(part.T))).T
        xy[labels == c] = random.uniform(-10, 10, 2) + part * random.uniform(0.3, 2)
    return xy.astype(np.float32), labels


def density(points: int, classes: int, cells: int, bandwidth: float, rounds: int) -> None:
    "All classes by our one pass, and each by scipy."
    xy, labels = round_classes(points, classes)
    window = picture_window(xy)
    mine = [timed(lambda: picture_density(xy, window, bandwidth, cells, labels)) for _ in range(rounds)]
    theirs = timed(lambda: np.stack([exact_density(xy[labels == c], window, bandwidth, cells) for c in range(classes)]))
    grids, exact = mine[-1][2], theirs[2]
    cpu, wall = (median(run[clock] for run in mine) for clock in (0, 1))
    worst = max(float(np.abs(a - b).max() / b.max()) for a, b in zip(grids, exact, strict=True))
    whole = float(np.abs(grids.sum(0) - exact.sum(0)).max() / exact.sum(0).max())
    print(f"{points:,} points, {classes} classes, {cells} x {cells} cells, bandwidth {bandwidth:g}")
    print(f"  ours, median of {rounds}: CPU {cpu:.4f} s, wall {wall:.4f} s; scipy, once: CPU {theirs[0]:.1f} s, wall {theirs[1]:.1f} s")
    print(f"  {theirs[0] / cpu:,.0f}x less CPU, {theirs[1] / wall:,.0f}x less time")
    print(f"  largest difference: {whole:.2%} of the peak for all points, {worst:.2%} for the worst class")


def trust(rows: int, dim: int) -> None:
    "Trustworthiness of 2,000 of the rows."
    before, _, _ = two_runs(rows, dim, 100, 2)
    xy = before[:, :2].copy()
    trustworthiness(before[:1_000], xy[:1_000])
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall, value = timed(lambda: trustworthiness(before, xy, rows=2_000))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 2**10
    print(f"{rows:,} x {dim}: trustworthiness of 2,000 rows {value:.4f}, CPU {cpu:.1f} s, wall {wall:.1f} s, {peak:.0f} MiB above the largest before")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["layout", "density", "trust"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--classes", type=int)
    parser.add_argument("--noise", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--method", choices=["umap", "densmap"], default="umap")
    parser.add_argument("--cells", type=int, default=128)
    parser.add_argument("--bandwidth", type=float, default=0.025)
    parser.add_argument("--rounds", type=int, default=11)
    wanted = parser.parse_args()
    if wanted.what == "layout":
        for noise in wanted.noise:
            layout(wanted.rows or 10_000, wanted.dim, wanted.classes or 100, noise, wanted.method)
    elif wanted.what == "density":
        density(wanted.rows or 100_000, wanted.classes or 20, wanted.cells, wanted.bandwidth, wanted.rounds)
    else:
        trust(wanted.rows or 100_000, wanted.dim)


if __name__ == "__main__":
    main()
