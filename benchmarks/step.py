"""What norms, attacks and training steps cost beside the plain model, the limit, other libraries and the plainest PyTorch.

    python benchmarks/step.py                                # all bars on the CPU, about half an hour on two cores
    python benchmarks/step.py --bars attack paper --pairs 15
    python benchmarks/step.py --device cuda --bars norm sample attack paper fast --peak-tflops 989
    python benchmarks/step.py --smoke                        # everything once, tiny: does it run?

Contestants run in turn in one process, and a ratio is the median over rounds. A bar is met when the medians of both CPU seconds and wall seconds are below
it (on a GPU: wall seconds alone). The base runs twice in every round: its ratio to itself is the noise of this machine.

The peers are no dependencies of mdprop: foolbox comes with the extra `dev`; torchattacks asks for an old `requests`, so that it wants

    pip install --no-deps torchattacks==3.5.1
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: waiting threads must not count as work
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import copy
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mdprop.attacks import FeatureAttack, mean_distance
from mdprop.model import Embedder, create_backbone
from mdprop.norm import convert_multi_norm, route_samples, split_domains, use_domain
from mdprop.recipes import PAPER_TRAINING, Recipe, get_recipe, mdprop_paper
from mdprop.train import create_loss, create_miner, training_step

DOMAINS = ("clean", "single", "multi")
EPS, STEP_SIZE, STEPS, TARGETS = 8 / 255, 2 / 255, 10, 5
TORCHATTACKS = "pip install --no-deps torchattacks==3.5.1 (it asks for an old requests, so for an environment of its own)"


@dataclass(frozen=True)
class Setting:
    "How large, how often, and where."

    device: torch.device
    pairs: int = 9  # rounds
    threads: int = 2
    batch: int = 64
    size: int = 64  # pixels
    norm_width: int = 64  # channels of the first stage in `norm` and `sample`: the original ResNet-18
    width: int = 16  # likewise in `paper`: `fit`'s default; the smaller the model, the more whatever is not the model shows
    attacked: tuple[tuple[int, int], ...] = ((64, 8), (16, 32))  # width and batch in `attack`: the first has the bars
    backbone: str = "resnet50"  # of `fast`
    fast_size: int = 224  # pixels of `fast`
    compiler: str = "inductor"
    peak_tflops: float | None = None


SMOKE = dict(pairs=1, batch=8, size=16, norm_width=4, width=4, attacked=((4, 4),), backbone="resnet10", fast_size=16, compiler="eager")


# Timing


class Seconds(NamedTuple):
    cpu: float  # of all threads of this process
    wall: float


def timed(call: Callable[[], object], device: torch.device) -> Seconds:
    "What one call takes, on a GPU to its end."
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    wait()
    return Seconds(time.process_time() - cpu, time.perf_counter() - wall)


Runs = dict[str, list[Seconds]]


def interleaved(calls: dict[str, Callable[[], object]], s: Setting) -> Runs:
    "Every contestant once a round, one after the other, each round beginning with the next; one round before them is not counted."
    names = list(calls)
    runs: Runs = {name: [] for name in names}
    for call in calls.values():
        call()
    for i in range(s.pairs):
        for j in range(len(names)):
            name = names[(i + j) % len(names)]
            runs[name].append(timed(calls[name], s.device))
    return runs


def spread(values: list[float]) -> str:
    "Median and range."
    return f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def ratios(runs: Runs, mine: str, other: str, clock: str) -> list[float]:
    return [getattr(a, clock) / getattr(b, clock) for a, b in zip(runs[mine], runs[other], strict=True)]


def row(what: str, against: str, bar: float | None, runs: Runs | None, mine: str, other: str, s: Setting) -> str:
    "One line of the table: what `mine` takes of the time of `other`."
    limit = "" if bar is None else f"<= {bar:.2f}"
    if runs is None:
        return f"| {what} | {against} | {limit} | | | | not there |"
    cpu, wall = (ratios(runs, mine, other, clock) for clock in ("cpu", "wall"))
    itself = spread(ratios(runs, "again", other, "wall")) if other in ("plain", "limit") else ""
    decisive = [wall] if s.device.type == "cuda" else [cpu, wall]
    met = "" if bar is None else "yes" if all(median(r) <= bar for r in decisive) else "no"
    return f"| {what} | {against} | {limit} | {spread(cpu)} | {spread(wall)} | {itself} | {met} |"


HEADER = "| what | against | bar | CPU seconds, ratio | wall seconds, ratio | base against itself, wall | met |\n|---|---|---|---|---|---|---|"


def show(runs: Runs) -> None:
    for name, found in runs.items():
        print(f"  {name:<34} CPU {median(r.cpu for r in found):8.3f} s   wall {median(r.wall for r in found):8.3f} s", flush=True)


# Norms


def thirds(n: int) -> dict[str, int]:
    "Half of the rows clean, a quarter single, the rest multi."
    return {"clean": n // 2, "single": n // 4, "multi": n - n // 2 - n // 4}


def resnets(s: Setting) -> tuple[nn.Module, nn.Module, Tensor]:
    "The same ResNet-18, plain and with three domains, and a batch."
    torch.manual_seed(0)
    plain = create_backbone("resnet18", width=s.norm_width).to(s.device)
    return plain, convert_multi_norm(copy.deepcopy(plain), DOMAINS), torch.rand(s.batch, 3, s.size, s.size, device=s.device)


def train_once(model: nn.Module, x: Tensor, rows: dict[str, int] | None) -> None:
    "Forward and backward pass."
    model.zero_grad()
    if rows is None:
        y = model(x)
    else:
        with split_domains(model, **rows):
            y = model(x)
    y.square().mean().backward()


def saved_bytes(model: nn.Module, x: Tensor, rows: dict[str, int] | None) -> int:
    "Bytes of all tensors, each storage once, that a forward pass keeps for its backward pass."
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        train_once(model, x, rows)
    return sum(kept.values())


def status_bytes(name: str) -> int:
    "A line of /proc/self/status such as VmHWM, the largest resident memory that this process ever had (Linux)."
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def peak_bytes(s: Setting, multi: bool) -> int:
    "Peak memory of three training passes above what was there before the model. On the CPU to be called in a process of its own."
    torch.set_num_threads(s.threads)
    if s.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if s.device.type == "cuda" else status_bytes("VmRSS")
    plain, converted, x = resnets(s)
    model, rows = (converted, thirds(len(x))) if multi else (plain, None)
    del plain, converted
    for _ in range(3):
        train_once(model, x, rows)
    return (torch.cuda.max_memory_allocated() if s.device.type == "cuda" else status_bytes("VmHWM")) - before


def fresh_process(call: Callable, *args):
    "The result of a call in a process that was started for it: its peak memory is its own."
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *args).result()


def memory_lines(s: Setting) -> list[str]:
    """The table's lines for peak memory; bytes of saved tensors are printed beside it.

    The C library keeps freed blocks of up to 32 MiB to itself, depending on the order in which they come and go. So resident memory is measured twice: as it
    is, and with MALLOC_MMAP_THRESHOLD_ fixed, where every large block goes back at once and what is resident is what is alive.
    """
    plain, multi, x = resnets(s)
    kept = saved_bytes(plain, x, None), saved_bytes(multi, x, thirds(len(x)))
    print(f"  kept for the backward pass: plain {kept[0] / 2**20:.1f} MiB, 3 segments {kept[1] / 2**20:.1f} MiB ({kept[1] / kept[0]:.4f})")
    what, bar = "norm: 3 segments, peak memory", 1.05
    if s.device.type == "cpu" and not Path("/proc/self/status").exists():
        return [f"| {what} | plain model | <= {bar} | | | | not measured: wants Linux |"]
    del plain, multi, x
    if s.device.type == "cuda":
        return [_memory_line(what, bar, [(peak_bytes(s, False), peak_bytes(s, True))])]
    lines = []
    for name, barred, threshold in ((what, bar, "131072"), ("norm: the same, with what the C library keeps", None, None)):
        with environment("MALLOC_MMAP_THRESHOLD_", threshold):
            found = [tuple(fresh_process(peak_bytes, s, multi) for multi in (False, True)) for _ in range(1 if s.pairs == 1 else 3)]
        lines.append(_memory_line(name, barred, found))
    return lines


@contextmanager
def environment(name: str, value: str | None) -> Iterator[None]:
    "A variable for the processes that are started inside the block."
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def _memory_line(what: str, bar: float | None, found: list[tuple[int, ...]]) -> str:
    print(f"  {what}: plain {median(a for a, _ in found) / 2**20:.1f} MiB, 3 segments {median(b for _, b in found) / 2**20:.1f} MiB")
    values = [b / a for a, b in found]
    met = "" if bar is None else "yes" if median(values) <= bar else "no"
    return f"| {what} | plain model | {'' if bar is None else f'<= {bar}'} | | {spread(values)} (bytes) | | {met} |"


def norm_bar(s: Setting) -> list[str]:
    "Three segments against the plain model: time and memory of a training pass."
    plain, multi, x = resnets(s)
    runs = interleaved(
        {
            "plain": lambda: train_once(plain, x, None),
            "again": lambda: train_once(plain, x, None),
            "3 segments": lambda: train_once(multi, x, thirds(len(x))),
            "one domain": lambda: train_once(multi, x, None),
        },
        s,
    )
    show(runs)
    what = f"ResNet-18 forward+backward, {s.size} px, batch {s.batch}"
    return [
        row(f"norm: 3 segments (1/2, 1/4, 1/4), {what}", "plain model", 1.05, runs, "3 segments", "plain", s),
        row("norm: one domain for the batch, the same", "plain model", None, runs, "one domain", "plain", s),
        *memory_lines(s),
    ]


def layout_bar(s: Setting) -> list[str]:
    "Filters stored channels last, as `create_backbone` stores them, against the usual way: a training pass."
    lines = []
    for name, width, size in (("resnet10", s.width, s.size // 2), ("resnet18", s.norm_width, s.size)):
        torch.manual_seed(0)
        last = create_backbone(name, width=width).to(s.device)
        usual = copy.deepcopy(last).to(memory_format=torch.contiguous_format)
        x = torch.rand(s.batch, 3, size, size, device=s.device)
        calls = {"plain": partial(train_once, usual, x, None), "channels last": partial(train_once, last, x, None)}
        runs = interleaved({**calls, "again": calls["plain"]}, s)
        show(runs)
        what = f"layout: filters channels last, {name} (width {width}), {size} px, batch {s.batch}"
        lines.append(row(what, "the usual layout", None, runs, "channels last", "plain", s))
    return lines


def sample_bar(s: Setting) -> list[str]:
    "A domain for every sample, in any order, in evaluation mode."
    what = "norm: per-sample routing, eval mode, forward"
    plain, multi, x = resnets(s)
    generator = torch.Generator().manual_seed(0)
    domain = torch.repeat_interleave(torch.arange(3), torch.tensor(list(thirds(len(x)).values())))
    index = domain[torch.randperm(len(x), generator=generator)].to(s.device)
    plain.eval(), multi.eval()

    @torch.no_grad()
    def routed() -> Tensor:
        with route_samples(multi, index):
            return multi(x)

    forward = torch.no_grad()(lambda: plain(x))
    runs = interleaved({"plain": forward, "again": forward, "per sample": routed}, s)
    show(runs)
    return [row(what, "plain model", 1.10, runs, "per sample", "plain", s)]


# Attacks


class AsClassifier(nn.Module):
    """Embedder and targets as a classifier with the logits (0, distance).

    The cross entropy of class 0 is log(1 + exp(distance)), which rises with the distance; so whoever lowers it, image by image, lowers the
    distance: the gradients differ by a positive factor for each image, their signs not at all. The libraries' attacks run unchanged.
    """

    def __init__(
        self,
        embedder: nn.Module,  # images to unit embeddings (n, dim)
        targets: Tensor,  # (K, n, dim) for a batch of n images
    ):
        super().__init__()
        self.embedder, self.targets = embedder, targets
        self.eval()  # torchattacks would otherwise put everything into training mode afterwards, since that is how it found this module

    def forward(self, x: Tensor) -> Tensor:
        distance = mean_distance(self.embedder(x), self.targets)
        return torch.stack([torch.zeros_like(distance), distance], 1)


Attack = Callable[[int], Tensor]  # a seed of the random start -> the moved images


def our_attack(model: nn.Module, x: Tensor, targets: Tensor, steps: int = STEPS) -> Attack:
    "FeatureAttack with the same ball, step and start as the peers."
    attack = FeatureAttack(len(targets), EPS, steps, STEP_SIZE, random_start=1.0)
    return lambda seed: attack(model, x, target_embeddings=targets, generator=torch.Generator(x.device).manual_seed(seed))


def torchattacks_attack(model: nn.Module, x: Tensor, targets: Tensor, steps: int = STEPS) -> Attack:
    "torchattacks' PGD, unchanged. Raises `ImportError` where it is missing."
    import torchattacks  # noqa: PLC0415

    attack = torchattacks.PGD(AsClassifier(model, targets), eps=EPS, alpha=STEP_SIZE, steps=steps, random_start=True)
    attack.set_mode_targeted_by_label(quiet=True)
    labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return attack(x, labels)

    return run


def foolbox_attack(model: nn.Module, x: Tensor, targets: Tensor, steps: int = STEPS) -> Attack:
    "foolbox's LinfPGD, unchanged and called as its guide does. Raises `ImportError` where it is missing."
    import foolbox  # noqa: PLC0415

    classifier = foolbox.PyTorchModel(AsClassifier(model, targets), bounds=(0, 1), device=x.device)
    criterion = foolbox.criteria.TargetedMisclassification(torch.zeros(len(x), dtype=torch.int64, device=x.device))
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=steps, random_start=True)

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return attack(classifier, x, criterion, epsilons=EPS)[1]

    return run


def limit(model: nn.Module, x: Tensor, steps: int = STEPS) -> None:
    "Forward and input-only backward passes, and nothing else: no attack with so many gradients can be faster."
    for _ in range(steps):
        image = x.clone().requires_grad_()
        z = model(image)
        torch.autograd.grad(z, image, torch.ones_like(z))


@torch.no_grad()
def distance_to(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    "The objective `(n,)` at images `x`."
    return mean_distance(model(x), targets)


def attack_bar(s: Setting) -> list[str]:
    "Ten steps against the limit and the peers, on the original ResNet-18 and on a small one."
    return [line for i, (width, batch) in enumerate(s.attacked) for line in attack_lines(s, width, batch, barred=i == 0)]


def attack_lines(s: Setting, width: int, batch: int, barred: bool) -> list[str]:
    "Time, and how far each gets."
    torch.manual_seed(0)
    model = Embedder("resnet18", 128, (3, s.size, s.size), width=width).to(s.device).eval()
    frozen = copy.deepcopy(model).requires_grad_(False)
    x = torch.rand(batch, 3, s.size, s.size, device=s.device)
    chooser = FeatureAttack(TARGETS, EPS)
    targets = chooser.draw_targets(model, x, torch.Generator(s.device).manual_seed(0))
    attacks: dict[str, Attack] = {"ours": our_attack(model, x, targets)}
    for name, make, module in (
        ("torchattacks", torchattacks_attack, model), ("torchattacks, frozen parameters", torchattacks_attack, frozen), ("foolbox", foolbox_attack, model),
    ):  # fmt: skip
        try:
            attacks[name] = make(module, x, targets)
        except ImportError as error:
            print(f"  {name} is left out: {error}; {TORCHATTACKS if 'torchattacks' in name else 'pip install foolbox'}")
    calls: dict[str, Callable[[], object]] = {
        "limit": lambda: limit(model, x),
        "again": lambda: limit(model, x),
        "target pass": lambda: chooser.draw_targets(model, x),
    }
    calls |= {name: lambda attack=attack: attack(0) for name, attack in attacks.items()}
    runs = interleaved(calls, s)
    print(f"  width {width}, batch {batch}")
    show(runs)
    model.zero_grad()  # foolbox fills the gradients of parameters

    reached = {name: distance_to(model, attack(0), targets) for name, attack in attacks.items()}
    print(f"  mean distance to the targets: before {distance_to(model, x, targets).mean():.6f}")
    for name, found in reached.items():
        gap = reached["ours"] - found
        print(f"  {name:<34} after {found.mean():.6f}; ours is nearer by {-gap.mean():.1e} on average; farther by at most {gap.max():.1e}")

    best = min((n for n in runs if n.startswith("torchattacks")), key=lambda n: median(r.cpu for r in runs[n]), default="")
    what = f"attack: {STEPS} L-inf steps, K={TARGETS}, ResNet-18 (width {width}), {s.size} px, batch {batch}"
    bars = (1.10, 1.02, 0.75) if barred else (None, None, None)
    return [
        row(what, f"{STEPS} x (forward + input-only backward)", bars[0], runs, "ours", "limit", s),
        row("attack: drawing the targets, not in the other lines", "the same limit", None, runs, "target pass", "limit", s),
        row("attack: the same", best or "torchattacks", bars[1], runs if best else None, "ours", best, s),
        row("attack: the same", "foolbox", bars[2], runs if "foolbox" in runs else None, "ours", "foolbox", s),
    ]


# One training step of the paper


class ThreeNorms(nn.Module):
    "The plainest multi-domain batch norm: three layers, and a batch cut by position."

    segments: list[tuple[str, int]]  # (domain, rows), set for all layers by `through`

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        self.norms = nn.ModuleDict({domain: copy.deepcopy(norm) for domain in DOMAINS})
        for domain in DOMAINS[1:]:
            self.norms[domain].reset_running_stats()

    def forward(self, x: Tensor) -> Tensor:
        if len(self.segments) == 1:
            return self.norms[self.segments[0][0]](x)
        parts, at = [], 0
        for domain, rows in self.segments:
            parts.append(self.norms[domain](x[at : at + rows]))
            at += rows
        return torch.cat(parts)


def plainest(model: Embedder) -> Embedder:
    "A copy whose batch norms are `ThreeNorms`; it lives in normalised space, as the authors' code does."
    plain = copy.deepcopy(model)
    for module in list(plain.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, ThreeNorms(child))
    plain.normalize = nn.Identity()
    return plain


def through(model: nn.Module, x: Tensor, *segments: tuple[str, int]) -> Tensor:
    ThreeNorms.segments = list(segments)
    return model(x)


def plain_attack(model: nn.Module, x: Tensor, domain: str, targets: int, generator: torch.Generator, eps: float = 0.01, steps: int = 1) -> Tensor:
    "The attack of the authors' code: targets in eval mode through the attacked domain, a small random start, sign steps in normalised space."
    model.eval()
    with torch.no_grad():
        z = through(model, x, (domain, len(x)))
    goals = [z[torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)] for _ in range(targets)]
    noise = torch.rand(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)
    moved = x + (noise * 0.001 - 0.0005)
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        z = through(model, moved, (domain, len(x)))
        loss = (sum((goal - z).norm(dim=1).mean() for goal in goals) / targets) ** 2
        gradient = torch.autograd.grad(loss, moved)[0]
        moved = moved.detach() - eps / steps * gradient.sign()
        moved = torch.max(torch.min(moved, x + eps), x - eps).clamp(x.min(), x.max())
    model.train()
    return moved.detach()


class Contest:
    "The same training steps by hand and by the library, from the same weights."

    def __init__(self, s: Setting, batch: int, dtype: torch.dtype = torch.float32, lr: float = PAPER_TRAINING["lr"]):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        original = Embedder("resnet18", 128, (3, s.size, s.size), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), width=s.width).to(s.device, dtype)
        self.images = torch.rand(batch, 3, s.size, s.size, generator=generator, dtype=dtype).to(s.device)
        self.labels = (torch.arange(batch) // 2).to(s.device)
        self.loss = create_loss(PAPER_TRAINING["loss"], **PAPER_TRAINING["loss_options"])
        self.miner = create_miner(PAPER_TRAINING["miner"], **PAPER_TRAINING["miner_options"])
        self.recipe = mdprop_paper()
        self.normalize = original.normalize
        self.plain, self.model = plainest(original), convert_multi_norm(copy.deepcopy(original), DOMAINS, self.recipe.statistics)
        adam = lambda model: torch.optim.Adam(model.parameters(), lr=lr, weight_decay=PAPER_TRAINING["weight_decay"])
        self.plain_adam, self.adam = adam(self.plain), adam(self.model)

    def attacked_by_hand(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        "Two attacks, one after the other."
        half = len(x) // 2
        return plain_attack(self.plain, x[:half], "single", 1, generator), plain_attack(self.plain, x[half:], "multi", 5, generator)

    def flipped(self) -> float:
        "Share of the attacked pixels that differ by more than a tenth of eps."
        by_hand = torch.cat(self.attacked_by_hand(self.normalize(self.images), torch.Generator().manual_seed(0)))
        batch = self.recipe.batch(self.model, self.images, self.labels, torch.Generator().manual_seed(0))
        return ((self.normalize(batch.images[len(self.images) :]) - by_hand).abs() > 0.001).float().mean().item()

    def by_hand(self, seed: int = 0) -> Tensor:
        "Section 2 in the plainest PyTorch."
        generator, n = torch.Generator().manual_seed(seed), len(self.images)
        x = self.normalize(self.images)
        z = through(self.plain, torch.cat([x, *self.attacked_by_hand(x, generator)]), ("clean", n), ("single", n // 2), ("multi", n - n // 2))
        labels = torch.cat([self.labels, self.labels])
        loss = self.loss(z, labels, self.miner(z, labels))
        return self.update(loss, self.plain_adam)

    def by_library(self, recipe: Recipe | None = None, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        loss = training_step(self.model, recipe or self.recipe, self.loss, self.miner, self.images, self.labels, generator)
        return self.update(loss, self.adam)

    @staticmethod
    def update(loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def difference(self) -> float:
        "The largest difference of any weight or running statistic."
        mine = self.model.state_dict()
        named = {name.replace(".norms.clean.", ".").replace(".norms.", ".domain_norms."): value for name, value in self.plain.state_dict().items()}
        assert named.keys() == {name for name in mine if not name.startswith("normalize.")}
        return max((mine[name] - value).abs().max().item() for name, value in named.items())


def same_numbers(s: Setting) -> None:
    """Steps by hand and by the library: in double precision the losses and all weights must agree to 1e-5.

    In single precision the two round differently, and a gradient next to zero then has another sign: its pixel moves the other way.
    """
    for dtype, steps in ((torch.float64, 3), (torch.float32, 1)):
        contest, name = Contest(s, min(s.batch, 16), dtype), str(dtype).removeprefix("torch.")
        flipped = contest.flipped()
        losses = [(contest.by_hand(seed).item(), contest.by_library(seed=seed).item()) for seed in range(steps)]
        apart, weights = max(abs(a - b) for a, b in losses), contest.difference()
        print(
            f"  {name}, batch {len(contest.images)}, {steps} step(s): loss {losses[-1][1]:.6f} differs by {apart:.1e}, "
            f"weights and statistics by {weights:.1e}; {flipped:.3%} of the attacked pixels went the other way"
        )
        if dtype == torch.float64 and max(apart, weights) > 1e-5:
            raise AssertionError(f"the library's step is not the paper's: loss differs by {apart}, weights by {weights}")


def own_forward_difference(s: Setting, recipe: Recipe) -> None:
    "What it changes to take targets at the attack's start instead of at the clean images, all random choices equal."
    contest = Contest(s, s.batch)
    model, changed, moved, near = contest.model, [], {False: [], True: []}, []
    for branch in recipe.branches[1:]:
        attack, x = branch.attack, contest.images[branch.take(s.batch)]
        orders = torch.stack([torch.randperm(len(x), generator=torch.Generator().manual_seed(k)) for k in range(attack.targets)])
        model.eval()
        with torch.no_grad(), use_domain(model, branch.domain):
            start = attack.ball(model, x)[0].random_start(attack.random_start, torch.Generator().manual_seed(9))
            z = {False: model(x), True: model(start)}
        model.train()
        for own, embeddings in z.items():
            goals = embeddings[orders.to(s.device)]
            moved[own].append(attack(model, x, domain=branch.domain, target_embeddings=goals, generator=torch.Generator().manual_seed(9)))
        changed.append((moved[False][-1] != moved[True][-1]).float().mean().item())
        near.append((z[False] - z[True]).norm(dim=1).max().item())
    n, values = s.batch, []
    for parts in moved.values():
        twin = copy.deepcopy(model)
        with split_domains(twin, clean=n, single=n // 2, multi=n - n // 2), torch.no_grad():
            z, labels = twin(torch.cat([contest.images, *parts])), torch.cat([contest.labels, contest.labels])
        values.append(contest.loss(z, labels, contest.miner(z, labels)).item())
    print(
        f"  own_forward: target embeddings move by at most {max(near):.1e}; other pixels in the attacked images: "
        f"single {changed[0]:.2%}, multi {changed[1]:.2%}; loss {values[0]:.6f} -> {values[1]:.6f}"
    )


def paper_bar(s: Setting) -> list[str]:
    "One `mdprop_paper` step against the same by hand."
    same_numbers(s)
    contest = Contest(s, s.batch)
    own = mdprop_paper(own_forward=True)
    own_forward_difference(s, own)
    runs = interleaved({"plain": contest.by_hand, "again": contest.by_hand, "ours": contest.by_library, "own forward": lambda: contest.by_library(own)}, s)
    show(runs)
    what = f"step: mdprop_paper, ResNet-18 (width {s.width}), {s.size} px, batch {s.batch}"
    return [
        row(what, "the authors' step in the plainest PyTorch", 1.00, runs, "ours", "plain", s),
        row("step: the same, targets from the attack's own forward pass", "the same", 0.93, runs, "own forward", "plain", s),
    ]


# A training step on a GPU


class Way(NamedTuple):
    "How the device is used."

    name: str
    tf32: bool = True
    bfloat16: bool = False
    channels_last: bool = False
    compiled: str | None = None  # mode of torch.compile


WAYS = (
    Way("float32, TF32 off", tf32=False),
    Way("float32 (TF32 where PyTorch has it on)"),
    Way("bfloat16 autocast", bfloat16=True),
    Way("+ channels_last", bfloat16=True, channels_last=True),
    Way("+ torch.compile", bfloat16=True, channels_last=True, compiled="default"),
    Way("+ CUDA graphs", bfloat16=True, channels_last=True, compiled="reduce-overhead"),
)


class CountedFlops(TorchDispatchMode):
    "Counts the operations of convolutions and matrix products, two for each multiply-add. (`FlopCounterMode` does not go with `autograd.grad`.)"

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=out) if count else 0
        return out


class FastStep:
    "An `mdprop` training step in one way of using the device."

    def __init__(self, s: Setting, way: Way):
        torch.manual_seed(0)
        torch._dynamo.reset()
        self.way, self.s, self.recipe = way, s, get_recipe("mdprop")
        layout = torch.channels_last if way.channels_last else torch.contiguous_format
        model = convert_multi_norm(Embedder(s.backbone, 128, (3, s.fast_size, s.fast_size)), self.recipe.domains)
        self.model = model.to(s.device, memory_format=layout).train()
        self.images = torch.rand(s.batch, 3, s.fast_size, s.fast_size, device=s.device).to(memory_format=layout)
        self.labels = torch.arange(s.batch, device=s.device) // 2
        self.loss, self.miner = create_loss("multi_similarity"), create_miner("multi_similarity")
        self.adam = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)
        if way.compiled and s.compiler == "inductor":
            model.compile(mode=way.compiled)
        elif way.compiled:
            model.compile(backend=s.compiler)

    def __call__(self) -> None:
        tf32 = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = tf32 and self.way.tf32
        if self.way.compiled:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(self.s.device.type, torch.bfloat16, enabled=self.way.bfloat16):
            loss = training_step(self.model, self.recipe, self.loss, self.miner, self.images, self.labels)
        Contest.update(loss, self.adam)
        torch.backends.cudnn.allow_tf32 = tf32


def fast_bar(s: Setting) -> list[str]:
    """Images a second of an `mdprop` step in each way, against float32.

    The ways do not share the device's memory, so each is timed alone, `pairs` steps after its warm-up, and the float32 step again at the end.
    """
    step = FastStep(s, WAYS[0])
    with CountedFlops() as counted:
        step()
    flops = counted.total
    print(f"  {s.backbone}, {s.fast_size} px, batch {s.batch}: {flops / 1e12:.3g} TFLOP a step of mdprop (convolutions and matrix products)")
    rates: dict[str, float] = {}
    ways = WAYS if s.compiler == "inductor" else WAYS[:-1]  # another compiler makes no CUDA graphs
    for way in (*ways, WAYS[1]):
        name = f"{way.name}, again" if way.name in rates else way.name
        started = time.perf_counter()
        step = FastStep(s, way)
        for _ in range(min(s.pairs, 3)):
            timed(step, s.device)
        ready = time.perf_counter() - started
        seconds = median(timed(step, s.device).wall for _ in range(s.pairs))
        rates[name] = s.batch / seconds
        share = f"   {flops / seconds / 1e12 / s.peak_tflops:6.1%} of {s.peak_tflops:g} TFLOP/s" if s.peak_tflops else ""
        print(f"  {name:<40} {rates[name]:9.1f} images/s   {flops / seconds / 1e12:8.2f} TFLOP/s{share}   ready after {ready:.0f} s", flush=True)
        del step
    base = min(rates[name] for name in rates if name.startswith(WAYS[1].name))
    fastest = max(rates, key=lambda name: rates[name])
    times = rates[fastest] / base
    met = ("yes" if times >= 3 else "no") if s.device.type == "cuda" else "a bar for GPUs"
    what = f"GPU step: mdprop, {s.backbone}, {s.fast_size} px, batch {s.batch}: {fastest}"
    return [f"| {what} | float32 | >= 3.00x images/s | | {times:.2f}x | {rates.get(WAYS[1].name + ', again', base) / rates[WAYS[1].name]:.3f} | {met} |"]


# All of them

BARS: dict[str, Callable[[Setting], list[str]]] = {
    "norm": norm_bar, "sample": sample_bar, "layout": layout_bar, "attack": attack_bar, "paper": paper_bar, "fast": fast_bar
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bars", nargs="+", choices=BARS, help="default: all but `fast`, which is for a GPU")
    parser.add_argument("--pairs", type=int, help="rounds")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backbone", help="of `fast`: any timm name, or resnet10, resnet18 (ours)")
    parser.add_argument("--peak-tflops", type=float, help="of the device's matrix units in bfloat16, without sparsity")
    parser.add_argument("--smoke", action="store_true", help="tiny, once")
    wanted = parser.parse_args(arguments)
    given = {name: getattr(wanted, name) for name in ("pairs", "backbone", "peak_tflops") if getattr(wanted, name) is not None}
    s = replace(Setting(device=wanted.device, threads=wanted.threads), **({**SMOKE, **given} if wanted.smoke else given))
    torch.set_num_threads(s.threads)
    bars = wanted.bars or [name for name in BARS if wanted.smoke or name != "fast"]
    where = torch.cuda.get_device_name(s.device) if s.device.type == "cuda" else f"CPU, {s.threads} thread(s)"
    print(f"torch {torch.__version__}, {where}, {s.pairs} round(s)")
    lines = []
    for name in bars:
        print(f"\n{name}")
        lines += BARS[name](s)
    print("\n" + "\n".join([HEADER, *lines]))


if __name__ == "__main__":
    main()
