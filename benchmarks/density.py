"""pi and rho beside pairwise-distance code, and the time and memory of streamed statistics.

    python benchmarks/density.py pairs                                     # 60,000 x 128 in 1,000 classes, interleaved rounds
    python benchmarks/density.py pairs --rows 60000 --classes 100 --rounds 3
    python benchmarks/density.py stream --rows 10000 100000 1000000 10000000
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: waiting threads must not count as work
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import math
import resource
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.stats import entropy
from sklearn.decomposition import TruncatedSVD
from sklearn.preprocessing import normalize

from mdprop.density import DensityStats, density_metrics

NAMES = "pi_intra", "pi_inter", "pi_ratio", "rho"


def timed(call: Callable[[], dict[str, float]]) -> tuple[float, float, dict[str, float]]:
    "CPU seconds, wall seconds, result."
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def by_pairs(z: np.ndarray, labels: np.ndarray, distances: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    "Roth et al.'s definitions in float64: a full matrix of cosine distances for each class and for the centres, and a singular value decomposition."
    z = z.astype(np.float64)
    spread, centres = [], []
    for label in np.unique(labels):
        rows = z[labels == label]
        if len(rows) > 1:
            spread.append(distances(rows).sum() / (len(rows) ** 2 - len(rows)))
        centre = rows.mean(axis=0)
        centres.append(centre / np.linalg.norm(centre))
    intra, inter = np.mean(spread), distances(np.stack(centres)).sum() / (len(centres) ** 2 - len(centres))
    s = np.linalg.svd(z, compute_uv=False)
    s, uniform = s / s.sum(), 1 / len(s)
    return dict(zip(NAMES, map(float, (intra, inter, intra / max(inter, 1e-8), np.sum(uniform * np.log(uniform / s)))), strict=True))


def by_single_pairs(z: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    "The same as the formula is written: one distance after the other."

    def distances(rows: np.ndarray) -> np.ndarray:
        lengths = np.linalg.norm(rows, axis=1)
        return np.array([[1 - a @ b / (m * n) if a is not b else 0.0 for b, n in zip(rows, lengths, strict=True)] for a, m in zip(rows, lengths, strict=True)])

    return by_pairs(z, labels, distances)


def by_products(rows: np.ndarray) -> np.ndarray:
    "All cosine distances of unit rows by one matrix product: what a careful author would write."
    return 1 - rows @ rows.T


def as_released(z: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    "The steps of the evaluation that Roth et al. released: every measure on its own, so that distances are taken twice; a randomised SVD of dim - 1."
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def intra() -> float:
        blocks = [cdist(z[own], z[own], "cosine") for own in members]
        return float(np.mean([block.sum() / (len(block) ** 2 - len(block)) for block in blocks]))

    def inter() -> float:
        centres = np.concatenate([normalize(z[own].mean(axis=0, keepdims=True)) for own in members])
        return float(cdist(centres, centres, "cosine").sum() / (len(centres) ** 2 - len(centres)))

    s = TruncatedSVD(n_components=z.shape[1] - 1, n_iter=7, random_state=42).fit(z).singular_values_
    return {"pi_intra": intra(), "pi_inter": inter(), "pi_ratio": intra() / max(inter(), 1e-8), "rho": float(entropy(np.full(len(s), 1 / len(s)), s / s.sum()))}


def pairs(rows: int, classes: int, dim: int, rounds: int, single: bool) -> None:
    "Time the ways in turn and print medians."
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, dim, generator=generator)
    z = torch.nn.functional.normalize(centres[labels] + 2 * torch.randn(rows, dim, generator=generator), dim=1)
    unit, names = torch.nn.functional.normalize(z.double(), dim=1).numpy(), labels.numpy()
    wide = torch.as_tensor(unit)
    calls: dict[str, Callable[[], dict[str, float]]] = {
        "mdprop": lambda: density_metrics(z, labels),
        "the limit: rows.T @ rows alone": lambda: dict.fromkeys((), float((wide.T @ wide)[0, 0])),
        "matrices by cdist, full SVD": lambda: by_pairs(unit, names, lambda part: cdist(part, part, "cosine")),
        "matrices by products, full SVD": lambda: by_pairs(unit, names, by_products),
        "as released, float64": lambda: as_released(unit, names),
        "as released, float32": lambda: as_released(z.numpy(), names),
    }
    if single:
        calls["pair by pair"] = lambda: by_single_pairs(unit, names)
    density_metrics(z[:2_000], labels[:2_000])  # start the thread pools
    found: dict[str, list[tuple[float, float, dict[str, float]]]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name, call in calls.items():
            if turn == 0 or name != "pair by pair":
                found[name].append(timed(call))
    print(f"{rows:,} x {dim} rows, {classes:,} classes: medians of {rounds} interleaved rounds, {torch.get_num_threads()} threads")
    for name, runs in found.items():
        ratios = [[run[clock] / mine[clock] for run, mine in zip(runs, found["mdprop"], strict=False)] for clock in (0, 1)]
        off = {measure: abs(runs[-1][2].get(measure, math.nan) - found["mdprop"][-1][2][measure]) for measure in NAMES}
        print(
            f"  {name:<30} CPU {median(r[0] for r in runs):8.3f} s  wall {median(r[1] for r in runs):8.3f} s  "
            f"times mdprop: CPU {median(ratios[0]):6.1f} ({min(ratios[0]):.1f} to {max(ratios[0]):.1f})  wall {median(ratios[1]):6.1f}  "
            + ("" if math.isnan(off["rho"]) else f"differences: pi {max(off[measure] for measure in NAMES[:3]):.0e}, rho {off['rho']:.0e}")
        )


def stream(sizes: list[int], classes: int, dim: int) -> None:
    "Batches made on the fly; CPU time of the statistics alone, peak memory, slope of log time over log rows."
    spent = []
    for rows in sizes:
        random, stats, clocks = np.random.default_rng(0), DensityStats(), np.zeros(2)
        for start in range(0, rows, 10_000):
            begin = time.process_time()
            z = random.standard_normal((min(10_000, rows - start), dim), dtype=np.float32)
            z /= np.linalg.norm(z, axis=1, keepdims=True)
            labels = random.integers(0, classes, len(z))
            made = time.process_time()
            stats.update(z, labels)
            clocks += made - begin, time.process_time() - made
        begin = time.process_time()
        values = stats.pi_ratio, stats.rho(), stats.effective_rank, stats.alignment
        clocks[1] += time.process_time() - begin
        spent.append(clocks[1])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(
            f"  {rows:>12,} rows  statistics {clocks[1]:8.3f} CPU s  (making the batches {clocks[0]:8.3f})  "
            f"peak of the process {peak:6.0f} MiB  pi_ratio {values[0]:.4f}"
        )
    if len(sizes) > 1:
        print(f"  slope of log time over log rows: {np.polyfit(np.log(sizes), np.log(spent), 1)[0]:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["pairs", "stream"])
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--single", action="store_true", help="also one distance after the other, once (pairs)")
    wanted = parser.parse_args()
    if wanted.what == "pairs":
        for rows in wanted.rows or [60_000]:
            pairs(rows, wanted.classes, wanted.dim, wanted.rounds, wanted.single)
    else:
        stats = DensityStats()
        stats.update(np.eye(wanted.dim, dtype=np.float32)[np.zeros(10_000, int)], np.arange(10_000) % wanted.classes)  # start the thread pools
        stream(wanted.rows or [10_000, 100_000, 1_000_000], wanted.classes, wanted.dim)


if __name__ == "__main__":
    main()
