"""What `fit`'s loop costs beside a plain PyTorch loop with the same arithmetic, and beside pytorch-metric-learning's own trainer.

    python benchmarks/train.py                            # ResNet-18 of width 64, 64 px: about half an hour on two cores
    python benchmarks/train.py --width 16 --rounds 9      # `fit`'s default width: the smaller the model, the more of the loop shows
    python benchmarks/train.py --device cuda --backbone timm/resnet50 --size 224 --batch 64
    python benchmarks/train.py --smoke                    # everything once, tiny: does it run?

Each contestant trains some steps on the same images in the same batches, augmentation and data loading included, in turn in one process; a ratio is the
median over rounds. Nothing is validated or saved: that is not the loop. The plain loop runs twice in every round: its ratio to itself is the noise.
Peak memory is that of a process of its own for each.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: waiting threads must not count as work
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import copy
import io
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from statistics import median

import kornia.augmentation as K
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.trainers import MetricLossOnly
from step import fresh_process, interleaved, plainest, ratios, spread, status_bytes, through
from torch import Tensor, nn
from tqdm.auto import tqdm

from mdprop.data import ImageSet
from mdprop.model import Embedder
from mdprop.norm import convert_multi_norm
from mdprop.recipes import get_recipe
from mdprop.train import Trainer, Training

RECIPES = ("plain", "mdprop", "mdprop_paper")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Setting:
    "How large, how often, and where."

    device: torch.device
    pairs: int = 7  # rounds
    threads: int = 2
    steps: int = 8  # of each contestant in a round
    batch: int = 32
    size: int = 64  # pixels
    backbone: str = "resnet18"
    width: int = 64  # channels of the first stage: the original ResNet-18


SMOKE = dict(pairs=1, steps=2, batch=8, size=24, width=4)


def made(s: Setting) -> tuple[ImageSet, Training, Embedder]:
    "Images in memory, settings, and a model; the same ones each time."
    torch.manual_seed(0)
    count = s.batch * s.steps
    images = torch.randint(0, 256, (count, 3, s.size, s.size), dtype=torch.uint8)
    classes = s.batch // 2
    data = ImageSet(images, torch.arange(count) % classes, [f"class {c}" for c in range(classes)], [f"{i}.png" for i in range(count)], "random")
    settings = Training(epochs=10**4, batch_size=s.batch, per_class=2, schedule="constant", warmup=0.0, optimizer="adam", weight_decay=0.0, lr=1e-5)
    return data, settings, Embedder(s.backbone, 128, data.shape, MEAN, STD, s.width).to(s.device)


def ours(s: Setting, recipe: str) -> Callable[[], float]:
    "`fit`'s loop."
    data, settings, model = made(s)
    found = get_recipe(recipe)
    if len(found.domains) > 1:
        convert_multi_norm(model, found.domains, found.statistics)
    trainer = Trainer(model, found, settings, data)

    def run() -> float:
        row = trainer.epoch(tqdm(disable=True))
        trainer.complete()
        return row["loss"]

    return run


# The plain loop


def attacked(model: nn.Module, x: Tensor, domain: str, targets: int, recipe: str) -> Tensor:
    "One sign step towards the embeddings of `targets` other images. `x` is in normalised space."
    paper = recipe == "mdprop_paper"
    mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (MEAN, STD))
    eps = torch.tensor(0.01, device=x.device) if paper else 8 / 255 / std
    low, high = (x.min(), x.max()) if paper else (-mean / std, (1 - mean) / std)
    low, high = torch.max(x - eps, low), torch.min(x + eps, high)
    model.eval()
    with torch.no_grad():
        start = x + (2 * torch.rand_like(x) - 1) * 0.05 * eps
        z = through(model, x, (domain, len(x))) if paper else None  # the authors' code takes targets from the clean images
    start.requires_grad_()
    moved = through(model, start, (domain, len(x)))
    z = moved.detach() if z is None else z
    goals = torch.stack([z[torch.randperm(len(x), device=x.device)] for _ in range(targets)])
    gradient = torch.autograd.grad((goals - moved).norm(dim=-1).mean(0).sum(), start)[0]
    model.train()
    return torch.max(torch.min(start.detach() - eps * gradient.sign(), high), low)


def by_hand(s: Setting, recipe: str) -> Callable[[], float]:
    "The same arithmetic in a loop as one writes it without this library."
    data, settings, model = made(s)
    normalize, images, labels = model.normalize, data.images, data.labels
    network = plainest(model) if recipe != "plain" else copy.deepcopy(model)
    if recipe == "plain":
        network.normalize = nn.Identity()
    loss_of, augment = MultiSimilarityLoss(), K.RandomAffine(degrees=10, translate=(0.08, 0.08), scale=(0.9, 1.1), padding_mode="border", p=1.0)
    optimizer, batches = torch.optim.Adam(network.parameters(), lr=settings.lr), data.class_batches(s.batch, 2)

    def run() -> float:
        total = 0.0
        for indices in batches:
            x = normalize(augment(images[indices].to(s.device).float() / 255).clamp(0, 1))
            y = labels[indices].to(s.device)
            if recipe == "plain":
                z = network(x)
            else:
                half = len(x) // 2
                moved = attacked(network, x[:half], "single", 1, recipe), attacked(network, x[half:], "multi", 5, recipe)
                z = through(network, torch.cat([x, *moved]), ("clean", len(x)), ("single", half), ("multi", len(x) - half))
                y = torch.cat([y, y])
            loss = loss_of(z, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total / s.steps

    return run


class Decoded(torch.utils.data.Dataset):
    "Images in memory, as users of pytorch-metric-learning give them."

    def __init__(self, data: ImageSet):
        self.images, self.labels = data.images, data.labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index].float() / 255, int(self.labels[index])


def by_peer(s: Setting, recipe: str) -> Callable[[], float]:
    "pytorch-metric-learning's trainer, with the same augmentation, network, loss and optimiser."
    data, settings, model = made(s)
    augment = K.RandomAffine(degrees=10, translate=(0.08, 0.08), scale=(0.9, 1.1), padding_mode="border", p=1.0)
    trunk = nn.Sequential(augment, model).to(s.device)
    optimizer, batches = torch.optim.Adam(trunk.parameters(), lr=settings.lr), data.class_batches(s.batch, 2)
    sampler = [index for batch in batches for index in batch]
    trainer = MetricLossOnly(
        models={"trunk": trunk}, optimizers={"trunk_optimizer": optimizer}, batch_size=s.batch, loss_funcs={"metric_loss": MultiSimilarityLoss()},
        dataset=Decoded(data), sampler=sampler, dataloader_num_workers=0, iterations_per_epoch=s.steps, data_device=s.device, dtype=torch.float32,
    )  # fmt: skip

    def run() -> float:
        with redirect_stderr(io.StringIO()):  # its bar
            trainer.train(num_epochs=1)
        return 0.0

    return run


CONTESTANTS = {"ours": ours, "by hand": by_hand, "pytorch-metric-learning": by_peer}


def peak(s: Setting, recipe: str, name: str) -> int:
    "The largest resident memory of this process during two rounds, less what was resident before."
    torch.set_num_threads(s.threads)
    run = CONTESTANTS[name](s, recipe)
    before = status_bytes("VmRSS")
    for _ in range(2):
        run()
    if s.device.type == "cuda":
        return torch.cuda.max_memory_allocated(s.device)
    return status_bytes("VmHWM") - before


def line(s: Setting, recipe: str) -> list[str]:
    "All contestants with one recipe."
    names = [name for name in CONTESTANTS if recipe == "plain" or name != "pytorch-metric-learning"]
    calls: dict[str, Callable] = {name: CONTESTANTS[name](s, recipe) for name in names}
    calls["again"] = by_hand(s, recipe)
    losses = {name: calls[name]() for name in ("ours", "by hand")}
    print(f"  loss of the first steps: ours {losses['ours']:.4f}, by hand {losses['by hand']:.4f}", flush=True)
    runs = interleaved(calls, s)
    for name, found in runs.items():
        rate = s.batch * s.steps / median(each.wall for each in found)
        print(f"  {name:<26} {rate:9.1f} images/s   CPU {median(each.cpu for each in found):7.3f} s", flush=True)
    memory = {name: fresh_process(peak, s, recipe, name) for name in names}
    lines = []
    for other, bar in (("by hand", 1.03), ("pytorch-metric-learning", 1.00)):
        if other not in names:
            continue
        cpu, wall = (ratios(runs, "ours", other, clock) for clock in ("cpu", "wall"))
        noise = spread(ratios(runs, "again", "by hand", "wall"))
        met = "yes" if all(median(values) <= bar for values in ([wall] if s.device.type == "cuda" else [cpu, wall])) else "no"
        rate = s.batch * s.steps / median(each.wall for each in runs["ours"])
        share = memory["ours"] / memory[other]
        lines.append(f"| {recipe} | {rate:.0f} | {other} | <= {bar:.2f} | {spread(cpu)} | {spread(wall)} | {noise} | {share:.2f} | {met} |")
    return lines


HEADER = """| recipe | images/s | against | bar | CPU seconds, ratio | wall seconds, ratio | by hand against itself, wall | peak memory, ratio | met |
|---|---|---|---|---|---|---|---|---|"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    for name in ("steps", "batch", "size", "width", "threads"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--rounds", type=int, dest="pairs")
    parser.add_argument("--backbone", help="resnet10, resnet18 (ours), or any timm name")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--smoke", action="store_true", help="tiny, once")
    wanted = vars(parser.parse_args(arguments))
    recipes, smoke = wanted.pop("recipes"), wanted.pop("smoke")
    s = replace(Setting(wanted["device"]), **((SMOKE if smoke else {}) | {name: value for name, value in wanted.items() if value is not None}))
    torch.set_num_threads(s.threads)
    print(f"torch {torch.__version__}, {s.device.type}, {s.threads} thread(s); {s.backbone} (width {s.width}), {s.size} px, batch {s.batch}, "
          f"{s.pairs} round(s) of {s.steps} steps")  # fmt: skip
    lines = []
    for recipe in recipes:
        print(f"\n{recipe}")
        lines += line(s, recipe)
    print("\n" + "\n".join([HEADER, *lines]))


if __name__ == "__main__":
    main()
