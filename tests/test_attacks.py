"""Invariants of the attacks: inside the ball, nothing leaks, as strong as a plain loop."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mdprop.attacks import FeatureAttack, LinfBall, mean_distance, projected_gradient
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
