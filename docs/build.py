"""Build the site: gather the pages, let Sphinx make HTML of them, check every link. `make docs` runs this; needs no network.

What is wrong is printed, and the exit status is 1: a public name without a docstring or without an example, anything that Sphinx warns of,
a link that leads nowhere.
"""

import argparse
import ast
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from examples import Example, Names, Story, find_example
from link_check import broken_links
from notebooks import Cell, Notebook, read_all
from reference import Entry, Package, block, cell_text, problems

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")  # of the project, as they are
ELSEWHERE = {"README.md": "index.md", "nbs/index.ipynb": "index.md"}  # files of the project that have another page on the site


class Site:
    "The pages of the site before Sphinx sees them."

    def __init__(self, root: Path, source: Path):
        self.root, self.source = root, source
        self.package = Package(root / "mdprop")
        self.notebooks = [notebook for notebook in read_all(root / "nbs") if notebook.path.name != "index.ipynb"]
        told = [notebook for notebook in self.notebooks if notebook.module or notebook.path.parent.name == "tutorials"]
        self.stories = [Story(notebook, self.package.public) for notebook in told]
        self.cells = {
            (notebook.module, name): (notebook, cell)
            for notebook in self.notebooks
            for cell in notebook.cells
            if cell.exported
            for name in Names.of(*cell.statements).bound
        }
        self.written = written_examples(root / "docs" / "examples.md")
        self.meant: dict[str, dict[str, str]] = {}  # {page: {name: full name}}
        self.examples: dict[str, Example | str | None] = {}

    def address(self, notebook: Notebook) -> str:
        "Where a notebook stands on the site."
        return notebook.path.relative_to(self.root).as_posix()

    # Examples

    def example(self, entry: Entry) -> Example | str | None:
        "The example of a public name: a written one, one of the notebooks, or the first of a function that returns it."
        if entry.full_name not in self.examples:
            self.examples[entry.full_name] = self._find_example(entry)
        return self.examples[entry.full_name]

    def _find_example(self, entry: Entry) -> Example | str | None:
        if text := self.written.get(entry.full_name):
            return text
        if found := find_example(entry.name, entry.home or entry.module, self.stories):
            return found
        if entry.kind != "class":
            return None
        returning = [other for other in self.entries() if other.returns and entry.name in re.findall(r"\w+", other.returns.type)]
        return next((found for other in returning if (found := self.example(other))), None)

    def entries(self) -> list[Entry]:
        "All public names."
        return [entry for entries in self.package.entries.values() for entry in entries]

    def without_example(self) -> list[str]:
        "Public functions and classes that nothing shows; a constant shows itself."
        return [entry.full_name for entry in self.entries() if entry.kind != "data" and not self.example(entry)]

    # The reference

    def write_reference(self) -> None:
        "A page for each module, and one that lists them."
        rows = []
        for module in self.modules():
            name = module.removeprefix("mdprop.")
            notebook = next(notebook for notebook in self.notebooks if notebook.module == module)
            self._write(f"reference/{name}.md", self._reference(module, notebook))
            self.meant[f"reference/{name}"] = self._names_of(module)
            rows.append((module, f"[{module}]({name}.md)", cell_text(self.package.modules[module].text)))
        lines = ["# Reference", "", "Every public name, read from the source. `from mdprop.all import *` brings the names that one needs most.", ""]
        lines += ["| module | what it holds |", "|---|---|", *(f"| {link} | {text} |" for _, link, text in rows), ""]
        lines += ["```{toctree}", ":hidden:", "", *(f"{module} <{module.removeprefix('mdprop.')}>" for module, _, _ in rows), "```", ""]
        self._write("reference/index.md", "\n".join(lines))

    def modules(self) -> list[str]:
        "The modules that have public names, in the order of their notebooks."
        return [notebook.module for notebook in self.notebooks if self.package.entries.get(notebook.module)]

    def _reference(self, module: str, notebook: Notebook) -> str:
        sections: dict[str, list[str]] = {}
        placed = [(self.cells[entry.home or module, entry.name], entry) for entry in self.package.entries[module]]
        order = lambda place: (place[0][0].path.name, place[0][0].cells.index(place[0][1]))
        for (origin, cell), entry in sorted(placed, key=order):
            heading = cell.section if origin is notebook else ""
            sections.setdefault(heading, []).append(block(entry, self._where(origin, cell), self._shown(entry)))
        lesson = f"[{notebook.title}](../{self.address(notebook)}) tells how it works and why."
        text = self.package.modules[module].text
        lines = [f"# {module}", "", f"{text.rstrip('.')}. {lesson}", "", f":::{{py:module}} {module}", ":::", ""]
        for heading, blocks in sections.items():
            lines += [*([f"## {heading}", ""] if heading else []), *blocks]
        return "\n".join(lines)

    def _where(self, notebook: Notebook, cell: Cell) -> str:
        place = f"{notebook.title}: {cell.section}" if cell.section else notebook.title
        return f":::{{container}} source\n[Source, in “{place.replace('`', '')}”](#{label(notebook, cell)})\n:::"

    def _shown(self, entry: Entry) -> list[str]:
        "The lines of an example."
        example = self.example(entry)
        if not example:
            return []
        if isinstance(example, str):
            return ["**Example**", "", "```python", example, "```"]
        origin = f"[{example.notebook.title}](../{self.address(example.notebook)})"
        return [f"**Example**, from {origin}", "", "```python", example.code, "```"]

    # What a page means by a name

    def _names_of(self, module: str) -> dict[str, str]:
        "Names as the text about one module means them: its own, those of `mdprop.all`, and others that only one module has and that are no common words."
        homes: dict[str, list[str]] = {}
        for entry in self.entries():
            homes.setdefault(entry.name, []).append(entry.full_name)
        names = {name: full[0] for name, full in homes.items() if len(full) == 1 and re.search(r"_|[A-Z]", name)}
        known = {name for full in homes.values() for name in full}
        names |= {name: full for name, origin in self.package.everything.items() if (full := f"{origin}.{name}") in known}
        return names | {entry.name: entry.full_name for entry in self.package.entries.get(module, ())}

    def _names_on(self, module: str, statements: Sequence[ast.stmt]) -> dict[str, str]:
        "The same for a page with code: a name that the code gives to a variable of its own means that variable."
        names = self._names_of(module)
        public = {entry.name for entry in self.package.entries.get(module, ())}
        for node in (node for part in statements for node in ast.walk(part)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id not in public:
                names.pop(node.id, None)
            elif isinstance(node, ast.arg):
                names.pop(node.arg, None)
        return names

    # Other pages

    def write_notebooks(self) -> None:
        "The notebooks without what only nbdev needs, each exported cell with a label that the reference links to."
        for notebook in self.notebooks:
            raw = json.loads(notebook.path.read_text(encoding="utf-8"))
            cells = []
            for cell, read in zip(raw["cells"], notebook.cells, strict=True):
                if not read.visible:
                    continue
                if read.exported:
                    cells.append({"cell_type": "markdown", "id": f"to-{read.id}", "metadata": {}, "source": f"({label(notebook, read)})="})
                source = self._linked(read.source, self.address(notebook)) if read.kind == "markdown" else read.source
                unread = {"metadata": {"tags": ["remove-input"]}} if "echo: false" in read.directives else {}
                cells.append(cell | {"source": source} | unread)
            metadata = {"kernelspec": raw["metadata"]["kernelspec"], "language_info": {"name": "python", "pygments_lexer": "python3"}}
            self._write(self.address(notebook), json.dumps(raw | {"cells": cells, "metadata": metadata}))
            statements = [part for cell in notebook.cells for part in cell.statements]
            self.meant[self.address(notebook).removesuffix(".ipynb")] = self._names_on(notebook.module, statements)
        shutil.copytree(self.root / "nbs" / "images", self.source / "nbs" / "images")

    def write_pages(self) -> None:
        "The landing page, the guides, lists of notebooks, and the project's own pages."
        docs = self.root / "docs"
        for path in [docs / "index.md", *sorted(docs.glob("guides/*.md"))]:
            name = path.relative_to(docs).as_posix()
            text = path.read_text(encoding="utf-8")
            self._write(name, text)
            code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
            self.meant[name.removesuffix(".md")] = self._names_on("", ast.parse(code).body)
        for name in PAGES:
            self._write(name, self._linked((self.root / name).read_text(encoding="utf-8"), name))
            self.meant[name.removesuffix(".md")] = self._names_of("")
        lessons = [notebook for notebook in self.notebooks if notebook.path.parent.name == "tutorials"]
        rooms = [notebook for notebook in self.notebooks if notebook.module]
        self._write("lessons.md", self._list("Lessons", "They run on drawn glyphs, on a laptop. `make lab` opens them in JupyterLab.", lessons))
        text = "These notebooks are the source of the package: each tells why, shows the code, tries it on data, and asserts what it says."
        self._write("how-it-works.md", self._list("How it works", text, rooms))

    def _list(self, title: str, text: str, notebooks: Sequence[Notebook]) -> str:
        lines = [f"# {title}", "", text, ""]
        lines += [f"- [{notebook.title}]({self.address(notebook)}): {notebook.summary}" for notebook in notebooks]
        lines += ["", "```{toctree}", ":hidden:", "", *(self.address(notebook).removesuffix(".ipynb") for notebook in notebooks), "```", ""]
        return "\n".join(lines)

    def _linked(self, text: str, name: str) -> str:
        "Text whose links to files of the project that the site does not show are plain text; one to a missing file stays, and breaks the build."

        def relink(match: re.Match) -> str:
            words, address, anchor = match[1], *match[2].partition("#")[::2]
            path = normpath(join(dirname(name), address))
            if path in ELSEWHERE:
                return f"[{words}]({relpath(ELSEWHERE[path], dirname(name) or '.')})"
            shown = path in PAGES or (path.startswith("nbs/") and Path(path).suffix in (".ipynb", ".png"))
            return words if not shown and (self.root / path).exists() and not anchor else match[0]

        return re.sub(r"(?<!!)\[([^\]]+)\]\((?!\w+:|#)([^)\s]+)\)", relink, text)

    def _write(self, name: str, text: str) -> None:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def write(self) -> None:
        "Write all pages, and which name means what on them."
        shutil.rmtree(self.source, ignore_errors=True)
        self.write_reference()
        self.write_notebooks()
        self.write_pages()
        everything = {entry.full_name: f"reference/{entry.module.removeprefix('mdprop.')}" for entry in self.entries()}
        self._write("names.json", json.dumps({"pages": self.meant, "everything": everything}))
        shutil.copytree(self.root / "docs" / "_static", self.source / "_static")
        (self.source / "_static" / "mathjax").mkdir()
        shutil.copy(mathjax(), self.source / "_static" / "mathjax" / "tex-svg.js")


def label(notebook: Notebook, cell: Cell) -> str:
    "What the reference calls a cell in its links."
    return f"cell-{notebook.path.stem.lower().replace('_', '-')}-{cell.id.lower()}"


def mathjax() -> Path:
    "The file that draws formulas: one, with everything in it."
    spec = find_spec("sphinx-mathjax-offline")
    if not spec or not spec.origin:
        sys.exit("sphinx-mathjax-offline is not installed: pip install -e '.[docs]'")
    return Path(spec.origin).parent / "static" / "mathjax" / "tex-svg.js"


def written_examples(path: Path) -> dict[str, str]:
    "Examples for names that no notebook shows: {full name: code}, from a file with a heading and a block of code for each."
    text = path.read_text(encoding="utf-8")
    return {name: code.strip("\n") for name, code in re.findall(r"^## `?(mdprop[\w.]+)`?\n+```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)}


def run_sphinx(source: Path, site: Path) -> list[str]:
    "Make the HTML; what Sphinx warns of is an error."
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-j", "auto", "-W", "--keep-going", "-n", "-q", "-c", str(ROOT / "docs"),
               "-D", f"html_static_path={source / '_static'}", str(source), str(site)]  # fmt: skip
    run = subprocess.run([*command, "-d", str(source.parent / "doctrees")], capture_output=True, text=True, check=False)
    return [f"sphinx: {line.replace(str(source), 'docs')}" for line in run.stderr.splitlines() if line.strip()] if run.returncode else []


def build(folder: Path) -> list[str]:
    "Build the site into FOLDER/html; what is wrong with it."
    site = Site(ROOT, folder / "source")
    found = problems(site.package)
    remedy = "use it in a cell of its notebook, or write an example into docs/examples.md"
    found += [f"{name} has no example: {remedy}" for name in site.without_example()]
    site.write()
    found += run_sphinx(site.source, folder / "html")
    return found + broken_links(folder / "html")


def main() -> int:
    "The command."
    parser = argparse.ArgumentParser(description="Build the documentation.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "_build", help="where it goes (default: docs/_build)")
    out = parser.parse_args().out.resolve()
    started = time.monotonic()
    found = build(out)
    print("\n".join(found), file=sys.stderr)
    pages = len(list((out / "html").rglob("*.html")))
    seconds = time.monotonic() - started
    print(f"{len(found)} problems" if found else f"{out / 'html' / 'index.html'}: {pages} pages in {seconds:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
