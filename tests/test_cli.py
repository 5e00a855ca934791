"""The command line as one types it."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from mdprop.cli import create_parser, main
from mdprop.runs import load

TRAIN = "train --epochs 1 --width 4 --dim 8 --size 16 --quiet"
COMMANDS = ["demo", "data", "train", "evaluate", "robustness", "compare", "dashboard", "grid", "lab"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    text = capsys.readouterr().out
    example = re.search(rf"example:\s+mdprop ({command}.*)", " ".join(text.split())).group(1)
    assert stop.value.code == 0
    assert create_parser().parse_args(example.split()).function


def test_the_first_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(re.search(rf"^    {command}\s", text, re.MULTILINE) for command in COMMANDS)


def test_train_evaluate_compare(here, capsys):
    main(f"{TRAIN} --recipe plain".split())
    main(f"{TRAIN} --recipe mdprop".split())
    assert load("runs/mdprop").config["domains"] == ["clean", "single", "multi"]
    main("evaluate runs/plain --size 16 --steps 1".split())
    main("compare runs/plain runs/mdprop --size 16 --steps 1 --html both.html".split())
    text = capsys.readouterr().out
    assert "next: mdprop evaluate runs/plain --data glyphs" in text
    assert re.search(r"recall_at_1 +[\d.]+%", text) and "pi_ratio" in text
    assert (here / "both.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_robustness_prints_and_writes_and_goes_on(here, capsys):
    for recipe in ("plain", "mdprop"):
        main(f"{TRAIN} --recipe {recipe}".split())
    capsys.readouterr()
    main("robustness runs/mdprop --reference runs/plain --images 12 --steps 2 --quick --quiet".split())
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
    main("robustness runs/mdprop --images 8 --steps 2 --attacks GTM CA- --domain multi --restarts 2 --quiet".split())
    text = " ".join(capsys.readouterr().out.split())
    assert "through multi, white-box; eps 8/255, 2 steps of 3/255, 2 start(s)" in text and "CA- eps 8/255" in text and "QA+" not in text
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
    monkeypatch.setattr("mdprop.cli.subprocess.run", lambda command, check: started.append(command))
    main(["lab", str(tmp_path), "--no-browser"])
    assert started[0][-1] == str(tmp_path / "mdprop.ipynb") and "--ip=127.0.0.1" in started[0]
    (tmp_path / "mdprop.ipynb").rename(tmp_path / "mine.ipynb")
    main(["lab", str(tmp_path)])
    assert started[1][-1] == str(tmp_path) and [path.name for path in tmp_path.glob("*.ipynb")] == ["mine.ipynb"]
