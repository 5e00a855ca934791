"""Set up mdprop and run it: `python dev.py demo`, `python dev.py test`. The Makefile calls the same commands.

Only the standard library is used: this file runs before anything is installed.
"""

import sys
from configparser import ConfigParser
from pathlib import Path


def numbers(version):
    "'3.10' -> (3, 10), which compares as versions do."
    return tuple(int(part) for part in version.split("."))


ROOT = Path(__file__).resolve().parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(str(ROOT / "settings.ini"), encoding="utf-8")
MIN_PYTHON = config["DEFAULT"]["min_python"]
if sys.version_info < numbers(MIN_PYTHON):  # up to here, an older Python understands every line
    this = sys.version.split()[0]
    sys.exit(f"mdprop needs Python {MIN_PYTHON} or newer, this is {this}: name a newer one, for example `make demo PYTHON=python3.12`")

import argparse
import difflib
import hashlib
import importlib.util
import json
import os
import posixpath
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
STAMP = VENV / "mdprop-installed.json"  # says what was installed, so that a second run need not ask pip
CONSTRAINTS = ROOT / "constraints.txt"
INSTALLED_FROM = ("settings.ini", "setup.py", "pyproject.toml", "constraints.txt")
ALL_EXTRAS = ("dev", "lab", "timm", "ray", "track", "docs")
NOTEBOOK_LIMIT = 600  # seconds: one that hangs is stopped; they are meant to take well under two minutes
NOTEBOOK_WORKERS = 2
TEST_PROCESSES = 2  # one of them has all tests with a browser, see tests/conftest.py
NOT_LOCKED = re.compile(r"mdprop|pip|wheel|nvidia-.*|cuda-.*|triton")  # the last three come with CUDA builds of torch only


# Set-up


def tool(name: str) -> str:
    "The path of a program in .venv."
    return str(BIN / (f"{name}.exe" if os.name == "nt" else name))


def environment(**more: str) -> dict[str, str]:
    "The environment variables of a program that runs in .venv."
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "VIRTUAL_ENV": str(VENV), "PYTHONUTF8": "1", **more}


def say(text: str) -> None:
    "Print now, before the next program prints."
    print(text, flush=True)


def call(*command: str, cwd: Path = ROOT) -> int:
    "The exit status of a program of .venv. Ctrl-C reaches the program too, and it decides what to do about it."
    with subprocess.Popen(command, cwd=cwd, env=environment()) as program:
        while True:
            try:
                return program.wait()
            except KeyboardInterrupt:
                continue


def create_venv() -> None:
    "Make .venv with the Python that runs this file."
    version = "{}.{}".format(*sys.version_info)
    if not importlib.util.find_spec("ensurepip"):
        remedy = f"install its venv package (Debian, Ubuntu: `sudo apt install python{version}-venv`) and run this again"
        sys.exit(f"{sys.executable} cannot make virtual environments: {remedy}")
    say(f"Creating .venv with Python {version}")
    if subprocess.call([sys.executable, "-m", "venv", "--clear", str(VENV)]):
        shutil.rmtree(VENV, ignore_errors=True)
        sys.exit(f"{sys.executable} could not create .venv: the reason stands above")


def check_venv() -> None:
    "Stop when .venv is broken or its Python is too old for mdprop."
    question = "import pip, sys; print(*sys.version_info[:2], sep='.')"
    answer = subprocess.run([tool("python"), "-c", question], capture_output=True, text=True, check=False)
    if answer.returncode:
        sys.exit("The Python or the pip in .venv does not run: delete the folder .venv and run this again")
    if numbers(answer.stdout) < numbers(MIN_PYTHON):
        sys.exit(f".venv holds Python {answer.stdout.strip()}, mdprop needs {MIN_PYTHON}: delete the folder .venv and run this again")


def fingerprint() -> dict[str, str]:
    "What an installation depends on: the project's files, and the folder that it is linked to."
    content = b"\0".join((ROOT / name).read_bytes() for name in INSTALLED_FROM)
    return {"files": hashlib.sha256(content).hexdigest(), "folder": str(ROOT)}


def installed() -> dict:
    "What the last installation wrote down; empty when there was none."
    return json.loads(STAMP.read_text(encoding="utf-8")) if STAMP.exists() else {}


def is_up_to_date(stamp: dict, wanted: dict[str, str], extras: tuple[str, ...]) -> bool:
    "Whether an installation that left `stamp` serves `extras` of the project as it is now."
    return {key: stamp.get(key) for key in wanted} == wanted and set(extras) <= set(stamp.get("extras", []))


def write_stamp(extras: tuple[str, ...]) -> None:
    "Write down what has just been installed."
    STAMP.write_text(json.dumps({**fingerprint(), "extras": extras}), encoding="utf-8")


def set_up(*extras: str) -> None:
    "Create or reuse .venv and install the project with `extras`, unless that has been done since its files last changed."
    stamp = installed()
    moved = stamp and stamp["folder"] != str(ROOT)  # the programs in a moved .venv point to its old place
    if moved or not Path(tool("python")).exists():
        create_venv()
    elif is_up_to_date(stamp, fingerprint(), extras):
        return
    check_venv()
    STAMP.unlink(missing_ok=True)
    project = f".[{','.join(extras)}]"
    say(f"Installing {project} into .venv (once; some minutes, most of them for PyTorch)")
    options = ["--disable-pip-version-check", *([] if sys.stdout.isatty() else ["--quiet"])]
    if call(tool("python"), "-m", "pip", "install", *options, "-c", CONSTRAINTS.name, "-e", project):
        sys.exit("pip could not install mdprop: the reason stands above")
    write_stamp(extras)


# Checks: each takes the project's folder and returns what is wrong, one text a problem


@contextmanager
def scratch_copy(root: Path) -> Iterator[Path]:
    "A temporary copy of the notebooks, the package and their configuration."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        for name in ("nbs", "mdprop"):
            shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__"))
        shutil.copy(root / "pyproject.toml", copy / "pyproject.toml")
        yield copy


def differences(committed: Path, fresh: Path, pattern: str) -> list[str]:
    "A report for every file matching `pattern` that is not the same in two folders, line ends aside."
    reports = []
    paths = {path.relative_to(top) for top in (committed, fresh) for path in top.glob(pattern)}
    for name in sorted(path.as_posix() for path in paths if ".ipynb_checkpoints" not in path.parts):
        if not (fresh / name).exists():
            reports.append(f"{name}: no notebook exports it")
            continue
        if not (committed / name).exists():
            reports.append(f"{name}: missing")
            continue
        before, after = ((top / name).read_text(encoding="utf-8").splitlines() for top in (committed, fresh))
        if before != after:
            changes = list(difflib.unified_diff(before, after, "as it is", "as it should be", n=0, lineterm=""))
            reports.append("\n".join([f"{name}: differs", *changes[:12]]))
    return reports


def export_problems(root: Path) -> list[str]:
    "How the package differs from a fresh export of the notebooks; a module without a notebook is found too."
    with scratch_copy(root) as copy:
        for module in copy.glob("mdprop/**/*.py"):
            if module.name not in ("__init__.py", "__main__.py"):  # written by hand
                module.unlink()
        if call(tool("nbdev-export"), cwd=copy):
            return ["nbdev-export failed"]
        return differences(root, copy, "mdprop/**/*.py")


def clean_problems(root: Path) -> list[str]:
    "How the notebooks differ from what nbdev-clean makes of them."
    with scratch_copy(root) as copy:
        if call(tool("nbdev-clean"), cwd=copy):
            return ["nbdev-clean failed"]
        return differences(root, copy, "nbs/**/*.ipynb")


def readme(root: Path) -> str:
    "README.md as nbs/index.ipynb tells it: its text and code without hidden cells; links start at the top of the project."
    cells = json.loads((root / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        if not source.startswith("#| hide"):
            parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    relink = lambda link: f"]({posixpath.normpath(posixpath.join('nbs', link[1]))})"
    return re.sub(r"\]\((?!\w+:|#)([^)]+)\)", relink, "\n\n".join(parts)) + "\n"


def readme_problems(root: Path) -> list[str]:
    "How README.md differs from nbs/index.ipynb."
    same = (root / "README.md").read_text(encoding="utf-8") == readme(root)
    return [] if same else ["README.md is not what nbs/index.ipynb says"]


def ruff_problems(root: Path) -> list[str]:
    "What ruff finds in notebooks, package, tests and scripts; it prints the places itself."
    return ["ruff found problems"] if call(tool("ruff"), "check", ".", cwd=root) else []


def mypy_problems(root: Path) -> list[str]:
    "What mypy finds in the package; it prints the places itself."
    return ["mypy found problems"] if call(tool("mypy"), cwd=root) else []


def run_notebook(path: Path) -> tuple[float, str]:
    "Run a notebook in a process of its own: seconds, and what went wrong ('' when every cell ran)."
    command = [tool("nbdev-test"), str(path)]
    threads = environment(OMP_NUM_THREADS="1")  # two notebooks run side by side
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        try:
            run = subprocess.run(command, env=threads, stdout=log, stderr=log, timeout=NOTEBOOK_LIMIT, check=False)
        except subprocess.TimeoutExpired:
            return time.monotonic() - started, f"stopped at the limit of {NOTEBOOK_LIMIT} s"
        log.seek(0)
        return time.monotonic() - started, log.read() if run.returncode else ""


def notebook_problems(root: Path) -> list[str]:
    "Run every notebook, two at a time, and report those that fail."
    reports = []
    paths = sorted(path for path in root.glob("nbs/**/*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    with ThreadPoolExecutor(NOTEBOOK_WORKERS) as pool:
        for path, (seconds, problem) in zip(paths, pool.map(run_notebook, paths), strict=True):
            name = path.relative_to(root).as_posix()
            say(f"  {seconds:6.1f} s  {name}{'  FAILED' if problem else ''}")
            if problem:
                reports.append(f"{name}: {problem}")
    return reports


CHECKS: list[tuple[str, Callable[[Path], list[str]], str]] = [  # title, check, remedy
    ("the package is what the notebooks export", export_problems, "run nbdev-export and delete what no notebook exports"),
    ("notebooks are clean", clean_problems, "run nbdev-clean"),
    ("the README is what nbs/index.ipynb says", readme_problems, "run `make export`"),
    ("ruff", ruff_problems, "edit the notebook, not the exported module; `ruff check --fix nbs` mends the simple ones"),
    ("mypy", mypy_problems, "edit the notebook, then run nbdev-export"),
    ("every notebook runs", notebook_problems, "open it in JupyterLab (`make lab`) and run it"),
]


def run_checks() -> None:
    "Run the checks one after the other; the first that finds a problem ends the program."
    for number, (title, problems_in, remedy) in enumerate(CHECKS, start=1):
        say(f"[{number}/{len(CHECKS) + 1}] {title}")
        started = time.monotonic()
        problems = problems_in(ROOT)
        if problems:
            sys.exit("\n".join([*problems, f"FAILED: {title}. Remedy: {remedy}."]))
        say(f"      passed in {time.monotonic() - started:.0f} s")


# The lock


def marker(requires_python: str) -> str:
    "The part of a package's Requires-Python that shuts out a Python which mdprop admits, as an environment marker ('' if there is none)."
    clauses = re.findall(r"([<>=!~]=?)\s*([\d.]*?\d)(?:\.0)*(?![\d.]*\d)", requires_python)
    narrower = [(sign, version) for sign, version in clauses if numbers(MIN_PYTHON) < numbers(version) < (4,)]
    return " and ".join(f'python_full_version {sign} "{version}"' for sign, version in narrower)


def pins(packages: list[dict]) -> list[str]:
    "The lines of constraints.txt for the metadata of installed packages: exact public versions, each with its marker."
    lines = []
    for package in sorted(packages, key=lambda package: package["name"].lower()):
        if NOT_LOCKED.fullmatch(package["name"].lower()):
            continue
        public_version = package["version"].split("+")[0]
        condition = marker(package.get("requires_python", ""))
        lines.append(f"{package['name']}=={public_version}" + (f"; {condition}" if condition else ""))
    return lines


# Commands


def demo(arguments: list[str]) -> int:
    "train plain and MDProp on the embedded data, compare them, write demo.html"
    set_up("lab")
    status = call(tool("mdprop"), "demo", *arguments)
    if status == 0:  # the shell does not know of .venv yet
        activate = f"{VENV.name}\\Scripts\\activate" if os.name == "nt" else f"source {VENV.name}/bin/activate"
        say(f"to go on:  {activate}    # once in each terminal; then: mdprop --help")
    return status


def test(arguments: list[str]) -> int:
    "run every check, and the tests last"
    set_up(*ALL_EXTRAS)
    run_checks()
    say(f"[{len(CHECKS) + 1}/{len(CHECKS) + 1}] pytest")
    return call(tool("python"), "-m", "pytest", "-n", str(TEST_PROCESSES), "--dist", "loadgroup", *arguments)


def lab(arguments: list[str]) -> int:
    "open JupyterLab on the tutorials"
    set_up(*ALL_EXTRAS)
    return call(tool("jupyter-lab"), "--ServerApp.root_dir=nbs", "--LabApp.default_url=/lab/tree/tutorials", *arguments)


def docs(arguments: list[str]) -> int:
    "build the documentation: docs/_build/html/index.html"
    set_up(*ALL_EXTRAS)
    return call(tool("python"), "docs/build.py", *arguments)


def export(_arguments: list[str]) -> int:
    "clean the notebooks, write the package and README.md from them"
    set_up(*ALL_EXTRAS)
    status = call(tool("nbdev-clean")) or call(tool("nbdev-export"))
    (ROOT / "README.md").write_text(readme(ROOT), encoding="utf-8", newline="\n")
    return status


def lock(_arguments: list[str]) -> int:
    "write the versions that are installed in .venv to constraints.txt"
    set_up(*ALL_EXTRAS)
    inspect = [tool("python"), "-m", "pip", "inspect", "--local"]
    report = json.loads(subprocess.run(inspect, env=environment(), stdout=subprocess.PIPE, check=True).stdout)
    lines = pins([package["metadata"] for package in report["installed"]])
    header = "# Exact versions for a reproducible .venv, written by `make lock`. What mdprop needs stands in settings.ini."
    CONSTRAINTS.write_text("\n".join([header, *lines, ""]), encoding="utf-8", newline="\n")
    write_stamp(ALL_EXTRAS)
    say(f"{CONSTRAINTS.name}: {len(lines)} versions")
    return 0


COMMANDS = {command.__name__: command for command in (demo, test, lab, docs, export, lock)}


def main() -> int:
    "Run the command that is named on the command line."
    parser = argparse.ArgumentParser(prog="python dev.py", description="Set up .venv, then:", formatter_class=argparse.RawTextHelpFormatter)
    listing = "\n".join(f"{name:6}{command.__doc__}" for name, command in COMMANDS.items())
    parser.add_argument("command", choices=COMMANDS, metavar="command", help=listing)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="handed on to `mdprop demo`, pytest or JupyterLab")
    chosen = parser.parse_args()
    try:
        return COMMANDS[chosen.command](chosen.arguments)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
