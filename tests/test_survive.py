"""Training that survives: killed anywhere, on a full disk, with damaged checkpoints, bad batches, too little memory, Ctrl-C, or a second process."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_metric_learning import losses

from mdprop import runs
from mdprop.data import ImageSet, glyphs, image_folder
from mdprop.model import Embedder
from mdprop.recipes import mdprop
from mdprop.runs import Run, RunError, add_note, checkpoints, exclusive, load_tensors, newest_checkpoint, save_tensors
from mdprop.train import CHANGEABLE, InParts, NonFiniteError, StopTraining, Trainer, create_loss, fit, signs_of_trouble, training_step

QUICK = dict(epochs=3, width=4, dim=8, batch_size=16, per_class=2, progress=False)


class Jitter(torch.nn.Module):
    "An augmentation that draws from all three global generators, and counts the images that it has seen."

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.seen += len(x)
        light = random.uniform(0.9, 1) * np.random.uniform(0.9, 1)  # noqa: NPY002  what users do
        return (x * light + 0.02 * torch.rand_like(x)) * (1 - 1e-4 * self.seen)


def data():
    return glyphs(classes=60, per_class=8, size=24).keep_classes(range(0, 60, 5))


def train(folder, **changes):
    "A run in which everything that can be random or remembered is: 15 steps of MDProp."
    torch.set_num_threads(1)
    memory = losses.CrossBatchMemory(losses.MultiSimilarityLoss(), embedding_size=8, memory_size=80)
    settings = QUICK | dict(augment=Jitter(), loss=memory, clip_grad=1.0) | changes
    return fit(data(), mdprop(policy="dense"), folder, **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The run that nothing has happened to."
    return train(tmp_path_factory.mktemp("survive") / "whole")


def assert_same_bytes(run: Run, whole: Run) -> None:
    "Weights, optimiser, metrics, snapshots, settings: every byte, apart from measured times, notes, and the checkpoint before the last."
    apart = {"timings.csv", "notes.json", ".lock", "last-1.safetensors", "config.json"}
    listed = lambda folder: sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name not in apart)
    assert listed(run.path) == listed(whole.path)
    decided = lambda run: {name: value for name, value in run.config["training"].items() if name not in CHANGEABLE}
    assert run.config | {"training": 0} == whole.config | {"training": 0} and decided(run) == decided(whole)
    for name in listed(whole.path):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    assert list(run.metrics) == list(whole.metrics) and len(run.metrics) == 3


# Killed

PATIENCE = 600  # seconds until a process counts as hung: the machine may be busy
PROCESSES = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")


@pytest.fixture(scope="module", autouse=True)
def prepared_processes():
    "Children start with everything imported."
    if os.name == "posix":
        PROCESSES.set_forkserver_preload(["mdprop.train", "pytest", "torch._dynamo"])  # optimisers want the last one


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(folder: Path, point: dict) -> None:
    "Train, and be killed: after so many writes to the disk (before, within or after one), or so many seconds into a step."
    calls = iter(range(10**9))

    def deadly(function):
        def called(*args, **options):
            n = next(calls)
            if n == point["write"] and point["before"]:
                die()
            found = function(*args, **options)
            if n == point["write"]:
                die()
            return found

        return called

    def torn(write):
        def called(path, content):
            if next(calls) == point["write"]:
                write(path, content[: len(content) // 2])
                die()
            return write(path, content)

        return called

    def watch(what, facts):
        if what == "step" and next(steps) == point["step"]:
            threading.Timer(point["seconds"], die).start()

    steps = iter(range(10**9))
    if "write" in point:
        os.replace, os.fsync, Path.write_bytes = deadly(os.replace), deadly(os.fsync), torn(Path.write_bytes)
        watch = lambda what, facts: None
    train(folder, watch=watch, save_minutes=point["save_minutes"])


def kill_points(seed: int):
    "Where a process dies: in turn at a write and within a step, with a checkpoint after each step or each epoch."
    draw = random.Random(seed)
    while True:
        minutes = draw.choice([0, 10])
        yield dict(write=draw.randrange(40 if minutes else 60), before=draw.random() < 0.5, save_minutes=minutes)
        yield dict(step=draw.randrange(6), seconds=draw.uniform(0, 0.08), save_minutes=draw.choice([0, 0, 10]))


def killed_again_and_again(folder: Path, seed: int, kills: int) -> tuple[Run, int]:
    "A run that is killed so many times, if it is not finished before."
    died = 0
    for point in kill_points(seed):
        child = PROCESSES.Process(target=train_and_die, args=(folder, point))
        child.start()
        child.join(PATIENCE)
        assert child.exitcode in (0, -signal.SIGKILL), child.exitcode
        died += child.exitcode != 0
        if child.exitcode == 0 or died == kills:
            return train(folder), died
    raise AssertionError


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_at_any_point_it_reaches_the_same_bytes(whole, tmp_path):
    died = 0
    for seed in range(100):
        run, times = killed_again_and_again(tmp_path / f"run{seed}", seed, kills=8)
        assert_same_bytes(run, whole)
        assert not list(run.path.rglob(".*.part"))
        died += times
        if died >= 24:
            return
    raise AssertionError(f"only {died} kills")


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_before_going_on(tmp_path, monkeypatch):
    done, inode = [], lambda number: os.fstat(number).st_ino
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (done.append(("fsync", inode(number))), sync(number)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(("replace", Path(a).stat().st_ino)), replace(a, b)))
    for epoch in (1, 2):
        save_tensors(tmp_path / "new" / "last.safetensors", {"a": torch.zeros(3)}, 2, epoch=epoch)
    folder, new, old = (path.stat().st_ino for path in (tmp_path / "new", tmp_path / "new" / "last.safetensors", tmp_path / "new" / "last-1.safetensors"))
    first = [("fsync", tmp_path.stat().st_ino), ("fsync", old), ("replace", old), ("fsync", folder)]
    assert done == [*first, ("fsync", new), ("replace", old), ("replace", new), ("fsync", folder)]


# Full


def on_a_small_disk(folder: Path, limit: int) -> None:
    "Train where no file can be longer than `limit` bytes from the second epoch on, as where the disk is full."

    def watch(what, facts):
        if what == "epoch":
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    try:
        train(folder, watch=watch)
    except OSError as error:
        (folder / "error.txt").write_text(str(error))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limits on file sizes")
def test_a_disk_that_takes_no_more_leaves_the_last_checkpoint(whole, tmp_path):
    child = PROCESSES.Process(target=on_a_small_disk, args=(tmp_path / "run", 20_000))
    child.start()
    child.join(PATIENCE)
    assert "could not be written" in (tmp_path / "run" / "error.txt").read_text()
    (tmp_path / "run" / "error.txt").unlink()
    assert load_tensors(tmp_path / "run" / "last.safetensors")[1]["epoch"] == 1
    assert_same_bytes(train(tmp_path / "run"), whole)


def test_a_full_tmpfs_leaves_the_last_checkpoint(whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    room = sum(path.stat().st_size for path in whole.path.rglob("*") if path.is_file())
    mount = lambda *options: subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(disk)], capture_output=True, check=False)
    if shutil.which("mount") is None or mount(f"size={room * 9 // 10}").returncode:
        pytest.skip("this machine lets nobody mount a tmpfs; the test before fills a disk in another way")
    try:
        with pytest.raises(OSError, match=r"No space left|could not be written"):
            train(disk / "run")
        assert 1 <= load_tensors(disk / "run" / "last.safetensors")[1]["epoch"] < 3
        subprocess.run(["mount", "-o", f"remount,size={room * 4}", str(disk)], check=True)
        assert_same_bytes(train(disk / "run"), whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# Damaged


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 16
    path.write_bytes(content)


DAMAGE = {"a bit": flip, "cut": lambda path: os.truncate(path, path.stat().st_size - 7), "empty": lambda path: os.truncate(path, 0), "missing": Path.unlink}


def stop_at(step: int):
    def watch(what, facts):
        if what == "step" and facts["step"] == step:
            raise StopTraining

    return watch


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(whole, tmp_path, damage):
    train(tmp_path / "run", watch=stop_at(12))
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["last.safetensors", "last-1.safetensors"]
    DAMAGE[damage](tmp_path / "run" / "last.safetensors")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert newest_checkpoint(tmp_path / "run")[1]["epoch"] == 2
        run = train(tmp_path / "run")
    assert any("last.safetensors is damaged" in str(each.message) for each in told) == (damage != "missing")
    assert_same_bytes(run, whole)


def test_without_a_whole_checkpoint_training_starts_again_and_says_so(whole, tmp_path):
    train(tmp_path / "run", watch=stop_at(12))
    for path in checkpoints(tmp_path / "run"):
        flip(path)
    with pytest.warns(UserWarning, match="no checkpoint of .* is whole: training starts again"):
        assert_same_bytes(train(tmp_path / "run"), whole)


def test_so_many_checkpoints_are_kept(tmp_path):
    train(tmp_path / "run", checkpoints=3)
    found = [load_tensors(path)[1]["epoch"] for path in checkpoints(tmp_path / "run")]
    assert found == [3, 2, 1]
    assert torch.equal(Run(tmp_path / "run").model("last-2").head.weight, load_tensors(tmp_path / "run" / "last-2.safetensors")[0]["model.head.weight"])


@pytest.mark.parametrize("end", [b"\xff\xfe,", b'"', b"\n,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,", b"1e999999999999"])
def test_damaged_metrics_are_named_and_come_back_with_the_next_call(whole, tmp_path, end):
    shutil.copytree(whole.path, tmp_path / "run")
    (tmp_path / "run" / "metrics.csv").write_bytes(b"epoch,loss\n" + end)
    with pytest.raises(RunError, match=r"metrics\.csv is damaged .*call fit again"):
        _ = Run(tmp_path / "run").metrics
    assert_same_bytes(train(tmp_path / "run"), whole)


# Stopped in the middle of an epoch


@pytest.mark.parametrize("step", [1, 5, 8, 14, 15])
def test_stopped_between_any_two_steps_it_goes_on_to_the_same_bytes(whole, tmp_path, step):
    stopped = train(tmp_path / "run", watch=stop_at(step))
    assert len(stopped.metrics) == (step - 1) // 5 and stopped.notes[-1]["what"] == "stopped"
    told = []
    run = train(tmp_path / "run", workers=1, watch=lambda what, facts: told.append(facts["step"]) if what == "step" else None)
    assert told == list(range(step + 1, 16))
    assert_same_bytes_apart_from_settings(run, whole)


def assert_same_bytes_apart_from_settings(run: Run, whole: Run) -> None:
    assert {note["what"] for note in run.notes} == {"stopped", "resumed"} and "training.workers 1 instead of 0" in run.notes[-1]["text"]
    assert_same_bytes(run, whole)


@pytest.mark.parametrize("where", ["in a step", "in a watch", "in validation"])
def test_ctrl_c_saves_everything_and_says_so(whole, tmp_path, monkeypatch, where):
    class Interrupting(Jitter):
        def forward(self, x):
            if self.seen == 16 * 6:
                signal.raise_signal(signal.SIGINT)
            return super().forward(x)

    Interrupting.__qualname__ = "Jitter"  # the same run
    measure = runs.save_embeddings

    def interrupted(*args):
        signal.raise_signal(signal.SIGINT)
        measure(*args)

    told = []

    def watch(what, facts):
        told.append(what)
        if where == "in a watch" and facts.get("step") == 7:
            signal.raise_signal(signal.SIGINT)

    if where == "in validation":
        monkeypatch.setattr("mdprop.train.save_embeddings", interrupted)
    place = "epoch 1, step 5 of 5" if where == "in validation" else "epoch 2, step 2 of 5"
    with pytest.raises(KeyboardInterrupt, match=f"stopped at {place}; everything is saved in .*run, the same call goes on from there"):
        train(tmp_path / "run", watch=watch, augment=Interrupting() if where == "in a step" else Jitter())
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same_bytes(train(tmp_path / "run"), whole)


def test_a_run_that_replaces_another_one_goes_on_without_overwrite(whole, tmp_path):
    def interrupt(what, facts):
        assert what != "start" or facts["overwrite"]
        if facts.get("step") == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"epoch 2, step 2 of 5; .*run, the same call without overwrite goes on from there$"):
        train(tmp_path / "run", watch=interrupt, overwrite=True)
    told = []
    assert_same_bytes(train(tmp_path / "run", watch=lambda what, facts: told.append(facts)), whole)
    assert (told[0]["step"], told[0]["overwrite"]) == (7, False)


def test_a_watch_that_draws_random_numbers_changes_nothing(whole, tmp_path):
    def watch(what, facts):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)

    assert_same_bytes(train(tmp_path / "run", watch=[watch, lambda what, facts: facts.clear()]), whole)


def test_each_of_several_watches_is_told(tmp_path):
    told = []
    train(tmp_path / "run", epochs=1, watch=[lambda what, facts: told.append((1, what)), lambda what, facts: told.append((2, what))])
    assert told[:2] == [(1, "start"), (2, "start")] and told[-2:] == [(1, "end"), (2, "end")]


# One at a time


def hold(folder: Path, ready, over: Path, orphan: bool) -> None:
    "Hold a run folder until a file says that the test is over."
    with exclusive(folder):
        is_orphan = orphan and not os.fork()  # such as a process that decodes images
        if not is_orphan:
            ready.set()
        end = time.monotonic() + PATIENCE
        while not over.exists() and time.monotonic() < end:
            time.sleep(0.1)
        os._exit(0)


@pytest.mark.skipif(os.name == "nt", reason="forks")
@pytest.mark.parametrize("orphan", [False, True])
def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path, orphan):
    ready, over = PROCESSES.Event(), tmp_path / "over"
    child = PROCESSES.Process(target=hold, args=(tmp_path / "run", ready, over, orphan))
    child.start()
    try:
        assert ready.wait(PATIENCE)
        with pytest.raises(RunError, match=rf"run is being trained by process {child.pid} on .*: wait until it ends, stop it, or choose another out="):
            train(tmp_path / "run")
    finally:
        child.kill()
        child.join()
    try:
        assert len(train(tmp_path / "run", epochs=1).metrics) == 1  # the orphan lives on, and holds nothing
    finally:
        over.touch()


# Not finite


class Poison(torch.nn.Module):
    "Makes every batch that holds one image infinite."

    def __init__(self, image):
        super().__init__()
        self._image = image

    def forward(self, x):
        return x * torch.where((x == self._image).flatten(1).all(1), torch.nan, 1.0)[:, None, None, None]


def poisoned(folder, **changes):
    few = data().hold_out_classes(0.2)[0]
    return fit(few, "mdprop", folder, valid=None, augment=Poison(few.batch([37])[0]), **QUICK | changes), few


def test_a_batch_that_is_not_finite_stops_before_it_does_harm(tmp_path):
    told = r"the loss is nan at epoch 1, step \d of \d+, domain 'clean'.*on_nonfinite='skip'.*state before this step is kept"
    with pytest.raises(NonFiniteError, match=told):
        poisoned(tmp_path / "run")
    report = json.loads((tmp_path / "run" / "stopped.json").read_text())
    key = data().hold_out_classes(0.2)[0].keys[37]
    assert report["what"] == "loss" and key in report["images"] and len(report["images"]) == 16 and "clean" in report["domains"]
    tensors, facts = load_tensors(tmp_path / "run" / "last.safetensors")
    assert facts["step"] == report["step"] - 1 and all(value.isfinite().all() for value in tensors.values())
    assert Run(tmp_path / "run").notes[-1]["what"] == "not finite"
    with pytest.raises(NonFiniteError):  # the same batch again
        poisoned(tmp_path / "run")
    with pytest.warns(UserWarning, match="a step was left out: the loss is nan"):
        on, _ = poisoned(tmp_path / "run", on_nonfinite="skip")
    with pytest.warns(UserWarning, match="a step was left out"):
        skipped, _ = poisoned(tmp_path / "skipped", on_nonfinite="skip")
    assert skipped.metrics["skipped"].tolist() == [1, 1, 1]
    for name in ("last.safetensors", "metrics.csv"):
        assert (on.path / name).read_bytes() == (skipped.path / name).read_bytes()
    assert not (on.path / "stopped.json").exists()


def test_a_gradient_that_is_not_finite_is_told_from_a_loss(tmp_path):
    class Steep(losses.MultiSimilarityLoss):
        def forward(self, z, *args):
            z.register_hook(lambda gradient: gradient * torch.inf)
            return super().forward(z, *args)

    with pytest.raises(NonFiniteError, match=r"the gradient of backbone\.conv1\.weight is not finite at epoch 1, step 1 of 5"):
        fit(data(), "plain", tmp_path / "run", loss=Steep(), **QUICK)
    with pytest.raises(FloatingPointError, match="no step of epoch 1 had a finite loss"), pytest.warns(UserWarning, match="left out"):
        fit(data(), "plain", tmp_path / "run", loss=Steep(), on_nonfinite="skip", **QUICK)


def test_collapse_is_told(tmp_path):
    class Same(torch.nn.Module):
        def forward(self, z, *args):
            return (1 - z[:, 0]).mean()  # all to one point

    with pytest.warns(UserWarning, match="all embeddings of a training batch are nearly one point"):
        run = fit(data(), "plain", tmp_path / "run", loss=Same(), **QUICK | dict(lr=0.05, epochs=6))
    assert run.notes[-1]["what"] == "collapsed"
    assert not signs_of_trouble([dict(loss=1.0)], dict(clean=1), 0.99)


# Too little memory


class Norms(torch.nn.Module):
    "A backbone whose norms are of one row each; it wants more memory than there is for more than `rows` rows that are to be differentiated."

    def __init__(self, rows):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 5, 3), torch.nn.GroupNorm(2, 8), torch.nn.ReLU(), torch.nn.Dropout(0.2))
        self._rows, self._seen = rows, []

    def forward(self, x):
        if torch.is_grad_enabled() and len(x) > self._rows:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.layers(x)


@pytest.mark.parametrize("recipe", ["plain", "mdprop"])
def test_a_full_memory_halves_the_rows_and_keeps_the_step(tmp_path, recipe):
    wide = fit(data(), recipe, tmp_path / "wide", backbone=Norms(10**6), epochs=1, **{k: v for k, v in QUICK.items() if k != "epochs"})
    with pytest.warns(UserWarning, match="the memory of cpu was full with .* images at once: from here on 5|4 go through"):
        narrow = fit(data(), recipe, tmp_path / "narrow", backbone=Norms(5), epochs=1, **{k: v for k, v in QUICK.items() if k != "epochs"})
    assert load_tensors(narrow.path / "last.safetensors")[1]["micro_batch"] == 4
    assert {note["what"] for note in narrow.notes} == {"out of memory"}
    assert narrow.metrics["loss"].tolist() == pytest.approx(wide.metrics["loss"].tolist(), rel=2e-3)


@pytest.mark.parametrize(("count", "told"), [(2, "full with 16 images at once: take more processes"), (1, "full with 3 images at once: take smaller images")])
def test_a_memory_that_cannot_be_halved_says_what_to_do(monkeypatch, count, told):
    monkeypatch.setattr("mdprop.train.processes", lambda: count)
    trainer = SimpleNamespace(micro_batch=None if count > 1 else 3, recipe=mdprop(), training=SimpleNamespace(batch_size=16), device="cuda:1")
    with pytest.raises(torch.cuda.OutOfMemoryError, match=rf"the memory of cuda:1 is {told}.*Tried to allocate 2"):
        Trainer._halve(trainer, torch.cuda.OutOfMemoryError("Tried to allocate 2.00 GiB"))


def gradients(model, network, recipe, x, y):
    model.zero_grad()
    torch.manual_seed(0)
    loss = training_step(network, recipe, create_loss("multi_similarity"), None, x, y, torch.Generator().manual_seed(0))
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
def test_in_parts_the_gradient_is_the_same_for_norms_without_batch_statistics(rows):
    model = Embedder("resnet10", dim=8, image_shape=(1, 24, 24), width=4).eval()
    model = runs.convert_multi_norm(model)
    x, y = data().batch(range(24))
    (loss, one), (parted, two) = (gradients(model, network, mdprop(share=None), x, y) for network in (model, InParts(model, rows)))
    torch.testing.assert_close(parted, loss)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_statistics_move_once_for_each_part(tmp_path):
    run = fit(data(), mdprop(share=None), tmp_path / "run", micro_batch=4, **QUICK | dict(epochs=1))
    norm = run.model("last").backbone.bn1
    parts = {"clean": 4, "single": 2, "multi": 2}  # 16, 8 and 8 rows, in each of 5 steps
    counts = {"clean": norm.num_batches_tracked.item()} | {name: other.num_batches_tracked.item() for name, other in norm.domain_norms.items()}
    assert counts == {domain: 5 * count for domain, count in parts.items()}
    plain = fit(data(), "plain", tmp_path / "plain", micro_batch=4, **QUICK | dict(epochs=1))
    assert plain.model("last").backbone.bn1.num_batches_tracked == 5 * 4


# Times, notes and paths


def by_this_clock(few: ImageSet, clock: list[float], monkeypatch) -> torch.nn.Module:
    "An augmentation that takes a second; a batch takes three."
    slow = few.raw_batch
    monkeypatch.setattr("mdprop.train.time", SimpleNamespace(perf_counter=lambda: clock[0], monotonic=time.monotonic))

    def waiting(indices):
        clock[0] += 3
        return slow(indices)

    class Thinking(torch.nn.Module):
        def forward(self, x):
            clock[0] += 1
            return x

    few.raw_batch = waiting
    return Thinking()


def test_the_share_of_waiting_for_images_is_measured(tmp_path, capsys, monkeypatch):
    few, told, clock = data(), [], [0.0]
    thinking = by_this_clock(few, clock, monkeypatch)

    def watch(what, facts):
        told.append(facts)
        clock[0] += 100  # is not training

    run = fit(few, "plain", tmp_path / "run", valid=None, watch=watch, augment=thinking, **QUICK | dict(progress=True))
    assert run.metrics["data_share"].tolist() == pytest.approx([0.75] * 3)
    assert [facts["data_share"] for facts in told if "lr" in facts and "seconds" in facts] == pytest.approx([0.75] * len(told[1:-1]))
    assert "data=75%" in capsys.readouterr().err
    assert (run.metrics["seconds"] > 0).all() and list(run.metrics)[-3:] == list(runs.TIMINGS)


def test_the_time_of_an_epoch_counts_what_was_trained_before_an_interruption(tmp_path, monkeypatch):
    few, clock = data(), [0.0]
    thinking = by_this_clock(few, clock, monkeypatch)

    def stop(what, facts):
        clock[0] += 100
        if what == "step" and facts["step"] in (2, 6, 7):  # within an epoch of six steps, after its last one, and after the first of the next one
            raise StopTraining

    for epochs in (0, 0, 1):
        run = fit(few, "plain", tmp_path / "run", valid=None, watch=stop, augment=thinking, **QUICK)
        assert len(run.metrics) == epochs
    run = fit(few, "plain", tmp_path / "run", valid=None, augment=thinking, **QUICK)
    assert run.metrics["seconds"].tolist() == pytest.approx([24] * 3) and run.metrics["data_share"].tolist() == pytest.approx([0.75] * 3)
    assert run.metrics["images_per_s"].tolist() == pytest.approx([4] * 3)


def test_notes_do_not_repeat(tmp_path):
    for _ in range(2):
        add_note(tmp_path, "stopped", "by hand", 1, 2)
    runs.write_json(tmp_path / "config.json", {"format": runs.FORMAT})
    assert Run(tmp_path).notes == [dict(epoch=1, step=2, what="stopped", text="by hand")]


def test_a_run_holds_no_path_of_its_machine(tmp_path):
    draw = np.random.default_rng(0)
    for name in "abcdef":
        (tmp_path / "secret" / "photos" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(draw.integers(0, 255, (24, 24), np.uint8)).save(tmp_path / "secret" / "photos" / name / f"{i}.png")
    images = image_folder(tmp_path / "secret" / "photos", size=24)
    run = fit(images, "mdprop", tmp_path / "secret" / "run", watch=stop_at(2), **QUICK | dict(batch_size=4))
    run = fit(images, "mdprop", run.path, **QUICK | dict(batch_size=4))
    for path in run.path.rglob("*"):
        if path.is_file():
            content = path.read_bytes() if path.suffix != ".npz" else b"".join(value.tobytes() for value in np.load(path).values())
            assert b"secret" not in content.replace(b"\0", b"") and bytes(tmp_path) not in content, path


def test_an_unfinished_write_is_cleared_away(tmp_path):
    train(tmp_path / "run", watch=stop_at(3))
    (tmp_path / "run" / "embeddings" / ".valid-001.npz.4242.part").write_bytes(b"half")
    run = train(tmp_path / "run")
    assert not list(run.path.rglob(".*.part"))
