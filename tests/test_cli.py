"""The command line as one types it."""

import argparse
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mdprop import robustness
from mdprop.cli import create_parser, demo, main
from mdprop.data import open_data
from mdprop.grid import run_grid
from mdprop.runs import load
from mdprop.train import Training, fit

TRAIN = "train --epochs 1 --width 4 --dim 8 --size 16 --quiet"
COMMANDS = ["demo", "data", "train", "evaluate", "robustness", "compare", "dashboard", "grid", "lab", "completion"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_that_parse(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    examples = re.findall(rf"^  mdprop ({command}\b.*)", capsys.readouterr().out, re.MULTILINE)
    assert stop.value.code == 0 and len(examples) >= 2
    for example in examples:
        assert create_parser().parse_args(example.partition(" > ")[0].split()).function


def parsers() -> dict[str, argparse.ArgumentParser]:
    (commands,) = (action for action in create_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return commands.choices


def defaults_of(*functions) -> dict[str, object]:
    "Parameter -> default, of several functions of which the first that has one counts."
    found = [{name: p.default for name, p in inspect.signature(function).parameters.items()} for function in reversed(functions)]
    return {name: value for parameters in found for name, value in parameters.items()}


SAME = {  # command -> the Python functions that it calls
    "demo": (demo,),
    "data": (open_data,),
    "train": (fit, Training, open_data),
    "evaluate": (robustness.evaluate, open_data),
    "compare": (robustness.evaluate, open_data),
    "robustness": (robustness.robustness_report, robustness._Study.of, open_data),
    "grid": (run_grid,),
}
OTHER_WORDS = {"images": "size", "size": "size of the data"}  # `size` of robustness_report is --images; --size is that of open_data
ONLY_HERE = {"help", "json", "quiet", "verbose", "data", "html", "reference", "dry_run", "smoke"}  # no parameter of those functions


@pytest.mark.parametrize("command", SAME)
def test_every_option_has_the_default_of_the_function(command):
    wanted = defaults_of(*SAME[command])
    if command == "robustness":
        wanted["size of the data"] = defaults_of(open_data)["size"]
    compared = 0
    for action in parsers()[command]._actions:
        if action.dest in ONLY_HERE or not action.option_strings:
            continue
        name = OTHER_WORDS.get(action.dest, action.dest) if command == "robustness" else action.dest
        given = action.default / 255 if name == "eps" else action.default
        given = tuple(robustness.TEN) if name == "attacks" and given is None else tuple(given) if name == "only" else given
        assert str(given) == str(wanted[name]), f"mdprop {command} {action.option_strings[0]}"
        compared += 1
    assert compared >= {"data": 1, "demo": 3}.get(command, 4)


def test_the_first_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(re.search(rf"^    {command}\s", text, re.MULTILINE) for command in COMMANDS)


def test_train_evaluate_compare(here, capsys):
    main(f"{TRAIN} --recipe plain".split())
    main(f"{TRAIN} --recipe mdprop".split())
    assert load("runs/mdprop").config["domains"] == ["clean", "attacked"]
    main("evaluate runs/plain --size 16 --steps 1".split())
    main("compare runs/plain runs/mdprop --size 16 --steps 1 --html both.html".split())
    text = capsys.readouterr().out
    assert "look at it: mdprop dashboard" not in text and "dashboard: open both.html" in text
    assert re.search(r"recall_at_1 +[\d.]+%", text) and "pi_ratio" in text
    assert (here / "both.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_robustness_prints_and_writes_and_goes_on(here, capsys):
    for recipe in ("plain", "mdprop"):
        main(f"{TRAIN} --recipe {recipe}".split())
    capsys.readouterr()
    main("robustness runs/mdprop --reference runs/plain --images 12 --steps 2 --quick".split())
    text = " ".join(capsys.readouterr().out.split())
    parts = ["12 of 2000 images", "ERS", "noise severity 5", "robustness gain: ratio to Run(runs/plain", "written: runs/mdprop/robustness.json"]
    assert [part for part in parts if part not in text] == []
    stored = json.loads((here / "runs/mdprop/robustness.json").read_text(encoding="utf-8"))
    assert stored["settings"]["size"] == 12 and stored["settings"]["eps"] == 8 / 255 and (here / "runs/plain/robustness.json").is_file()
    main("robustness runs/mdprop --reference runs/plain --images 12 --steps 2 --quick --quiet --json".split())
    shown = json.loads(capsys.readouterr().out)
    assert {row["distribution"] for row in shown["gain"]} >= {"clean", "single", "ERS", "average"}
    assert {k: v for k, v in shown.items() if k != "gain"} == stored


def test_robustness_with_everything(here, capsys):
    main(f"{TRAIN} --recipe mdprop".split())
    main("robustness runs/mdprop --images 8 --steps 2 --attacks GTM CA- --domain attacked --restarts 2 --quiet".split())
    text = " ".join(capsys.readouterr().out.split())
    assert "through attacked, white-box; eps 8/255, 2 steps of 3/255, 2 start(s)" in text and "CA- eps 8/255" in text and "QA+" not in text
    assert "answered by another" in text and "searched in other ways" in text and "steps 64" in text and "grows; chance:" in text


def test_forty_photos_in_six_folders_train_and_are_measured(here, capfd):
    "What somebody with some photos would type, in the order of the help: nothing but the folder is given."
    rng = np.random.default_rng(0)
    for i, kind in enumerate(("ash", "beech", "cedar", "elm", "fir", "oak")):
        (here / "photos" / kind).mkdir(parents=True)
        for k in range(7):
            pixels = np.uint8(rng.integers(0, 60, (50 + 7 * k, 90, 3)) + 30 * i)
            Image.fromarray(pixels).save(here / "photos" / kind / f"{k}.jpg")
    main("data --data folder:photos".split())
    assert "test classes: 3 (21 images): elm, fir, oak" in capfd.readouterr().out
    main("train --data folder:photos --epochs 1 --width 4 --dim 8 --size 32 --out runs/photos --quiet".split())
    shown = capfd.readouterr()
    assert "nothing was validated" in shown.out and "mdprop: photos-train has 3 classes" in shown.err and "UserWarning" not in shown.err
    main("evaluate runs/photos --data folder:photos --steps 1".split())
    assert re.search(r"recall_at_1 +[\d.]+% +higher", capfd.readouterr().out)


def strict(text: str):
    "JSON as everybody reads it: Python alone would take NaN."
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_json_is_all_that_comes_out(here, capfd):
    for recipe in ("plain", "mdprop"):
        main(f"{TRAIN} --recipe {recipe} --json".split())
        shown = capfd.readouterr()
        told = strict(shown.out)
        assert told["run"] == f"runs/{recipe}" and told["epochs"] == 1 and told["validated"] == 20 and told["metrics"]["recall_at_1"] > 0
        assert shown.err == "", "quiet and JSON: nothing beside it"
    main("data --size 16 --json".split())
    shown = capfd.readouterr()
    told = strict(shown.out)
    assert told["images"] == 4000 and told["shape"] == [1, 16, 16] and len(told["test"]["class_names"]) == 100
    assert "4,000 images" in shown.err, "what people read stands on standard error"
    main("evaluate runs/mdprop --steps 1 --domain attacked --json".split())
    shown = capfd.readouterr()
    assert strict(shown.out)["metrics"] == load("runs/mdprop").results["test"]["metrics"] and "recall_at_1" in shown.err
    main("compare runs/plain runs/mdprop --steps 1 --json --quiet".split())
    told = strict(capfd.readouterr().out)
    measure = told["measures"]["recall_at_1"]
    assert measure["gain"] == pytest.approx(measure["after"] - measure["before"]) and told["eps"] == 8 / 255


def test_numbers_that_are_not_finite_are_null_in_json(capsys):
    from mdprop.cli import _print_json

    _print_json({"a": np.float32("nan"), "b": [float("inf"), np.int64(3)], 1: (0.5, None)})
    assert strict(capsys.readouterr().out) == {"a": None, "b": [None, 3], "1": [0.5, None]}


def test_quiet_and_verbose(here, capfd):
    main(f"{TRAIN} --recipe plain".split())
    shown = capfd.readouterr()
    assert "next:" not in shown.out and shown.out.startswith("Run(runs/plain") and shown.err == ""
    main(f"{TRAIN} --recipe plain --overwrite --epochs 2 --verbose".replace("--quiet", "").split())
    shown = capfd.readouterr()
    assert "next: mdprop evaluate runs/plain --data glyphs" in shown.out
    assert re.search(r"^mdprop [\d.]+, Python [\d.]+, torch ", shown.err, re.MULTILINE) and len(re.findall(r"epoch \d  loss ", shown.err)) == 2
    with pytest.raises(SystemExit):
        main("evaluate nowhere --verbose".split())
    assert "Traceback" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main("evaluate nowhere".split())
    assert "Traceback" not in capfd.readouterr().err


def test_exit_codes_and_where_words_go(here, capsys):
    main(["data", "--size", "16", "--quiet"])  # 0: it comes back
    fine = capsys.readouterr()
    assert "4,000 images" in fine.out and fine.err == ""
    for words, told in (["trian"], "invalid choice: 'trian' (choose from"), ([], "commands:"), (["evaluate", "a", "--eps", "0.01"], "8 means 8/255"):
        with pytest.raises(SystemExit) as stop:
            main(words)
        shown = capsys.readouterr()
        assert stop.value.code == 2 and told in shown.err and shown.out == ""
    failed = subprocess.run([sys.executable, "-m", "mdprop", "evaluate", "nowhere", "--json"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1 and failed.stdout == ""
    assert failed.stderr == "mdprop: nowhere does not exist: give the folder that fit(..., out=...) or `mdprop train` wrote\n"


@pytest.mark.skipif(os.name == "nt", reason="starts two processes")
def test_of_several_processes_the_first_one_prints_the_json(here):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "mdprop.cli"]
    done = subprocess.run(
        [*words, "data", "--size", "16", "--json"], capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["images"] == 4000


def test_a_full_gpu_and_a_taken_port_end_with_one_line(here, monkeypatch, capsys):
    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("the memory of cuda:0 is full with 3 images at once: take smaller images")

    with monkeypatch.context() as patch:
        patch.setattr("mdprop.cli.fit", full)
        with pytest.raises(SystemExit, match=r"^mdprop: the memory of cuda:0 is full"):
            main(TRAIN.split())
    pytest.importorskip("voila", reason="needs the extra lab")
    main(f"{TRAIN} --recipe plain".split())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for port, told in (taken.getsockname()[1], "in use"), (70_000, "65535"):
            with pytest.raises(SystemExit) as stop:
                main(f"dashboard runs/plain --no-browser --port {port}".split())
            assert re.match(rf"mdprop: port {port} cannot be had \(.*{told}.*\): leave --port out for a free one$", stop.value.code)


@pytest.mark.skipif(os.name == "nt", reason="sends a signal")
def test_an_interrupted_training_ends_with_130_and_goes_on(here):
    words = [sys.executable, "-m", "mdprop", *TRAIN.replace("--epochs 1", "--epochs 60").replace("--quiet", "--verbose").split(), "--valid", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}) as program:
        for line in program.stderr:
            if "epoch 1  loss" in line:
                break
        program.send_signal(signal.SIGINT)
        told = program.communicate(timeout=60)[1]
    assert program.returncode == 130
    assert re.search(r"^mdprop: training stopped at .* in runs/mdprop, the same call goes on from there$", told, re.MULTILINE), told[-500:]
    assert load("runs/mdprop").notes[-1]["what"] == "interrupted"


def test_completion_in_bash(here, capsys):
    main(["completion", "bash"])
    (here / "photos").mkdir()
    (here / "photos.txt").touch()
    (here / "words").write_text(capsys.readouterr().out, encoding="utf-8")
    asks = """source ./words
function ask { COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=(); _shtab_mdprop mdprop "${@: -1}" "${@: -2:1}"; echo "${COMPREPLY[*]}"; }
ask mdprop ''; ask mdprop tr; ask mdprop train --recipe mdprop_; ask mdprop train --per; ask mdprop evaluate pho; ask mdprop compare a b --html pho"""
    answers = subprocess.run(["bash", "-c", asks], capture_output=True, text=True, check=True).stdout.splitlines()
    assert sorted(answers[0].split()) == sorted(COMMANDS)
    assert answers[1:5] == ["train", "mdprop_paper", "--per-class", "photos"] and sorted(answers[5].split()) == ["photos", "photos.txt"]


@pytest.mark.parametrize(("shell", "start"), [("zsh", "#compdef mdprop"), ("fish", "# AUTO")])
def test_completion_in_other_shells(shell, start, capsys):
    main(["completion", shell])
    script = capsys.readouterr().out
    assert script.startswith(start) and all(word in script for word in (*COMMANDS, "per-class", "mdprop_paper"))


@pytest.mark.parametrize("line", ["evaluate r --eps 0.03", "evaluate r --eps 300", "evaluate r --steps 0", "demo --epochs 0", "robustness r --images 0"])
def test_values_out_of_range_are_told_by_the_parser(line, capsys):
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert stop.value.code == 2 and "must be" in capsys.readouterr().err


def test_help_shows_defaults_where_there_are_any(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert "(default: 0.002)" in text and "(default: None)" not in text and "(default: False)" not in text


def test_data_says_what_is_there(capsys):
    main(["data"])
    text = capsys.readouterr().out
    assert "4,000 images" in text and "training classes: 100" in text


def test_data_opens_own_photos_and_omniglot(real_data, capsys):
    main(["data", "--data", f"omniglot:{real_data}"])
    assert "4,840 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evaluate nowhere", "nowhere does not exist"),
        ("grid nowhere.toml", "nowhere.toml does not exist"),
        ("train --track tensorbord", "unknown tracker 'tensorbord'"),
        ("train --data cub", "unknown data 'cub'"),
        ("train --data folder:nowhere", "nowhere"),
        ("train --loss triplett --quiet", "unknown loss 'triplett'"),
        ("evaluate runs/plain --size 28", "give --size 16"),
        ("evaluate runs/plain --size 16 --domain multi", "has no domain 'multi' to answer, only clean"),
        ("robustness nowhere", "nowhere does not exist"),
        ("robustness runs/plain --domain multi --quick", "has no domain 'multi' to answer, only clean"),
        ("lab nowhere", "nowhere is no folder"),
        ("lab --runs nowhere", "nowhere does not exist"),
        ("dashboard nowhere", "nowhere does not exist"),
        ("compare runs/plain runs/plain --html nowhere/a.html", "must be a file in a folder that is there"),
        (f"{TRAIN} --recipe plain --epochs 2", "holds another run"),
    ],
)
def test_mistakes_end_with_one_line(here, line, message, capsys):
    if "runs/plain" in line or "epochs" in line:
        main(f"{TRAIN} --recipe plain".split())
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert str(stop.value.code).startswith("mdprop: ") and message in str(stop.value.code) and "\n" not in str(stop.value.code)


GRID = """
recipe = ["plain", "mdprop"]
seeds = 2
data = { size = 16, classes = 20 }
model = { width = 4, dim = 8 }
training = { epochs = 1 }
evaluate = { steps = 1 }
"""


def test_a_grid_is_planned_run_and_told(here, capsys):
    (here / "tiny.toml").write_text(GRID, encoding="utf-8")
    main("grid tiny.toml --dry-run".split())
    assert "Grid(tiny: 4 runs, 2 rows in 1 groups, reference 'plain'): 4 new" in capsys.readouterr().out and not (here / "runs").exists()
    main("grid tiny.toml --workers 0 --only seed0 *plain*".split())
    text = capsys.readouterr().out
    assert re.search(r"^plain +2 ", text, re.MULTILINE) and re.search(r"^mdprop +1 ", text, re.MULTILINE) and "3 runs finished, 0 failed" in text
    assert "written: runs/tiny/results.jsonl" in text and (here / "runs/tiny/table.csv").read_text(encoding="utf-8").startswith("source,row,measure,n,mean,")
    main("grid tiny.toml --smoke --workers 0".split())
    assert "2 runs finished, 0 failed" in capsys.readouterr().out and (here / "runs/tiny-smoke/results.jsonl").exists()
    main("grid tiny.toml --dry-run".split())
    assert re.search(r"3 finished, 1 new\nabout \d+ minutes, if the others take as long as the 3 that are finished", capsys.readouterr().out)


def test_failed_cells_end_the_command_with_their_names(here, capsys):
    (here / "bad.toml").write_text('recipe = "plain"\ndata = { source = "folder:nowhere" }\n', encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        main("grid bad.toml --workers 0 --quiet".split())
    told = str(stop.value.code)
    assert told.startswith("mdprop: 1 cells failed; the same command tries them again") and "MissingDataError" in told and "runs/bad/logs/" in told
    assert "Traceback" not in told + capsys.readouterr().out


def test_training_is_tracked_where_that_is_asked_for(here):
    pytest.importorskip("tensorboard", reason="needs the extra track")
    main(f"{TRAIN} --recipe plain --track tensorboard".split())
    assert list((here / "runs/plain/tensorboard").glob("events.out.tfevents.*"))


def test_a_run_on_other_data_is_refused(here, real_data):
    main(f"{TRAIN} --recipe plain".split())
    with pytest.raises(SystemExit, match="was trained on 'glyphs-train', not on 'omniglot"):
        main(["evaluate", "runs/plain", "--size", "16", "--data", f"omniglot:{real_data}"])


def test_the_demo_leaves_two_runs_and_a_page(demo_folder):
    assert {path.name for path in demo_folder.iterdir()} == {"plain", "mdprop", "demo.html", "printed.txt"}
    before, after = load(demo_folder / "plain"), load(demo_folder / "mdprop")
    assert len(before.metrics) == len(after.metrics) == 1
    assert before.config["training"] == after.config["training"] and before.config["data"] == after.config["data"]
    text = (demo_folder / "printed.txt").read_text(encoding="utf-8")
    assert f"open {demo_folder / 'demo.html'} in a browser" in text and f"DensityDashboard('{demo_folder / 'plain'}'" in text
    found = before.results["test"]["metrics"]["recall_at_1"]
    assert re.search(rf"recall_at_1 +{100 * found:.1f}%", text)


def test_lab_opens_a_notebook_that_is_ready(tmp_path, monkeypatch):
    pytest.importorskip("anywidget", reason="needs the extra lab")
    started = []
    monkeypatch.setattr("mdprop.cli.subprocess", SimpleNamespace(run=lambda command, check: started.append(command)))
    main(["lab", str(tmp_path), "--no-browser"])
    assert started[0][-1] == str(tmp_path / "mdprop.ipynb") and "--ip=127.0.0.1" in started[0]
    (tmp_path / "mdprop.ipynb").rename(tmp_path / "mine.ipynb")
    main(["lab", str(tmp_path)])
    assert started[1][-1] == str(tmp_path) and [path.name for path in tmp_path.glob("*.ipynb")] == ["mine.ipynb"]


def test_lab_shows_the_runs_that_it_was_given(here, monkeypatch):
    pytest.importorskip("anywidget", reason="needs the extra lab")
    opened = []
    monkeypatch.setattr("mdprop.cli.subprocess", SimpleNamespace(run=lambda command, check: opened.append(command[-1])))
    for recipe in ("plain", "mdprop"):
        main(f"{TRAIN} --recipe {recipe}".split())
    for runs in ("runs/plain", "runs/mdprop", "runs/mdprop", "runs/plain"):
        main(f"lab --runs {runs}".split())
        assert f"RunDashboards('{runs}')" in (here / opened[-1]).read_text(encoding="utf-8")
    assert opened == ["mdprop.ipynb", "mdprop-2.ipynb", "mdprop-2.ipynb", "mdprop.ipynb"]
