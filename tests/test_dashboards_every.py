"What holds for every dashboard: still pictures, state as JSON, selection, nothing of the author's machine, hostile names, errors with a remedy."

import base64
import html
import io
import json
import re
import shutil
import traceback
import xml.etree.ElementTree as ET
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest

pytest.importorskip("anywidget", reason="needs the extra lab")

import torch
from IPython.core.interactiveshell import InteractiveShell
from ipywidgets.embed import dependency_state
from ipywidgets.widgets.widget import _instances
from PIL import Image
from test_dashboards_robustness import hand_made

from mdprop.dashboards import (
    AttackDashboard, DensityDashboard, NeighbourDashboard, NormDashboard, RobustnessDashboard, RunDashboards, TrainingDashboard, base,
)  # fmt: skip
from mdprop.dashboards.still import still
from mdprop.data import ImageSet, glyphs
from mdprop.model import Embedder
from mdprop.robustness import compare
from mdprop.runs import Run, RunError, save_snapshot, write_json
from mdprop.train import fit

MADE = {
    "density": DensityDashboard,
    "neighbours": NeighbourDashboard,
    "attack": lambda plain, mdprop: AttackDashboard(plain, mdprop, steps=2, count=2),
    "training": TrainingDashboard,
    "norms": lambda plain, mdprop: NormDashboard(mdprop),
    "robustness": RobustnessDashboard,
    "all": RunDashboards,
}
HOSTILE = ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "\"'`${7*7}&amp;\\", "x" * 300, "nul\x00, line\nbreak, \u202eturned", "名前"]
MADE_OF = [AttackDashboard, DensityDashboard, NeighbourDashboard, NormDashboard, RobustnessDashboard, RunDashboards, TrainingDashboard]
EVERY = pytest.mark.parametrize("kind", MADE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Two small runs that were compared: plain and mdprop."
    place = tmp_path_factory.mktemp("secret") / "runs"
    train, test = glyphs(classes=60, per_class=6, size=32).keep_classes(range(0, 60, 4)).split_classes()
    settings = dict(epochs=1, width=4, dim=8, batch_size=8, per_class=2, valid=None, progress=False)
    pair = [fit(train, recipe, place / recipe, **settings) for recipe in ("plain", "mdprop")]
    compare(*pair, test, steps=1)
    return place


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory):
    "The same, with measured robustness."
    place = tmp_path_factory.mktemp("secret") / "measured"
    shutil.copytree(folder, place)
    for k, name in enumerate(("plain", "mdprop")):
        write_json(place / name / "robustness.json", hand_made(k, run=name).to_json())
    return place / "plain", place / "mdprop"


@pytest.fixture(scope="module")
def boards(runs):
    "One of each, made when it is asked for."
    made = {}

    def board(kind):
        if kind not in made:
            made[kind] = MADE[kind](*runs)
            if kind == "attack":
                made[kind].work.wait()
        return made[kind]

    return board


def words(svg: bytes) -> str:
    "What can be read in a vector picture, which must be XML that parses."
    return " ".join(text.strip() for text in ET.fromstring(svg).itertext() if text.strip())


# Still pictures


@EVERY
def test_a_still_picture_as_png_and_svg(boards, kind, tmp_path):
    board = boards(kind)
    small, large = (Image.open(board.save_png(tmp_path / f"{width}.png", width)) for width in (800, 1200))
    assert (small.width, large.width) == (800, 1200)
    ink = np.asarray(large.convert("L"))
    assert 0.005 < (ink < 200).mean() < 0.6, "neither empty nor black"
    shown = words(board.save_svg(tmp_path / "still.svg").read_bytes())
    assert "plain" in shown or kind == "norms"
    expected = dict(attack="Distance to the targets", training="Recall@1 on validation classes", norms="Statistics: distance from 'clean'", robustness="ERS")
    assert expected.get(kind, "") in shown


@EVERY
def test_a_saved_notebook_stays_small(boards, kind):
    "What Jupyter keeps of a displayed dashboard: the still picture, and the state of its widgets without what a page lets go."
    board = boards(kind)
    output, _ = board._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"} <= set(output)
    assert base64.b64decode(output["image/png"]).startswith(b"\x89PNG")
    state = dependency_state(board.widget)
    kept = len(json.dumps(output)) + len(json.dumps(state))
    assert kept < 1_000_000, f"{kept:,} bytes"


# A cell that is run again


@EVERY
def test_a_cell_that_is_run_again_leaves_one_dashboard(runs, kind, monkeypatch):
    cell = ["", ""]
    monkeypatch.setattr(base, "_this_run", lambda: tuple(cell))
    monkeypatch.setattr(base, "_showing", {})
    for one in MADE_OF:
        monkeypatch.setattr(one, "_still", lambda board: b"")  # which has its own test
    shared = base._library().model_id  # plotly's code, of all charts
    before, boards = set(_instances), []

    def run(name, board=None):
        cell[:] = name, f"{name}, run {len(boards)}"
        boards.append(board or MADE[kind](*runs))
        if kind == "attack":
            boards[-1].work.wait()
        return boards[-1]._repr_mimebundle_()[0]["application/vnd.jupyter.widget-view+json"]["model_id"]

    run("one")
    run("one")
    assert boards[0].widget.comm is None and boards[1].widget.comm is not None
    run("two", boards[1])  # a second view
    run("one")
    assert boards[1].widget.comm is not None, "the other cell still shows it"
    assert run("three", boards[0]) == boards[0].widget.model_id, "displayed again, it is back"
    assert all(part.comm is not None for part in base.widgets_of(boards[0].widget))
    for board in boards:
        board.close()
    assert set(_instances) - before <= {shared}, "nothing is left of any of them"


def test_a_closed_dashboard_takes_up_what_it_had_not_done(runs, monkeypatch):
    monkeypatch.setattr(AttackDashboard, "_still", lambda board: b"")
    attack = MADE["attack"](*runs)
    attack.close()  # while the first attack runs
    attack.work.wait()
    assert attack.outcome is None
    attack._repr_mimebundle_()
    attack.work.wait()
    assert attack.outcome is not None and attack.widget.comm is not None
    attack.close()


# Errors in a cell


class Terminal(InteractiveShell):
    "A shell that keeps what it would print of an error."

    def _showtraceback(self, etype, evalue, stb):
        self.printed = self.InteractiveTB.stb2text(stb)


@pytest.fixture(scope="module")
def shell():
    return Terminal()


WRONG = {
    "DensityDashboard(z, z, [0, 1])": r"DensityDashboard:.* labels .*\b2\b",
    "DensityDashboard(3 * z, 3 * z)": r"DensityDashboard:.*normalize=True",
    "NeighbourDashboard(z, z[:3])": r"NeighbourDashboard:.* hold 4 and 3 items, so they cannot be paired: measure both runs",
    "AttackDashboard('nowhere/plain')": r"AttackDashboard:.*nowhere/plain",
    "TrainingDashboard(z)": r"TrainingDashboard:.* a ndarray has no training to show: give runs or run folders",
    "NormDashboard(z)": r"NormDashboard:.* give a run, its folder, or a converted model",
    "RobustnessDashboard('nowhere')": r"RobustnessDashboard:.*nowhere",
    "RunDashboards()": r"RunDashboards:.* give one or more runs",
    "board.selection = [7]": r"NeighbourDashboard:.* there are images 0 to 3",
    "board.mistakes('grave')": r"NeighbourDashboard:.* choose one of",
    "board.state.load({'k': 99})": r"NeighbourState:.*'k' cannot be 99",
    "board.save_html('/dev/null/page.html')": r"NeighbourDashboard:.*/dev/null",
}


@pytest.mark.parametrize("call", WRONG)
def test_an_error_in_a_cell_is_one_line_with_the_remedy(shell, call):
    z = np.eye(4, dtype=np.float32)
    shell.user_ns |= {name: globals()[name] for name in (kind.__name__ for kind in MADE_OF)} | {"z": z, "board": NeighbourDashboard(z, z)}
    result = shell.run_cell(call)
    error = result.error_in_exec
    assert isinstance(error, (ValueError, OSError)), "a script meets the exception that it always met"
    printed = shell.printed.strip()
    assert re.search(WRONG[call], printed) and "Traceback" not in printed and "\n" not in printed, printed
    assert len(traceback.extract_tb(error.__traceback__)) > 1, "the way there is kept"


def test_a_fault_of_ours_is_told_with_the_way_to_report_it(shell):
    shell.user_ns |= {"DensityDashboard": DensityDashboard}
    assert isinstance(shell.run_cell("DensityDashboard(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)").error_in_exec, TypeError)
    assert "Traceback" not in shell.printed and "traceback.print_last()" in shell.printed and "TypeError" in shell.printed


def test_a_still_picture_follows_what_is_set(runs, tmp_path):
    board = TrainingDashboard(*runs)
    first = words(board.save_svg(tmp_path / "a.svg").read_bytes())
    board.state.density = "rho"
    second = words(board.save_svg(tmp_path / "a.svg").read_bytes())
    assert "pi_ratio: spread" in first and "pi_ratio: spread" not in second and "rho: unevenness" in second
    near = NeighbourDashboard(*runs, k=3)
    near.item = 17
    shown = words(near.save_svg(tmp_path / "b.svg").read_bytes())
    assert near.before.keys[17] in shown and all(f"{distance:.3f}" in shown for distance in near.neighbours.distance)


def test_a_trace_that_cannot_be_drawn_is_refused_not_left_out():
    pie = {"kind": "chart", "figure": {"data": [{"type": "pie"}], "layout": {}}}
    with pytest.raises(ValueError, match="kind 'pie': it knows lines"):
        still([pie], "png")


# State and selection


@EVERY
def test_the_state_comes_back_from_json(boards, runs, kind):
    settings = {
        "density": {"bandwidth": 0.04, "third": "moves"}, "neighbours": {"item": 5, "k": 3, "source": "mended"},
        "attack": {"item": 7, "eps": 4.0, "policy": "random"},
        "training": {"density": "rho", "pace": "lr", "loss_of": "attacked"}, "norms": {"quantity": "running_var", "reference": "attacked"},
        "robustness": {"attack": "GTM", "shift": "blur", "measure": "MAP@R"}, "all": {"tab": "Training"},
    }[kind]  # fmt: skip
    one, two = MADE[kind](*runs), boards(kind)
    assert set(settings) <= set(one.state.as_dict())
    before = two.state.as_dict()
    one.state.load(settings)
    sent = json.loads(json.dumps(one.state.as_dict(), allow_nan=False))
    two.state.load(sent)
    assert two.state.as_dict() == sent != before
    with pytest.raises(ValueError, match="no setting of this dashboard"):
        two.state.load({"no_such_setting": 1})
    two.state.load(before)
    assert two.state.as_dict() == before


@pytest.mark.parametrize("kind", ["density", "neighbours", "attack"])
def test_the_selection_is_given_and_set(boards, kind):
    board = boards(kind)
    board.selection = [9]
    assert board.selection.tolist() == [9] and board.selection.dtype == np.int64
    for wrong in ([10**6], [-1]):
        with pytest.raises(ValueError):
            board.selection = wrong
    if kind != "density":
        with pytest.raises(ValueError, match="2 images are given"):
            board.selection = [1, 2]
    assert board.selection.tolist() == [9]


# Nothing of the author's machine


@EVERY
def test_no_page_tells_where_the_runs_lie(boards, runs, tmp_path, kind):
    board, secret = boards(kind), runs[0].parents[1].name  # part of the absolute path, and of every way to it from another place
    pages = [board.save_html(tmp_path / "page.html").read_text(), board.save_svg(tmp_path / "page.svg").read_text(), repr(board)]
    pages.append(json.dumps(dependency_state(board.widget)))  # all that Voila sends
    assert [page.count(secret) for page in pages] == [0] * len(pages)


def test_runs_that_are_not_measured_finished_or_distinct_tell_no_path_either(folder, tmp_path):
    for place in ("a", "b"):
        shutil.copytree(folder / "plain", tmp_path / place / "plain")
    (tmp_path / "b/plain/robustness.json").write_text("{")
    metrics = tmp_path / "a/plain/metrics.csv"
    metrics.write_text(metrics.read_text().splitlines()[0] + "\n")
    folders = tmp_path / "a/plain", tmp_path / "b/plain"
    training, robustness = TrainingDashboard(*folders), RobustnessDashboard(*folders)
    assert [track.name for track in training.runs] == ["a/plain", "b/plain"] == [one.name for one in robustness.runs]
    (folders[1] / "config.json").write_text("{")
    training.read()  # damaged meanwhile
    assert "config.json is damaged" in training.error
    for board in (training, robustness):
        told = board.save_html(tmp_path / "page.html").read_text() + json.dumps(dependency_state(board.widget))
        assert "plain" in told and str(tmp_path) not in told
    assert "run `mdprop robustness plain`" in robustness._alerts.value


# Hostile names


def hostile_boards(folder, tmp_path):
    "Runs with hostile names, and images of hostile classes with hostile names."
    data = glyphs(classes=6, per_class=4)
    data = ImageSet(data.images, data.labels, HOSTILE, [f"{HOSTILE[i % 6]}/{i}" for i in range(24)], "few")
    torch.manual_seed(0)
    models = [Embedder("resnet10", image_shape=data.shape, width=4, dim=8) for _ in range(2)]
    z = [torch.nn.functional.normalize(torch.randn(24, 8), dim=1) for _ in range(2)]
    arrays = dict(labels=data.labels, images=data.images, class_names=HOSTILE, names=(HOSTILE[0], HOSTILE[2]))
    attack = AttackDashboard(*models, images=data, names=HOSTILE[:2], steps=2, count=2)
    attack.work.wait()
    assert attack.status.problem == ""
    folders = [tmp_path / "runs" / HOSTILE[0], tmp_path / "runs" / HOSTILE[2]]
    for k, place in enumerate(folders):
        shutil.copytree(folder / "mdprop", place)
        write_json(place / "robustness.json", hand_made(k, run=HOSTILE[k]).to_json())
    of_arrays = DensityDashboard(*z, **arrays), NeighbourDashboard(*z, **arrays)
    return [*of_arrays, attack, TrainingDashboard(*folders), NormDashboard(folders[0]), RobustnessDashboard(*folders)]


def test_hostile_names_are_text_in_every_dashboard(folder, tmp_path):
    for board in hostile_boards(folder, tmp_path):
        page = board.save_html(tmp_path / "page.html").read_text()
        assert all(name not in page for name in HOSTILE[:2]), type(board)
        svg = board.save_svg(tmp_path / "page.svg").read_bytes()
        assert b"<img" not in svg and b"<script" not in svg
        assert HOSTILE[0][:9] in words(svg), type(board)
        for widget in dependency_state(board.widget).values():
            markup = widget["state"].get("value") if widget["model_name"] == "HTMLModel" else ""
            assert all(name not in str(markup) for name in HOSTILE[:2]) and "<img" not in str(markup), type(board)
        board._repr_mimebundle_()


def test_names_of_other_scripts_and_dollars_are_drawn(recwarn):
    text = {"kind": "text", "text": "名前 costs $5, not $10^2$ \x00"}
    assert Image.open(io.BytesIO(still([text], "png", "名前"))).width == 1200
    assert "costs $5, not $10^2$" in html.unescape(words(still([text], "svg")))
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


# Errors


def spoiled(place, how):
    "A run folder with something missing."
    for name in {"no model": ["best.safetensors", "last.safetensors"], "no snapshots": ["embeddings"]}.get(how, []):
        shutil.rmtree(place / name) if (place / name).is_dir() else (place / name).unlink()
    if how == "other version":
        (place / "config.json").write_text('{"format": 1}')
    if how == "other data":
        shown = Run(place).snapshot()
        save_snapshot(place, replace(shown, keys=[f"other/{key}" for key in shown.keys]))
    return place


@pytest.mark.parametrize(
    ("how", "tab", "message"),
    [
        ("no model", "Attack", "best.safetensors is missing: the run was stopped before its first checkpoint, train it again"),
        ("no model", "Norms", "best.safetensors is missing: the run was stopped before its first checkpoint, train it again"),
        ("no snapshots", "Density", "has no embeddings 'test', only .*: evaluate"),
        ("no snapshots", "Neighbours", "has no embeddings 'test', only .*: evaluate"),
        ("no snapshots", "Attack", "has no embeddings 'test', only .*: evaluate"),
        ("other data", "Density", "hold different items.*measure both runs on the same images"),
        ("other data", "Neighbours", "hold different items.*measure both runs on the same images"),
        ("other data", "Attack", "hold different items.*measure both runs on the same images"),
    ],
)
def test_what_a_run_lacks_is_told_with_the_remedy(folder, tmp_path, how, tab, message):
    "In the tab, as text that is announced; the other tabs work, and the tab is tried again when it is opened again."
    plain, mdprop = (shutil.copytree(folder / name, tmp_path / name) for name in ("plain", "mdprop"))
    spoiled(mdprop, how)
    tabs = RunDashboards(plain, mdprop)
    tabs.state.tab = tab
    place = tabs.widget.children[tabs.widget.selected_index].children[0]
    assert 'role="alert"' in place.value and str(tmp_path) not in place.value
    with pytest.raises(ValueError, match=message):
        _ = tabs.shown
    assert "cannot be shown" in repr(tabs.picture()) and "image/png" in tabs._repr_mimebundle_()[0]
    tabs.state.tab = "Training"
    assert isinstance(tabs.shown, TrainingDashboard)
    shutil.rmtree(mdprop)
    shutil.copytree(folder / "mdprop", mdprop)
    tabs.open(tab)
    assert tab in tabs.dashboards and tab not in tabs.problems


@pytest.mark.parametrize("make", [AttackDashboard, TrainingDashboard, NormDashboard])
def test_a_run_of_another_version_is_refused_with_the_remedy(folder, tmp_path, make):
    folder = spoiled(shutil.copytree(folder / "mdprop", tmp_path / "old"), "other version")
    with pytest.raises(RunError, match=r"of another version of mdprop .*: train it again, or open it with the version that wrote it"):
        make(folder)


@pytest.mark.parametrize("images", [glyphs(classes=1, per_class=3), glyphs(classes=1, per_class=3).subset([0])], ids=["one class", "one image"])
def test_one_class_and_one_image(images, tmp_path):
    z = torch.nn.functional.normalize(torch.randn(len(images), 4, generator=torch.Generator().manual_seed(0)), dim=1)
    for board in (DensityDashboard(z, z, images.labels), NeighbourDashboard(z, z, images.labels)):
        assert board.save_html(tmp_path / "page.html").is_file() and "image/png" in board._repr_mimebundle_()[0]
    attack = AttackDashboard(Embedder("resnet10", image_shape=images.shape, width=4, dim=4), images=images, steps=1)
    attack.work.wait()
    assert "there is no other class to aim at: choose other targets, such as 'any images'" in attack.status.problem
    assert "there is no other class" in attack.save_html(tmp_path / "page.html").read_text()
    attack.state.policy = "random"
    attack.work.wait()
    assert attack.status.problem == "" and attack.outcome is not None


def test_the_page_lets_plotly_go_once_it_is_read():
    "Its 1.5 MB would otherwise be saved with every notebook that keeps its widgets."
    source = resources.files("mdprop").joinpath("chart.js").read_text(encoding="utf-8")
    assert 'library.set("code", new DataView(new ArrayBuffer(0)))' in source
