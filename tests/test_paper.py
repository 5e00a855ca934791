"""`mdprop_paper` against a plain PyTorch computation of one training step, written from the method's description alone.

The reference works in ImageNet-style normalised space with explicit tensors for every domain, computes batch norm, MultiSimilarity loss and Adam by
their formulas, and shares nothing with the library but the weights, the images and the random draws.
"""

import copy

import pytest
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss
from torch import nn
from torch.nn import functional as F

from mdprop.model import Embedder
from mdprop.norm import convert_multi_norm
from mdprop.recipes import PAPER_TRAINING, mdprop_paper
from mdprop.train import Training, create_augmentation, create_loss, create_miner, learning_rate, training_step

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
EPS, LR, WEIGHT_DECAY = 0.01, 1e-3, 4e-4


def small_backbone():
    return nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 10, 3, bias=False), nn.BatchNorm2d(10), nn.ReLU())


def pretrained_embedder():
    "A network whose norms look trained: statistics far from 0 and 1, uneven scales and shifts."
    torch.manual_seed(3)
    model = Embedder(small_backbone(), dim=5, image_shape=(3, 9, 9), mean=MEAN, std=STD)
    for norm in (model.backbone[1], model.backbone[4]):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model.double()


class Reference:
    "The network as explicit tensors: shared convolutions and head; for each domain its own (gamma, beta) and running statistics."

    def __init__(self, model, statistics):
        self.shared = {
            "conv1": model.backbone[0].weight, "conv2": model.backbone[3].weight, "w": model.head.weight, "b": model.head.bias,
        }  # fmt: skip
        self.shared = {name: p.detach().clone().requires_grad_() for name, p in self.shared.items()}
        self.affine, self.running = {}, {}
        for domain in ("clean", "single", "multi"):
            for layer, norm in ((1, model.backbone[1]), (2, model.backbone[4])):
                self.affine[domain, layer] = [norm.weight.detach().clone().requires_grad_(), norm.bias.detach().clone().requires_grad_()]
                fresh = domain != "clean" and statistics == "reset"
                mean, var = norm.running_mean.clone(), norm.running_var.clone()
                self.running[domain, layer] = [torch.zeros_like(mean), torch.ones_like(var)] if fresh else [mean, var]

    def batch_norm(self, h, domain, layer, training):
        gamma, beta = self.affine[domain, layer]
        if training:
            mean, var = h.mean((0, 2, 3)), h.var((0, 2, 3), unbiased=False)
            count = h.numel() / h.shape[1]
            old_mean, old_var = self.running[domain, layer]
            self.running[domain, layer] = [0.9 * old_mean + 0.1 * mean.detach(), 0.9 * old_var + 0.1 * var.detach() * count / (count - 1)]
        else:
            mean, var = self.running[domain, layer]
        h = (h - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return gamma[:, None, None] * h + beta[:, None, None]

    def __call__(self, x, segments, training):
        "Segments: (domain, rows) in order. x is normalised."
        h = F.conv2d(x, self.shared["conv1"])
        for layer in (1, 2):
            parts, at = [], 0
            for domain, rows in segments:
                parts.append(self.batch_norm(h[at : at + rows], domain, layer, training))
                at += rows
            h = torch.relu(torch.cat(parts))
            if layer == 1:
                h = F.conv2d(h, self.shared["conv2"])
        z = h.mean((2, 3)) @ self.shared["w"].T + self.shared["b"]
        return z / z.norm(dim=1, keepdim=True)

    def attack(self, x, domain, targets, steps, generator):
        "Section 2, steps 2 and 3, in normalised space."
        n, route = len(x), [(domain, len(x))]
        z = self(x, route, training=False).detach()
        goals = [z[torch.randperm(n, generator=generator)] for _ in range(targets)]
        moved = x + (torch.rand(x.shape, generator=generator, dtype=x.dtype) * 0.001 - 0.0005)
        for _ in range(steps):
            moved = moved.detach().requires_grad_()
            z = self(moved, route, training=False)
            loss = (sum((goal - z).norm(dim=1).mean() for goal in goals) / targets) ** 2
            gradient = torch.autograd.grad(loss, moved)[0]
            moved = moved.detach() - EPS / steps * gradient.sign()
            moved = torch.max(torch.min(moved, x + EPS), x - EPS).clamp(x.min().item(), x.max().item())
        return moved.detach()

    def parameters(self):
        return [*self.shared.values(), *(p for pair in self.affine.values() for p in pair)]


def multi_similarity(z, labels, alpha=2, beta=40, base=0.5):
    "Wang et al., 2019, equation 16, one anchor at a time."
    similarity, total = z @ z.T, 0
    for i in range(len(z)):
        positives = [similarity[i, j] for j in range(len(z)) if j != i and labels[j] == labels[i]]
        negatives = [similarity[i, j] for j in range(len(z)) if labels[j] != labels[i]]
        total = total + torch.log(1 + sum(torch.exp(-alpha * (s - base)) for s in positives)) / alpha
        total = total + torch.log(1 + sum(torch.exp(beta * (s - base)) for s in negatives)) / beta
    return total / len(z)


@pytest.mark.parametrize("statistics", ["reset", "clone"])
@pytest.mark.parametrize("steps", [1, 3])
def test_one_step_of_mdprop_paper_is_the_papers(steps, statistics):
    torch.manual_seed(0)
    images, labels = torch.rand(12, 3, 9, 9, dtype=torch.float64), torch.arange(12) // 2
    original = pretrained_embedder()
    reference = Reference(original, statistics)
    mean, std = torch.tensor(MEAN)[:, None, None].double(), torch.tensor(STD)[:, None, None].double()

    # by hand
    x, generator = (images - mean) / std, torch.Generator().manual_seed(7)
    single = reference.attack(x[:6], "single", 1, steps, generator)
    multi = reference.attack(x[6:], "multi", 5, steps, generator)
    z = reference(torch.cat([x, single, multi]), [("clean", 12), ("single", 6), ("multi", 6)], training=True)
    expected_loss = multi_similarity(z, torch.cat([labels, labels]))
    gradients = torch.autograd.grad(expected_loss, reference.parameters())
    for p, g in zip(reference.parameters(), gradients, strict=True):
        g = g + WEIGHT_DECAY * p.detach()
        first, second = 0.1 * g / (1 - 0.9), 0.001 * g**2 / (1 - 0.999)
        p.data -= LR * first / (second.sqrt() + 1e-8)

    # by the library
    recipe = mdprop_paper(steps=steps, statistics=statistics)
    model = convert_multi_norm(copy.deepcopy(original), recipe.domains, recipe.statistics)
    batch = recipe.batch(model, images, labels, torch.Generator().manual_seed(7))
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    loss = training_step(model, recipe, MultiSimilarityLoss(alpha=2, beta=40, base=0.5), None, images, labels, torch.Generator().manual_seed(7))
    loss.backward()
    optimizer.step()

    assert batch.sizes == {"clean": 12, "single": 6, "multi": 6}
    assert torch.equal(batch.labels, torch.cat([labels, labels]))
    adversarial = (batch.images - mean) / std
    torch.testing.assert_close(adversarial, torch.cat([x, single, multi]), atol=1e-5, rtol=0)
    assert (adversarial[12:18] - x[:6]).abs().max() > 0.9 * EPS  # the attack did attack
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=0)
    for domain in recipe.domains:
        for layer, norm in ((1, model.backbone[1]), (2, model.backbone[4])):
            mine = norm if domain == "clean" else norm.domain_norms[domain]
            running_mean, running_var = reference.running[domain, layer]
            torch.testing.assert_close(mine.running_mean, running_mean, atol=1e-5, rtol=0)
            torch.testing.assert_close(mine.running_var, running_var, atol=1e-5, rtol=0)
            for own, theirs in zip((mine.weight, mine.bias), reference.affine[domain, layer], strict=True):
                torch.testing.assert_close(own, theirs, atol=1e-5, rtol=0)
    shared = {"conv1": model.backbone[0].weight, "conv2": model.backbone[3].weight, "w": model.head.weight, "b": model.head.bias}
    for name, weight in shared.items():
        torch.testing.assert_close(weight, reference.shared[name], atol=1e-5, rtol=0)


def test_the_switches_of_the_papers_faults_change_what_they_name():
    torch.manual_seed(0)
    images, labels = torch.rand(8, 3, 9, 9, dtype=torch.float64) * 0.5 + 0.5, torch.arange(8) // 2
    model = pretrained_embedder()

    def moved(**switches):
        recipe = mdprop_paper(eps=0.5, **switches)
        converted = convert_multi_norm(copy.deepcopy(model), recipe.domains, recipe.statistics)
        return recipe.batch(converted, images, labels, torch.Generator().manual_seed(0)).images[8:] - images

    std = torch.tensor(STD, dtype=torch.float64)
    assert torch.allclose(moved(bounds="pixels").abs().amax((0, 2, 3)), 0.5 * std)  # eps in units of each channel's deviation
    assert moved(eps_units="pixels", bounds="pixels").abs().max() == pytest.approx(0.5)  # eps in pixels
    assert (moved(bounds="batch") + images).min() < 0.5 <= images.min()  # normalised extremes mix the channels: pixels may pass their own range
    assert (moved(eps_units="pixels", bounds="pixels") + images).max() <= 1


def test_paper_training_is_the_papers():
    training = Training(**{key: value for key, value in PAPER_TRAINING.items() if key in Training.__dataclass_fields__})
    loss = create_loss(training.loss, **training.loss_options)
    assert (loss.alpha, loss.beta, loss.base) == (2, 40, 0.5)
    assert create_miner(training.miner, **training.miner_options).epsilon == 0.1
    assert (training.optimizer, training.lr, training.weight_decay) == ("adam", 1e-5, 4e-4)
    assert (training.batch_size, training.per_class, training.epochs) == (64, 2, 125)
    assert {learning_rate(step, 1000, training.lr, training.schedule, int(training.warmup * 1000)) for step in range(1000)} == {1e-5}
    augmentation = create_augmentation(training.augment, (3, 224, 224))
    assert [type(part).__name__ for part in augmentation] == ["RandomResizedCrop", "RandomHorizontalFlip"]
