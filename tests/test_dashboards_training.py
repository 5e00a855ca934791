"TrainingDashboard: what it knows, what it draws, and how it holds the reins; without a browser."

import json
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("anywidget", reason="needs the extra lab")

from mdprop.dashboards.training import (
    READINGS, Reins, Track, TrainingDashboard, failure_words, measure_curves, standing_words, time_words, track_of, tracks_table,
)  # fmt: skip
from mdprop.data import glyphs
from mdprop.runs import Run, RunError, write_json
from mdprop.train import NonFiniteError, StopTraining, fit

QUICK = dict(epochs=3, width=4, dim=8, batch_size=16, per_class=2)
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def few():
    return glyphs(classes=60, per_class=8, size=24).keep_classes(range(0, 60, 5))


@pytest.fixture(scope="module")
def whole(few, tmp_path_factory):
    "The run that nobody watches."
    return fit(few, "mdprop", tmp_path_factory.mktemp("runs") / "whole", progress=False, **QUICK)


def weights(run):
    return run.model("last").state_dict()


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def until(condition, seconds=60):
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds
        time.sleep(0.005)


def rows(epochs=3, **more):
    always = dict(pi_ratio=0.3, rho=0.5, images_per_s=100.0, lr=0.01)
    scores = [dict(epoch=e, loss=1 / e, recall_at_1=e / 10, map_at_r=e / 20) for e in range(1, epochs + 1)]
    return [row | always | {name: value / row["epoch"] for name, value in more.items()} for row in scores]


# Pure


def test_readings_are_thinned_out_evenly():
    track = Track("long")
    for k in range(7 * READINGS):
        track.read(k, float(k), {"clean": float(k)})
    at = np.array([at for at, *_ in track.readings])
    assert READINGS / 2 <= len(at) <= READINGS and len(set(np.diff(at))) == 1 and at[0] == 0


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (120, "2 min"), (5399, "90 min"), (7200, "2.0 h")])
def test_durations_in_words(seconds, words):
    assert time_words(seconds) == words


def test_how_a_training_stands_in_words():
    track = Track("a", None, ("clean",), 4, rows(1), now=dict(epoch=2, step=5, steps=12, images_per_s=1234.5, eps_share=0.5), standing="running")
    assert standing_words(track, 300) == "Training: epoch 2 of 4, step 5 of 12, 1,234 images/s, eps at 50% of its value, about 5 min left"
    assert standing_words(track).endswith("time left not known yet")
    for standing, begins in (("paused", "Paused: epoch 2"), ("stopping", "Stopping"), ("stopped", "Stopped: 1 of 4 epochs"), ("unfinished", "Epoch 1 of 4"),
                             ("starting", "Starting"), ("failed", "Failed"), ("finished", "Finished: 1 epochs")):  # fmt: skip
        track.standing = standing
        assert standing_words(track).startswith(begins)


def test_lines_tell_runs_by_colour_and_dash_and_domains_by_marker():
    one = Track("one", None, ("clean", "multi"), 3, rows(loss_clean=1, loss_multi=2, recall_at_1_multi=0.2))
    two = Track("two", None, ("clean",), 3, rows(loss_clean=1))
    drawn = {curve.name: (curve.hue, curve.dash, curve.symbol) for curve in measure_curves([one, two], "loss")}
    assert drawn == {"one clean": (0, 0, 0), "one multi": (0, 0, 1), "two": (1, 1, 0)}
    assert [curve.name for curve in measure_curves([one, two], "loss", "all")] == ["one", "two"]
    assert [curve.name for curve in measure_curves([one, two], "loss", "multi")] == ["one multi"]
    assert [curve.name for curve in measure_curves([one, two], "recall_at_1")] == ["one clean", "one multi", "two"]
    assert [(curve.name, curve.hue) for curve in measure_curves([one], "loss")] == [("clean", 0), ("multi", 1)]
    assert measure_curves([two], "pi_ratio")[0].y.dtype == np.float32


def test_a_run_from_before_these_columns_is_shown():
    old = Track("old", None, ("clean", "multi"), 3, [dict(epoch=1, loss=1.0)])
    assert [curve.name for curve in measure_curves([old], "loss")] == ["loss"] and np.isnan(measure_curves([old], "lr")[0].y).all()
    assert np.isnan(tracks_table([old]).loc["old", "Recall@1"])


def test_mistakes_in_words():
    assert failure_words(ValueError("take 3")) == "take 3"
    assert "smaller batch_size" in failure_words(torch.OutOfMemoryError("CUDA"))
    assert failure_words(RuntimeError("odd")).startswith("RuntimeError: odd. If the reason is not clear")
    assert failure_words(KeyError()).startswith("KeyError: KeyError")


def test_reins():
    reins = Reins()
    waited = []
    reins.pause()
    thread = threading.Thread(target=lambda: waited.append(reins.obey()))
    thread.start()
    time.sleep(0.1)
    assert not waited
    reins.resume()
    thread.join()
    assert waited[0] >= 0.05
    reins.stop()
    reins.pause()  # too late
    with pytest.raises(StopTraining):
        reins.obey()


# Training


def test_paused_resumed_and_watched_it_is_the_same_run(few, whole, tmp_path):
    board = TrainingDashboard().fit(few, "mdprop", tmp_path / "run", **QUICK)
    board.pause()
    until(lambda: board.live.standing == "paused")
    assert board._view.pause.disabled and not board._view.resume.disabled and not board._view.stop.disabled
    step = board.live.now.get("step")
    time.sleep(0.2)
    assert board.live.now.get("step") == step and "Paused" in board._view.standing.value
    board._view.resume.click()
    board.wait(120)
    assert board.live.standing == "finished" and board.error == "" and same(weights(board.run), weights(whole))
    assert board._view.pause.disabled and board._view.resume.disabled and board._view.stop.disabled
    assert board.live.rows[-1]["loss"] == pytest.approx(whole.metrics["loss"].iloc[-1])
    assert sum(measured.epochs for measured in [track_of(board.run)]) == 3


def test_stopped_and_taken_up_it_is_the_same_run(few, whole, tmp_path):
    board = TrainingDashboard().fit(few, "mdprop", tmp_path / "run", **QUICK)
    until(lambda: board.live.rows)
    board._view.stop.click()
    board.wait(60)
    assert board.live.standing == "stopped" and 1 <= len(board.run.metrics) < 3 and "kept in" in board._view.standing.value
    board.fit(few, "mdprop", tmp_path / "run", **QUICK).wait(120)
    assert board.live.standing == "finished" and len(board.live.rows) == 3 and same(weights(board.run), weights(whole))


def test_a_rerun_cell_takes_over_the_training_of_the_same_folder(few, whole, tmp_path):
    first = TrainingDashboard().fit(few, "mdprop", tmp_path / "run", **QUICK)
    until(lambda: first.live.now)
    second = TrainingDashboard().fit(few, "mdprop", tmp_path / "run", **QUICK)
    second.wait(120)
    assert first.live.standing == "stopped" and second.live.standing == "finished" and same(weights(second.run), weights(whole))
    with pytest.raises(TimeoutError, match="wait longer, or stop"):
        third = TrainingDashboard().fit(few, "mdprop", tmp_path / "other", **QUICK | dict(epochs=50))
        third.wait(0.01)
    with pytest.raises(ValueError, match="is training already"):
        third.fit(few)
    third.stop()
    third.wait(60)


def test_what_fit_refuses_is_told_in_words(few, tmp_path):
    board = TrainingDashboard().fit(few, "mdrop", tmp_path / "run", **QUICK)
    board.wait(60)
    assert board.live.standing == "failed" and "choose one of" in board.error and "choose one of" in board._view.alert.value
    assert board.run is None and "Failed" in repr(board)
    assert board._view.alert.layout.display is None and board._view.grid.layout.display == board._view.table.layout.display == "none"
    board.fit(few, "plain", tmp_path / "run", **QUICK | dict(lr=1e30, warmup=0.0)).wait(60)
    assert "lower lr=" in board.error
    board.fit(few, "plain", tmp_path / "other", **QUICK | dict(epochs=1)).wait(60)
    assert board.live.standing == "finished" and board._view.alert.value == ""  # the former mistake is forgotten


def test_as_a_watch_it_says_that_buttons_are_not_heard(few, tmp_path):
    board = TrainingDashboard()
    seen = []
    watch = lambda what, facts: (board(what, facts), seen.append((board._view.stop.disabled, board._view.standing.value)))
    fit(few, "plain", tmp_path / "run", watch=watch, progress=False, **QUICK | dict(epochs=1))
    assert board.live.standing == "finished" and all(disabled for disabled, _ in seen) and "holds the kernel" in seen[1][1]
    assert board.run.name == "run"


def test_as_a_watch_it_shows_how_the_training_has_ended(few, tmp_path):
    board = TrainingDashboard()
    with pytest.raises(NonFiniteError):
        fit(few, "plain", tmp_path / "diverged", watch=board, progress=False, **QUICK | dict(lr=1e30, warmup=0.0))
    assert board.live.standing == "failed" and not board.training and "lower lr=" in board._view.alert.value

    def interrupt(what, facts):
        if facts.get("step") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(few, "plain", tmp_path / "run", watch=[interrupt, board], progress=False, overwrite=True, **QUICK)
    assert board.live.standing == "stopped" and board._view.alert.value == ""
    assert "the same fit(...) without overwrite goes on from there" in board._view.standing.value
    with pytest.raises(KeyboardInterrupt):  # before it is told that a training begins
        fit(few, "plain", tmp_path / "run", watch=[interrupt, TrainingDashboard()], progress=False, **QUICK)


# Finished runs


def test_runs_over_each_other_and_hostile_names(whole, few, tmp_path):
    other = fit(few, "plain", tmp_path / HOSTILE.replace("/", ""), progress=False, **QUICK | dict(epochs=2))
    board = TrainingDashboard(whole, other.path)
    assert "<img" not in board._view.table.value and "&lt;img" in board._view.table.value
    page = board.save_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert all("<img" not in str(trace.name) for chart in board._view.charts for trace in chart.data)
    assert board._view.reins.layout.display == "none" and list(tracks_table(board.runs).index) == ["whole", other.name]
    with pytest.raises(RunError, match="does not exist"):
        TrainingDashboard(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="give runs or run folders"):
        TrainingDashboard(np.zeros(3))


def test_two_folders_of_one_name_are_told_apart(whole, few, tmp_path):
    twin = fit(few, "plain", tmp_path / "whole", progress=False, **QUICK | dict(epochs=1))
    assert [track.name for track in TrainingDashboard(whole, twin).runs] == [f"{run.path.parent.name}/whole" for run in (whole, twin)]


def test_state_round_trip(whole):
    board = TrainingDashboard(whole)
    board._view.density.value, board._view.pace.value, board._view.loss_of.value = "rho", "lr", "attacked"
    kept = json.loads(json.dumps(board.state.as_dict()))
    assert kept == dict(density="rho", loss_of="attacked", pace="lr")
    again = TrainingDashboard(whole)
    again.state.load(kept)
    assert (again._view.density.value, again._view.pace.value, again._view.loss_of.value) == ("rho", "lr", "attacked")
    assert [trace.name for trace in again._view.charts[0].data] == ["attacked"] and "rho" in again._view.charts[2].figure.layout.title.text
    with pytest.raises(ValueError, match="'density' cannot be 'x'"):
        again.state.load(dict(density="x"))
    again.state.loss_of = "a domain of another run"
    assert again._view.loss_of.value == "a domain of another run" and not again._view.charts[0].data
    again._view.ground.theme = "dark"
    assert again._view.charts[1].data[0].line.color == "#56B4E9"


def test_a_run_of_another_process_is_read_again_until_it_is_finished(whole, tmp_path):
    path = tmp_path / "growing"
    write_json(path / "config.json", whole.config)
    write = lambda epochs: pd.DataFrame(rows(epochs)).to_csv(path / "metrics.csv", index=False)
    write(1)
    others = set(threading.enumerate())
    board = TrainingDashboard(path, every=0.02)
    (reading,) = (thread for thread in threading.enumerate() if thread not in others and thread.name == "reading runs")
    assert board.runs[0].standing == "unfinished" and "Not finished: growing (epoch 1 of 3)" in board._view.standing.value
    write(2)
    until(lambda: len(board.runs[0].rows) == 2)
    write(3)
    until(lambda: board.runs[0].standing == "finished")
    until(lambda: not reading.is_alive())
    (path / "config.json").unlink()
    board._view.again.click()
    assert "has no config.json" in board.error


def test_without_a_run_it_says_how_to_get_one(tmp_path):
    board = TrainingDashboard()
    assert "No run yet" in board._view.standing.value and board._view.grid.layout.display == "none"
    assert board.save_html(tmp_path / "page.html").exists() and board.run is None
    assert "text/plain" in board._repr_mimebundle_()[0]


def test_drawing_between_epochs_is_cheap(whole):
    board = TrainingDashboard(Run(whole.path))
    started = time.process_time()
    for _ in range(10):
        board.state.density = "rho" if board.state.density == "pi_ratio" else "pi_ratio"
    assert (time.process_time() - started) / 10 < 1
