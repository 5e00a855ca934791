"A grid of runs: what decides a cell, what survives a killed driver, what one failed cell costs, and whether the table's numbers are right."

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from mdprop.archives import lock_file
from mdprop.data import ImageSet
from mdprop.grid import CellError, Evaluation, Grid, GridError, GridResults, append_row, holm, measure, open_sets, plan_grid, read_rows, run_grid, train_cell
from mdprop.robustness import evaluate
from mdprop.runs import Run, RunError, exclusive, load

TINY = """
recipe = ["plain", "mdprop"]
seeds = 2
[data]
size = 16
classes = 20
[model]
width = 4
dim = 8
[training]
epochs = 1
[evaluate]
steps = 1
clustering = false
"""


@pytest.fixture
def tiny(tmp_path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


def states(path: Path, out: Path) -> dict[str, str]:
    return {cell.name.rpartition("-")[0]: state for cell, state in plan_grid(Grid.from_toml(path), out)}


def trained(out: Path) -> dict[str, int]:
    "When each checkpoint was written."
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("runs/*/last.safetensors")}


def alive(pid: int) -> bool:
    "Whether the process runs; one that only waits to be read by its parent does not."
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children_of(task: Path) -> list[str]:
    "The processes that a thread has started; none where it has ended meanwhile."
    try:
        return (task / "children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []


@pytest.mark.parametrize(("file", "rows"), [("evidence.toml", 40), ("evidence_gpu.toml", 7)])
def test_every_row_of_the_evidence_can_be_trained_and_measured(file, rows, tmp_path):
    found = run_grid(Grid.from_toml(Path(__file__).parents[1] / "benchmarks" / file).smoke(), tmp_path, workers=0, progress=False)
    assert len(found.runs) >= rows and not found.failed
    assert np.isfinite(found.runs["valid_map_at_r"]).all()
    for name in ("map_at_r", "recall_at_1_multi_eps8", "landing_density_multi_eps8", "pi_ratio", "rho", "recall_at_1_last"):
        assert np.isfinite(found.runs[f"test_{name}"]).all(), name
    assert found.runs.set_index("row").loc["plain", ["test_ers", "test_recall_at_1_shifts", "test_nmi"]].notna().all()


# What survives


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_killed_driver_leaves_no_process_and_finished_cells_are_not_run_again(tiny, tmp_path):
    out = tmp_path / "out"
    code = f"from mdprop.grid import run_grid; run_grid({str(tiny)!r}, {str(out)!r}, workers=1)"
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 600
        while not (out / "results.jsonl").exists() or len(list(out.glob("runs/*/config.json"))) < 2:
            assert time.monotonic() < deadline, "the grid hangs"
            assert driver.poll() is None, "the grid ended before it could be killed"
            time.sleep(0.05)
        children = [int(pid) for task in Path(f"/proc/{driver.pid}/task").iterdir() for pid in children_of(task)]
    finally:
        driver.kill()
        driver.wait()
    deadline = time.monotonic() + 120  # six times what a worker may take to save
    while any(map(alive, children)):
        assert time.monotonic() < deadline, "a worker has outlived the grid"
        time.sleep(0.1)
    before, rows = trained(out), read_rows(out)
    assert children and 1 <= len(rows) < 4
    with open(out / "results.jsonl", "a", encoding="utf-8") as file:
        file.write('{"name": "glyphs-plain-se')  # what a power cut leaves
    results = run_grid(tiny, out, workers=0, progress=False)
    assert len(results.runs) == 4 and not results.failed
    assert {name: when for name, when in trained(out).items() if name in {row["name"] for row in rows}} == {row["name"]: before[row["name"]] for row in rows}
    assert read_rows(out)[: len(rows)] == rows
    lines = (out / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4 and len({json.loads(line)["name"] for line in lines}) == 4


def test_another_evaluation_measures_again_and_trains_nothing(tiny, tmp_path):
    out = tmp_path / "out"
    run_grid(tiny, out, workers=0, progress=False, only=["plain-seed0"])
    before = trained(out)
    tiny.write_text(TINY + 'sets = ["test"]\neps = ["2/255"]\n', encoding="utf-8")
    assert states(tiny, out)["glyphs-plain-seed0"] == "interrupted"
    results = run_grid(tiny, out, workers=0, progress=False, only=["plain-seed0"])
    assert trained(out) == before and len(read_rows(out)) == 2
    assert "test_recall_at_1_multi_eps2" in results.runs and not any(name.startswith("valid_map") for name in results.runs)


def test_a_recipe_with_several_norms_is_measured_through_each_answer(tmp_path):
    path = tmp_path / "answers.toml"
    asked = 'answers = ["attacked", "mean", "gate"]\nattacked = 6\neps = ["8/255", "2/255"]\n'
    path.write_text(TINY.replace("seeds = 2", "seeds = 1") + asked, encoding="utf-8")
    runs = run_grid(path, tmp_path / "out", workers=0, progress=False).runs.set_index("row")
    for answer in ("", "_through_attacked", "_through_mean", "_through_gate"):
        for name in ("recall_at_1", "rho", "recall_at_1_single_eps8", "recall_at_1_multi_eps2"):
            assert 0 <= runs.loc["mdprop", f"test_{name}{answer}"] < math.inf
            assert math.isnan(runs.loc["plain", f"test_{name}{answer}"]) == bool(answer), "one norm answers in one way"
    assert runs.loc["mdprop", "test_rho_through_attacked"] != runs.loc["mdprop", "test_rho"] != runs.loc["mdprop", "test_rho_through_gate"]
    assert "valid_recall_at_1_single_eps8" in runs and "valid_recall_at_1_single_eps2" not in runs
    assert (runs["test_recall_at_1_single_eps8"] * 6 % 1 < 1e-6).all(), "six queries were attacked"


def test_rows_without_their_folders_count_and_folders_without_their_rows_too(tiny, tmp_path):
    "Rows are committed and folders are not; a driver may end between the two."
    out = tmp_path / "out"
    run_grid(tiny, out, workers=0, progress=False, only=["plain-seed*"])
    rows = read_rows(out)
    (out / "results.jsonl").unlink()
    assert states(tiny, out)["glyphs-plain-seed0"] == "interrupted"
    assert len(run_grid(tiny, out, progress=False, minutes=0).runs) == 2 and read_rows(out) == rows
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "results.jsonl").write_bytes((out / "results.jsonl").read_bytes())
    assert set(states(tiny, elsewhere).values()) == {"finished", "new"} and not (elsewhere / "runs").exists()


def test_a_second_driver_is_refused(tiny, tmp_path):
    with exclusive(tmp_path / "out"), pytest.raises(RunError, match="wait until it ends"):
        run_grid(tiny, tmp_path / "out", progress=False)


def test_a_finished_folder_of_photos_must_still_hold_what_was_trained_on(tmp_path):
    "Two folders of one last name are told apart in one file, and when a finished file points at another folder."

    def photos(year: str, first: int) -> str:
        for name in "abcd":
            for i in range(first, 8):
                (tmp_path / year / "photos" / name).mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), 20 * i).save(tmp_path / year / "photos" / name / f"{i}.png")
        return f"folder:{tmp_path / year / 'photos'}"

    file = dict(recipe="plain", training=dict(epochs=1, batch_size=8), model=dict(width=4), evaluate=dict(steps=1, eps=[], clustering=False))
    old, new = (Grid(file | dict(data=dict(source=source, size=8, valid=0))) for source in (photos("2023", 0), photos("2024", 1)))
    assert old.cells[0].name == new.cells[0].name, "results name no place of this machine"
    assert len(run_grid(old, tmp_path / "out", workers=0, progress=False).runs) == 1
    with pytest.raises(GridError, match=r"was trained on other images than those in .*2024"):
        run_grid(new, tmp_path / "out", workers=0, progress=False)
    (tmp_path / "2024").rename(tmp_path / "gone")
    assert len(run_grid(new, tmp_path / "out", workers=0, progress=False).runs) == 1, "photos that are elsewhere are not asked for"
    sources = [cell.data["source"] for cell in (*old.cells, *new.cells)]
    with pytest.raises(GridError, match="are both 'folder:photos' in the results"):
        Grid(file | dict(data=dict(source=sources)))


def test_how_a_run_is_worked_on_does_not_make_it_another(tiny):
    cell = Grid.from_toml(tiny).cells[0]
    same = replace(cell, training=dict(epochs=1, workers=3, save_minutes=0, checkpoints=1, on_nonfinite="skip"))
    assert same.key == cell.key != replace(cell, training=dict(epochs=1, micro_batch=8)).key
    longer, longer_same = (replace(cell, time_of=other) for other in (cell, same))
    assert longer.key == longer_same.key


def test_grids_that_share_a_file_of_results_wait_for_each_other(tmp_path):
    path = tmp_path / "results.jsonl"
    ours, theirs = row("plain", 0, 0.5), row("plain", 1, 0.6)
    writer = threading.Thread(target=append_row, args=(path, ours))
    with open(path, "ab") as file:
        lock_file(file)
        writer.start()
        text = json.dumps(theirs).encode() + b"\n"
        file.write(text[:9])
        file.flush()
        writer.join(0.5)
        waited = writer.is_alive()
        file.write(text[9:])
    writer.join(60)
    assert waited and [found["seed"] for found in read_rows(path)] == [1, 0]


# Failures


def test_a_crash_and_an_error_fail_their_own_cells_alone(tmp_path, monkeypatch, capsys):
    "One worker is killed as the kernel does it when memory runs out, one meets a photo that is none; the third is trained."
    (tmp_path / "crash").mkdir()
    (tmp_path / "crash" / "sitecustomize.py").write_text("import os, signal, sys\nif os.environ.get('CRASH'): os.kill(os.getpid(), signal.SIGKILL)\n")
    out, good = tmp_path / "out", dict(source="glyphs", size=16, classes=20)
    grid = Grid(dict(data=dict(source=["folder:nowhere", good]), training=dict(epochs=1), model=dict(width=4), recipe="plain", evaluate=dict(steps=1)))
    monkeypatch.chdir(tmp_path)
    results = run_grid(grid, out, workers=2)
    assert len(results.runs) == 1 and len(results.failed) == 1
    (name, error), printed = results.failed.popitem(), capsys.readouterr().out
    assert "MissingDataError" in error and "nowhere" in error and str(tmp_path) not in error and f"{name}: FAILED, {error}" in printed
    assert "Traceback" in (out / "logs" / f"{name}.txt").read_text(encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "crash"))
    monkeypatch.setenv("CRASH", "1")
    results = run_grid(grid, out, progress=False)
    assert results.failed == {name: "ended by SIGKILL: out of memory, or somebody ended it"} and len(results.runs) == 1
    assert [state for _, state in plan_grid(grid, out)] == ["finished", "failed"]
    assert "1 runs finished, 1 failed" in repr(results)


def test_no_cell_starts_when_the_time_is_over(tiny, tmp_path, capsys):
    assert not len(run_grid(tiny, tmp_path / "out", workers=0, minutes=0).runs)
    assert "the time is over: 4 cells are left" in capsys.readouterr().out


def test_impossible_numbers_and_answers_are_refused_before_anything_is_made(tiny, tmp_path):
    for wrong in (dict(workers=-1), dict(threads=0), dict(workers=-2, ray="local")):
        with pytest.raises(GridError, match=r"must be [01] or more"):
            run_grid(tiny, tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()
    tiny.write_text(TINY + 'answers = ["mean", "attakced"]\n', encoding="utf-8")
    with pytest.raises(GridError, match="no recipe of the grid has the answer 'attakced': did you mean 'attacked'"):
        Grid.from_toml(tiny)


def test_a_run_whose_epochs_were_not_timed_has_a_row_without_its_seconds(tiny, tmp_path, monkeypatch, capsys):
    untimed = property(lambda run: metrics.fget(run).drop(columns="seconds"))
    metrics = Run.metrics
    monkeypatch.setattr(Run, "metrics", untimed)
    results = run_grid(tiny, tmp_path / "out", workers=0, only=["seed0"])
    assert not results.failed and results.runs["seconds_training"].isna().all() and (results.runs["seconds_evaluation"] > 0).all()
    assert "seed0-" in capsys.readouterr().out and "2 runs finished" in repr(results)


# Numbers


def test_every_radius_is_measured_by_the_protocol_of_the_set(tiny, tmp_path):
    cell = Grid.from_toml(tiny).cells[0]
    train_cell(cell, tmp_path / "run")
    plain, run = open_sets(cell)["test"], load(tmp_path / "run")
    roles = ["query" if i % 5 else "gallery" for i in range(len(plain))]
    official = ImageSet(plain.images, plain.labels, plain.class_names, plain.keys, "official", "official", rows=plain.rows, roles=roles)
    for test in (official, plain):
        for attacked in (0, 30):
            found = measure(run, dict(test=test), Evaluation(("test",), (8 / 255, 4 / 255), 1, attacked, clustering=False))
            for eps in (8, 4):
                expected = evaluate(run.model(), test, eps / 255, 1, attacked=attacked)
                for kind in ("single", "multi"):
                    assert found[f"test_recall_at_1_{kind}_eps{eps}"] == expected[f"recall_at_1_{kind}"], (test.name, attacked, eps, kind)


def row(name: str, seed: int, value: float | None, **group: str) -> dict:
    return dict(name=f"{name}-{group}-{seed}", evaluation="", status="done", row=name, group=group, seed=seed, training=dict(epochs=1),
                seconds=dict(training=1.0, evaluation=1.0), measures=dict(test_recall_at_1=value))  # fmt: skip


def test_the_table_is_what_scipy_says_group_by_group():
    rng = np.random.default_rng(0)
    values = {(name, source): 0.5 + 0.1 * rng.random(4) for name in ("plain", "one", "two") for source in ("a", "b")}
    rows = [row(name, seed, float(value), source=source) for (name, source), held in values.items() for seed, value in enumerate(held)]
    rows = [rows[i] for i in rng.permutation(len(rows))]  # the order in which cells finish decides nothing
    table = GridResults(rows).table(["test_recall_at_1"]).set_index(["source", "row"])
    for source in "ab":
        p = {}
        for name in ("one", "two"):
            ours, theirs, line = values[name, source], values["plain", source], table.loc[(source, name)]
            p[name] = stats.ttest_rel(ours, theirs).pvalue
            assert line["p"] == pytest.approx(p[name]) and line["gain"] == pytest.approx((ours - theirs).mean()) and line["n"] == line["pairs"] == 4
            low, high = stats.t.interval(0.95, 3, ours.mean(), stats.sem(ours))
            assert (line["mean"] - line["interval"], line["mean"] + line["interval"]) == pytest.approx((low, high))
        assert table.loc[(source, ["one", "two"]), "p_holm"].tolist() == pytest.approx(stats_holm([p["one"], p["two"]]))
        assert np.isnan(table.loc[(source, "plain"), "gain"])


def stats_holm(p: list[float]) -> list[float]:
    "Holm for two, by hand."
    small, large = min(p), max(p)
    first = min(1, 2 * small)
    return [first if value == small else max(first, large) for value in p]


def test_seeds_are_paired_missing_values_left_out_and_small_numbers_told():
    rows = [row("plain", seed, 0.5 + 0.1 * seed, source="a") for seed in range(5)] + [row("one", seed, 0.6 + 0.1 * seed, source="a") for seed in (4, 2)]
    rows += [row("one", 3, None, source="a"), row("flat", 0, 0.6, source="a"), row("flat", 1, 0.7, source="a"), row("flat", 2, 0.8, source="a")]
    table = GridResults(rows).table(["test_recall_at_1"]).set_index("row")
    assert table.loc["one", "test"] == "none: 2 pairs" and table.loc["one", "gain"] == pytest.approx(0.1) and table.loc["one", "n"] == 2
    assert table.loc["flat", "test"] == "none: all differences are equal" and np.isnan(table.loc["flat", "p"])
    assert "no p: no test with fewer than 3 pairs" in repr(GridResults(rows))


def test_holm_never_falls_and_leaves_gaps():
    assert holm([0.03, float("nan"), 0.02, 0.9])[[0, 2, 3]].tolist() == pytest.approx([0.06, 0.06, 0.9]) and np.isnan(holm([float("nan")])).all()


# The file


def test_a_file_with_a_mistake_is_named(tmp_path):
    path = tmp_path / "bad.toml"
    for text, told in [("recipe = [", "is not TOML"), ('recipe = "plain"\nsedes = 3', "did you mean 'seeds'"), ("", "the grid has no row")]:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(GridError, match=told) as error:
            Grid.from_toml(path)
        assert "bad.toml" in str(error.value)
    with pytest.raises(GridError, match="does not exist"):
        Grid.from_toml(tmp_path / "none.toml")


def test_a_row_of_results_names_no_place_of_this_machine(tiny, tmp_path, monkeypatch):
    import platform

    out = tmp_path / "out"
    run_grid(tiny, out, workers=0, progress=False, only=["plain-seed0"])
    text = (out / "results.jsonl").read_text(encoding="utf-8")
    assert str(tmp_path) not in text and str(Path.home()) + os.sep not in text and platform.node() not in text
    assert {"machine", "versions", "seconds", "finished"} <= set(json.loads(text))


# Elsewhere


def test_a_ray_cluster_gives_the_same_rows_and_a_failed_task_fails_alone(tiny, tmp_path):
    pytest.importorskip("ray", reason="needs the extra ray")
    here = run_grid(tiny, tmp_path / "here", workers=0, threads=1, progress=False, only=["seed0"])
    tiny.write_text(TINY.replace("[data]", '[data]\nsource = ["glyphs", "folder:nowhere"]'), encoding="utf-8")
    code = f"from mdprop.grid import run_grid; run_grid({str(tiny)!r}, {str(tmp_path / 'there')!r}, ray='local', only=['seed0'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    there = GridResults(read_rows(tmp_path / "there"))
    assert len(there.failed) == 2 and all("nowhere" in error for error in there.failed.values())
    measures = here.runs.attrs["measures"][2:]
    assert here.runs.set_index("row")[measures].equals(there.runs.set_index("row").loc[here.runs["row"], measures])
    assert "epoch=1" in next((tmp_path / "there" / "logs").glob("glyphs-plain*")).read_text(encoding="utf-8")


def test_ray_is_asked_for_by_name(monkeypatch, tiny, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"ray is not installed: pip install 'mdprop\[ray\]'"):
        run_grid(tiny, tmp_path / "out", ray="auto", progress=False)


def test_signals_have_names():
    assert issubclass(CellError, RuntimeError) and signal.Signals(9).name == "SIGKILL"
