"""Training beside its known cases: any loss, any backbone, any size, interrupted or not."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_metric_learning import losses

from mdprop.data import ImageSet, SplitError, glyphs, image_folder
from mdprop.model import Embedder, embed
from mdprop.norm import domains_of
from mdprop.recipes import Branch, FeatureAttack, Recipe, mdprop_paper
from mdprop.retrieval import retrieval_metrics
from mdprop.robustness import compare, evaluate
from mdprop.runs import Run, RunError, load_tensors
from mdprop.train import NonFiniteError, StopTraining, create_loss, derived_seed, fit, learning_rate

QUICK = dict(epochs=1, width=4, dim=8, batch_size=16, per_class=2, progress=False)


@pytest.fixture(scope="module")
def few():
    "A small set: 12 glyph classes in several families, 8 images each."
    data = glyphs(classes=60, per_class=8, size=24)
    return data.keep_classes(range(0, 60, 5))


def weights(run):
    return run.model("last").state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("loss", ["multi_similarity", "triplet_margin", "contrastive", "proxy_anchor", "arcface", "NTXentLoss", "supcon", "softtriple"])
def test_losses_by_name(few, tmp_path, loss):
    run = fit(few, "mdprop", tmp_path / "run", loss=loss, **QUICK)
    assert np.isfinite(run.metrics["loss"]).all()
    assert 0 <= run.metrics["recall_at_1"].iloc[0] <= 1


def test_a_loss_object_is_the_loss_of_that_name(few, tmp_path):
    named = fit(few, "plain", tmp_path / "named", loss="contrastive", loss_options={"neg_margin": 0.7}, **QUICK)
    given = fit(few, "plain", tmp_path / "given", loss=losses.ContrastiveLoss(neg_margin=0.7), **QUICK)
    assert same(weights(named), weights(given))


def test_proxies_are_trained(few, tmp_path):
    loss = losses.ProxyAnchorLoss(num_classes=10, embedding_size=8)
    start = loss.proxies.detach().clone()
    run = fit(few, "plain", tmp_path / "run", loss=loss, **QUICK)
    assert len(run.config["data"]["class_names"]) <= 10
    tensors, _ = load_tensors(run.path / "last.safetensors")
    assert (tensors["loss.proxies"] - start).abs().max() > 1e-4
    assert torch.equal(loss.proxies, start)  # the caller's object is not trained, a copy is


def test_a_timm_backbone_by_name(few, tmp_path):
    pytest.importorskip("timm", reason="the extra timm is not installed")
    colour = ImageSet.from_arrays(few.batch(range(len(few)))[0].expand(-1, 3, -1, -1), few.labels, few.class_names)
    run = fit(colour, "mdprop", tmp_path / "run", backbone="mobilenetv3_small_050", **QUICK)
    model = run.model()
    assert domains_of(model) == ("clean", "attacked")
    assert embed(model, colour).shape == (len(colour), 8)


def test_a_backbone_without_norms_trains_plainly_and_is_refused_for_domains(few, tmp_path):
    make = lambda: torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, stride=2), torch.nn.ReLU())
    assert len(fit(few, "plain", tmp_path / "plain", backbone=make(), **QUICK).metrics) == 1
    with pytest.raises(ValueError, match="has no norm layer"):
        fit(few, "mdprop", tmp_path / "mdprop", backbone=make(), **QUICK)
    assert not (tmp_path / "mdprop").exists()


def test_a_backbone_with_group_norm_has_domains_too(few, tmp_path):
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, stride=2), torch.nn.GroupNorm(2, 8), torch.nn.ReLU())
    run = fit(few, "mdprop", tmp_path / "run", backbone=backbone, **QUICK)
    assert domains_of(run.model("last", backbone=backbone)) == ("clean", "attacked")


def test_own_photos_of_odd_sizes(tmp_path):
    draw = np.random.default_rng(0)
    for name, hue in (("cats", 40), ("dogs", 120), ("hens", 200), ("owls", 250)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            size = (int(draw.integers(20, 90)), int(draw.integers(20, 90)), 3)
            Image.fromarray((draw.random(size) * hue).astype(np.uint8)).save(tmp_path / "photos" / name / f"{i}.jpg")
    data = image_folder(tmp_path / "photos", size=48)
    train, test = data.split_classes()
    run = fit(train, "mdprop", tmp_path / "run", valid=None, **QUICK | dict(batch_size=4))
    assert embed(run.model(), test).shape == (len(test), 8)


def test_an_odd_batch_loses_no_row(few, tmp_path):
    rows = []

    class Spy(torch.nn.Module):
        def forward(self, z, labels, mined=None):
            rows.append(len(labels))
            return z.square().sum()

    fit(few, "mdprop", tmp_path / "run", loss=Spy(), **QUICK | dict(batch_size=9, per_class=3))
    assert set(rows) == {18}


def test_one_class_cannot_be_split_and_says_so(few, tmp_path):
    with pytest.raises(SplitError, match=r"one (class|family of classes) cannot be split"):
        fit(few.keep_classes([0]), "plain", tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_an_adversarial_recipe_in_one_norm_trains(few, tmp_path):
    recipe = Recipe("shared", (Branch(), Branch("clean", FeatureAttack(1, 8 / 255, 1))))
    run = fit(few, recipe, tmp_path / "run", **QUICK)
    with pytest.raises(ValueError, match="no multi-domain norms"):
        domains_of(run.model())


def test_the_validation_images_are_not_trained_on(few, tmp_path):
    seen = set()

    class Spy(torch.nn.Module):
        def forward(self, x):
            seen.update(image.numpy().tobytes() for image in (x * 255).round().byte())
            return x

    run = fit(few, "plain", tmp_path / "run", augment=Spy(), **QUICK | dict(epochs=3))
    data = run.config["data"]
    assert set(data["class_names"]).isdisjoint(data["valid"]["class_names"])
    assert data["images"] + data["valid"]["images"] == len(few)
    raw, labels, _ = few.raw_batch(range(len(few)))
    for image, label in zip(raw, labels.tolist(), strict=True):
        if few.class_names[label] in data["valid"]["class_names"]:
            assert image.numpy().tobytes() not in seen
    assert len(seen) > data["images"] / 2


def test_validating_on_training_images_is_refused(few, tmp_path):
    with pytest.raises(ValueError, match="validation images are training images"):
        fit(few, "plain", tmp_path / "run", valid=few, **QUICK)
    rest, held = few.hold_out_classes(0.3)
    run = fit(rest, "plain", tmp_path / "run", valid=held, **QUICK)
    assert run.config["data"]["valid"]["class_names"] == held.class_names


CHANGES = [
    dict(clip_grad=1e-3, optimizer="adam", weight_decay=0.1), dict(miner="batch_hard", loss="triplet_margin"), dict(schedule="constant"), dict(warmup=0.5),
    dict(augment=None), dict(augment="photo"), dict(optimizer="adam", weight_decay=0.1), dict(precision="bfloat16"), dict(per_class=4),
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_setting_reaches_the_training(few, tmp_path, change):
    before = {"loss": "triplet_margin"} if "miner" in change else {"optimizer": "adam", "weight_decay": 0.1} if "clip_grad" in change else {}
    settings = QUICK | dict(batch_size=8, lr=0.01)
    assert not same(weights(fit(few, "plain", tmp_path / "a", **settings | before)), weights(fit(few, "plain", tmp_path / "b", **settings | change)))


def test_the_recipes_statistics_reach_the_model(few, tmp_path):
    torch.manual_seed(0)
    model = Embedder("resnet10", dim=6, image_shape=few.shape, width=4)
    model.backbone.bn1.running_mean.fill_(3.0)
    model.backbone.bn1.momentum = 0.0  # what it starts with stays
    for statistics, mean in (("reset", 0.0), ("clone", 3.0)):
        run = fit(few, mdprop_paper(statistics=statistics), tmp_path / statistics, backbone=model, **QUICK)
        assert run.model("last").backbone.bn1.domain_norms["multi"].running_mean.mean() == mean


def test_other_inputs_in_the_same_folder_are_another_run(few, tmp_path):
    own = lambda seed: torch.manual_seed(seed) and torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))
    fit(few, "plain", tmp_path / "run", backbone=own(1), loss=losses.ContrastiveLoss(neg_margin=0.5), **QUICK)
    fit(few, "plain", tmp_path / "run", backbone=own(1), loss=losses.ContrastiveLoss(neg_margin=0.5), **QUICK)
    upside_down = ImageSet(few.in_memory().images.flip(2), few.labels, few.class_names, few.keys, few.name, few.split_rule, few.groups)
    for data, seed, margin in ((few, 2, 0.5), (few, 1, 0.6), (upside_down, 1, 0.5)):
        with pytest.raises(RunError, match="holds another run"):
            fit(data, "plain", tmp_path / "run", backbone=own(seed), loss=losses.ContrastiveLoss(neg_margin=margin), **QUICK)


def test_a_module_of_your_own_is_copied_and_its_runs_can_be_measured(few, tmp_path):
    own = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    rest, test = few.split_classes()
    settings = QUICK | dict(valid=None, batch_size=8)
    before, after = (fit(rest, recipe, tmp_path / recipe, backbone=own, **settings) for recipe in ("plain", "mdprop"))
    assert after.model(backbone=own).backbone[1].running_mean.abs().sum() > 0  # trained in training mode
    assert type(own[1]) is torch.nn.BatchNorm2d and own[1].running_mean.abs().sum() == 0
    assert compare(before, after, test, steps=1, backbone=own).loc["recall_at_1"].notna().all()
    with pytest.raises(ValueError, match="has several domains already"):
        fit(rest, "plain", tmp_path / "again", backbone=after.model(backbone=own), **settings)


def test_a_channel_without_variation_trains(few, tmp_path):
    images = few.batch(range(len(few)))[0].expand(-1, 3, -1, -1).clone()
    images[:, 1] = 0
    run = fit(ImageSet.from_arrays(images, few.labels, few.class_names), "plain", tmp_path / "run", **QUICK)
    assert np.isfinite(run.metrics["loss"]).all()


def test_plain_and_mdprop_take_the_same_steps_on_the_same_clean_images(few, tmp_path):
    "The recipes differ in what they add, never in the clean images."

    def clean_images(recipe):
        batches = []

        class Spy(torch.nn.Identity):
            def forward(self, x):
                batches.append(x.clone())
                return x

        fit(few, recipe, tmp_path / recipe, augment=Spy(), **QUICK | dict(epochs=2))
        return torch.cat(batches)

    assert torch.equal(clean_images("plain"), clean_images("mdprop"))


KILLED = """
import sys
from mdprop.data import glyphs
from mdprop.train import fit
data = glyphs(classes=60, per_class=8, size=24).keep_classes(range(0, 60, 5))
fit(data, "mdprop", sys.argv[1], epochs=12, width=4, dim=8, batch_size=16, per_class=2, progress=False)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_run_resumes_to_the_same_weights(few, tmp_path):
    settings = QUICK | dict(epochs=12)
    whole = fit(few, "mdprop", tmp_path / "whole", **settings)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "cut")], env=environment)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "cut" / "embeddings" / "valid-003.npz").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 2 <= len(Run(tmp_path / "cut").metrics) < 12
    cut = fit(few, "mdprop", tmp_path / "cut", **settings)
    assert same(weights(cut), weights(whole))
    assert (cut.path / "metrics.csv").read_bytes() == (whole.path / "metrics.csv").read_bytes()
    assert all(np.array_equal(cut.snapshot(name).z, whole.snapshot(name).z) for name in whole.snapshots)


def test_a_finished_run_is_given_back_and_another_is_refused(few, tmp_path):
    run = fit(few, "plain", tmp_path / "run", **QUICK)
    before = (run.path / "last.safetensors").stat().st_mtime_ns
    fit(few, "plain", tmp_path / "run", **QUICK)
    assert (run.path / "last.safetensors").stat().st_mtime_ns == before
    with pytest.raises(RunError, match=r"differs in training.epochs \(1 there, 2 here\)$"):
        fit(few, "plain", tmp_path / "run", **QUICK | dict(epochs=2))
    assert (run.path / "last.safetensors").stat().st_mtime_ns == before
    again = fit(few, "plain", tmp_path / "run", overwrite=True, **QUICK | dict(epochs=2))
    assert len(again.metrics) == 2


def test_a_finished_run_without_its_best_checkpoint_says_what_is_left(few, tmp_path):
    run = fit(few, "plain", tmp_path / "run", **QUICK)
    (run.path / "best.safetensors").unlink()
    with pytest.raises(RunError, match=r"best.safetensors is missing: take the last checkpoint, model\('last'\)"):
        run.model()


def test_what_is_not_a_run_is_left_alone(few, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"format": 1, "star')
    for name, message in (("letters", "is not empty, and what it holds is not a run"), ("file", "is a file"), ("broken", r"config.json is damaged")):
        with pytest.raises(RunError, match=message):
            fit(few, "plain", tmp_path / name, **QUICK)
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["a.txt"]
    fit(few, "plain", tmp_path / "letters", overwrite=True, **QUICK)
    assert (tmp_path / "letters" / "a.txt").read_text() == "dear"


def test_a_backbone_with_other_weights_is_another_run(few, tmp_path):
    def own(seed):
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, 2), torch.nn.BatchNorm2d(4))

    fit(few, "plain", tmp_path / "run", backbone=own(0), **QUICK)
    fit(few, "plain", tmp_path / "run", backbone=own(0), **QUICK)
    with pytest.raises(RunError, match=r"build it after torch.manual_seed\(...\)$"):
        fit(few, "plain", tmp_path / "run", backbone=own(1), **QUICK)


def test_a_misspelt_setting_is_recognised(few, tmp_path):
    for wrong, meant in (("learning_rat", None), ("batchsize", "batch_size"), ("epoch", "epochs"), ("widht", "width")):
        with pytest.raises(TypeError, match=f"did you mean '{meant}'" if meant else "has no setting 'learning_rat', only epochs"):
            fit(few, "plain", tmp_path / "run", **{wrong: 3})


def test_a_batch_that_the_classes_cannot_fill_is_made_smaller(few, tmp_path):
    with pytest.warns(UserWarning, match="has 10 classes: with per_class=2 a batch holds 20 images, not batch_size=64"):
        run = fit(few, "plain", tmp_path / "run", **QUICK | dict(batch_size=64))
    assert run.config["training"]["batch_size"] == 20
    with pytest.warns(UserWarning, match="per_class=1 puts no two images"):
        fit(few, "plain", tmp_path / "single", **QUICK | dict(per_class=1, batch_size=8))


@pytest.mark.parametrize(("classes", "training", "validation"), [(2, 2, 0), (3, 3, 0), (4, 2, 2), (5, 3, 2), (12, 10, 2)])
def test_validation_has_two_classes_or_is_left_out(few, tmp_path, classes, training, validation):
    own = few.keep_classes(range(classes))
    own = ImageSet(own.images, own.labels, own.class_names, own.keys, rows=own.rows)  # without families, as own photos are
    if not validation:
        with pytest.warns(UserWarning, match="too few to hold two out"):
            run = fit(own, "plain", tmp_path / "run", **QUICK | dict(batch_size=4))
        assert run.config["data"]["valid"] is None
    else:
        run = fit(own, "plain", tmp_path / "run", **QUICK | dict(batch_size=4))
        assert len(run.config["data"]["valid"]["class_names"]) == validation
    assert len(run.config["data"]["class_names"]) == training


def test_the_best_checkpoint_is_of_the_best_validation_epoch(few, tmp_path):
    run = fit(few, "plain", tmp_path / "run", **QUICK | dict(epochs=4, lr=0.05))
    _, facts = load_tensors(run.path / "best.safetensors")
    assert facts["epoch"] == run.metrics["map_at_r"].idxmax() + 1
    best = run.snapshot(f"valid-{facts['epoch']:03d}")
    held = next(part for part in few.hold_out_classes(0.2) if list(part.class_names) == list(best.class_names))
    torch.testing.assert_close(embed(run.model("best"), held), torch.from_numpy(best.z))


def test_the_bar_shows_loss_rate_and_time_left(few, tmp_path, capsys):
    fit(few, "plain", tmp_path / "run", **QUICK | dict(progress=True, epochs=2))
    shown = capsys.readouterr().err
    assert "loss=" in shown and "image/s" in shown and "<" in shown and "epoch=2" in shown


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(epochs=0), "epochs=0 must be 1 or more"), (dict(lr=0), "lr=0 must be more than 0"), (dict(backbone=Embedder), r"such as MyNet\(\)"),
        (dict(loss=losses.TripletMarginLoss), "a name or an object"), (dict(miner=max), "a name or an object"), (dict(schedule="cosin"), "unknown schedule"),
        (dict(precision="fp16"), "unknown precision"), (dict(augment="flip"), "unknown augmentation"), (dict(loss="triplett"), "unknown loss"),
        (dict(backbone="resnet1000"), "unknown backbone|not installed"), (dict(recipe="mdrop"), "unknown recipe"),
        (dict(device="cuda:77"), "cannot be used here"), (dict(loss="manifold"), "cannot be built"), (dict(width=0), "at least 1"), (dict(dim=0), "at least 1"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_written(few, tmp_path, wrong, message):
    with pytest.raises((ValueError, ImportError), match=message):
        fit(few, **{"recipe": "plain", "out": tmp_path / "run", **QUICK, **wrong})
    assert not (tmp_path / "run").exists()


def test_bfloat16_autocast_runs(few, tmp_path):
    run = fit(few, "mdprop", tmp_path / "run", precision="bfloat16", **QUICK)
    assert np.isfinite(run.metrics["loss"]).all()


def test_an_embedder_of_your_own_goes_in_as_it_is(few, tmp_path):
    torch.manual_seed(0)
    model = Embedder("resnet10", dim=6, image_shape=few.shape, width=4)
    run = fit(few, "plain", tmp_path / "run", backbone=model, **QUICK)
    assert embed(run.model("last"), few).shape == (len(few), 6)
    assert not torch.allclose(embed(run.model("last"), few), embed(model, few))  # yours is as it was, a copy was trained


def test_frozen_norms_stay_frozen_through_training_and_validation(few, tmp_path):
    model = Embedder("resnet10", dim=6, image_shape=few.shape, width=4)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    statistics, model.backbone.bn1.running_mean[:] = 0.1, 0.1
    run = fit(few, "mdprop", tmp_path / "run", backbone=model, **QUICK | dict(epochs=2))
    for norm in (run.model("last").backbone.bn1, *run.model("last").backbone.bn1.domain_norms.values()):
        assert (norm.running_mean == torch.tensor(statistics)).all()
    assert not same({"w": run.model("last").head.weight}, {"w": model.head.weight})


def test_seeds_and_rates():
    assert len({derived_seed(s, e, k) for s in range(5) for e in range(5) for k in range(3)}) == 75
    assert [learning_rate(s, 4, 1.0, "linear") for s in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert create_loss("MultiSimilarityLoss").__class__ is losses.MultiSimilarityLoss


# Watching


def listener():
    "A watch that keeps everything."
    told = []
    return told, lambda what, facts: told.append((what, dict(facts)))


def test_a_watch_is_told_everything_and_changes_nothing(few, tmp_path):
    told, watch = listener()
    settings = QUICK | dict(epochs=2, batch_size=8)  # 10 steps an epoch or more: the loss is read twice
    alone = fit(few, "mdprop", tmp_path / "alone", **settings)
    run = fit(few, "mdprop", tmp_path / "run", watch=watch, **settings)
    assert same(weights(run), weights(alone))
    steps = [facts for what, facts in told if what == "step"]
    total = told[0][1]["steps"]
    assert [facts["step"] for facts in steps] == list(range(1, total + 1)) and total % 2 == 0
    assert all(("loss" in facts) == ((facts["step"] - 1) % (total // 2) % 10 == 0) for facts in steps)
    assert all(list(facts["losses"]) == ["clean", "attacked"] for facts in steps if "loss" in facts)
    assert all(facts["images_per_s"] > 0 and "eps_share" not in facts for facts in steps)
    assert steps[-1]["lr"] == run.metrics["lr"].iloc[-1]
    assert [what for what, _ in told if what != "step"] == ["start", "epoch", "epoch", "end"]
    start, end = told[0][1], told[-1][1]
    assert (start["run"], start["recipe"], start["epoch"], start["rows"]) == (str(run.path), "mdprop", 0, [])
    assert end == dict(epoch=2, stopped=False)
    rows = [facts for what, facts in told if what == "epoch"]
    assert [row["recall_at_1"] for row in rows] == run.metrics["recall_at_1"].tolist()


@pytest.mark.parametrize("at", ["start", "first step", "second epoch", "epoch", "end"])
def test_a_stopped_run_is_whole_and_goes_on_to_the_same_weights(few, tmp_path, at):
    def stop(what, facts):
        if at in {what, {1: "first step"}.get(facts.get("step"))} or (at == "second epoch" and what == "step" and facts["epoch"] == 2):
            raise StopTraining

    settings = QUICK | dict(epochs=2, batch_size=8)
    whole = fit(few, "mdprop", tmp_path / "whole", **settings)
    told, watch = listener()

    def both(what, facts):
        watch(what, facts)
        stop(what, facts)

    stopped = fit(few, "mdprop", tmp_path / "run", watch=both, **settings)
    done = {"start": 0, "first step": 0, "second epoch": 1, "epoch": 1, "end": 2}[at]
    assert len(stopped.metrics) == done == told[-1][1]["epoch"] and told[-1][1]["stopped"] == (done < 2)
    assert (stopped.path / "last.safetensors").exists() == (done > 0 or at == "first step")
    again = fit(few, "mdprop", tmp_path / "run", **settings)
    assert same(weights(again), weights(whole)) and again.snapshots == whole.snapshots


@pytest.mark.parametrize("reason", [KeyboardInterrupt, MemoryError, NonFiniteError])
@pytest.mark.filterwarnings("ignore:a watch failed when it was told of the end:UserWarning")
def test_each_watch_is_told_the_end_whatever_it_is(few, tmp_path, reason):
    told, watch = listener()

    def broken(what, facts):
        if reason is not NonFiniteError and facts.get("step") == 2:
            raise reason
        if what == "end":
            raise ConnectionError("a second error must not hide the first one")

    settings = QUICK | (dict(lr=1e30, warmup=0.0) if reason is NonFiniteError else {})
    with pytest.raises(reason):
        fit(few, "plain", tmp_path / "run", watch=[watch, broken, watch], **settings)
    assert [what for what, _ in told[-2:]] == ["end", "end"] and [what for what, _ in told].count("end") == 2
    for _, end in told[-2:]:
        assert (end["epoch"], end["stopped"], type(end.get("error", KeyboardInterrupt()))) == (0, True, reason)


def test_what_was_measured_on_an_earlier_model_does_not_pass_for_the_finished_run(few, tmp_path):
    train, test = few.keep_classes(range(8)), few.keep_classes(range(8, 12))
    go_on = lambda **more: fit(train, "plain", tmp_path / "run", valid=None, **QUICK | dict(epochs=3) | more)  # every epoch is the best

    def stop(what, facts):
        if what == "epoch":
            raise StopTraining

    run = go_on(watch=stop)
    evaluate(run, test, steps=1, name="mine")
    for name in ("robustness.json", "embeddings/valid-000.npz"):
        (run.path / name).write_text("{}", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"results.json, robustness.json, embeddings/mine.npz, items/mine.npz: deleted.* evaluate the run again"):
        go_on(watch=stop)
    assert run.results == {} and run.snapshots == ["valid-000"] and not (run.path / "robustness.json").exists()
    assert [note["epoch"] for note in run.notes if note["what"] == "outdated"] == [2]
    go_on()
    found = evaluate(run, test, steps=1)
    assert go_on().results["test"]["metrics"] == found  # a finished run is left as it is


def test_the_time_of_a_watch_is_not_training_time(few, tmp_path):
    pause = lambda what, facts: time.sleep(0.3 * (what == "step"))
    run = fit(few, "plain", tmp_path / "run", watch=pause, **QUICK)
    assert run.metrics["images_per_s"].iloc[0] > 16 / 0.3  # no more than that, were the pauses counted


def test_what_a_watch_raises_is_not_swallowed(few, tmp_path):
    def broken(what, facts):
        if what == "epoch":
            raise RuntimeError("the watch is broken")

    with pytest.raises(RuntimeError, match="the watch is broken"):
        fit(few, "plain", tmp_path / "run", watch=broken, **QUICK)
    assert len(Run(tmp_path / "run").metrics) == 1  # the epoch had been saved


def test_a_rising_eps_is_told(few, tmp_path):
    told, watch = listener()
    recipe = Recipe("rising", (Branch(), Branch("single", FeatureAttack(1, 8 / 255, 1))), warmup=0.5)
    fit(few, recipe, tmp_path / "run", watch=watch, **QUICK | dict(epochs=2))
    shares = [facts["eps_share"] for what, facts in told if what == "step"]
    assert shares[0] == 0 and shares[-1] == 1 and sorted(shares) == shares


@pytest.mark.parametrize(
    ("loss", "recipe", "columns"),
    [
        ("multi_similarity", "mdprop", ["loss_clean", "loss_attacked"]),
        ("arcface", "advprop", ["loss_clean", "loss_single"]),
        ("multi_similarity", "adversarial_training", ["loss_clean"]),
        ("triplet_margin", "mdprop", []),
        ("proxy_anchor", "mdprop", []),
        ("contrastive", "mdprop", []),
    ],
)
def test_the_loss_of_a_branch_is_there_only_where_it_is_defined(few, tmp_path, loss, recipe, columns):
    metrics = fit(few, recipe, tmp_path / "run", loss=loss, **QUICK).metrics
    assert [name for name in metrics if name.startswith("loss_")] == columns
    shares = {"mdprop": [0.5, 0.5], "advprop": [0.5, 0.5], "adversarial_training": [1.0]}[recipe]
    if columns:
        assert metrics[columns].to_numpy() @ shares == pytest.approx(metrics["loss"], rel=1e-4)


def test_losses_that_are_summed_are_all_there(few, tmp_path):
    recipe = Recipe("apart", (Branch(), Branch("single", FeatureAttack(1, 8 / 255, 1), weight=0.5)), joint=False)
    metrics = fit(few, recipe, tmp_path / "run", loss="triplet_margin", **QUICK).metrics
    assert metrics[["loss_clean", "loss_single"]].to_numpy() @ [1, 0.5] == pytest.approx(metrics["loss"], rel=1e-4)


def test_validation_through_every_domain(few, tmp_path):
    run = fit(few, mdprop_paper(), tmp_path / "run", valid_domains=True, **QUICK)
    held = next(part for part in few.hold_out_classes(0.2) if list(part.class_names) == run.snapshot().class_names)
    for domain in ("single", "multi"):
        expected = retrieval_metrics(embed(run.model("last"), held, domain), held.labels)["recall_at_1"]
        assert run.metrics[f"recall_at_1_{domain}"].iloc[-1] == pytest.approx(expected)
    assert "recall_at_1_single" not in fit(few, "plain", tmp_path / "plain", valid_domains=True, **QUICK).metrics
