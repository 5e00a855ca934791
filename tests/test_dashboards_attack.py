"The attack dashboard's logic without a browser: traces, what is found at each step, settings, runs and what is refused."

import json
import time

import numpy as np
import pytest
import torch

pytest.importorskip("anywidget", reason="needs the extra lab")

from mdprop.attacks import OBJECTIVES, POLICIES, FeatureAttack
from mdprop.dashboards.attack import (
    AttackDashboard, AttackedModel, AttackState, choose_for, found_at_each_step, items_of, magnified, pixel_sheet, run_images, trace_attack,
)  # fmt: skip
from mdprop.data import ImageSet, glyphs
from mdprop.model import Embedder
from mdprop.norm import convert_multi_norm, use_domain
from mdprop.retrieval import nearest_neighbours

HOSTILE = ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "{{7*7}}&amp;<b>bold</b>", "d"]


def images():
    data = glyphs(classes=4, per_class=6)
    return ImageSet(data.images, data.labels, HOSTILE, data.keys, "few")


def network(domains=("clean", "multi"), seed=0):
    torch.manual_seed(seed)
    plain = Embedder("resnet10", image_shape=(1, 32, 32), width=4, dim=8).eval()
    return convert_multi_norm(plain, domains) if domains else plain


@pytest.fixture(scope="module")
def dashboard():
    return done(AttackDashboard(network(), network((), 1), images=images(), names=("<b>one</b>", "two"), item=3, count=2, steps=4))


def done(shown, **settings):
    shown.state.load(settings)
    shown.work.wait()
    return shown


# The trace


@pytest.mark.parametrize("domain", [None, "clean", "multi"])
@pytest.mark.parametrize("settings", [dict(), dict(norm="l2", eps=1.0), dict(momentum=0.9), dict(random_start=0.0), dict(units="normalised")])
def test_a_trace_ends_where_the_attack_ends(domain, settings):
    model, x = network(), images().batch([3])[0]
    attack, draw = FeatureAttack(2, steps=4, **settings), lambda: torch.Generator().manual_seed(3)
    with torch.no_grad(), use_domain(model, domain or "clean"):
        targets = model(images().batch([7, 20])[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace = trace_attack(attack, model, x[0], targets, domain, draw())
    whole = attack(model, x, domain=domain, generator=draw(), target_embeddings=targets[:, None])
    assert torch.equal(trace.images[-1], whole[0]) and torch.equal(trace.images[0], x[0]) and len(trace.images) == 5
    with torch.no_grad(), use_domain(model, domain or "clean"):
        assert torch.allclose(trace.z, model(trace.images), atol=1e-6)
    assert torch.allclose(trace.distances, torch.cdist(targets, trace.z), atol=1e-5) and trace.moved[0] == 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()) and not model.training


def test_every_step_of_a_trace_is_a_shorter_attack():
    model, x = network(), images().batch([3])[0]
    with torch.no_grad():
        targets = model(images().batch([7])[0])
    trace = trace_attack(FeatureAttack(1, steps=4, step_size=1 / 255), model, x[0], targets, generator=torch.Generator().manual_seed(0))
    for steps in (1, 2, 3):
        short = FeatureAttack(1, steps=steps, step_size=1 / 255)
        assert torch.equal(short(model, x, generator=torch.Generator().manual_seed(0), target_embeddings=targets[:, None])[0], trace.images[steps])


def test_a_trace_can_be_stopped_and_leaves_the_model_alone():
    model, x = network(), images().batch([3])[0][0]
    model.train()

    def stop(step):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace_attack(FeatureAttack(steps=9), model, x, torch.eye(8)[:1], tell=stop)
    assert model.training and all(module.training for module in model.modules())


@pytest.mark.parametrize("settings", [dict(restarts=2), dict(adaptive=True), dict(transform=lambda x: x)])
def test_attacks_without_a_path_are_refused(settings):
    with pytest.raises(ValueError, match="have no single path"):
        trace_attack(FeatureAttack(**settings), network(), torch.zeros(1, 32, 32), torch.eye(8)[:1])


def test_no_change_is_grey_and_the_largest_is_white_or_black():
    clean = torch.full((3, 2, 2), 0.5)
    shown, factor = magnified(clean, clean + torch.tensor([-1.0, 0.0, 1.0])[:, None, None] * 4 / 255, 4 / 255)
    assert shown[:, 0, 0].tolist() == pytest.approx([0, 0.5, 1], abs=1e-5) and factor == pytest.approx(255 / 8)
    assert magnified(clean, clean, 0.0)[1] == 1
    sheet, grid = pixel_sheet(torch.rand(3, 1, 20, 30), side=100)
    assert sheet[:4] == b"\x89PNG" and grid == (3, 120)


# What is found


def test_neighbours_at_each_step_are_those_of_a_plain_search_without_the_image():
    z = torch.nn.functional.normalize(torch.randn(30, 6), dim=1)
    near, cosine = found_at_each_step(z[[4, 9]], z, 4, 5)
    assert (near[0] == nearest_neighbours(z, 5).indices[4]).all() and near[1][0] == 9 and 4 not in near[1]
    assert cosine == pytest.approx((z[[4, 9], None] * z[near]).sum(-1).numpy(), abs=1e-5)
    assert found_at_each_step(z[:2], z[:1], 0, 5)[0].shape[0] == 2
    near, _ = found_at_each_step(z[:1].repeat(3, 1), z[:2], 0, 5)
    assert near.tolist() == [[1], [1], [1]]


@pytest.mark.parametrize("policy", POLICIES)
def test_drawn_targets_are_images_of_the_gallery(policy):
    z, labels = torch.nn.functional.normalize(torch.randn(24, 6), dim=1), torch.arange(24) // 6
    attack = FeatureAttack(3, policy=policy)
    targets = choose_for(attack, z, labels, 7, seed=2)
    members = items_of(targets, z)
    assert torch.equal(targets, choose_for(FeatureAttack(3, policy=policy), z, labels, 7, seed=2)), "the same seed draws the same"
    if policy == "class_centre":
        assert members == [-1] * 3
    else:
        assert torch.equal(z[members], targets)
        own = {"other_class": False, "nearest_class": False, "own_class": True}.get(policy)
        assert own is None or all((labels[m] == labels[7]).item() == own for m in members)
    assert policy != "itself" or members == [7] * 3


# The dashboard


def test_white_box_and_transfer(dashboard):
    done(dashboard, policy="other_class", objective="mean", attacked=0, domain="", eps=8.0, steps=40)
    outcome = dashboard.outcome
    assert outcome.trace.distances.mean(0)[-1] < outcome.trace.distances.mean(0)[0]
    assert torch.equal(outcome.paths[0], outcome.trace.z)
    with torch.no_grad():
        assert torch.allclose(outcome.paths[1], network((), 1)(outcome.trace.images), atol=1e-5)
    swapped = done(dashboard, attacked=1).outcome
    assert torch.equal(swapped.paths[1], swapped.trace.z) and dashboard.choice.controls["domain"].disabled


NAMED = [dict(policy=p) for p in POLICIES] + [dict(objective=o) for o in OBJECTIVES]


@pytest.mark.parametrize("settings", [*NAMED, dict(eps=0.0), dict(steps=1), dict(domain="multi")])
def test_every_setting_gives_an_attack(dashboard, settings):
    done(dashboard, **dict(policy="other_class", objective="mean", attacked=0, domain="", eps=8.0, steps=3) | settings)
    assert dashboard.status.problem == "" and dashboard.settings.as_dict() | settings == dashboard.settings.as_dict()
    assert len(dashboard.shown.found.rows) == 4 and len(dashboard.outcome.trace.images) == dashboard.state.steps + 1


def test_the_domain_that_answers_is_the_one_that_is_set(dashboard):
    done(dashboard, attacked=0, domain="multi", policy="other_class")
    with torch.no_grad(), use_domain(model := network(), "multi"):
        assert torch.allclose(dashboard.outcome.trace.z[:1], model(images().batch([dashboard.item])[0]), atol=1e-5)


def test_the_newest_setting_wins(dashboard):
    for eps in (1.0, 2.0, 3.0, 4.0):
        dashboard.state.eps = eps
    dashboard.work.wait()
    assert (dashboard.outcome.trace.images[-1] - dashboard.outcome.trace.images[0]).abs().max() <= 4 / 255 + 1e-6 and dashboard.settings.eps == 4.0


def test_clicks_pick_the_image_and_the_targets(dashboard):
    gallery = dashboard.gallery
    gallery.tiles.set_state({"picked": 14})
    assert (dashboard.item, dashboard.state.shown) == (14, 2)
    gallery.clicks.value = "picked"
    for click in (2, 9, 20, 9):
        gallery.tiles.set_state({"picked": click})
    dashboard.work.wait()
    assert dashboard.state.policy == "picked" and dashboard.state.picked == [2, 20] == dashboard.outcome.target_items and dashboard.item == 14
    assert [tile["item"] for tile in gallery.tiles.rows[1]["tiles"]] == [2, 20]
    gallery.clicks.value = "item"
    dashboard.shown.found.set_state({"picked": 5})
    assert dashboard.item == 5
    dashboard.work.wait()


def test_no_target_is_a_message_and_the_former_picture_stays(dashboard):
    done(dashboard, policy="other_class")
    former = dashboard.outcome
    done(dashboard, policy="picked", picked=[])
    assert "no target is picked yet" in dashboard.status.problem and dashboard.outcome is former
    done(dashboard, policy="random")
    assert dashboard.status.problem == "" and dashboard.outcome is not former


def test_the_step_stays_at_the_end_or_where_it_was_put(dashboard):
    slider = dashboard.choice.controls["step"]
    done(dashboard, policy="other_class", steps=6, step=50)
    assert (slider.value, slider.max) == (6, 6)
    done(dashboard, steps=9)
    assert slider.value == 9
    slider.value = 2
    done(dashboard, steps=5)
    assert slider.value == 2 == dashboard.state.step and dashboard.shown.pictures.rows[0]["label"] == "After step 2 of 5"
    slider.value = 5
    assert dashboard.state.step == 50


def test_state_goes_through_json_and_is_all_or_nothing(dashboard):
    kept = dashboard.state.as_dict()
    dashboard.state.load(json.loads(json.dumps(kept)))
    for wrong in (dict(item=24), dict(shown=4), dict(attacked=2), dict(eps=-1.0), dict(picked=[99]), dict(domain="blurred"), dict(policy="all")):
        with pytest.raises(ValueError, match="cannot be"):
            dashboard.state.load(dict(steps=7) | wrong)
    assert dashboard.state.as_dict() == kept
    dashboard.work.wait()


def test_an_attack_can_be_cancelled(dashboard):
    done(dashboard, policy="other_class")
    former = dashboard.outcome
    dashboard.state.seed += 1
    dashboard.status._stop.click()
    dashboard.work.wait()
    assert dashboard.outcome is former and dashboard.status.doing == ""


def test_the_model_that_was_given_is_not_touched():
    model = network()
    model.train()
    shown = done(AttackDashboard(model, images=images(), steps=2))
    assert model.training and all(p.requires_grad for p in model.parameters()) and shown.outcome is not None


def test_the_page_holds_no_markup_of_names(dashboard, tmp_path):
    done(dashboard, policy="other_class", steps=3)
    text = dashboard.save_html(tmp_path / "attack.html").read_text()
    assert "<img src=x" not in text and "<script>alert" not in text and "<b>one" not in text
    assert dashboard.shown.paths[0].figure.layout.title.text.startswith("&lt;b&gt;one")


def test_a_sample_of_many_images_is_said():
    shown = done(AttackDashboard(network(), images=images(), most=10, steps=1))
    assert len(shown.images) == 10 and "a sample of 10 of 24 images" in shown.heading()[1]


def test_a_first_attack_that_fails_leaves_a_page_with_the_reason(tmp_path):
    shown = done(AttackDashboard(network(), images=images(), policy="picked"))
    assert shown.outcome is None and "no target is picked yet" in repr(shown)
    assert "no target is picked yet" in shown.save_html(tmp_path / "none.html").read_text()


def test_runs_bring_their_models_and_images(tmp_path):
    from mdprop.robustness import evaluate
    from mdprop.train import fit

    train, test = glyphs(classes=20, per_class=6).split_classes()
    for name in ("plain", "mdprop"):
        fit(train, recipe=name, out=tmp_path / name, epochs=1, width=4, dim=8, batch_size=12, progress=False, valid=None)
    with pytest.raises(ValueError, match="has no embeddings"):
        AttackDashboard(tmp_path / "plain")
    for name in ("plain", "mdprop"):
        evaluate(tmp_path / name, test, steps=1)
    shown = done(AttackDashboard(tmp_path / "plain", tmp_path / "mdprop", steps=2, attacked=1, domain="attacked"))
    assert [model.name for model in shown.models] == ["plain", "mdprop"] and shown.status.problem == ""
    assert (shown.images.batch(range(6))[0] == test.batch(range(6))[0]).all() and shown.images.keys == test.keys
    with pytest.raises(ValueError, match="keeps thumbnails of 32 x 32 pixels, its model wants 64 x 64: give the images themselves, images=test"):
        run_images(shown.models[0].run, (3, 64, 64))


@pytest.mark.parametrize("source", [np.zeros((3, 4)), None])
def test_what_is_no_model_is_refused(source):
    with pytest.raises(ValueError, match="a run, its folder or a model is wanted"):
        AttackedModel.of(source, 1)


def test_images_must_be_there_and_fit():
    with pytest.raises(ValueError, match="a model brings no images"):
        AttackDashboard(network())
    with pytest.raises(ValueError, match=r"images are a ndarray: give an ImageSet, for instance ImageSet.from_arrays"):
        AttackDashboard(network(), images=np.zeros((3, 1, 32, 32)))
    shown = done(AttackDashboard(Embedder("resnet10", image_shape=(3, 32, 32), width=4), images=images()))
    assert "this model wants (n, 3, height, width)" in shown.status.problem and shown.outcome is None


def test_a_new_attack_takes_less_than_a_second():
    data = glyphs(classes=40).split_classes()[1]
    model = lambda seed: convert_multi_norm(Embedder("resnet10", image_shape=data.shape), ("clean", "single", "multi"))
    shown = done(AttackDashboard(model(0), model(1), images=data))
    seconds = []
    for seed in range(1, 6):
        start = time.perf_counter()
        done(shown, seed=seed)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1, seconds
    assert AttackState().steps == 10
