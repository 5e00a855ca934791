"""Where the pixels of a batch come from: images for a second of CPU time, and the share of a step that `fit` waits for them.

    python benchmarks/data.py FOLDER/CUB_200_2011_subset100.tar
    python benchmarks/data.py FOLDER/CUB_200_2011_subset100.tar --width 16 --images 1000     # a first look

CPU seconds are those of all processes together: the decoding ones count, and a busy machine lengthens them less than the clock's.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: waiting threads must not count as work
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import tempfile

from mdprop.data import ImageSet, cub200, spread_evenly
from mdprop.train import StopTraining, fit


def cpu_seconds() -> float:
    "Of this process and of those of its children that have ended."
    return sum(os.times()[:4])


def print_decoding(where: str, data: ImageSet, workers: int) -> None:
    "One pass in class-balanced batches."
    started, images = cpu_seconds(), 0
    for raw, _, _ in data.loader(data.class_batches(64, 4), workers=workers):
        images += len(raw)
    spent = cpu_seconds() - started
    print(f"{where:30} {workers} workers  {images / spent:10,.0f} images / CPU second  {1000 * spent / images:7.3f} ms an image")


def print_share(data: ImageSet, recipe: str, width: int, steps: int) -> None:
    "Of the steps of `fit`, decoding from the archive in two workers."
    shares: list[float] = []  # of all steps until then

    def watch(what: str, facts: dict) -> None:
        if what == "step":
            shares.append(facts["data_share"])
            if len(shares) == steps:
                raise StopTraining

    with tempfile.TemporaryDirectory() as folder:
        fit(data, recipe, folder, valid=None, backbone="resnet18", width=width, workers=2, augment="crop", progress=False, watch=watch)
    print(f"{recipe:10} waits for data {shares[-1]:6.1%} of a step (mean of {len(shares)}, ResNet-18 of width {width}, 2 workers)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="the archive of CUB-200-2011, or of a subset in its layout")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage: 64 is the original ResNet-18")
    parser.add_argument("--images", type=int, help="no more than so many")
    parser.add_argument("--steps", type=int, default=12)
    wanted = parser.parse_args()
    data = cub200(wanted.path, size=wanted.size)
    data = data.subset(spread_evenly(min(wanted.images or len(data), len(data)), len(data)))
    print(f"{len(data):,} images, {wanted.size} pixels")
    for workers in (0, 1, 2):
        print_decoding("decoded for every batch", data, workers)
    with tempfile.TemporaryDirectory() as folder:
        cached = data.cached(folder)
        for workers in (0, 2):
            print_decoding("mapped from a file of pixels", cached, workers)
    for recipe in ("plain", "mdprop"):
        print_share(data, recipe, wanted.width, wanted.steps)


if __name__ == "__main__":
    main()
