"""The documentation: it builds without a warning, its links lead somewhere, what it says of parameters is so, and its code runs."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

from build import written_examples
from examples import Names, Story
from link_check import broken_links
from notebooks import Notebook
from reference import Entry, Module, Package, problems

GUIDES = [DOCS / "index.md", *sorted(DOCS.glob("guides/*.md"))]
WRITTEN = written_examples(DOCS / "examples.md")
LONG = {
    "mdprop.cli.demo": "a minute: test_browser.py looks at what the demo writes",
    "mdprop.project.rerun_layout": "UMAP compiles for seconds: test_project_layouts.py reruns layouts",
}


@pytest.fixture(scope="session")
def package() -> Package:
    return Package(ROOT / "mdprop")


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    "The built site. That it builds says: no warning of Sphinx, no broken link, no public name without docstring or example."
    pytest.importorskip("sphinx", reason="the documentation is built with Python 3.11 or newer")
    folder = tmp_path_factory.mktemp("docs")
    run = subprocess.run([sys.executable, str(DOCS / "build.py"), "--out", str(folder)], capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr
    return folder / "html"


def test_every_public_name_has_its_place_and_an_example(site, package):
    for module, entries in package.entries.items():
        page = (site / "reference" / f"{module.removeprefix('mdprop.')}.html").read_text(encoding="utf-8")
        places = re.split(r'(?=<dt class="sig)', page)
        for entry in entries:
            place = next((number for number, text in enumerate(places) if f'id="{entry.full_name}"' in text), None)
            assert place is not None, entry.full_name
            whole = "".join(places[place : place + len(entry.members) + 1])
            assert "Source, in" in whole and (entry.kind == "data" or "<strong>Example</strong>" in whole), entry.full_name


def test_names_lead_to_their_reference(site):
    guide = (site / "guides" / "choose-eps.html").read_text(encoding="utf-8")
    assert 'href="../reference/attacks.html#mdprop.attacks.FeatureAttack"><span class="n">FeatureAttack</span></a>' in guide
    fit = (site / "reference" / "train.html").read_text(encoding="utf-8")
    assert re.search(r'<a class="name" href="data.html#mdprop.data.ImageSet">ImageSet</a>', fit), "types in tables of parameters are links"
    assert "training images; the validation classes are cut from them" in fit, "the comment behind a parameter stands in its table"
    norm = (site / "nbs" / "03_norm.html").read_text(encoding="utf-8")
    assert re.search(r'#mdprop.norm.convert_multi_norm"><span class="nf">convert_multi_norm</span>', norm), "definitions in notebooks are links"
    assert "default_exp" not in norm and "#| " not in norm, "what nbdev needs is no reader's business"


def test_a_variable_is_no_name_of_ours():
    pytest.importorskip("sphinx", reason="the documentation is built with Python 3.11 or newer")
    from name_links import Links

    links = Links("guides/x", {"away": "mdprop.attacks.away"}, {"mdprop.attacks.away": "reference/attacks"})
    shown = '<a class="name" href="../reference/attacks.html#mdprop.attacks.away"><span class="n">away</span></a>'
    block = '<div class="highlight-python notranslate"><pre>{}</pre></div>'.format
    name, equals = '<span class="n">away</span>', '<span class="o">=</span>'
    assert links.everywhere(block(f"{name}(z)")) == block(f"{shown}(z)")
    for other in (f"{name} {equals} 1\nf({name})", f"f({name}{equals}1)", f'x<span class="o">.</span>{name}'):
        assert links.everywhere(block(other)) == block(other)
    code = '<code class="docutils literal notranslate"><span class="pre">away{}</span></code>'.format
    for rest in ("", "(z)"):
        assert '#mdprop.attacks.away">away</a>' + rest in links.everywhere(code(rest))
    assert links.everywhere(code("-team")) == code("-team")


def test_search_knows_the_names(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert "split_domains" in index and (site / "search.html").exists()


@pytest.mark.browser
def test_a_page_with_formulas_needs_no_network(site, browser):
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.goto((site / "nbs" / "02_density.html").as_uri())
    page.wait_for_selector("mjx-container svg", timeout=20_000)
    assert all(address.startswith(("file:", "data:")) for address in asked)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "a telephone need not scroll sideways"
    page.close()


# Links


def test_broken_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="top"></h1><a href="#top"></a><a href="b.html#here"></a><a href="https://example.org"></a><img src="data:,">', encoding="utf-8"
    )
    (tmp_path / "b.html").write_text('<p id="here"></p><a href="a.html"></a>', encoding="utf-8")
    assert broken_links(tmp_path) == []
    (tmp_path / "c.html").write_text(
        '<a href="d.html"></a><a href="b.html#there"></a><a href="#nowhere"></a><script src="https://cdn.example.org/x.js"></script>', encoding="utf-8"
    )
    (tmp_path / "d.css").write_text("@font-face { src: url('https://fonts.example.org/a.woff') }", encoding="utf-8")
    found = "\n".join(broken_links(tmp_path))
    for words in ("d.html leads nowhere", "b.html#there", "#nowhere", "fetches https://cdn.example.org", "fetches https://fonts.example.org"):
        assert words in found
    assert len(broken_links(tmp_path)) == 5


# What the source says


SOURCE = '''"A module."
__all__ = ["Shape", "Square", "area", "LIMIT"]
LIMIT = 3  # sides at most

@dataclass
class Shape:
    "A shape."

    sides: int  # how many
    name: str = "none"  # shown
    _hidden: int = 0

    def turn(self, by: float = 1.0): ...

@dataclass
class Square(Shape):
    "A square."
    side: float = 1.0  # length

def area(
    shape: Shape,  # of which
    *more: int,  # others | or none
    scale=2,
    # further words
    **rest: object,
) -> float:  # in square metres
    "The area."
'''


def test_signatures_and_comments_are_read(tmp_path):
    folder = tmp_path / "mdprop"
    folder.mkdir()
    (folder / "shapes.py").write_text(SOURCE, encoding="utf-8")
    package = Package(folder)
    entries = {entry.name: entry for entry in package.entries["mdprop.shapes"]}
    rows = lambda entry: [(row.name, row.type, row.default, row.comment) for row in entry.parameters]
    assert rows(entries["Shape"]) == [("sides", "int", "", "how many"), ("name", "str", "'none'", "shown")]
    assert rows(entries["Square"]) == [*rows(entries["Shape"]), ("side", "float", "1.0", "length")], "fields are inherited"
    scale = ("scale", "", "2", "")
    assert rows(entries["area"]) == [("shape", "Shape", "", "of which"), ("*more", "int", "", "others | or none"), scale, ("**rest", "object", "", "")]
    returned = entries["area"].returns
    assert returned and (returned.type, returned.comment) == ("float", "in square metres")
    assert entries["LIMIT"].text == "sides at most"
    assert problems(package) == ["mdprop.shapes.Shape.turn has no docstring"]


def is_plain(entry: Entry) -> bool:
    "Whether Python knows the same signature: not so for widgets, whose fields are traits, and for modules of torch without a constructor."
    return entry.kind == "function" or (entry.kind == "class" and not entry.is_error and bool(entry.parameters))


def test_parameters_are_those_of_the_signature(package):
    "Read from the source, as Python reads them: names, order, and which must be given."
    wrong = []
    for module, entries in package.entries.items():
        for entry in filter(is_plain, entries):
            if "Protocol" in entry.bases:
                continue
            parameters = inspect.signature(getattr(importlib.import_module(module), entry.name)).parameters.values()
            stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
            wanted = [(stars.get(one.kind, "") + one.name, one.default is not one.empty) for one in parameters if not one.name.startswith("_")]
            if [(row.name, bool(row.default)) for row in entry.parameters] != wanted:
                wrong.append((entry.full_name, [row.name for row in entry.parameters], [name for name, _ in wanted]))
    assert wrong == []


def test_a_comment_belongs_to_its_own_line():
    module = Module("mdprop.x", "def f(a, b): return a  # not about b\n\ndef g(\n    a, b,  # about both\n): pass\n")
    assert [row.comment for name in "fg" for row in module.parameters(module.definitions[name], method=False)] == ["", "", "", ""]


# Examples


@pytest.fixture
def story(tmp_path):
    "Makes a notebook of code cells that exports mdprop.room, whose public names are `thing` and `other`."

    def make(*cells: str) -> Story:
        sources = ("#| default_exp room", "#| export\ndef thing(): ...\nother = 1", *cells)
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in sources])
        nbformat.write(notebook, tmp_path / "room.ipynb")
        return Story(Notebook.read(tmp_path / "room.ipynb"), {"mdprop.room": {"thing": "mdprop.room", "other": "mdprop.room"}})

    return make


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["x = 1", "thing(x)"], "from mdprop.room import thing\n\nx = 1\n\nthing(x)"),
        (["x = 0; y = 9", "x = 1", "thing(x)"], "from mdprop.room import thing\n\nx = 1\n\nthing(x)"),
        (["x = []", "x.append(1)", "thing(x)"], "from mdprop.room import thing\n\nx = []\nx.append(1)\n\nthing(x)"),
        (["x = {}", "x['a'] = 1", "thing(x)"], "from mdprop.room import thing\n\nx = {}\nx['a'] = 1\n\nthing(x)"),
        (["x = []", "def fill(x): x.append(1)", "fill(x); print(x)", "thing(x)"],
         "from mdprop.room import thing\n\nx = []\ndef fill(x): x.append(1)\nfill(x)\n\nthing(x)"),
        (["#| hide\nimport math, os", "def f(a): return a + later + math.pi", "later = 2", "thing(f(1))"],
         "import math\nfrom mdprop.room import thing\n\ndef f(a): return a + later + math.pi\nlater = 2\n\nthing(f(1))"),
        (["from mdprop.room import *", "[thing() for i in range(3)]"], "from mdprop.room import thing\n\n[thing() for i in range(3)]"),
    ],
)  # fmt: skip
def test_an_example_brings_what_it_needs_and_no_more(story, cells, expected):
    assert story(*cells).examples("thing")[0].code == expected


def test_what_is_no_example(story):
    assert story("thing = 3", "print(thing)").examples("thing") == [], "a variable that is called the same"
    assert story("thing(nobody_made_this)").examples("thing") == [], "it could not run"
    assert story("#| hide\nthing()").examples("thing") == [], "no reader sees it"
    assert len(story("#| hide\nthing()").examples("thing", hidden=True)) == 1


def test_names_are_read_in_the_order_in_which_python_runs():
    read = lambda code: sorted((found := Names.of(*ast.parse(code).body)).read | found.later)
    assert read("x = x + 1") == ["x"] and read("x = 1; x = x + 1") == []
    assert read("for i in rows: f(i)") == ["f", "rows"]
    assert read("[a for a in b if a > c]") == ["b", "c"]
    assert read("def f(a, b=c): return a + b + d") == ["c", "d"]
    assert read("with open(p) as g: g.read()") == ["open", "p"]
    assert read("import a.b; a.b.c()") == []
    assert read("x += 1") == ["x"]


@pytest.mark.parametrize("name", WRITTEN)
def test_written_examples_run(name, tmp_path, monkeypatch, capsys):
    if name in LONG:
        pytest.skip(LONG[name])
    monkeypatch.chdir(tmp_path)
    exec(compile(WRITTEN[name], f"docs/examples.md: {name}", "exec"), {"__name__": "__main__"})


def test_written_examples_are_of_public_names(package):
    public = {entry.full_name for entries in package.entries.values() for entry in entries}
    assert set(WRITTEN) <= public


# Guides


@pytest.mark.parametrize("path", GUIDES, ids=[path.stem for path in GUIDES])
def test_the_code_of_guides_runs(path, tmp_path, monkeypatch, capsys):
    "All blocks fenced as ```python, one after the other; the line numbers of an error are those of the page."
    text = path.read_text(encoding="utf-8")
    if "import timm" in text:
        pytest.importorskip("timm", reason="needs the extra timm")
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    for block in re.finditer(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(path), "exec"), names)
