"""Invariants of the attacks: inside the ball, nothing leaks, as strong as a plain loop."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import TripletMarginLoss
from torch import nn
from tqdm.auto import tqdm

from mdprop.attacks import (
    BALLS,
    Attacked,
    EmbeddingMemory,
    FeatureAttack,
    L1Ball,
    L2Ball,
    LinfBall,
    TripletAttack,
    attack_together,
    choose_targets,
    mean_distance,
    projected_gradient,
)
from mdprop.model import Embedder
from mdprop.norm import convert_multi_norm, use_domain


def embedder(channels=3, size=8, dtype=torch.float32):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(channels, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5))
    return convert_multi_norm(Embedder(backbone, dim=4, image_shape=(channels, size, size))).to(dtype)


def everything(model):
    "All that an attack must leave alone."
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return state, [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()], [p.grad for p in model.parameters()]


def assert_same(before, after):
    assert before[1:] == after[1:]
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 6), channels=st.sampled_from([1, 3]), size=st.integers(6, 10), targets=st.integers(1, 6), eps=st.floats(0, 0.5),
    steps=st.integers(0, 4), start=st.floats(0, 1), dtype=st.sampled_from([torch.float32, torch.float64]), seed=st.integers(0, 99),
    domain=st.sampled_from(["clean", "single", "multi"]), units=st.sampled_from(["pixels", "normalised"]),
)  # fmt: skip
def test_inside_the_ball_and_nothing_leaks(n, channels, size, targets, eps, steps, start, dtype, seed, domain, units):
    model, generator = embedder(channels, size, dtype), torch.Generator().manual_seed(seed)
    model.train()
    model.backbone[1].eval()
    before, x = everything(model), torch.rand(n, channels, size, size, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    attack = FeatureAttack(targets, eps, steps, random_start=start, units=units)
    moved = attack(model, x, domain=domain, generator=generator)
    again = attack(model, x, domain=domain, generator=torch.Generator().manual_seed(seed))
    assert moved.dtype == dtype and moved.shape == x.shape and not moved.requires_grad and moved.isfinite().all()
    radius = eps * (0.25 if units == "normalised" else 1.0)
    assert ((moved - x).abs() <= radius + 1e-6).all() and 0 <= moved.min() and moved.max() <= 1
    assert torch.equal(moved, again)
    assert_same(before, everything(model))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_leaks_when_the_model_raises(error):
    model = embedder()
    before, calls = everything(model), []

    def fail(*_):
        calls.append(1)
        if len(calls) == 3:
            raise error

    hook = model.head.register_forward_hook(fail)
    with pytest.raises(error):
        FeatureAttack(2, steps=5)(model, torch.rand(4, 3, 8, 8), domain="multi")
    hook.remove()
    assert_same(before, everything(model))
    assert model.backbone[1].router.route == (("clean", None),)


def test_it_works_inside_no_grad_and_inference_mode():
    model, x = embedder(), torch.rand(4, 3, 8, 8)
    run = lambda: FeatureAttack(2, steps=2)(model, x, generator=torch.Generator().manual_seed(0))
    expected = run()
    with torch.no_grad():
        assert torch.equal(run(), expected)
    with torch.inference_mode():
        x = x.clone()
        assert torch.equal(run(), expected)


def test_the_objective_falls_and_beats_random_noise():
    model, x = embedder().eval(), torch.rand(16, 3, 8, 8)
    attack = FeatureAttack(3, eps=0.05, steps=10, random_start=0)
    goals = attack.draw_targets(model, x, torch.Generator().manual_seed(0))
    value = lambda images: mean_distance(model(images), goals).detach()
    moved = attack(model, x, target_embeddings=goals)
    noise = (x + 0.05 * torch.randn_like(x).sign()).clamp(0, 1)
    assert (value(moved) < value(x)).float().mean() > 0.9
    assert value(moved).mean() < value(noise).mean()


def test_one_step_is_the_sign_of_the_gradient():
    model, x = embedder(dtype=torch.float64).eval(), torch.rand(5, 3, 8, 8, dtype=torch.float64) * 0.5 + 0.25
    goals = FeatureAttack(2).draw_targets(model, x, torch.Generator().manual_seed(0))
    moved = FeatureAttack(2, eps=0.01, steps=1, random_start=0)(model, x, domain="single", target_embeddings=goals)
    image = x.clone().requires_grad_()
    with use_domain(model, "single"):
        distances = torch.stack([sum((goals[k, i] - model(image)[i]).norm() for k in range(2)) / 2 for i in range(5)])
    distances.mean().square().backward()  # the paper's loss
    torch.testing.assert_close(moved, x - 0.01 * image.grad.sign())


def test_frozen_parameters_and_a_frozen_input_stay_so():
    model, x = embedder().requires_grad_(False), torch.rand(3, 3, 8, 8)
    FeatureAttack(1)(model, x)
    assert not x.requires_grad and x.grad is None


def test_a_ball_with_a_radius_for_each_channel():
    x, radius = torch.full((2, 3, 4, 4), 0.5), torch.tensor([0.1, 0.2, 0.0])[:, None, None]
    moved = projected_gradient(lambda x: x.sum((1, 2, 3)), x, LinfBall(x, radius), steps=50, step_size=0.02)
    torch.testing.assert_close((x - moved).amax((0, 2, 3)), radius.flatten())


def test_the_model_is_not_copied_nor_its_graph_kept():
    model = embedder()
    twin = copy.deepcopy(model)
    x_adv = FeatureAttack(2)(model, torch.rand(3, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    assert x_adv.grad_fn is None
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


# ---- balls ----


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2", "l1"]), n=st.integers(1, 4), channels=st.sampled_from([1, 3]), side=st.integers(1, 6), radius=st.floats(0, 3),
    spread=st.floats(0, 5), dtype=st.sampled_from([torch.float32, torch.float64]), seed=st.integers(0, 99),
)  # fmt: skip
def test_projections_are_inside_and_keep_what_is_inside(norm, n, channels, side, radius, spread, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    center = torch.rand(n, channels, side, side, generator=g, dtype=dtype)
    ball = BALLS[norm](center, radius)
    far = center + spread * torch.randn(center.shape, generator=g, dtype=dtype)
    for x in (far, ball.random_start(1.0, g), ball.step(center, torch.randn(center.shape, generator=g, dtype=dtype), radius)):
        nearest = ball.project(x)
        moved = (nearest - center).abs()
        size = {"linf": moved.amax((1, 2, 3)), "l2": moved.square().sum((1, 2, 3)).sqrt(), "l1": moved.sum((1, 2, 3))}[norm]
        assert (size <= radius * (1 + 1e-5) + 1e-6).all() and nearest.min() >= 0 and nearest.max() <= 1
        torch.testing.assert_close(ball.project(nearest), nearest, atol=1e-5, rtol=0)
    assert torch.equal(ball.project(center), center)


def test_the_l2_projection_without_a_box_is_the_scaled_vector():
    center, x = torch.zeros(3, 1, 4, 4, dtype=torch.float64), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    nearest = L2Ball(center, 0.5, -100, 100).project(x)
    torch.testing.assert_close(nearest, 0.5 * x / torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True), atol=1e-9, rtol=0)


def test_the_l1_projection_is_duchis():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 1, 3, 3, dtype=torch.float64, generator=g)
    nearest = L1Ball(torch.zeros_like(x), 1.0, -100, 100).project(x).flatten(1)
    for row, mine in zip(x.flatten(1), nearest, strict=True):  # Duchi et al. 2008, figure 1
        ordered = row.abs().sort(descending=True).values
        k = max(j for j in range(1, 10) if ordered[j - 1] > (ordered[:j].sum() - 1) / j)
        theta = (ordered[:k].sum() - 1) / k
        torch.testing.assert_close(mine, row.sign() * (row.abs() - theta).clamp_min(0), atol=1e-9, rtol=0)


def test_random_starts_fill_the_ball_evenly():
    g = torch.Generator().manual_seed(0)
    for norm, size in (("l2", lambda d: d.square().sum((1, 2, 3)).sqrt()), ("l1", lambda d: d.abs().sum((1, 2, 3)))):
        ball = BALLS[norm](torch.zeros(4000, 1, 2, 2, dtype=torch.float64), 2.0, -9, 9)
        radii = size(ball.random_start(1.0, g)) / 2
        assert radii.max() <= 1 and abs((radii**4).mean() - 0.5) < 0.02  # uniform in 4 dimensions: radius**4 is uniform in 0..1


# ---- every attacker ----

OPTIONS = [
    dict(), dict(norm="l2", eps=0.5), dict(norm="l1", eps=4.0), dict(momentum=0.8), dict(adaptive=True), dict(adaptive=True, norm="l2", eps=0.5),
    dict(restarts=3, random_start=1.0), dict(stop=0.4), dict(transform=lambda x: x + 0.01, draws=2), dict(eps=(0.1, 0.0, 0.2)),
    dict(policy="other_class"), dict(policy="nearest_class"), dict(policy="class_centre"), dict(policy="own_class"), dict(policy="dense"),
    dict(policy="itself", objective="away"), dict(objective="squared"), dict(objective="smooth_max"), dict(objective="nearest"),
    dict(objective=lambda z, t: (z[:, 0] - t[0, :, 0]).abs()), dict(own_forward=True), dict(units="normalised"), dict(bounds="batch"),
]  # fmt: skip


DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@settings(max_examples=6, deadline=None)
@given(n=st.integers(2, 7), steps=st.integers(0, 5), targets=st.integers(1, 4), dtype=st.sampled_from([torch.float32, torch.float64]), seed=st.integers(0, 99))
def test_every_attacker_keeps_its_promises(options, device, n, steps, targets, dtype, seed):
    model = embedder(dtype=dtype).to(device)
    model.train()
    model.backbone[1].eval()
    x = torch.rand(n, 3, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(seed)).to(device)
    x[0] = 0.5  # a constant image
    labels, before = torch.arange(n, device=device) % 2, everything(model)
    attack = lambda: FeatureAttack(**dict(targets=targets, steps=steps) | options)
    moved, again = (attack()(model, x, labels, "multi", torch.Generator().manual_seed(seed)) for _ in range(2))
    assert moved.dtype == dtype and not moved.requires_grad and moved.isfinite().all() and torch.equal(moved, again)
    delta, eps = (moved - x).abs().cpu(), attack().eps
    if options.get("norm") == "l2":
        assert (delta.square().sum((1, 2, 3)).sqrt() <= eps * (1 + 1e-5)).all()
    elif options.get("norm") == "l1":
        assert (delta.sum((1, 2, 3)) <= eps * (1 + 1e-5)).all()
    else:
        radius = torch.tensor(eps if isinstance(eps, tuple) else [eps] * 3, dtype=dtype) * (0.25 if options.get("units") else 1)
        assert (delta.amax((0, 2, 3)) <= radius + 2e-7).all()
    if options.get("bounds") != "batch":
        assert moved.min() >= 0 and moved.max() <= 1
    assert_same(before, everything(model))
    assert model.backbone[1].router.route == (("clean", None),)


def trained(steps=40):
    "A small embedder that tells six kinds of noise apart, with images and labels."
    torch.manual_seed(0)
    model = embedder()
    centres = torch.rand(6, 3, 8, 8)
    labels = torch.arange(48) % 6
    x = (centres[labels] + 0.3 * torch.randn(48, 3, 8, 8)).clamp(0, 1)
    optimizer, loss = torch.optim.Adam(model.parameters(), 0.01), TripletMarginLoss()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(x), labels).backward()
        optimizer.step()
    return model.eval(), x, labels


def remaining(model, attack, x, goals, **more):
    moved = attack(model, x, target_embeddings=goals, generator=torch.Generator().manual_seed(0), **more)
    with torch.no_grad():
        return mean_distance(model(moved), goals)


def test_restarts_keep_the_best_of_each_image():
    model, x, _ = trained()
    goals = FeatureAttack(3).draw_targets(model, x, torch.Generator().manual_seed(1))
    singles, g = [], torch.Generator().manual_seed(0)
    for _ in range(4):
        moved = FeatureAttack(3, steps=3, random_start=1.0)(model, x, target_embeddings=goals, generator=g)
        with torch.no_grad():
            singles.append(mean_distance(model(moved), goals))
    best = remaining(model, FeatureAttack(3, steps=3, random_start=1.0, restarts=4), x, goals)
    torch.testing.assert_close(best, torch.stack(singles).amin(0), atol=1e-6, rtol=0)


def test_the_adaptive_attack_is_at_least_as_strong_as_fixed_steps():
    model, x, _ = trained()
    goals = FeatureAttack(3).draw_targets(model, x, torch.Generator().manual_seed(1))
    fixed = min(remaining(model, FeatureAttack(3, eps=0.03, steps=40, step_size=s * 0.03), x, goals).mean() for s in (1.0, 0.25, 2.5 / 40))
    adaptive = remaining(model, FeatureAttack(3, eps=0.03, steps=40, adaptive=True), x, goals)
    assert adaptive.mean() <= fixed + 1e-3
    start = mean_distance(model(x), goals).detach()
    assert (adaptive <= start + 0.02).all()  # the best point that was seen, the (slightly random) start included


def test_images_that_have_arrived_stop_and_the_others_go_on():
    model, x, _ = trained()
    goals = model(x).detach()[None].clone()
    goals[:, 24:] = goals[:, :24]  # the first half is at its goal already
    attack = FeatureAttack(1, eps=0.03, steps=5, random_start=0, stop=1e-3)
    moved = attack(model, x, target_embeddings=goals)
    assert torch.equal(moved[:24], x[:24]) and (moved[24:] != x[24:]).flatten(1).any(1).all()


def test_stopping_early_saves_passes():
    model, x, _ = trained(0)
    calls = []
    hook = model.head.register_forward_hook(lambda *_: calls.append(1))
    FeatureAttack(1, steps=50, random_start=0, stop=10.0)(model, x, target_embeddings=model(x).detach()[None])
    hook.remove()
    assert len(calls) == 2  # the one for the targets (ours), and one to see that all have arrived


def test_the_expectation_over_transforms_is_taken():
    model, x, _ = trained()
    goals = FeatureAttack(1).draw_targets(model, x, torch.Generator().manual_seed(1))

    def blur(images):
        return torch.nn.functional.avg_pool2d(images, 3, 1, 1) + 0.05 * torch.randn_like(images)

    def seen_through(moved):
        torch.manual_seed(5)
        with torch.no_grad():
            return torch.stack([mean_distance(model(blur(moved)), goals) for _ in range(20)]).mean()

    plain = FeatureAttack(1, steps=10)(model, x, target_embeddings=goals)
    expecting = FeatureAttack(1, steps=10, transform=blur, draws=8)(model, x, target_embeddings=goals)
    assert seen_through(expecting) < seen_through(plain)


def test_untargeted_and_unadversarial_go_their_ways():
    model, x, labels = trained()
    with torch.no_grad():
        z = model(x)
        away = model(FeatureAttack(1, policy="itself", objective="away", steps=5)(model, x))
        noise = model(FeatureAttack(1, steps=0, random_start=1.0)(model, x))
        own = model(FeatureAttack(3, policy="own_class", steps=5)(model, x, labels))
    same = labels[:, None] == labels
    to_own = lambda q: ((q @ z.T) * same).sum() / same.sum()
    assert (away - z).norm(dim=1).mean() > 3 * (noise - z).norm(dim=1).mean() and to_own(own) > to_own(z)


# ---- targets ----


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 12), classes=st.integers(2, 5), count=st.integers(1, 9), seed=st.integers(0, 99))
def test_policies_aim_where_they_say(n, classes, count, seed):
    g = torch.Generator().manual_seed(seed)
    z = torch.nn.functional.normalize(torch.randn(n, 6, generator=g, dtype=torch.float64))
    labels = 10 * (torch.arange(n) % classes) - 7  # not contiguous, negative, too
    rows = lambda policy: torch.cdist(choose_targets(policy, z, labels, count, g).flatten(0, 1), z).argmin(1).view(count, n)
    assert (labels[rows("other_class")] != labels).all() and (labels[rows("nearest_class")] != labels).all()
    for i, column in enumerate(rows("own_class").T):
        peers = [j for j in range(n) if labels[j] == labels[i] and j != i] or [i]
        assert set(column.tolist()) <= set(peers) and len(set(column.tolist())) == min(count, len(peers))
    centres = choose_targets("class_centre", z, labels, count, g)
    means = torch.stack([torch.nn.functional.normalize(z[labels == c].sum(0), dim=0) for c in labels.unique()])
    aimed = labels.unique()[torch.cdist(centres.flatten(0, 1), means).argmin(1).view(count, n)]
    assert (aimed != labels).all()
    nearest = rows("nearest_class")[0]
    for i in range(n):
        others = [c for c in labels.unique() if c != labels[i]]
        assert labels[nearest[i]] == max(others, key=lambda c: float(z[i] @ means[labels.unique() == c][0]))


def test_a_memory_is_bounded_and_forgets_the_oldest():
    memory = EmbeddingMemory(size=10)
    for k in range(5):
        memory.add(torch.nn.functional.one_hot(torch.full((4,), k), 8))
    assert memory.z.argmax(1).tolist() == [2, 2, 3, 3, 3, 3, 4, 4, 4, 4]


def test_dense_targets_lie_in_denser_places_than_random_ones():
    g = torch.Generator().manual_seed(0)
    cloud = torch.cat([0.05 * torch.randn(50, 8, generator=g) + torch.eye(8)[0], torch.randn(450, 8, generator=g)])
    z = torch.nn.functional.normalize(cloud)
    memory = EmbeddingMemory()
    memory.add(z)
    near_the_crowd = lambda targets: (targets @ torch.eye(8)[0] > 0.9).float().mean()
    assert near_the_crowd(memory.draw(200, 3, g)) > 0.7
    assert near_the_crowd(choose_targets("random", z, None, 3, g)) < 0.3


# ---- together ----


SECOND = [dict(), dict(eps=0.01), dict(policy="other_class"), dict(objective="squared"), dict(own_forward=True), dict(bounds="batch")]


@pytest.mark.parametrize("second", SECOND, ids=lambda o: "-".join(o) or "alike")
@pytest.mark.parametrize("common", [dict(), dict(norm="l2", eps=0.3), dict(momentum=0.5), dict(adaptive=True)], ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("domains", [("single", "multi"), ("multi", "multi"), (None, None)], ids=["two norms", "one norm", "the answering norm"])
def test_attacking_together_is_attacking_one_after_the_other(common, second, domains):
    if "norm" in common and "eps" in second:
        second = dict(eps=0.1)
    model, x, labels = embedder(dtype=torch.float64), torch.rand(9, 3, 8, 8, dtype=torch.float64), torch.arange(9) % 3
    parts = [
        Attacked(FeatureAttack(**dict(targets=1, steps=4) | common), x[:4], labels[:4], domains[0]),
        Attacked(FeatureAttack(**dict(targets=3, steps=4) | common | second), x[4:], labels[4:], domains[1]),
    ]
    calls = []
    hook = model.head.register_forward_hook(lambda *_: calls.append(1))
    together = attack_together(model, parts, torch.Generator().manual_seed(0))
    passes = len(calls)
    g = torch.Generator().manual_seed(0)
    apart = [part.attack(model, part.x, part.labels, part.domain, g) for part in parts]
    hook.remove()
    assert passes <= (len(calls) + 1) // 2 + 1
    for mine, expected in zip(together, apart, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-9, rtol=0)


def test_attacks_that_descend_differently_take_turns():
    model, x = embedder(dtype=torch.float64), torch.rand(6, 3, 8, 8, dtype=torch.float64)
    parts = [Attacked(FeatureAttack(1, steps=2), x[:3], None, "single"), Attacked(FeatureAttack(1, steps=3), x[3:], None, "multi")]
    g = torch.Generator().manual_seed(0)
    apart = [part.attack(model, part.x, None, part.domain, g) for part in parts]
    for mine, expected in zip(attack_together(model, parts, torch.Generator().manual_seed(0)), apart, strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("domains", [("single", None), ("single", "multi", "single")], ids=["beside the answering norm", "twice the same"])
def test_attacks_whose_rows_cannot_be_routed_at_once_take_turns(domains):
    model, x = embedder(dtype=torch.float64), torch.rand(2 * len(domains), 3, 8, 8, dtype=torch.float64)
    parts = [Attacked(FeatureAttack(1, steps=2), rows, None, domain) for rows, domain in zip(x.split(2), domains, strict=True)]
    g = torch.Generator().manual_seed(0)
    apart = [part.attack(model, part.x, None, part.domain, g) for part in parts]
    for mine, expected in zip(attack_together(model, parts, torch.Generator().manual_seed(0)), apart, strict=True):
        assert torch.equal(mine, expected)


def test_the_cost_counts_the_passes():
    model, x, calls = embedder(), torch.rand(4, 3, 8, 8), []
    hook = model.head.register_forward_hook(lambda *_: calls.append(1))
    for options in (dict(steps=3), dict(steps=3, own_forward=True), dict(steps=0), dict(steps=3, adaptive=True), dict(steps=2, restarts=3, random_start=1.0)):
        calls.clear()
        FeatureAttack(1, **options)(model, x)
        backward = options["steps"] * options.get("restarts", 1)
        assert FeatureAttack(1, **options).cost == len(calls) + backward, options
    hook.remove()


def test_a_long_attack_shows_its_progress(monkeypatch, capsys):
    bars = []
    monkeypatch.setattr("mdprop.attacks.tqdm", lambda **options: bars.append(tqdm(**options)) or bars[-1])
    FeatureAttack(1, steps=7, restarts=2, random_start=1.0)(embedder(), torch.rand(2, 3, 8, 8), progress=True)
    assert (bars[0].n, bars[0].total) == (16, 16)  # seven steps and a look at what was reached, twice
    assert "attack:" in capsys.readouterr().err
    FeatureAttack(1, steps=2)(embedder(), torch.rand(2, 3, 8, 8))
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="one number for each"):
        FeatureAttack(1, objective=lambda z, t: z)(embedder(), torch.rand(2, 3, 8, 8), progress=True)
    assert bars[2].disable  # closed


def test_no_gradient_is_made_for_parameters():
    model, x = embedder(), torch.rand(4, 3, 8, 8)
    made = []
    for p in model.parameters():
        p.register_hook(lambda g: made.append(1))
    FeatureAttack(2, steps=2)(model, x)
    assert not made and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ["collapse", "hardness"])
@pytest.mark.parametrize("sampling", ["random", "softhard"])
def test_triplet_attacks_move_their_triplets(kind, sampling):
    model, x, labels = trained()
    before = everything(model)
    attack = TripletAttack(kind, sampling=sampling)
    trips = attack(model, x, labels, generator=torch.Generator().manual_seed(0))
    still = TripletAttack(kind, sampling=sampling, steps=0)(model, x, labels, generator=torch.Generator().manual_seed(0))
    assert_same(before, everything(model))
    a, p, n = trips.indices
    assert torch.equal(still.images[a], x[::2]) and (trips.labels[a] == trips.labels[p]).all() and (trips.labels[a] != trips.labels[n]).all()
    assert (trips.images - still.images).abs().max() <= 8 / 255 + 1e-6 and trips.images.min() >= 0 and trips.images.max() <= 1
    with torch.no_grad():
        z, z0 = model(trips.images), model(still.images)
    distance = lambda z, i, j: (z[i] - z[j]).norm(dim=1)
    if kind == "collapse":
        assert torch.equal(trips.images[a], still.images[a]) and distance(z, p, n).mean() < distance(z0, p, n).mean()
    else:
        hardness = lambda z: distance(z, a, p) - distance(z, a, n)
        moving = hardness(z0) < -0.2
        assert (hardness(z)[moving] > hardness(z0)[moving]).all()
        assert torch.equal(trips.images.view(3, -1, 3, 8, 8)[:, ~moving], still.images.view(3, -1, 3, 8, 8)[:, ~moving])  # hard enough already
