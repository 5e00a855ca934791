"""settings.ini is the single source of the project's metadata: what is built, pinned and declared elsewhere agrees with it."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import mdprop

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def settings():
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


@pytest.fixture(scope="module")
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    "The wheel built from the source archive of a copy of the project, to which a subpackage has been added."
    copy = tmp_path_factory.mktemp("project")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    for name in ("mdprop", "nbs", "tests", "benchmarks"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "runs"))
    (copy / "mdprop" / "added").mkdir()
    (copy / "mdprop" / "added" / "__init__.py").touch()
    run = subprocess.run([sys.executable, "-m", "build", "--no-isolation"], cwd=copy, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return zipfile.ZipFile(next((copy / "dist").glob("*.whl")))


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def lines(text: str) -> list[str]:
    return text.strip().splitlines()


def requirement_lists(settings) -> dict[str, set[Requirement]]:
    "Requirements by extra; those of the core stand under ''."
    keys = [key for key in settings if key.endswith("requirements")]
    return {key.removesuffix("requirements").rstrip("_"): set(map(Requirement, lines(settings[key]))) for key in keys}


@pytest.mark.parametrize(
    ("field", "key", "form"),
    [
        ("Name", "name", "{}"),
        ("Version", "version", "{}"),
        ("Summary", "description", "{}"),
        ("Author", "author", "{}"),
        ("Requires-Python", "min_python", ">={}"),
        ("License-Expression", "license", "{}"),
    ],
)
def test_wheel_says_what_settings_say(metadata, settings, field, key, form):
    assert metadata[field] == form.format(settings[key])


def test_wheel_lists(metadata, settings):
    assert re.split(", ?", metadata["Keywords"]) == settings["keywords"].split(", ")
    assert sorted(metadata.get_all("Classifier")) == sorted(lines(settings["classifiers"]))


def test_wheel_requirements_and_extras(metadata, settings):
    found = defaultdict(set)
    for line in metadata.get_all("Requires-Dist"):
        requirement, extra = re.fullmatch(r"(.*?)(?:(?:; | and )extra == [\"'](\w+)[\"'])?", line).groups()
        found[extra or ""].add(Requirement(requirement))
    wanted = requirement_lists(settings)
    assert found == wanted
    assert set(metadata.get_all("Provides-Extra")) == set(wanted) - {""} == {"lab", "timm", "ray", "track", "docs", "dev"}


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(wheel.namelist())
    package = {path.relative_to(ROOT).as_posix() for suffix in ("py", "js", "css") for path in ROOT.glob(f"mdprop/**/*.{suffix}")}
    assert package | {"mdprop/py.typed", "mdprop/added/__init__.py"} <= names
    assert {name.split("/")[0] for name in names} == {"mdprop", f"mdprop-{mdprop.__version__}.dist-info"}


def test_wheel_has_the_program_and_the_licence(wheel, settings):
    info = f"mdprop-{settings['version']}.dist-info"
    assert lines(wheel.read(f"{info}/entry_points.txt").decode()) == ["[console_scripts]", *lines(settings["console_scripts"])]
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert settings["license"] == "Apache-2.0" and b"Apache License" in (ROOT / "LICENSE").read_bytes()


def test_no_fact_stands_in_two_places(settings, pyproject):
    assert set(pyproject["project"]) == {"name", "dynamic"}
    assert pyproject["project"]["name"] == settings["name"] == mdprop.__name__
    assert pyproject["tool"]["ruff"]["target-version"] == "py" + settings["min_python"].replace(".", "")
    assert mdprop.__version__ == settings["version"], "the installed version is an old one: run `make test` or pip install again"
    assert f"[{settings['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_requirement_is_pinned_within_its_range(settings):
    pins = [Requirement(line) for line in lines((ROOT / "constraints.txt").read_text(encoding="utf-8")) if not line.startswith("#")]
    version = {}
    for pin in pins:
        (clause,) = pin.specifier
        assert clause.operator == "==" and pin.url is None and "+" not in clause.version, pin
        assert not re.match("nvidia|cuda|triton", pin.name), f"{pin} comes with CUDA builds of torch only"
        version[pin.name.lower().replace("_", "-")] = clause.version
    for requirement in set().union(*requirement_lists(settings).values()):
        if requirement.marker and not requirement.marker.evaluate():
            continue  # for another Python than the one that locks
        pinned = version.get(requirement.name.lower().replace("_", "-"))
        assert pinned and pinned in requirement.specifier, f"{requirement} is pinned to {pinned}: run `make lock`"


# What an installation brings, and how fast it is there


def test_the_core_brings_no_jupyter(settings):
    lists = requirement_lists(settings)
    names = {extra: {requirement.name for requirement in found} for extra, found in lists.items()}
    jupyter = {"jupyterlab", "ipywidgets", "voila", "anywidget", "plotly", "matplotlib", "umap-learn"}
    assert not names[""] & jupyter and jupyter <= names["lab"]


def test_a_wrong_version_is_told_in_one_line(monkeypatch):
    there = {"kornia": "0.6.12", "torch": "2.13.0+cpu", "numpy": "3.0.0.dev1"}

    def version(name: str) -> str:
        if name not in there:
            raise PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(mdprop, "version", version)
    fine = ["torch>=2.4", "numpy>=1.26", "tomli>=2.0; python_version < '3'", "faiss-cpu>=1.8", "timm>=99; extra == 'timm'"]  # faiss comes by other names, too
    mdprop._check_versions(fine)
    with pytest.raises(ImportError) as error:
        mdprop._check_versions([*fine, "kornia>=0.7.3"])
    assert str(error.value) == f"mdprop {mdprop.__version__} needs kornia>=0.7.3, but kornia 0.6.12 is installed: pip install 'kornia>=0.7.3'"


def test_versions_are_looked_at_when_mdprop_is_imported(tmp_path):
    info = tmp_path / "kornia-0.6.12.dist-info"  # found before the true one
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kornia\nVersion: 0.6.12\n", encoding="utf-8")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import mdprop"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    told = f"ImportError: mdprop {mdprop.__version__} needs kornia>=0.7.3, but kornia 0.6.12 is installed"
    assert run.returncode == 1 and run.stderr.splitlines()[-1].startswith(told)


def processor_seconds(code: str) -> float:
    "What a fresh process takes for `code`, on all cores together."
    measured = f"{code}; import resource; used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return float(subprocess.run([sys.executable, "-c", measured], capture_output=True, text=True, check=True, env=environment).stdout.split()[-1])


@pytest.mark.skipif(os.name == "nt", reason="processor time is read in another way there")
def test_importing_takes_little_beside_torch():
    "Two seconds beyond torch, which takes one and a half to two on a quiet core, are a factor of 2.2; the limits leave room for a busy machine."
    before, package, command = (processor_seconds(f"import {name}") for name in ("torch, pytorch_metric_learning", "mdprop", "mdprop.cli"))
    assert package < 0.25 * before, f"{package:.2f} s: mdprop itself imports nothing large"
    assert command < 2.5 * before, f"{command:.2f} s against {before:.2f} s: what is large and rarely needed is imported where it is used"


def test_large_packages_wait_until_they_are_used():
    "Each of them takes half a second or more: the command line answers `--help` without them."
    large = {"nbformat", "matplotlib", "scipy.stats", "pytorch_metric_learning.losses", "umap", "numba"}
    asked = f"import sys, mdprop.cli; print(*sorted({large} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.split() == []
