"""Read the notebooks: their titles, the cell that defines each public name, and a copy of them for the site."""

import ast
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

DIRECTIVE = re.compile(r"^#\|.*\n?", re.MULTILINE)  # of nbdev: `#| export`, `#| hide`, ...


@dataclass
class Cell:
    "One cell of a notebook."

    kind: str  # "markdown" or "code"
    source: str  # without nbdev's directives
    directives: tuple[str, ...]  # "export", "hide", ...
    section: str  # the heading of the second level that it stands under
    id: str

    @property
    def exported(self) -> bool:
        "Whether it is part of the package."
        return any(name in ("export", "exporti", "exports") for name in self.directives)

    @property
    def configuration(self) -> bool:
        "Whether it only tells nbdev which module this is."
        return any(name.startswith("default_exp") for name in self.directives)

    @property
    def visible(self) -> bool:
        "Whether a reader of the site sees it."
        return "hide" not in self.directives and not self.configuration

    @cached_property
    def statements(self) -> list[ast.stmt]:
        "Its code, parsed; [] for text and for what only IPython understands."
        if self.kind != "code":
            return []
        try:
            return ast.parse(self.source).body
        except SyntaxError:
            return []


@dataclass
class Notebook:
    "A notebook, read."

    path: Path
    cells: list[Cell]

    @classmethod
    def read(cls, path: Path) -> "Notebook":
        "The notebook in a file."
        cells, section = [], ""
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if heading := re.match(r"## (.+)", source):
                section = heading[1].strip()
            directives = tuple(line[2:].strip() for line in DIRECTIVE.findall(source)) if cell["cell_type"] == "code" else ()
            text = DIRECTIVE.sub("", source) if cell["cell_type"] == "code" else source
            cells.append(Cell(cell["cell_type"], text.strip("\n"), directives, section, cell["id"]))
        return cls(path, cells)

    @property
    def module(self) -> str:
        "The module that it exports, as `mdprop.norm`; '' for a lesson."
        names = [name.split()[1] for cell in self.cells for name in cell.directives if name.startswith("default_exp")]
        return f"mdprop.{names[0]}".removesuffix(".__init__") if names else ""

    @cached_property
    def title(self) -> str:
        "Its heading."
        return next(match[1].strip() for cell in self.cells if (match := re.match(r"# (.+)", cell.source)))

    @cached_property
    def summary(self) -> str:
        "Its line `> ...`, or the first paragraph."
        text = next(cell.source for cell in self.cells if cell.source.startswith("# ")).partition("\n")[2].strip()
        return " ".join(text.partition("\n\n")[0].lstrip("> ").split())


def read_all(folder: Path) -> list[Notebook]:
    "All notebooks below a folder, in the order of their names; the lessons last."
    paths = sorted(path for path in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    return [Notebook.read(path) for path in sorted(paths, key=lambda path: len(path.parts))]
