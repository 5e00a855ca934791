"""The set-up and the checks behind `make demo` and `make test`."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import dev

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tools_of_this_python(monkeypatch):
    "nbdev's programs from the environment that runs the tests, wherever that is."
    monkeypatch.setattr(dev, "BIN", Path(sys.executable).parent)


@pytest.fixture
def project(tmp_path, tools_of_this_python) -> Path:
    "A project of one notebook whose module has been exported."
    cells = ["#| default_exp sums", "# Sums\n> Adds numbers.", "#| export\ndef add(a, b): return a + b"]
    write_notebook(tmp_path / "nbs" / "00_sums.ipynb", *cells)
    (tmp_path / "mdprop").mkdir()
    (tmp_path / "mdprop" / "__init__.py").touch()
    (tmp_path / "mdprop" / "panel.js").touch()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert dev.call(dev.tool("nbdev-export"), cwd=tmp_path) == 0
    assert dev.call(dev.tool("nbdev-clean"), cwd=tmp_path) == 0
    return tmp_path


def write_notebook(path: Path, *sources: str) -> None:
    "A notebook of cells; a source that starts with '# ' is markdown."
    notebook = nbformat.v4.new_notebook()
    for number, source in enumerate(sources):
        new_cell = nbformat.v4.new_markdown_cell if source.startswith("# ") else nbformat.v4.new_code_cell
        notebook.cells.append(new_cell(source, id=f"cell{number}"))
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)


# Any Python can say that it is too old


def test_an_old_python_gets_one_line():
    source = (ROOT / "dev.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 7))  # an older Python reads all of the file before it runs the first line
    pretend = "import sys; sys.version_info = (3, 9, 6); __file__ = 'dev.py'; exec(open('dev.py', encoding='utf-8').read())"
    run = subprocess.run([sys.executable, "-c", pretend], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("mdprop needs Python 3.10 or newer") and len(run.stderr.splitlines()) == 1


# Set-up


@pytest.fixture
def machine(tmp_path, monkeypatch):
    "A copy of the project's files and a record of what set-up does there, where nothing is really installed."
    for name in dev.INSTALLED_FROM:
        shutil.copy(ROOT / name, tmp_path)
    places = {"ROOT": ".", "VENV": ".venv", "BIN": ".venv/bin", "STAMP": ".venv/stamp.json", "CONSTRAINTS": "constraints.txt"}
    for name, place in places.items():
        monkeypatch.setattr(dev, name, tmp_path / place)
    done: list[str] = []

    def create():
        done.append("create")
        dev.BIN.mkdir(parents=True, exist_ok=True)
        Path(dev.tool("python")).touch()

    def call(*command, cwd=tmp_path):
        done.append(command[-1])
        return 0

    monkeypatch.setattr(dev, "create_venv", create)
    monkeypatch.setattr(dev, "check_venv", lambda: None)
    monkeypatch.setattr(dev, "call", call)
    return done


def test_set_up_installs_once(machine):
    dev.set_up("lab")
    dev.set_up("lab")
    assert machine == ["create", ".[lab]"]


def test_set_up_adds_extras_and_keeps_them(machine):
    dev.set_up("lab")
    dev.set_up("dev", "lab")
    dev.set_up("lab")
    assert machine == ["create", ".[lab]", ".[dev,lab]"]


@pytest.mark.parametrize("name", dev.INSTALLED_FROM)
def test_set_up_installs_again_when_a_file_changes(machine, name):
    dev.set_up("lab")
    with (dev.ROOT / name).open("a") as file:
        file.write("\n# changed\n")
    dev.set_up("lab")
    assert machine == ["create", ".[lab]", ".[lab]"]


def test_set_up_uses_a_venv_that_is_there(machine):
    dev.create_venv()
    machine.clear()
    dev.set_up("lab")
    assert machine == [".[lab]"]


def test_set_up_starts_anew_in_a_moved_folder(machine):
    dev.set_up("lab")
    dev.STAMP.write_text(json.dumps({**dev.installed(), "folder": "elsewhere"}))
    dev.set_up("lab")
    assert machine == ["create", ".[lab]", "create", ".[lab]"]


def test_a_failed_installation_is_tried_again(machine, monkeypatch):
    dev.set_up("lab")
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="pip could not install mdprop"):
        patch.setattr(dev, "call", lambda *command: 1)
        dev.set_up("dev", "lab")
    dev.set_up("lab")
    assert machine == ["create", ".[lab]", ".[lab]"]


def test_a_python_without_ensurepip_gets_one_line(monkeypatch):
    monkeypatch.setattr(dev.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"cannot make virtual environments: install its venv package \(Debian, Ubuntu: `sudo apt install"):
        dev.create_venv()


def fake_python(folder: Path, script: str) -> None:
    folder.joinpath("python").write_text(f"#!/bin/sh\n{script}\n")
    folder.joinpath("python").chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="writes a shell script")
@pytest.mark.parametrize(("script", "message"), [("exit 1", "does not run"), ("echo 3.9", "holds Python 3.9, mdprop needs 3.10")])
def test_a_broken_or_old_venv_gets_one_line(tmp_path, monkeypatch, script, message):
    monkeypatch.setattr(dev, "BIN", tmp_path)
    fake_python(tmp_path, script)
    with pytest.raises(SystemExit, match=message + ".*: delete the folder .venv and run this again"):
        dev.check_venv()


# Checks


def test_export_and_clean_find_nothing_in_a_tidy_project(project):
    assert dev.export_problems(project) == []
    assert dev.clean_problems(project) == []


def test_export_finds_changed_missing_and_orphan_modules(project):
    sums = project / "mdprop" / "sums.py"
    sums.write_text(sums.read_text().replace("a + b", "a - b"))
    (project / "mdprop" / "ghost.py").write_text("# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/09_ghost.ipynb.\n")
    (project / "mdprop" / "_modidx.py").unlink()
    before = sorted(project.rglob("*"))
    missing, orphan, changed = dev.export_problems(project)
    assert missing == "mdprop/_modidx.py: missing"
    assert orphan == "mdprop/ghost.py: no notebook exports it"
    assert changed.startswith("mdprop/sums.py: differs") and "-def add(a, b): return a - b\n+def add(a, b): return a + b" in changed
    assert sorted(project.rglob("*")) == before  # the check itself changes nothing


def test_clean_finds_a_notebook_that_was_run(project):
    path = project / "nbs" / "00_sums.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].execution_count = 7
    nbformat.write(notebook, path)
    (project / "nbs" / ".ipynb_checkpoints").mkdir()
    shutil.copy(path, project / "nbs" / ".ipynb_checkpoints")
    (problem,) = dev.clean_problems(project)
    assert problem.startswith("nbs/00_sums.ipynb: differs") and '"execution_count": 7' in problem


def test_notebooks_run_apart_and_failures_are_reported(project, capsys):
    write_notebook(project / "nbs" / "01_wrong.ipynb", "total = 1 + 1", "assert total == 3, 'the sum is wrong'")
    (problem,) = dev.notebook_problems(project)
    assert problem.startswith("nbs/01_wrong.ipynb") and "the sum is wrong" in problem
    right, wrong = capsys.readouterr().out.splitlines()
    assert right.endswith(" s  nbs/00_sums.ipynb") and wrong.endswith(" s  nbs/01_wrong.ipynb  FAILED")


def test_a_notebook_that_hangs_is_stopped(project, monkeypatch):
    monkeypatch.setattr(dev, "NOTEBOOK_LIMIT", 1)
    write_notebook(project / "nbs" / "00_sums.ipynb", "import time; time.sleep(60)")
    assert dev.notebook_problems(project) == ["nbs/00_sums.ipynb: stopped at the limit of 1 s"]


def test_the_first_failing_check_ends_the_run(monkeypatch, capsys):
    checks = [("good", lambda root: [], ""), ("bad", lambda root: ["x.py: wrong"], "mend it"), ("never", lambda root: 1 / 0, "")]
    monkeypatch.setattr(dev, "CHECKS", checks)
    with pytest.raises(SystemExit) as stop:
        dev.run_checks()
    assert stop.value.code == "x.py: wrong\nFAILED: bad. Remedy: mend it."
    assert capsys.readouterr().out.splitlines() == ["[1/4] good", "      passed in 0 s", "[2/4] bad"]


# The lock


@pytest.mark.parametrize(
    ("requires_python", "marker"),
    [
        ("", ""),
        (">=3.8", ""),
        (">=3.10.0", ""),
        (">=2.7, !=3.0.*, !=3.1.*, <4", ""),
        (">= 3.11", 'python_full_version >= "3.11"'),
        (">=3.11.5", 'python_full_version >= "3.11.5"'),
        (">=3.10,!=3.14.1", 'python_full_version != "3.14.1"'),
        (">=3.11,<3.15", 'python_full_version >= "3.11" and python_full_version < "3.15"'),
    ],
)
def test_marker(requires_python, marker):
    assert dev.marker(requires_python) == marker


def test_pins_are_public_sorted_and_without_cuda():
    packages = [
        {"name": "torch", "version": "2.13.0+cpu", "requires_python": ">=3.10"},
        {"name": "NumPy", "version": "2.4.6", "requires_python": ">=3.11"},
        *({"name": name, "version": "1"} for name in ("mdprop", "pip", "nvidia-cublas", "cuda-toolkit", "triton")),
    ]
    assert dev.pins(packages) == ['NumPy==2.4.6; python_full_version >= "3.11"', "torch==2.13.0"]


# The ways in


def test_make_and_the_build_machine_use_these_commands():
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"\n{' '.join(dev.COMMANDS)}:\n\t@$(PYTHON) dev.py $@" in targets
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
