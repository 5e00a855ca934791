"""Rules of the whole package: imports run one way, extras are optional, nothing is unpickled, everything says what it is."""

import ast
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mdprop import needs_extra

ROOT = Path(__file__).resolve().parents[1]
ORDER = """archives data retrieval density parallel norm model attacks recipes runs trackers train
robustness grid project figures panels dashboards cli __main__ all""".split()
VIEWS = {"figures", "panels", "dashboards"}  # rooms that may need the extra `lab` as soon as they are imported
MODULES = sorted(path for path in ROOT.glob("mdprop/**/*.py") if path.name != "_modidx.py")
PACKAGE = ROOT / "mdprop"


def room_of(path: Path) -> str:
    "The room that a module belongs to: its own name, or that of the folder it stands in; '' for the package itself."
    top = path.relative_to(PACKAGE).parts[0]
    return "" if top == "__init__.py" else top.removesuffix(".py")


ROOMS = sorted({room_of(path) for path in MODULES} - {""})
each_module = pytest.mark.parametrize("path", MODULES, ids=[path.relative_to(PACKAGE).as_posix() for path in MODULES])


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_rooms(tree: ast.Module, depth: int = 0) -> set[str]:
    "The rooms of mdprop that a module imports, in whichever way it is written; `depth` folders below the package."
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if 0 < node.level <= depth:
                continue  # from its own room
            origin = ".".join(filter(None, ["mdprop" if node.level else "", node.module]))
            names |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return {name.split(".")[1] for name in names if name.startswith("mdprop.")} & set(ORDER)


# One direction


def test_every_room_has_its_place():
    assert set(ROOMS) <= set(ORDER), "a new module needs a place in the order of the house"


@each_module
def test_imports_run_one_way(path):
    place = ORDER.index(room_of(path)) if room_of(path) in ORDER else 0
    assert imported_rooms(tree_of(path), len(path.relative_to(PACKAGE).parts) - 1) <= set(ORDER[:place])


FORMS = ["import mdprop.train", "from mdprop.train import fit", "from mdprop import train", "from .train import fit", "from . import train"]


@pytest.mark.parametrize("line", FORMS)
def test_imports_are_seen_in_every_form(line):
    assert imported_rooms(ast.parse(line)) == {"train"}


def test_a_room_of_several_modules_may_import_its_own():
    assert imported_rooms(ast.parse("from .base import x\nfrom ..train import fit"), depth=1) == {"train"}


# Extras are optional


def closure(name: str, found: set[str]) -> set[str]:
    "The distributions that a distribution needs when no extra is asked for, itself included."
    if canonicalize_name(name) in found:
        return found
    found.add(canonicalize_name(name))
    try:
        requirements = map(Requirement, requires(name) or [])
    except PackageNotFoundError:
        return found
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            closure(requirement.name, found)
    return found


def without_extras(code: str) -> subprocess.CompletedProcess:
    """Run code in a Python that finds no package which `pip install mdprop` would not have brought.

    But for sphinx: scipy takes its mere name in sys.modules for the wish to be documented, and imports it.
    """
    core = closure("mdprop", set())
    owners = packages_distributions().items()
    absent = sorted(module for module, names in owners if module != "sphinx" and not core & {canonicalize_name(name) for name in names})
    assert {"plotly", "ipywidgets", "umap", "timm", "matplotlib"} <= set(absent)
    hide = f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
    return subprocess.run([sys.executable, "-c", hide + code], capture_output=True, text=True, check=False)


def test_core_imports_need_no_extra():
    rooms = [room for room in ROOMS if room not in VIEWS]
    run = without_extras("\n".join(f"import mdprop.{room}" for room in rooms))
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("room", sorted(VIEWS & set(ROOMS)))
def test_a_view_without_its_extra_says_what_to_install(room):
    run = without_extras(f"import mdprop.{room}")
    if run.returncode:
        assert re.fullmatch(r"ImportError: \w+ is not installed: pip install 'mdprop\[lab\]'", run.stderr.splitlines()[-1]), run.stderr


def test_needs_extra_names_the_package_and_the_extra():
    with pytest.raises(ImportError, match=r"^no_such_package is not installed: pip install 'mdprop\[lab\]'$"), needs_extra("lab"):
        import no_such_package  # noqa: F401
    with pytest.raises(ZeroDivisionError), needs_extra("lab"):
        _ = 1 / 0


# Nothing is unpickled


def pickle_uses(tree: ast.Module) -> list[str]:
    "Imports of pickling modules, torch.load without weights_only=True, and numpy's allow_pickle."
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [name for name in names if name.split(".")[0] in {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}]
        elif isinstance(node, ast.Call):
            options = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
            name = ast.unparse(node.func)
            if (name == "torch.load" and options.get("weights_only") is not True) or options.get("allow_pickle", False) is not False:
                found.append(name)
    return found


@each_module
def test_nothing_is_unpickled(path):
    assert pickle_uses(tree_of(path)) == []


def test_pickle_uses_are_seen():
    bad = ["import pickle", "from joblib import load", "torch.load(p)", "np.load(p, allow_pickle=True)"]
    good = ["import json", "from safetensors.torch import load_file", "torch.load(p, weights_only=True)", "np.load(p)"]
    assert pickle_uses(ast.parse("\n".join(bad + good))) == ["pickle", "joblib", "torch.load", "np.load"]


# Everything says what it is


@each_module
def test_every_public_name_has_a_docstring(path):
    tree = tree_of(path)
    definitions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]
    assert [node.name for node in definitions if not ast.get_docstring(node)] == []
    assert ast.get_docstring(tree), "the notebook's title and its line `> ...` make the module's docstring"


def test_no_file_speaks_of_the_machine_it_was_written_on():
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    machine_path = re.compile(r"(?<![\w./~-])/(?:" + "|".join(["root", "work", "tmp", "home", "Users"]) + r")/[\w.]+")
    found = []
    for name in listing.stdout.splitlines():
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):  # a picture; a file that git lists and somebody has deleted
            continue
        found += [f"{name}: {match[0]}" for match in machine_path.finditer(text)]
    assert found == []


# The README


def python_blocks(markdown: str) -> list[str]:
    "The code of the blocks fenced as ```python."
    return re.findall(r"^```python\n(.*?)^```", markdown, flags=re.MULTILINE | re.DOTALL)


def test_readme_names_the_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in ("make demo", "make test", "python dev.py demo", "python dev.py test"):
        assert command in readme


def test_readme_code_runs(tmp_path):
    "All blocks fenced as ```python, one after the other. A snippet that needs the reader's own files is fenced as ```py."
    blocks = python_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    assert blocks, "README.md has no ```python block"
    run = subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
