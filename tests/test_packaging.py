"""settings.ini is the single source of the project's metadata: what is built, pinned and declared elsewhere agrees with it."""

import re
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
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
