"""Rank metrics beside pytorch-metric-learning's AccuracyCalculator and the bare matrix product: CPU seconds, and peak memory of processes of their own.

    python benchmarks/retrieval.py                                            # 10,000 rows in 500 and in 1,870 classes, under a minute
    python benchmarks/retrieval.py --rows 60000 --classes 1000 --rounds 3     # in turn in one process
    python benchmarks/retrieval.py --rows 60502 --classes 11316 --apart       # Stanford Online Products' shape: minutes, 7 GiB for the peer
    python benchmarks/retrieval.py --rows 200000 --classes 40000 --apart --only mdprop
    python benchmarks/retrieval.py --file 1000000 --dim 64                    # streamed into a file, searched there by index="pq"
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch and faiss: waiting threads must not count as work
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from mdprop.retrieval import nearest_neighbours, retrieval_metrics, store_embeddings

NAMES = {"recall_at_1": "precision_at_1", "r_precision": "r_precision", "map_at_r": "mean_average_precision_at_r"}
CONTESTANTS = ("mdprop", "pytorch-metric-learning", "bare matrix product")
IDLE = "imports and data alone"  # what a process holds before it measures anything


def timed(call: Callable[[], dict[str, float]]) -> tuple[float, float, dict[str, float]]:
    "CPU seconds, wall seconds, result."
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def products(z: torch.Tensor) -> dict[str, float]:
    "All inner products and nothing else: the limit of every search that computes each of them."
    block = torch.empty(1024, len(z))
    for part in z.split(1024):
        torch.mm(part, z.T, out=block[: len(part)])
    return {}


def calls(rows: int, classes: int, dim: int) -> dict[str, Callable[[], dict[str, float]]]:
    "The contestants on the same embeddings, Gaussian classes around random centres; thread pools started."
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, dim, generator=generator)
    z = torch.nn.functional.normalize(centres[labels] + 2 * torch.randn(rows, dim, generator=generator), dim=1)
    calculator = AccuracyCalculator(include=tuple(NAMES.values()), k="max_bin_count", device=torch.device("cpu"))
    retrieval_metrics(z[:2_000], labels[:2_000] // 2)
    return dict(zip((*CONTESTANTS, IDLE), (
        lambda: retrieval_metrics(z, labels),
        lambda: calculator.get_accuracy(z, labels),
        lambda: products(z),
        lambda: {},
    ), strict=True))


def difference(mine: dict[str, float], theirs: dict[str, float]) -> str:
    return f"  largest difference between the metrics: {max(abs(mine[name] - theirs[other]) for name, other in NAMES.items()):.1e}"


def compare(rows: int, classes: int, dim: int, rounds: int) -> None:
    "Time the three in turn in this process and print medians."
    contest = calls(rows, classes, dim)
    runs: dict[str, list[tuple[float, float, dict[str, float]]]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name in CONTESTANTS:
            runs[name].append(timed(contest[name]))
    print(f"{rows:,} rows, {classes:,} classes, dim {dim}: medians of {rounds} interleaved rounds, {torch.get_num_threads()} threads")
    for name, found in runs.items():
        ratios = [mine[0] / other[0] for mine, other in zip(runs["mdprop"], found, strict=True)]
        walls = [mine[1] / other[1] for mine, other in zip(runs["mdprop"], found, strict=True)]
        print(f"  {name:<24} CPU {median(r[0] for r in found):7.2f} s  wall {median(r[1] for r in found):7.2f} s  mdprop / this: "
              f"CPU {median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})  wall {median(walls):5.2f} ({min(walls):.2f} to {max(walls):.2f})")
    print(difference(runs["mdprop"][-1][2], runs["pytorch-metric-learning"][-1][2]))


def stream(rows: int, dim: int, queries: int) -> dict[str, float]:
    "Write `rows` embeddings in classes of ten to a file as a loop over a model would, and search it for new members of its first classes."

    def batches(size: int = 50_000) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for first in range(0, rows, size):
            generator = torch.Generator().manual_seed(first)
            labels = torch.arange(first, min(first + size, rows)) // 10
            centres = torch.randn(size // 10, dim, generator=generator)
            yield torch.nn.functional.normalize(centres[labels - first // 10] + torch.randn(len(labels), dim, generator=generator), dim=1), labels

    with tempfile.TemporaryDirectory() as folder:
        clock = [time.perf_counter()]
        mapped, labels = store_embeddings(batches(), Path(folder) / "z.npy")
        clock.append(time.perf_counter())
        centres = torch.randn(5_000, dim, generator=torch.Generator().manual_seed(0))
        asked = torch.arange(queries) % min(5_000, rows // 10)
        z = torch.nn.functional.normalize(centres[asked] + torch.randn(queries, dim, generator=torch.Generator().manual_seed(-1)), dim=1)
        near = nearest_neighbours(z, 10, gallery=mapped, index="pq")
        clock.append(time.perf_counter())
        found = retrieval_metrics(near, asked, gallery_labels=labels)
        return {"write_s": clock[1] - clock[0], "index_and_search_s": clock[2] - clock[1], **found}


def apart(task: dict[str, Any]) -> dict[str, Any]:
    "Run one task in a process of its own and watch its memory: peak of all resident pages, and of those that are its own (pages of files left out)."
    child = subprocess.Popen([sys.executable, __file__, "--task", json.dumps(task)], stdout=subprocess.PIPE, text=True)
    own = high = 0
    while child.poll() is None:
        try:
            status = dict(re.findall(r"(\w+):\s+(\d+) kB", Path(f"/proc/{child.pid}/status").read_text()))
        except OSError:
            break
        own, high = max(own, int(status.get("RssAnon", 0))), max(high, int(status.get("VmHWM", 0)))
        time.sleep(0.005)
    text = child.communicate()[0]
    if child.returncode:
        raise SystemExit(f"{task}: ended with {child.returncode}")
    return json.loads(text) | {"own_gib": own / 2**20, "peak_gib": high / 2**20}


def run_task(task: dict[str, Any]) -> None:
    "What the process of `apart` does: one timed call, the answer as JSON."
    shape = task["rows"], task["dim"]
    call = (lambda: stream(*shape, task["queries"])) if "queries" in task else calls(shape[0], task["classes"], shape[1])[task["name"]]
    cpu, wall, result = timed(call)
    print(json.dumps({"cpu": cpu, "wall": wall, "result": {name: float(value) for name, value in result.items()}}))


def compare_apart(rows: int, classes: int, dim: int, names: list[str]) -> None:
    "Each contestant once in a process of its own."
    print(f"{rows:,} rows, {classes:,} classes, dim {dim}: one run each in a process of its own, {torch.get_num_threads()} threads")
    runs = {}
    for name in [IDLE, *names]:
        runs[name] = found = apart({"name": name, "rows": rows, "classes": classes, "dim": dim})
        print(f"  {name:<24} CPU {found['cpu']:7.2f} s  wall {found['wall']:7.2f} s  peak resident {found['peak_gib']:5.2f} GiB", flush=True)
    if set(CONTESTANTS[:2]) <= set(names):
        mine, theirs = runs["mdprop"], runs["pytorch-metric-learning"]
        print(f"  mdprop / pytorch-metric-learning: CPU {mine['cpu'] / theirs['cpu']:.3f}  wall {mine['wall'] / theirs['wall']:.3f}")
        print(difference(mine["result"], theirs["result"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--classes", type=int, nargs="+", default=[500, 1_870])
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--apart", action="store_true", help="each contestant once in a process of its own, with its peak memory")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="contestants of --apart")
    parser.add_argument("--file", type=int, metavar="ROWS", help="stream so many rows into a file and search it there")
    parser.add_argument("--queries", type=int, default=10_000, help="queries of --file")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.task:
        run_task(wanted.task)
    elif wanted.file:
        found = apart({"rows": wanted.file, "dim": wanted.dim, "queries": wanted.queries})
        print(f"{wanted.file:,} rows of dim {wanted.dim} ({wanted.file * wanted.dim * 4 / 2**30:.2f} GiB) in a file, {wanted.queries:,} queries: "
              f"CPU {found['cpu']:.1f} s  wall {found['wall']:.1f} s")
        print(f"  peak memory of its own {found['own_gib']:.2f} GiB, with the pages of files that happen to be resident {found['peak_gib']:.2f} GiB")
        print("  " + "  ".join(f"{name} {value:.3f}" for name, value in found["result"].items()))
    else:
        for classes in wanted.classes:
            if wanted.apart:
                compare_apart(wanted.rows, classes, wanted.dim, wanted.only)
            else:
                compare(wanted.rows, classes, wanted.dim, wanted.rounds)


if __name__ == "__main__":
    main()
