"""Recipes: every named one trains, resumes and costs what it says; losses, weights, warm-up and triplets are as declared."""

from dataclasses import replace

import pytest
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss, TripletMarginLoss
from torch import nn

from mdprop.attacks import FeatureAttack, TripletAttack
from mdprop.data import glyphs
from mdprop.model import Embedder, embed
from mdprop.norm import MultiNorm, convert_multi_norm, domains_of
from mdprop.recipes import RECIPES, Branch, Recipe, get_recipe, recipe_state
from mdprop.runs import load_tensors
from mdprop.train import Trainer, Training, fit, training_step

QUICK = dict(epochs=2, width=4, dim=8, batch_size=16, per_class=2, progress=False)


@pytest.fixture(scope="module")
def few():
    "A small set: 12 glyph classes in several families, 8 images each."
    data = glyphs(classes=60, per_class=8, size=24)
    return data.keep_classes(range(0, 60, 5))


def network(recipe, dtype=torch.float64):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8))
    model = Embedder(backbone, dim=5, image_shape=(3, 9, 9)).to(dtype)
    return convert_multi_norm(model, recipe.domains) if len(recipe.domains) > 1 else model


def batch(n=12, classes=4):
    return torch.rand(n, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.arange(n) // (n // classes)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_trains_and_repeats(few, tmp_path, name):
    first, second = (fit(few, name, tmp_path / folder, **QUICK | dict(epochs=1)) for folder in ("first", "second"))
    assert first.metrics["loss"].notna().all() and first.config["recipe"]["name"] == name
    assert all(torch.equal(a, b) for a, b in zip(first.model("last").parameters(), second.model("last").parameters(), strict=True))


@pytest.mark.parametrize("attack", [FeatureAttack(3, steps=1, policy="dense"), TripletAttack("hardness", steps=1)], ids=["memory", "last loss"])
def test_what_an_attack_remembers_survives_an_interruption(few, tmp_path, attack):
    class Stop(Exception):
        pass

    class StopAfter(nn.Identity):
        def __init__(self, n):
            super().__init__()
            self._left = n  # private: not part of the settings

        def forward(self, x):
            self._left -= 1
            if self._left < 0:
                raise Stop
            return x

    recipe = Recipe("remembers", (Branch("clean", attack),))
    steps = len(few.hold_out_classes(0.2)[0]) // 16
    whole = fit(few, recipe, tmp_path / "whole", augment=StopAfter(10**6), **QUICK)
    with pytest.raises(Stop):
        fit(few, recipe, tmp_path / "cut", augment=StopAfter(steps + 1), **QUICK)
    tensors, facts = load_tensors(tmp_path / "cut" / "last.safetensors")
    assert facts["epoch"] == 1 and any(key.startswith("recipe.0.") for key in tensors)
    cut = fit(few, recipe, tmp_path / "cut", augment=StopAfter(10**6), **QUICK)
    assert all(torch.equal(a, b) for a, b in zip(whole.model("last").parameters(), cut.model("last").parameters(), strict=True))
    assert attack.state() == TripletAttack("hardness").state() if isinstance(attack, TripletAttack) else attack.state() == {}  # yours is as it was


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_cost_is_the_number_of_passes(name):
    "Forward passes are counted by rows; a backward pass to the images counts one, that of the training step two."
    recipe = get_recipe(name)
    model, (x, y) = network(recipe), batch()
    rows, backward = [], []

    def seen(module, args, out):
        rows.append(len(out))
        if out.requires_grad:
            out.register_hook(lambda g: backward.append(len(g)))

    hook = model.head.register_forward_hook(seen)
    mixed = recipe.batch(model, x, y, torch.Generator().manual_seed(0))
    hook.remove()
    triplets = mixed.triplets is not None
    passes = (sum(rows) + sum(backward) + 3 * len(mixed.images)) / len(x)
    assert passes == pytest.approx(recipe.cost, rel=1e-9), (name, triplets)


def test_the_step_shares_one_pass_between_single_and_multi():
    for recipe in (get_recipe("mdprop"), RECIPES["mdprop"](share=None)):
        model, (x, y), calls = network(recipe), batch(), []
        hook = model.head.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        recipe.batch(model, x, y)
        assert len(calls) == 1  # the attack's own forward; no other for the targets
        hook.remove()


def test_joint_and_separate_losses_are_what_they_say():
    loss, (x, y) = MultiSimilarityLoss(), batch()
    branches = (Branch(weight=1.0), Branch("noisy", FeatureAttack(1, steps=0, random_start=1.0), weight=0.5))
    for recipe in (Recipe("joint", (Branch(), Branch("noisy", branches[1].attack))), Recipe("separate", branches, joint=False)):
        model = network(recipe)
        found = training_step(model, recipe, loss, None, x, y, torch.Generator().manual_seed(0))
        mixed = recipe.batch(model, x, y, torch.Generator().manual_seed(0))
        with mixed.routed(model):
            z = model(mixed.images)
        expected = loss(z, mixed.labels) if recipe.joint else loss(z[:12], y) + 0.5 * loss(z[12:], y)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)  # the second pass has other running statistics, not other batch statistics


def test_one_norm_may_see_every_branch(few, tmp_path):
    run = fit(few, RECIPES["mdprop"](share="all"), tmp_path / "run", **QUICK)
    assert run.config["domains"] == ["clean"] and not any(isinstance(module, MultiNorm) for module in run.model().modules())


def test_attacked_images_may_share_a_norm(few, tmp_path):
    run = fit(few, "mdprop", tmp_path / "run", **QUICK)
    assert run.config["domains"] == ["clean", "attacked"] and domains_of(run.model("last")) == ("clean", "attacked")
    assert replace(RECIPES["duplicate"](), share="attacked").domains == ("clean", "again")  # nothing is attacked


@pytest.mark.parametrize("share", ["statistics", "affine"])
def test_domains_may_share_a_part_of_their_norms(few, tmp_path, share):
    run = fit(few, RECIPES["mdprop"](share=share), tmp_path / "run", **QUICK)
    model = run.model("last")
    assert domains_of(model) == ("clean", "single", "multi")
    mine, other = model.backbone.bn1, model.backbone.bn1.domain_norms["multi"]
    assert (mine.share, other.running_mean is None, other.weight is None) == (share, share == "statistics", share == "affine")
    assert embed(model, few, "multi").shape == (len(few), 8)


@pytest.mark.parametrize("name", ["act", "hm"])
def test_triplet_recipes_have_the_triplet_loss(name):
    recipe, (x, y) = get_recipe(name), batch()
    model = network(recipe)
    found = training_step(model.eval(), recipe, TripletMarginLoss(margin=0.2), None, x, y, torch.Generator().manual_seed(0))
    restart = get_recipe(name)
    mixed = restart.batch(model, x, y, torch.Generator().manual_seed(0))
    z = model(mixed.images)
    a, p, n = mixed.triplets
    violation = ((z[a] - z[p]).norm(dim=1) - (z[a] - z[n]).norm(dim=1) + 0.2).clamp_min(0)
    torch.testing.assert_close(found, violation[violation > 0].mean(), atol=1e-6, rtol=0)  # the loss's reducer leaves zeros out
    torch.testing.assert_close(recipe_state(recipe)["0.loss"].double(), violation.mean().detach(), atol=1e-6, rtol=0)


def test_the_margin_of_hardness_follows_the_loss():
    attack = TripletAttack("hardness", margin=0.2)
    for loss, goal in ((2.0, -0.2), (0.2, -0.2), (0.05, -0.05), (0.0, 0.0)):
        attack.restore({"loss": torch.tensor(loss)})
        assert attack.goal.item() == pytest.approx(goal)


def test_frozen_norms_keep_their_statistics_and_train_their_affine(few, tmp_path):
    trainer_model = Embedder("resnet10", dim=8, image_shape=few.shape, width=4)
    trainer = Trainer(trainer_model, get_recipe("frozen_bn"), Training(batch_size=16, per_class=2), few)
    assert not trainer.model.backbone.bn1.training and trainer.model.training
    run = fit(few, "frozen_bn", tmp_path / "run", **QUICK)
    norm = run.model("last").backbone.bn1
    assert torch.equal(norm.running_mean, torch.zeros(4)) and torch.equal(norm.running_var, torch.ones(4))
    assert not torch.equal(norm.weight, torch.ones(4))


def test_eps_rises_during_the_warm_up_and_the_trainer_says_where_it_is(few, tmp_path, monkeypatch):
    moved, original = [], Recipe.batch

    def watched(self, model, images, labels, generator, done):
        mixed = original(self, model, images, labels, generator, done)
        moved.append(((mixed.images[16:] - images).abs().max().item(), done))
        return mixed

    monkeypatch.setattr(Recipe, "batch", watched)
    run = fit(few, Recipe("rising", RECIPES["mdprop"]().branches, warmup=0.5), tmp_path / "run", **QUICK)
    steps = len(moved)
    assert steps == 2 * (run.config["data"]["images"] // 16) and [done for _, done in moved] == [i / steps for i in range(steps)]
    for largest, done in moved:
        assert largest == pytest.approx(min(1.0, 2 * done) * 32 / 255, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recipe("r", ()), "has no branch"),
        (lambda: Recipe("r", (Branch(weight=2.0),)), "set joint=False"),
        (lambda: Recipe("r", (Branch(), Branch("clean", TripletAttack()))), "mixes triplets"),
        (lambda: Recipe("r", (Branch(),), norms="frosen"), "norms='frosen'"),
        (lambda: Recipe("r", (Branch(),), warmup=2), "warmup=2"),
        (lambda: Recipe("r", (Branch(),), share="both"), "share='both'"),
        (lambda: Branch(weight=0), "weight=0 must be more than 0"),
        (lambda: TripletAttack("collaps"), "kinds are"),
    ],
)
def test_impossible_recipes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_miner_beside_triplets_is_refused(few, tmp_path):
    with pytest.raises(ValueError, match="leave miner out"):
        fit(few, "act", tmp_path / "run", miner="multi_similarity", **QUICK)


def test_attacks_with_functions_are_told_apart_in_the_configuration(few, tmp_path):
    def first(z, t):
        return (z[:, 0] - t[0, :, 0]).abs()

    def second(z, t):
        return (z[:, 1] - t[0, :, 1]).abs()

    recipes = [Recipe("own", (Branch("clean", FeatureAttack(1, steps=1, objective=f)),)) for f in (first, second)]
    runs = [fit(few, recipe, tmp_path / str(i), **QUICK) for i, recipe in enumerate(recipes)]
    assert runs[0].config["recipe"] != runs[1].config["recipe"]
    assert runs[0].config["recipe"]["branches"][0]["attack"]["objective"].endswith("first")
