"Trackers while a model trains: TensorBoard's own reader finds what the run folder holds, a resumed run goes on, a broken tracker harms nothing."

import math

import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker

from mdprop.data import glyphs
from mdprop.runs import load
from mdprop.train import StopTraining, fit
from mdprop.trackers import Trackers

TINY = dict(width=4, dim=8, batch_size=16, epochs=2, progress=False)


@pytest.fixture(scope="module")
def train():
    return glyphs(30, size=16).split_classes()[0]


def scalars(folder, name: str) -> list[tuple[int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs the extra track")
    log = accumulator.EventAccumulator(str(folder))
    log.Reload()
    return [(event.step, event.value) for event in log.Scalars(name)]


def test_tensorboard_holds_what_the_run_holds_also_when_it_was_stopped_and_goes_on(train, tmp_path):
    steps = len(train.hold_out_classes(0.2)[0].class_batches(16, 4))

    def stop(what, facts):
        if what == "step" and facts["step"] == steps + 5:  # within the second epoch
            raise StopTraining

    def die(what, facts):
        if what == "step" and facts["step"] == 2 * steps - 1:
            raise MemoryError

    fit(train, "mdprop", tmp_path / "run", watch=stop, track="tensorboard", **TINY)
    with pytest.raises(MemoryError):  # the steps since the last checkpoint are trained again, and must not be seen twice
        fit(train, "mdprop", tmp_path / "run", watch=die, track="tensorboard", **TINY)
    run = fit(train, "mdprop", tmp_path / "run", track="tensorboard", **TINY)
    for name in ("loss", "recall_at_1", "pi_ratio", "loss_attacked"):
        written = scalars(run.path / "tensorboard", f"epoch/{name}")
        assert [step for step, _ in written] == [steps, 2 * steps]
        assert [value for _, value in written] == pytest.approx(run.metrics[name].tolist(), rel=1e-6)
    seen = [step for step, value in scalars(run.path / "tensorboard", "step/loss") if math.isfinite(value)]
    assert seen == [step for epoch in (0, 1) for step in range(epoch * steps + 1, (epoch + 1) * steps + 1, 10)]
    for path in run.path.glob("tensorboard/**/*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), f"{path.name} holds a path of this machine"
    assert "recall_at_1" in load(run.path).metrics


def test_the_weights_do_not_depend_on_who_watches(train, tmp_path):
    class Broken(GeneralTracker):
        name, requires_logging_directory = "broken", False

        @property
        def tracker(self):
            return None

        def store_init_configuration(self, values):
            raise ConnectionError("no server")

    alone = fit(train, "plain", tmp_path / "alone", **TINY)
    with pytest.warns(UserWarning, match="tracker 'broken' failed and is left out, training goes on: ConnectionError: no server"):
        watched = fit(train, "plain", tmp_path / "watched", track=[Broken()], **TINY)
    one, two = (run.model("last").state_dict() for run in (alone, watched))
    assert all(one[name].equal(two[name]) for name in one)


def test_a_missing_package_is_told_before_anything_is_trained(train, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(ImportError, match=r"^tensorboard is not installed: pip install 'mdprop\[track\]'$"):
        fit(train, "plain", tmp_path / "run", track="tensorboard", **TINY)
    with pytest.raises(ImportError, match=r"^comet_ml is not installed: pip install comet-ml$"):
        Trackers("comet_ml")
    with pytest.raises(ValueError, match="unknown tracker 'tensorbord': Accelerate knows"):
        fit(train, "plain", tmp_path / "run", track=("tensorbord",), **TINY)
    assert not (tmp_path / "run").exists()


def test_options_reach_the_tracker(train, tmp_path, monkeypatch):
    made = []

    class Recorded(GeneralTracker):
        name, requires_logging_directory = "recorded", True

        def __init__(self, run_name, logging_dir, colour="none"):
            super().__init__()
            made.append((run_name, logging_dir, colour))

        tracker = property(lambda self: None)

        def store_init_configuration(self, values):
            made.append(values)

        def log(self, values, step=None):
            made.append(step)

        def finish(self):
            made.append("finished")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "recorded", Recorded)
    fit(train, "plain", tmp_path / "run", track={"recorded": {"colour": "red"}}, **TINY)
    assert made[0] == ("run", str(tmp_path / "run"), "red") and made[-1] == "finished"
    assert made[1]["training.epochs"] == 2 and made[1]["recipe.name"] == "plain" and made[1]["data.name"] == "glyphs-train"
    assert all(isinstance(value, str | int | float | bool) for value in made[1].values())

    def fail(what, facts):
        if what == "step":
            raise MemoryError

    with pytest.raises(MemoryError):
        fit(train, "plain", tmp_path / "failed", watch=fail, track="recorded", **TINY)
    assert made[-1] == "finished"
