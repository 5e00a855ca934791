"""Train recipes on real images and print the table of benchmarks/README.md: every recipe with the same seeds, batches and number of steps.

    python benchmarks/real_images.py omniglot --path FOLDER --seeds 0 1 2
    python benchmarks/real_images.py cub200 --path FOLDER/CUB_200_2011_subset100.tar --seeds 0 1 2

Test classes are never seen in training; checkpoints are chosen on validation classes cut from the training classes. Runs are kept in
benchmarks/runs, so that the command resumes where it stopped.
"""

import argparse
import math
import platform
from pathlib import Path

import pandas as pd
import torch

from mdprop.data import cub200, omniglot
from mdprop.recipes import RECIPES
from mdprop.robustness import evaluate
from mdprop.train import fit

SETTINGS = {
    "omniglot": dict(open=omniglot, size=32, epochs=20, per_class=4, augment="affine", eps=8 / 255),
    "cub200": dict(open=cub200, size=64, epochs=10, per_class=4, augment="photo", eps=2 / 255),
}
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, two-sided 95 %, by number of seeds


def mean_and_interval(values):
    "Mean, and the half width of its 95 % interval by Student's t over seeds."
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return f"{mean:.4f}"
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return f"{mean:.4f} ± {T95[n] * deviation / math.sqrt(n):.4f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=SETTINGS)
    parser.add_argument("--path", type=Path, required=True, help="folder or archive of the official data")
    parser.add_argument("--recipes", nargs="+", default=["plain", "mdprop"], choices=sorted(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int)
    args = parser.parse_args()

    chosen = SETTINGS[args.data]
    data = chosen["open"](args.path, size=chosen["size"]).in_memory()
    train, test = data.split_classes()
    epochs = args.epochs or chosen["epochs"]
    print(f"{data.describe()}\n{len(train.class_names)} training classes, {len(test.class_names)} test classes; {epochs} epochs", flush=True)

    found = []
    for seed in args.seeds:
        for recipe in args.recipes:
            out = Path(__file__).parent / "runs" / f"{args.data}-{recipe}-{seed}"
            run = fit(train, recipe, out, epochs=epochs, per_class=chosen["per_class"], augment=chosen["augment"], seed=seed, progress=False)
            row = evaluate(run, test, eps=chosen["eps"], steps=10)
            found.append(dict(recipe=recipe, seed=seed, **row))
            print(f"{recipe}, seed {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in row.items()), flush=True)

    rows = pd.DataFrame(found)
    measures = [c for c in rows if c not in ("recipe", "seed")]
    print(f"\n| measure | {' | '.join(args.recipes)} | paired difference to {args.recipes[0]} |\n|---|{'---|' * (len(args.recipes) + 1)}")
    for measure in measures:
        by = rows.pivot(index="seed", columns="recipe", values=measure)
        differences = [mean_and_interval((by[r] - by[args.recipes[0]]).tolist()) for r in args.recipes[1:]]
        print(f"| {measure} | {' | '.join(mean_and_interval(by[r].tolist()) for r in args.recipes)} | {'; '.join(differences)} |")
    print(f"\nPython {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} thread(s), {platform.machine()}")


if __name__ == "__main__":
    main()
