"""Rank metrics beside pytorch-metric-learning's AccuracyCalculator and the bare matrix product: interleaved rounds in one process.

    python benchmarks/retrieval.py                                       # 10,000 rows in 500 and in 1,870 classes, under a minute
    python benchmarks/retrieval.py --rows 60000 --classes 1000 --rounds 3
    python benchmarks/retrieval.py --rows 60502 --classes 11316 --rounds 1   # Stanford Online Products' shape: minutes, 7 GiB for the peer
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch and faiss: waiting threads must not count as work
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from mdprop.retrieval import retrieval_metrics

NAMES = {"recall_at_1": "precision_at_1", "r_precision": "r_precision", "map_at_r": "mean_average_precision_at_r"}


def timed(call: Callable[[], dict[str, float]]) -> tuple[float, float, dict[str, float]]:
    "CPU seconds, wall seconds, result."
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def products(z: torch.Tensor) -> dict[str, float]:
    "All inner products and nothing else: no exact search by matrix product can be faster."
    block = torch.empty(1024, len(z))
    for part in z.split(1024):
        torch.mm(part, z.T, out=block[: len(part)])
    return {}


def compare(rows: int, classes: int, dim: int, rounds: int) -> None:
    "Time the three in turn and print medians."
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, dim, generator=generator)
    z = torch.nn.functional.normalize(centres[labels] + 2 * torch.randn(rows, dim, generator=generator), dim=1)
    calculator = AccuracyCalculator(include=tuple(NAMES.values()), k="max_bin_count", device=torch.device("cpu"))
    calls = {
        "mdprop": lambda: retrieval_metrics(z, labels, ks=(1,)),
        "pytorch-metric-learning": lambda: calculator.get_accuracy(z, labels),
        "bare matrix product": lambda: products(z),
    }
    retrieval_metrics(z[:2_000], labels[:2_000] // 2)  # start the thread pools
    runs: dict[str, list[tuple[float, float, dict[str, float]]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            runs[name].append(timed(call))
    print(f"{rows:,} rows, {classes:,} classes, dim {dim}: medians of {rounds} interleaved rounds, {torch.get_num_threads()} threads")
    for name, found in runs.items():
        ratios = [mine[0] / other[0] for mine, other in zip(runs["mdprop"], found, strict=True)]
        print(f"  {name:<24} CPU {median(r[0] for r in found):7.2f} s  wall {median(r[1] for r in found):7.2f} s  "
              f"mdprop takes {median(ratios):5.2f} of its CPU time ({min(ratios):.2f} to {max(ratios):.2f})")
    mine, theirs, _ = (found[-1][2] for found in runs.values())
    print(f"  largest difference between the metrics: {max(abs(mine[name] - theirs[other]) for name, other in NAMES.items()):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--classes", type=int, nargs="+", default=[500, 1_870])
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    wanted = parser.parse_args()
    for classes in wanted.classes:
        compare(wanted.rows, classes, wanted.dim, wanted.rounds)


if __name__ == "__main__":
    main()
