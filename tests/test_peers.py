"""Beside the attacks of torchattacks and foolbox: same model, loss, ball, step and start. And the benchmark that times them runs."""

import pytest
import torch

from benchmarks import step as bench
from mdprop.data import glyphs
from mdprop.model import Embedder
from mdprop.recipes import get_recipe
from mdprop.train import create_loss, training_step

SEEDS = range(4)  # of the random start
PEERS = {"foolbox": bench.foolbox_attack, "torchattacks": bench.torchattacks_attack}


@pytest.fixture(scope="module")
def scene():
    "A small embedder with some training behind it, 32 images of new classes, and five targets for each."
    torch.manual_seed(0)
    torch.set_num_threads(1)
    train, test = glyphs(size=24).split_classes()
    model = Embedder("resnet10", 16, train.shape, width=8)
    optimizer, loss = torch.optim.Adam(model.parameters(), 2e-3), create_loss("multi_similarity")
    for indices in train.class_batches(64, 4, seed=0, batches=30):
        optimizer.zero_grad()
        training_step(model, get_recipe("plain"), loss, None, *train.batch(indices)).backward()
        optimizer.step()
    model.eval()
    x, _ = test.batch(torch.randperm(len(test), generator=torch.Generator().manual_seed(1))[:32])
    with torch.no_grad():
        z = model(x)
    return model, x, torch.stack([z[torch.randperm(len(z), generator=torch.Generator().manual_seed(k))] for k in range(5)])


def reached(attack, model, x, targets):
    "The objective for each seed and image: `(seeds, n)`, after a look at whether the images are allowed."
    found = []
    for seed in SEEDS:
        moved = attack(seed)
        assert (moved - x).abs().max() <= bench.EPS + 1e-6 and 0 <= moved.min() and moved.max() <= 1
        found.append(bench.distance_to(model, moved, targets))
    return torch.stack(found)


def both(peer, scene, steps):
    if peer == "torchattacks":
        pytest.importorskip("torchattacks", reason=f"no dependency: {bench.TORCHATTACKS}", exc_type=ImportError)
    return tuple(reached(make(*scene, steps), *scene) for make in (bench.our_attack, PEERS[peer]))


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("peer", PEERS)
def test_as_strong_as_the_peer(peer, steps, scene):
    "All start at the same point and go the same way: what differs is rounding, and where it flips the sign of a gradient."
    ours, theirs = both(peer, scene, steps)
    before = bench.distance_to(*scene).mean()
    assert theirs.mean() < 0.95 * before  # there is something to compare
    assert ours.mean() <= theirs.mean() + 1e-4
    assert ((ours - theirs).abs() <= 1e-5).float().mean() >= 0.95


def test_the_classifier_of_the_peers_has_our_gradients_signs(scene):
    model, x, targets = (t.double() for t in scene)
    image = x.clone().requires_grad_()
    logits = bench.AsClassifier(model, targets)(image)
    theirs = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, torch.zeros(len(x), dtype=torch.int64)), image)[0]
    mine = torch.autograd.grad(bench.mean_distance(model(image), targets).sum(), image)[0]
    model.float()
    assert torch.equal(mine.sign(), theirs.sign())


@pytest.mark.parametrize("bar", bench.BARS)
def test_every_bar_runs(bar, capsys):
    threads = torch.get_num_threads()
    bench.main(["--smoke", "--threads", str(threads), "--bars", bar])
    table = capsys.readouterr().out.split(bench.HEADER)[1].strip().splitlines()
    assert table and all(line.count("|") == bench.HEADER.splitlines()[0].count("|") for line in table)
