"""Two processes with a core each against one process with two threads: how much of the training do they share?

    python benchmarks/parallel.py                 # mdprop, ResNet-18 of width 16, 64 px, batch 64; two minutes on two free cores
    python benchmarks/parallel.py --smoke         # everything once, tiny: does it run?

Both train the same images through `fit`, with everything that belongs to a step: decoding, augmentation, attacks, loss, update. They run in turn, each as
often as there are rounds; the seconds of a step are the median of a round, and the best round counts. The efficiency is the time of the one process,
divided by that of the two: 100 % means that sharing costs nothing. CPU seconds are those of all threads and processes together; they say on a busy
machine, too, which of the two does more work.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: waiting threads must not count as work
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

from torch import distributed

from mdprop.data import glyphs
from mdprop.train import StopTraining, fit


def train(args: argparse.Namespace) -> None:
    "As one of the processes: some steps. The first process prints the seconds and the CPU seconds of each, without the first two."
    if args.world > 1:
        distributed.init_process_group("gloo", init_method=args.store, rank=args.rank, world_size=args.world)
    clocks: list[tuple[float, float]] = []

    def watch(what: str, facts: dict) -> None:
        clocks.append((time.perf_counter(), time.process_time()))
        if what == "step" and facts["step"] >= args.steps + 2:
            raise StopTraining

    images = glyphs(size=args.size).split_classes()[0]
    settings = dict(valid=None, backbone="resnet18", width=args.width, epochs=99, batch_size=args.batch, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(args.store.removeprefix("file://")).parent / "run" if args.world > 1 else Path(folder)
        fit(images, args.recipe, out, watch=watch, **settings)
    if args.world > 1:
        distributed.destroy_process_group()
    if args.rank == 0:
        clocks = clocks[2 : args.steps + 3]  # from the end of the second step on; the first entry is "start"
        print(json.dumps([[b - a for a, b in pairwise(one)] for one in zip(*clocks, strict=True)]))


def measured(args: argparse.Namespace, world: int) -> tuple[float, float]:
    "Seconds and CPU seconds of a step of so many processes."
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, *sys.argv[1:], "--world", str(world), "--store", Path(folder, "store").as_uri(), "--rank"]
        threads = os.environ | {"OMP_NUM_THREADS": str(2 // world), "GLOO_SOCKET_IFNAME": "lo"}
        running = [subprocess.Popen([*words, str(r)], env=threads, stdout=subprocess.PIPE, text=True) for r in range(world)]
        told = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit("a process has failed")
    seconds, cpu = json.loads(told[0].splitlines()[-1])
    return median(seconds), world * median(cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(steps=5, rounds=3, size=64, width=16, batch=64, world=0, rank=0).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--recipe", default="mdprop")
    parser.add_argument("--store", default="")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        args.steps, args.rounds, args.size, args.width, args.batch = 1, 1, 16, 2, 8
    if args.world:
        return train(args)
    found = {world: [] for world in (1, 2)}
    for _ in range(args.rounds):
        for world, times in found.items():
            times.append(measured(args, world))
    (one, one_cpu), (two, two_cpu) = ([min(column) for column in zip(*times, strict=True)] for times in found.values())
    print(f"{args.recipe}, ResNet-18 of width {args.width}, {args.size} px, batch {args.batch}: seconds of a step (CPU seconds)")
    print(f"one process, two threads      {one:.2f} ({one_cpu:.2f})\ntwo processes, a thread each  {two:.2f} ({two_cpu:.2f})")
    print(f"efficiency {one / two:.0%}, by CPU seconds {one_cpu / two_cpu:.0%}")


if __name__ == "__main__":
    main()
