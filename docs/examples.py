"""Find an example of a public name in the notebooks, with everything before it that it needs: code that runs as it stands.

The notebooks run in every test run, so that their cells are examples that work. But a cell uses what earlier cells have made. An example is
therefore a cell and its backward slice: those statements before it, last to first, that bind or change a name which is still needed.
"""

import ast
import builtins
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from notebooks import Cell, Notebook

LOOKS = re.compile(r"(?:print|display|test_\w+|expect_fail|assert_\w+|(?:plt|fig|figure|ax|axes)\b.*)$")  # calls that show or check, and change nothing
KNOWN = {*dir(builtins), "__file__", "__name__", "get_ipython", "display"}


class Names(ast.NodeVisitor):
    "Which names code reads before it binds them, which it binds, and which objects it changes; visited in the order in which Python runs it."

    def __init__(self, bound: Iterable[str] = ()):
        self.bound, self.read, self.changed = set(bound), set(), set()
        self.later: set[str] = set()  # read by its functions, when somebody calls them

    @classmethod
    def of(cls, *nodes: ast.AST) -> "Names":
        "The names of some statements, one after the other."
        names = cls()
        names._in_turn(*nodes)
        names.later -= names.bound
        return names

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.read |= {node.id} - self.bound
        else:
            self.bound.add(node.id)

    def _in_turn(self, *parts: ast.AST | None) -> None:
        for part in parts:
            if part:
                self.visit(part)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self._changes(target)
            self.visit(target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._changes(node.target)
        self.read |= {base_name(node.target)} - self.bound - {""}
        self._in_turn(node.value, node.target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._in_turn(node.annotation, node.value, node.target)

    def visit_For(self, node: ast.For) -> None:
        self._in_turn(node.iter, node.target, *node.body, *node.orelse)

    def visit_Expr(self, node: ast.Expr) -> None:
        self._may_change(node.value)
        self.visit(node.value)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            self._may_change(item.context_expr)
            self._in_turn(item.context_expr, item.optional_vars)
        self._in_turn(*node.body)

    def _may_change(self, call: ast.expr) -> None:
        "A call whose result nobody keeps is made for its effect: `stats.update(z)`, `write_images(folder)`, `with ZipFile(path / 'a.zip', 'w')`."
        if not isinstance(call, ast.Call) or LOOKS.match(ast.unparse(call.func)):
            return
        self._changes(call.func)
        for inner in (node for node in ast.walk(call) if isinstance(node, ast.Call)):
            self.changed |= {base_name(part) for part in (*inner.args, *(keyword.value for keyword in inner.keywords)) if not isinstance(part, ast.Call)}
        self.changed -= {""}

    def visit_comprehension_scope(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        inner = Names(self.bound)
        for part in node.generators:
            inner._in_turn(part.iter, part.target, *part.ifs)
        inner._in_turn(*([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]))
        self.read |= inner.read

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = visit_comprehension_scope

    def visit_function(self, node: ast.FunctionDef | ast.Lambda) -> None:
        arguments = node.args
        names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *filter(None, [arguments.vararg, arguments.kwarg])]
        self._in_turn(*arguments.defaults, *arguments.kw_defaults, *(name.annotation for name in names), *getattr(node, "decorator_list", ()))
        body = node.body if isinstance(node.body, list) else [node.body]
        own = {name.id for part in body for name in ast.walk(part) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
        inner = Names({name.arg for name in names} | own)
        inner._in_turn(*body)
        self.later |= (inner.read | inner.later) - inner.bound
        self.bound |= {node.name} if isinstance(node, ast.FunctionDef) else set()

    visit_FunctionDef = visit_Lambda = visit_function

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._in_turn(*node.bases, *node.decorator_list, *(keyword.value for keyword in node.keywords))
        inner = Names(self.bound)
        inner._in_turn(*node.body)
        self.read |= inner.read
        self.later |= inner.later
        self.bound.add(node.name)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.bound |= {alias.asname or alias.name.split(".")[0] for alias in node.names}

    visit_ImportFrom = visit_Import

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self.bound |= {node.name} if node.name else set()
        self.generic_visit(node)

    def _changes(self, target: ast.expr) -> None:
        self.changed |= {base_name(target)} - {""} if not isinstance(target, ast.Name) else set()


def base_name(node: ast.expr) -> str:
    "The variable at the root of `a.b[0].c()` and of `a / 'b'`; '' where there is none."
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call | ast.BinOp):
        node = node.func if isinstance(node, ast.Call) else node.left if isinstance(node, ast.BinOp) else node.value
    return node.id if isinstance(node, ast.Name) else ""


@dataclass
class Example:
    "Code that shows a name and runs as it stands."

    notebook: Notebook
    cell: Cell  # where the name is shown
    imports: list[str]
    setup: list[str]  # statements of earlier cells
    missing: set[str]  # names that no earlier statement binds: the cell cannot stand alone

    @property
    def code(self) -> str:
        "All of it."
        return "\n\n".join("\n".join(part) for part in (self.imports, self.setup, [self.cell.source]) if part)


@dataclass
class Binding:
    "A statement of a notebook, as an example needs it."

    node: ast.stmt
    source: str
    names: Names


class Story:
    "A notebook as a row of statements, from which examples are cut."

    def __init__(self, notebook: Notebook, public: Mapping[str, Mapping[str, str]]):
        self.notebook = notebook
        self.public = public  # what `from MODULE import *` brings, and from where: {MODULE: {name: its module}}
        self.bindings = [(number, binding) for number, cell in enumerate(notebook.cells) for binding in self._bindings(cell)]
        self.loads = [{node.id for part in cell.statements for node in ast.walk(part) if isinstance(node, ast.Name)} for cell in notebook.cells]
        self.words = [{node.value for part in cell.statements for node in ast.walk(part) if isinstance(node, ast.Constant)} for cell in notebook.cells]

    def _bindings(self, cell: Cell) -> Iterator[Binding]:
        for node in cell.statements:
            names: Mapping[str, str] = {}
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                names = self.public.get(node.module or "") or dict.fromkeys(import_module(node.module or "").__all__, node.module or "")
            elif cell.exported and not isinstance(node, ast.Import | ast.ImportFrom):
                names = dict.fromkeys(sorted(Names.of(node).bound), self.notebook.module)
            else:
                yield Binding(node, ast.get_source_segment(cell.source, node) or "", Names.of(node))
            for name, module in names.items():
                line = ast.parse(f"from {module} import {name}").body[0]
                yield Binding(line, "", Names.of(line))

    def example(self, number: int) -> Example:
        "A cell with all that it needs."
        own = Names.of(*self.notebook.cells[number].statements)
        called: set[str] = set()  # what functions read when the cell calls them: bound before the cell, perhaps after the function
        while True:
            example, later = self._slice(number, (own.read | own.later | called) - KNOWN)
            if later <= called:
                return example
            called |= later

    def _slice(self, number: int, needed: set[str]) -> tuple[Example, set[str]]:
        "The statements before a cell that bind or change what is `needed`, and what their functions read."
        imports, setup, later, bound = [], [], set(), set()
        for before, binding in reversed(self.bindings):
            node, names = binding.node, binding.names
            if before >= number or not needed & (names.bound | names.changed):
                continue
            if isinstance(node, ast.Import | ast.ImportFrom):
                imports += only(node, needed)
                needed = needed - names.bound
                continue
            setup.append(binding.source)
            later |= names.later - KNOWN
            bound |= names.bound
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.FunctionDef | ast.ClassDef):
                needed = needed - names.bound  # what came before it is overwritten
            needed = needed | names.read - KNOWN
        return Example(self.notebook, self.notebook.cells[number], tidy(imports), setup[::-1], needed - bound), later

    def examples(self, name: str, hidden: bool = False, word: bool = False) -> list[Example]:
        "What shows `name` (`word`: as a text, as recipes are named) in a cell that a reader sees, or in a `hidden` one."
        found = []
        for number, cell in enumerate(self.notebook.cells):
            if not cell.exported and cell.visible != hidden and name in (self.words if word else self.loads)[number]:
                example = self.example(number)
                if not example.missing and (word or self._means(name, example)):
                    found.append(example)
        return sorted(found, key=lambda example: len(example.code.splitlines()) + 10 * provokes(example.cell))

    def _means(self, name: str, example: Example) -> bool:
        "Whether `name` is the public one there, not a variable that is called the same."
        return any(name in re.findall(r"\w+", line.partition("import")[2]) for line in example.imports)


def provokes(cell: Cell) -> bool:
    "Whether a cell shows errors."
    return "expect_fail" in cell.source


def only(node: ast.Import | ast.ImportFrom, needed: set[str]) -> list[str]:
    "The imports of one statement that are needed, one a line."
    origin = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
    kept = [alias for alias in node.names if (alias.asname or alias.name.split(".")[0]) in needed]
    return [f"{origin}import {alias.name}" + (f" as {alias.asname}" if alias.asname else "") for alias in kept]


def tidy(imports: Sequence[str]) -> list[str]:
    "Import lines, those from one module together: the libraries first, mdprop last."
    joined: dict[str, list[str]] = {}
    for line in sorted(set(imports), key=str.lower):
        origin, _, name = line.partition("import ")
        joined.setdefault(origin or line, []).append(name)
    lines = [f"{origin}import {', '.join(names)}" if origin.startswith("from") else origin for origin, names in joined.items()]
    return sorted(lines, key=lambda line: ("mdprop" in line, line.startswith("from"), line.lower()))


def find_example(name: str, module: str, stories: Sequence[Story]) -> Example | None:
    """The shortest example of a public name, one without errors rather than one that shows them: from what a reader sees of the notebook that
    defines it, else of the other notebooks, else from a hidden cell of its own. Recipes are asked for by a text: `fit(train, 'advprop')`."""
    own = [story for story in stories if story.notebook.module == module]
    others = [story for story in stories if story.notebook.module != module]
    for candidates, hidden, word in ((own, False, False), (others, False, False), (own, True, False), (stories, False, True)):
        if word and module != "mdprop.recipes":
            continue
        for story in candidates:
            if found := story.examples(name, hidden, word):
                return found[0]
    return None
