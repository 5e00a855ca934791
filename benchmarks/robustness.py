"""The ten attacks together beside one after the other, and the order of undefended and defended models by their ERS.

    python benchmarks/robustness.py time                                   # interleaved rounds in one process
    python benchmarks/robustness.py order omniglot --path FOLDER           # trains plain, est and act, and attacks them
    python benchmarks/robustness.py order cub200 --path FOLDER/CUB_200_2011_subset100.tar

Trained runs are kept in benchmarks/runs, and attacks in the run folders, so that a command that was stopped goes on.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: waiting threads must not count as work
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from torch import nn

from mdprop import robustness
from mdprop.attacks import LinfBall, projected_gradient
from mdprop.data import ImageSet, cub200, glyphs, omniglot
from mdprop.model import embed, evaluating
from mdprop.recipes import get_recipe
from mdprop.robustness import TEN, Cases, ers, evaluate
from mdprop.train import fit

EPS, STEPS, SIZE = 8 / 255, 32, 3 / 255


def one_after_the_other(model: nn.Module, test: ImageSet, size: int, batch_size: int) -> dict[str, float]:
    "Each attack as its definition says, with embeddings, partners and a search of its own."
    scores = {}
    for name, attack in TEN.items():
        z, own = embed(model, test), torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:size].sort().values
        partner = robustness._partners(z, test.labels, own, [name], 0)[name]
        outcomes = []
        for rows in torch.arange(size).split(batch_size):
            x = test.batch(own[rows].tolist())[0]
            cases = attack.prepare(Cases(z, test.labels, own[rows], partner[rows]))
            start = (x + 0.02 * EPS * robustness._noise(x, own[rows], 0, 0)).clamp(0, 1) if name.startswith("ES") else x
            with evaluating(model):
                moved = projected_gradient(lambda x, loss=attack.loss, cases=cases: loss(model(x), cases), start, LinfBall(x, EPS), STEPS, SIZE)
                with torch.no_grad():
                    outcomes.append(attack.outcome(model(moved), cases))
        scores[name] = min(100.0, max(0.0, float(attack.score(torch.cat(outcomes).nanmean()))))
    return scores


def alone(model: nn.Module, test: ImageSet, size: int) -> dict[str, float]:
    "Ten calls of `ers` with one attack each: the same search, but nothing shared."
    return {name: float(ers(model, test, [name], EPS, STEPS, SIZE, size=size, progress=False).table["score"][0]) for name in TEN}


def together(model: nn.Module, test: ImageSet, size: int) -> dict[str, float]:
    "One call."
    return ers(model, test, tuple(TEN), EPS, STEPS, SIZE, size=size, progress=False).table.set_index("attack")["score"].to_dict()


def timed(call: Callable[[], dict[str, float]]) -> tuple[float, float, dict[str, float]]:
    "CPU seconds, wall seconds, result."
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def times(size: int, rounds: int, pixels: int, width: int, classes: int, epochs: int, test_classes: int) -> None:
    "All ways in turn, in every round; medians of the ratios."
    train, test = glyphs(classes=classes, size=pixels).split_classes()
    folder = Path(__file__).parent / "runs" / f"glyphs-{pixels}-{width}-{classes}-{epochs}"
    model = fit(train, "plain", folder, epochs=epochs, width=width, dim=64, progress=False).model()
    test = test.keep_classes(range(test_classes))
    calls = {
        "together": lambda: together(model, test, size),
        "together again (noise)": lambda: together(model, test, size),
        "ten calls of ers": lambda: alone(model, test, size),
        "one after the other, batches of 32": lambda: one_after_the_other(model, test, size, 32),
        "one after the other, batches of 256": lambda: one_after_the_other(model, test, size, 256),
    }
    found: dict[str, list[tuple[float, float, dict[str, float]]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(timed(call))
    print(f"{size} of {len(test):,} images of {pixels} pixels, ResNet-10 of width {width}, {STEPS} steps: {rounds} rounds, {torch.get_num_threads()} threads")
    for name, runs in found.items():
        ratios = [[mine[clock] / run[clock] for run, mine in zip(runs, found["together"], strict=True)] for clock in (0, 1)]
        apart = max(abs(runs[0][2][attack] - found["together"][0][2][attack]) for attack in TEN)
        spread = f"{min(ratios[0]):.2f} to {max(ratios[0]):.2f}"
        print(f"  {name:<36} CPU {median(r[0] for r in runs):7.2f} s  wall {median(r[1] for r in runs):7.2f} s  "
              f"together / this: CPU {median(ratios[0]):.3f} ({spread})  wall {median(ratios[1]):.3f}  scores differ by at most {apart:.1f}")


SETS = {"omniglot": dict(open=omniglot, size=28, augment="affine", epochs=8), "cub200": dict(open=cub200, size=32, augment="photo", epochs=6)}


def order(name: str, path: Path, seeds: list[int], epochs: int | None, norms: str, size: int, recipes: list[str]) -> None:
    "Train plain, est and act at equal numbers of steps, and attack them."
    chosen = SETS[name]
    train, test = chosen["open"](path, size=chosen["size"]).in_memory().split_classes()
    epochs, rows = epochs or chosen["epochs"], []
    for seed in seeds:
        for recipe in recipes:
            out = Path(__file__).parent / "runs" / f"ers-{name}-{recipe}-{norms}-{epochs}-{seed}"
            start = time.perf_counter()
            run = fit(train, replace(get_recipe(recipe), norms=norms), out, epochs=epochs, width=8, dim=64, per_class=4, loss="triplet_margin", miner=None,
                      augment=chosen["augment"], seed=seed, progress=False)  # fmt: skip
            spent = time.perf_counter() - start
            found = ers(run, test, size=size, progress=False)
            clean = evaluate(run, test, steps=1)["recall_at_1"]
            score = found.table.set_index("attack")["score"]
            rows.append(dict(recipe=recipe, seed=seed, clean=100 * clean, **score, error=found.table["error"].iloc[-1], seconds=spent))
            print(f"{recipe}, seed {seed}: R@1 {100 * clean:.1f}, ERS {found.ers:.1f} ± {rows[-1]['error']:.1f} ({spent:.0f} s)", flush=True)
    print(f"\n{name}, {len(train):,} training images, {epochs} epochs, norms {norms}; ERS of {size} of {len(test):,} images")
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.1f}".format))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="what", required=True)
    timing = kinds.add_parser("time")
    for option, value in dict(size=64, rounds=3, pixels=28, width=8, classes=100, epochs=2, test_classes=50).items():
        timing.add_argument(f"--{option.replace('_', '-')}", type=int, default=value)
    ordering = kinds.add_parser("order")
    ordering.add_argument("name", choices=SETS)
    ordering.add_argument("--path", type=Path, required=True)
    ordering.add_argument("--seeds", type=int, nargs="+", default=[0])
    ordering.add_argument("--epochs", type=int)
    ordering.add_argument("--norms", choices=["train", "frozen"], default="train", help="of all recipes; frozen is for pretrained backbones")
    ordering.add_argument("--size", type=int, default=256, help="images that are attacked")
    ordering.add_argument("--recipes", nargs="+", default=["plain", "est", "act"])
    args = vars(parser.parse_args())
    (times if args.pop("what") == "time" else order)(**args)


if __name__ == "__main__":
    main()
