"""The lessons: uniform, self-contained, small enough for git, and with solutions that are run.

That every lesson runs from top to bottom is one of the checks of `make test`, like that of every notebook; its last cell then runs the solutions, too.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "nbs" / "tutorials"
LESSONS = sorted(TUTORIALS.glob("lesson_*.ipynb"))
PAGES = sorted(TUTORIALS.glob("*.ipynb"))
SOLUTION = re.compile(r"<details>.*?```python\n(.*?)```", re.DOTALL)  # as in the last cell of each lesson
PICTURE_BYTES = 100_000
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


def cells_of(path: Path, kind: str | None = None) -> list[dict]:
    "The cells of a notebook, each with its source as one text."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells if kind in (None, cell["cell_type"])]


def prose(path: Path) -> str:
    return "\n".join(cell["source"] for cell in cells_of(path, "markdown"))


def test_there_are_ten_lessons():
    assert [int(path.stem[7:9]) for path in LESSONS] == list(range(1, 11)), "lesson_01_... to lesson_10_..., each number once"


@each_lesson
def test_a_lesson_is_built_like_the_others(path):
    cells, text = cells_of(path), prose(path)
    opening = cells[0]["source"]
    assert opening.startswith(f"# Lesson {int(path.stem[7:9])}: ")
    assert re.search(r"^> \d+ minutes\. ", opening, re.MULTILINE) and "**Show the solution**" in opening
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    numbered = [heading for heading in headings if heading[0].isdigit()]
    assert [heading.split(".")[0] for heading in numbered] == [str(k) for k in range(1, len(numbered) + 1)]
    assert headings[len(numbered) :] == ["Look around", "Exercises"], "it ends on something to look at, and exercises"
    assert "wrong turn" in text or "Deception" in text


@each_lesson
def test_a_code_cell_is_short_and_introduced(path):
    cells = cells_of(path)[:-1]
    long = [cell["source"].splitlines()[0] for cell in cells if cell["cell_type"] == "code" and len(cell["source"].splitlines()) > 20]
    assert long == []
    runs = "".join("c" if cell["cell_type"] == "code" else "m" for cell in cells)
    assert "ccc" not in runs, "three cells of code without a word between them"


@each_lesson
def test_three_exercises_each_with_one_solution(path):
    text = prose(path).partition("## Exercises")[2]
    exercises = re.split(r"^\*\*(?=\d\.\*\* )", text, flags=re.MULTILINE)[1:]
    assert [exercise[0] for exercise in exercises] == ["1", "2", "3"]
    for exercise in exercises:
        question, _, answer = exercise.partition("<details><summary>Show the solution</summary>\n\n")
        assert len(question) > 80 and answer.rstrip().endswith("</details>")
        (code,) = SOLUTION.findall(f"<details>{answer}")
        compile(code, f"{path.name}, exercise {exercise[0]}", "exec")
        assert "assert " in code, "a solution says what it has shown"
        assert len(answer.split("```")[2]) > 80, "and explains it"


def run_last_cell(path: Path, page: Path, **variables: str) -> subprocess.CompletedProcess:
    "Run the last cell of a lesson as if `page` were its notebook, after `x = 1`."
    code = f"from pathlib import Path\nx = 1\n{cells_of(path)[-1]['source']}"
    page.with_name(path.name).write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "IN_TEST"} | variables
    return subprocess.run([sys.executable, "-c", code], cwd=page.parent, env=environment, capture_output=True, text=True, check=False)


def test_every_lesson_ends_with_the_cell_that_runs_its_solutions():
    "The same cell everywhere, but for the lesson's own name."
    last = {path.name: cells_of(path)[-1]["source"].replace(path.name, "LESSON").replace("from pathlib import Path\n", "") for path in LESSONS}
    assert len(set(last.values())) == 1 and "LESSON" in last[LESSONS[0].name]
    assert last[LESSONS[0].name].startswith("#| hide\n")


def test_the_last_cell_runs_the_solutions_and_stops_at_a_wrong_one(tmp_path):
    page = tmp_path / "page.ipynb"
    details = "<details><summary>Show the solution</summary>\n\n```python\n{}\n```\n\nBecause.\n</details>"
    for claims, fails in ((["assert x == 1", "y = x + 1", "assert y == 2"], False), (["y = 2", "assert x == 2"], True)):
        cells = [{"cell_type": "markdown", "source": [details.format(claim)]} for claim in claims]
        page.write_text(json.dumps({"cells": cells}), encoding="utf-8")
        run = run_last_cell(LESSONS[0], page, IN_TEST="1")
        assert (run.returncode != 0) == fails, run.stderr
        assert run_last_cell(LESSONS[0], page).returncode == 0, "a reader who runs all cells does not run the solutions"


@each_page
def test_pictures_are_small_and_nothing_else_is_kept(path):
    for cell in cells_of(path, "code"):
        for output in cell["outputs"]:
            assert output.get("name") != "stderr" and output["output_type"] != "error"
            data = output.get("data", {})
            assert set(data) <= {"image/png", "text/plain", "text/html"}
            assert len("".join(data.get("image/png", ""))) * 3 / 4 < PICTURE_BYTES, cell["source"][:80]


@each_page
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", prose(path))
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_teachers_page_knows_every_lesson():
    page = prose(TUTORIALS / "00_for_teachers.ipynb")
    for path in LESSONS:
        minutes = re.search(r"^> (\d+) minutes", cells_of(path)[0]["source"], re.MULTILINE)
        row = next((line for line in page.splitlines() if f"({path.name})" in line), "")
        assert minutes and f"| {minutes[1]} min |" in row, f"{path.name} and its {minutes and minutes[1]} minutes are missing from the table"
        assert f"Lesson {int(path.stem[7:9])}: " in page, "a question for the class"
