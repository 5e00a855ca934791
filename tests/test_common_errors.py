"""What people do wrong in their first week: each mistake is refused, or warned of, in a sentence that names the value and says what to do."""

import json
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mdprop.all import (
    DensityStats, Embedder, FeatureAttack, StopTraining, class_density, clustering_metrics, compare, convert_multi_norm, density_metrics, density_report,
    distance_overlap, embed, evaluate, fit, glyphs, image_folder, load_run, nearest_neighbours, query_scores, retrieval_metrics, training_step,
)  # fmt: skip
from mdprop.cli import main
from mdprop.data import ArrayError, ImageSet
from mdprop.recipes import get_recipe
from mdprop.runs import RunError
from mdprop.train import create_loss

SMALL = dict(epochs=1, batch_size=16, width=4, dim=8, progress=False)
BIRDS = np.repeat(["wren", "crow", "ibis"], 6)  # labels as one has them


@pytest.fixture(scope="module")
def z() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(18, 8, generator=torch.Generator().manual_seed(0)), dim=1)


@pytest.fixture(scope="module")
def labels() -> torch.Tensor:
    return torch.arange(18) // 6


@pytest.fixture(scope="module")
def few() -> tuple[ImageSet, ImageSet]:
    return glyphs(size=16, classes=20, per_class=6).split_classes()


@pytest.fixture(scope="module")
def run(few, tmp_path_factory):
    return fit(few[0], "plain", tmp_path_factory.mktemp("runs") / "plain", valid=None, **SMALL)


@pytest.fixture
def model() -> Embedder:
    torch.manual_seed(0)
    return Embedder("resnet10", dim=8, width=4, image_shape=(3, 16, 16))


def refused(message: str, error: type[Exception] = ValueError):
    return pytest.raises(error, match=re.escape(message))


MEASURES = {
    "retrieval": retrieval_metrics, "scores": query_scores, "clustering": clustering_metrics, "density": density_metrics, "overlap": distance_overlap,
    "classes": class_density, "statistics": lambda z, labels: DensityStats().update(z, labels), "report": lambda z, labels: density_report(z, z, labels),
}  # fmt: skip
each_measure = pytest.mark.parametrize("measure", MEASURES.values(), ids=list(MEASURES))


# Labels as strings


@each_measure
def test_labels_that_are_names(measure, z):
    with refused("such as 'wren': give integers, e.g. numpy.unique(labels, return_inverse=True)[1]"):
        measure(z, BIRDS.tolist())
    measure(z, np.unique(BIRDS, return_inverse=True)[1])  # the remedy is one


def test_labels_of_a_set_that_are_names():
    images = np.zeros((18, 3, 8, 8), np.uint8)
    for make in (lambda labels: ImageSet.from_arrays(images, labels), lambda labels: ImageSet(torch.tensor(images), labels, [*"abc"], [*"0123456789abcdefgh"])):
        with refused("labels are text such as 'wren'; make integers and names of them", ArrayError):
            make(BIRDS)
    names, labels = np.unique(BIRDS, return_inverse=True)
    assert ImageSet.from_arrays(images, labels, names).class_names == ["crow", "ibis", "wren"]


# Images in 0..255


def test_pixels_up_to_255_in_a_model(model):
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    with refused("images are torch.uint8: give floats in [0, 1], for instance x.float() / 255"):
        model(images)
    with refused(f"pixels go up to {images.max()}: this model wants [0, 1], give x / 255"):
        model(images.float())
    with refused("this model wants [0, 1]"):
        training_step(model, get_recipe("plain"), create_loss("multi_similarity"), None, images.float(), torch.tensor([0, 0, 1, 1]))
    model(images.float() / 255)
    model(images.float() / 255 * 4 - 1)  # what goes beyond by an attack or an augmentation is nobody's mistake


def test_pixels_up_to_255_in_a_set():
    floats, labels = np.random.default_rng(0).uniform(0, 255, (4, 3, 8, 8)).astype(np.float32), [0, 0, 1, 1]
    with refused("are outside of [0, 1]; divide by 255, or give uint8", ArrayError):
        ImageSet.from_arrays(floats, labels)
    with refused("images are torch.float32, not uint8 in 0..255; ImageSet.from_arrays takes both", ArrayError):
        ImageSet(torch.tensor(floats), labels, ["a", "b"], [*"1234"])
    assert ImageSet.from_arrays(floats / 255, labels).batch([0])[0].max() <= 1


# Embeddings: not of length 1, not finite


@each_measure
def test_embeddings_that_are_not_normalised(measure, z, labels):
    with refused("row 0 of the embeddings has length 3, not 1: pass normalize=True to compare directions alone"):
        measure(3 * z, labels)


@each_measure
def test_embeddings_with_nan(measure, z, labels):
    broken = z.clone()
    broken[3, 2] = float("nan")
    with refused("row 3 of the embeddings holds NaN or infinity: look for the layer or the image that made it"):
        measure(broken, labels)


def test_the_remedy_for_lengths_is_one(z, labels):
    assert retrieval_metrics(3 * z, labels, normalize=True) == retrieval_metrics(z, labels)
    assert density_metrics(3 * z, labels, normalize=True) == pytest.approx(density_metrics(z, labels))


# A model somewhere else than its images


@pytest.mark.parametrize("ask", [
    lambda model, x: model(x),
    lambda model, x: FeatureAttack(2, steps=1)(model, x, domain="multi"),
    lambda model, x: training_step(model, get_recipe("plain"), create_loss("multi_similarity"), None, x, torch.arange(4) // 2),
], ids=["model", "attack", "step"])  # fmt: skip
def test_images_on_another_device_than_the_model(ask, model):
    elsewhere = convert_multi_norm(model, ("clean", "multi")).to("meta")  # stands for a GPU, and is everywhere
    with refused("images are on 'cpu', the model is on 'meta': give x.to('meta')"):
        ask(elsewhere, torch.rand(4, 3, 16, 16))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_where_there_is_none(few, run, tmp_path):
    with refused("device='cuda' cannot be used here"):
        fit(few[0], "plain", tmp_path / "gpu", device="cuda", **SMALL)
    assert not (tmp_path / "gpu").exists()


# Images of other channels


def test_grey_and_colour(model, run):
    with refused("images have shape (4, 1, 16, 16): this model wants (n, 3, height, width)"):
        model(torch.rand(4, 1, 16, 16))
    with refused("images have shape (4, 16, 16, 3): this model wants (n, 3, height, width)"):
        model(torch.rand(4, 16, 16, 3))
    colour = ImageSet.from_arrays(np.zeros((6, 3, 16, 16), np.uint8), [0, 0, 0, 1, 1, 1])
    before = run.results, run.snapshots
    with refused("images have shape (6, 3, 16, 16): this model wants (n, 1, height, width)"):
        evaluate(run, colour, steps=1)
    assert (run.results, run.snapshots) == before


# One class only


def test_one_class_cannot_train(few, tmp_path):
    one = few[0].keep_classes([0])
    with refused("one class cannot be split into two class-disjoint parts; use a set with more classes"):
        fit(one, "plain", tmp_path / "run", **SMALL)
    with refused(f"{one.name} has one class, {one.class_names[0]!r}, which nothing can be told apart from: give images of two classes or more"):
        fit(one, "mdprop", tmp_path / "run", valid=None, **SMALL | dict(batch_size=4))
    assert not (tmp_path / "run").exists()


def test_one_class_says_nothing(few, run, model):
    one = few[1].keep_classes([0])
    with pytest.warns(UserWarning, match="has one class: every neighbour is right, Recall is 100 % whatever the model does"):
        assert evaluate(run, one, steps=1, name="one")["recall_at_1"] == 1
    x = torch.rand(4, 3, 16, 16)
    with refused("policy='other_class' needs a batch of two classes or more, this one has class [7] alone"):
        FeatureAttack(2, steps=1, policy="other_class")(model, x, torch.full((4,), 7))


# More than the batch holds


def test_more_targets_or_neighbours_than_there_are(few, z, tmp_path):
    with pytest.warns(UserWarning, match=r"'mdprop' attacks towards 5 targets, but domain 'attacked' has 2 images .* take batch_size=10 or more"):
        fit(few[0], "mdprop", tmp_path / "run", valid=None, **SMALL | dict(batch_size=4, per_class=2, epochs=1))
    with refused("k=18 neighbours of 17 other rows: choose k from 1 to 17"):
        nearest_neighbours(z, 18)
    with refused("a batch of 64 with 4 images a class needs 16 classes, glyphs has 3: use batch_size=12 or less, or more images a class"):
        glyphs(classes=3).class_batches(64, 4)


def test_a_batch_that_the_classes_cannot_fill_is_made_smaller(few, tmp_path):
    with pytest.warns(UserWarning, match="has 10 classes: with per_class=4 a batch holds 40 images, not batch_size=64"):
        assert fit(few[0], "plain", tmp_path / "run", valid=None, **SMALL | dict(batch_size=64)).config["training"]["batch_size"] == 40


# Runs: another version, other images, none at all, not yet finished


def copy_of(run, folder: Path, **changes) -> Path:
    folder.mkdir()
    for path in run.path.glob("*.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_text(json.dumps({**run.config, **changes}), encoding="utf-8")
    return folder


def test_a_run_of_another_version(run, few, tmp_path, capsys):
    future = copy_of(run, tmp_path / "future", format=2, versions=dict(mdprop="0.9"))
    told = f"{future} has format 2, this mdprop reads 1: open it with mdprop 0.9"
    for opening in (load_run, lambda path: evaluate(path, few[1]), lambda path: compare(run, path, few[1], steps=1), lambda path: fit(few[0], out=path)):
        with refused(told, RunError):
            opening(future)
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(future)])
    assert stop.value.code == f"mdprop: {told}"


def test_runs_that_were_measured_on_different_images(run, few, tmp_path):
    other = load_run(copy_of(run, tmp_path / "other"))
    evaluate(run, few[1], steps=1)
    evaluate(other, few[1].subset(range(30)), steps=1)
    with refused("30 rows before, 60 after: give two embeddings of the same items in the same order"):
        density_report(other.snapshot().z, run.snapshot().z, run.snapshot().labels)
    with pytest.warns(UserWarning, match="the results 'test' of run 'other' on other images .* are replaced: evaluate.* keeps both"):
        compare(run, other, few[1], steps=1)  # which is the remedy


def test_dashboards_of_runs_that_were_measured_on_different_images(run, few, tmp_path):
    dashboards = pytest.importorskip("mdprop.dashboards", reason="needs the extra lab", exc_type=ImportError)
    other = load_run(copy_of(run, tmp_path / "other"))
    evaluate(run, few[1], steps=1)
    evaluate(other, few[1].subset(range(30)), steps=1)
    with refused("hold 30 and 60 items, so they cannot be paired: measure both runs on the same images, e.g. with compare(before, after, data)"):
        dashboards.DensityDashboard(other, run)


def test_a_path_that_is_none(few, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with refused("nowhere does not exist: give the folder that fit(..., out=...) or `mdprop train` wrote"):
        load_run("nowhere")
    with refused("empty has no config.json: give the folder that fit(..., out=...) or `mdprop train` wrote"):
        evaluate("empty", few[1])
    with refused(f"nowhere is not there (looked for {tmp_path / 'nowhere'}); give a folder, a .zip or a .tar"):
        image_folder("nowhere")
    with pytest.raises(TypeError, match=r"must be an ImageSet, such as glyphs\(\) or image_folder\(path\): got 'photos'"):
        fit("photos", "plain")  # type: ignore[arg-type]
    assert not Path("runs").exists()


def test_folders_that_hold_no_classes(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "photo.jpg")
    with refused("no sub-folder. Put the images of every class into a folder named as the class"):
        image_folder(tmp_path)
    (tmp_path / "cats").mkdir()
    with refused("photo.jpg: an image beside the class folders has no class; move it into one"):
        image_folder(tmp_path)
    (tmp_path / "photo.jpg").unlink()
    with refused(f"{tmp_path}: class 'cats' has no image (1 such). Add images, or remove the class"):
        image_folder(tmp_path)
    (tmp_path / "cats" / "one.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with refused("one.heic: no image of a kind that is read here. Convert it to PNG or JPEG"):
        image_folder(tmp_path)


def test_a_run_that_is_not_finished(few, tmp_path):
    def stop(what, facts):
        if what == "step":
            raise StopTraining

    begun = fit(few[0], "plain", tmp_path / "begun", valid=None, watch=stop, **SMALL | dict(epochs=2))
    with refused("run 'begun' has no model yet, 0 of 2 epochs are finished: call fit with the same settings, which goes on with it", RunError):
        evaluate(begun, few[1])
    (begun.path / ".lock").write_text("process 1 on attic", encoding="utf-8")
    with refused("run 'begun' has no model yet, 0 of 2 epochs are finished: wait for process 1 on attic, which trains it", RunError):
        begun.model()


def test_a_run_that_is_being_trained(few, tmp_path):
    def stop(what, facts):
        if what == "epoch":
            raise StopTraining

    half = fit(few[0], "plain", tmp_path / "half", valid=None, watch=stop, **SMALL | dict(epochs=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        half.model()  # stopped, which is fine
        (half.path / ".lock").write_text(f"process {os.getpid()} on here", encoding="utf-8")
        half.model()  # by a watch, within the training
    (half.path / ".lock").write_text("process 1 on attic", encoding="utf-8")
    told = r"run 'half' is being trained by process 1 on attic \(if that has not been killed\), and has finished 1 of 2 epochs: this is its best model so far"
    with pytest.warns(UserWarning, match=told):
        assert embed(half.model(), few[1]).shape == (60, 8)


def test_a_radius_in_steps_of_255():
    with pytest.raises(ValueError, match=r"eps=8, .*pixels lie in \[0, 1\]: 8 of 255 is eps=8/255"):
        FeatureAttack(eps=8)
    assert FeatureAttack(eps=8, norm="l2").eps == 8, "the length of a whole image's change may be larger"


def test_pixels_up_to_255_in_an_attack(few):
    x, y = few[0].batch(range(8))
    model = Embedder("resnet10", 8, few[0].shape, width=4)
    with pytest.raises(ValueError, match=r"pixels go up to 2\d\d: attacks want \[0, 1\], give x / 255"):
        FeatureAttack(2, steps=1)(model, 255 * x, y)


def test_labels_that_are_names_in_an_attack(few):
    x, y = few[0].batch(range(8))
    model, attack = Embedder("resnet10", 8, few[0].shape, width=4), FeatureAttack(2, steps=1, policy="own_class")
    with pytest.raises(ValueError, match=r"such as 'class \d+': give integers"):
        attack(model, x, [f"class {label}" for label in y.tolist()])
    assert attack(model, x, y.tolist()).shape == x.shape, "whole numbers may stand in a list"
