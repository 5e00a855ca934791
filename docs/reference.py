"""Read the public names of the package from its source, and write the reference: one page for each module. Nothing is imported."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NO_PAGE = ("_modidx", "all")  # an index of nbdev's, and a module of names that others define
HOOKS = ("forward", "extra_repr")  # of torch's modules: everybody knows what they are, so they need no docstring


@dataclass
class Parameter:
    "One parameter of a function, or one field of a dataclass."

    name: str  # with its stars
    type: str = ""
    default: str = ""  # '' where it must be given
    comment: str = ""
    separator: str = ""  # what stands before it in a signature: "*" or "/"


@dataclass
class Entry:
    "A public name and what its source says about it."

    name: str
    module: str  # where users import it from
    kind: str  # function, class, method, classmethod, staticmethod, property, data
    text: str = ""  # docstring, or the comment behind a constant
    parameters: list[Parameter] = field(default_factory=list)
    returns: Parameter | None = None
    bases: list[str] = field(default_factory=list)
    members: list["Entry"] = field(default_factory=list)
    source: str = ""  # of a constant
    home: str = ""  # the module whose notebook defines it

    @property
    def full_name(self) -> str:
        "`mdprop.norm.MultiNorm`"
        return f"{self.module}.{self.name}"

    @property
    def is_error(self) -> bool:
        "Whether it is an exception."
        return self.kind == "class" and any(re.search(r"(Error|Exception|Warning)$", base) for base in self.bases)


class Module:
    "A source file, parsed, with its comments."

    def __init__(self, name: str, source: str):
        self.name, self.source, self.tree = name, source, ast.parse(source)
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
        self.comments = {token.start[0]: token.string.lstrip("# ").strip() for token in tokens if token.type == tokenize.COMMENT}
        self.alone = {token.start[0] for token in tokens if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip()}
        self.definitions = {name: node for node in self.tree.body for name in self._defined(node)}

    @staticmethod
    def _defined(node: ast.stmt) -> list[str]:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            return [node.name]
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        return [target.id for target in targets if isinstance(target, ast.Name)]

    @property
    def public(self) -> list[str]:
        "`__all__`."
        node = self.definitions.get("__all__")
        return ast.literal_eval(node.value) if isinstance(node, ast.Assign) else []

    @property
    def text(self) -> str:
        "The module's docstring."
        return ast.get_docstring(self.tree) or ""

    def imported_from(self, name: str) -> str:
        "The module that a public name of this one is imported from; '' when it is defined here."
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
                return f"{self.name}.{node.module}" if node.level == 1 else f"mdprop.{node.module}"
        return ""

    def comment(self, line: int) -> str:
        "The comment behind a line, with the lines below it that are nothing but comment."
        words = [self.comments[line]] if line in self.comments and line not in self.alone else []
        while words and line + 1 in self.alone:
            line += 1
            words.append(self.comments[line])
        return " ".join(words)

    def parameters(self, node: ast.FunctionDef, method: bool) -> list[Parameter]:
        "The parameters of a function, each with the comment that stands behind it when it has a line of its own."
        arguments = node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
        rows = [("", argument, default) for argument, default in zip(positional, defaults, strict=True)]
        rows = rows[1:] if method else rows
        rows += [("*", arguments.vararg, None)] if arguments.vararg else []
        rows += [("", argument, default) for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
        rows += [("**", arguments.kwarg, None)] if arguments.kwarg else []
        ends = [(default or argument).end_lineno or 0 for _, argument, default in rows]
        first_keyword = None if arguments.vararg or not arguments.kwonlyargs else arguments.kwonlyargs[0].arg
        found = []
        for (stars, argument, default), end in zip(rows, ends, strict=True):
            has_line = ends.count(end) == 1 and end != node.lineno
            separator = "*" if argument.arg == first_keyword else ""
            found.append(Parameter(stars + argument.arg, _text(argument.annotation), _text(default), self.comment(end) if has_line else "", separator))
        return found

    def returns(self, node: ast.FunctionDef) -> Parameter | None:
        "What a function returns."
        if node.returns is None or _text(node.returns) == "None":
            return None
        return Parameter("returns", _text(node.returns), "", self.comment(node.returns.end_lineno or 0))

    def fields(self, node: ast.ClassDef) -> list[Parameter]:
        "The annotated public fields of a class body that its constructor takes."
        found = []
        for part in node.body:
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                default = _text(part.value)
                hidden = part.target.id.startswith("_") or "ClassVar" in _text(part.annotation) or "init=False" in default
                if not hidden:
                    shown = default
                    if isinstance(part.value, ast.Call) and ast.unparse(part.value.func) in ("field", "dataclasses.field"):
                        options = {option.arg: ast.unparse(option.value) for option in part.value.keywords}
                        shown = f"{options['default_factory']}()" if "default_factory" in options else options.get("default", "")
                    found.append(Parameter(part.target.id, _text(part.annotation), shown, self.comment(part.end_lineno or 0)))
        return found


def _text(node: ast.AST | None) -> str:
    "The source of an expression; a long one is cut short."
    text = ast.unparse(node) if node else ""
    return text if len(text) < 80 else f"{text[:70]}…"


class Package:
    "All modules and their public names."

    def __init__(self, folder: Path):
        self.modules: dict[str, Module] = {}
        for path in sorted(folder.rglob("*.py")):
            if path.stem not in NO_PAGE:
                name = ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")
                self.modules[name] = Module(name, path.read_text(encoding="utf-8"))
        self.shown_elsewhere = {
            (origin, name): module.name for module in self.modules.values() for name in module.public if (origin := module.imported_from(name)) in self.modules
        }
        self.entries = {name: self._entries(module) for name, module in self.modules.items() if module.public}
        self.everything = self._star(folder / "all.py")

    def _star(self, path: Path) -> dict[str, str]:
        "What `from mdprop.all import *` brings: {name: module}."
        names = {}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.exists() else ():
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("mdprop")):
                names |= {alias.asname or alias.name: f"mdprop.{(node.module or '').removeprefix('mdprop.')}" for alias in node.names}
        return names

    @property
    def public(self) -> dict[str, dict[str, str]]:
        "What a star import of each module brings, and from where: {module: {name: module}}."
        return {name: {entry.name: name for entry in entries} for name, entries in self.entries.items()} | {"mdprop.all": self.everything}

    def _entries(self, module: Module) -> list[Entry]:
        entries = []
        for name in module.public:
            if (module.name, name) in self.shown_elsewhere:
                continue  # it is documented where users import it from
            origin = module.imported_from(name)
            home = self.modules.get(origin, module)
            if name in home.definitions:
                entries.append(self._entry(home, name, module.name))
        return entries

    def _entry(self, home: Module, name: str, shown_in: str) -> Entry:
        node = home.definitions[name]
        if isinstance(node, FUNCTIONS):
            return self._function(home, node, shown_in, "function")
        if isinstance(node, ast.ClassDef):
            members = [member for part in node.body if isinstance(part, FUNCTIONS) and (member := self._member(home, part, shown_in))]
            bases = [ast.unparse(base) for base in node.bases]
            return Entry(name, shown_in, "class", ast.get_docstring(node) or "", self._construct(home, node), None, bases, members, home=home.name)
        source = ast.get_source_segment(home.source, node) or ""
        return Entry(name, shown_in, "data", home.comment(node.end_lineno or 0), source=source, home=home.name)

    def _construct(self, home: Module, node: ast.ClassDef) -> list[Parameter]:
        "The parameters of a class: of its `__init__`, or its fields after those of its base."
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                return home.parameters(part, method=True)
        is_record = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
        is_record |= any(ast.unparse(base) in ("NamedTuple", "Protocol", "TypedDict") for base in node.bases)
        own = home.fields(node) if is_record else []
        for base in node.bases:
            origin = self._find(home, ast.unparse(base))
            if origin:
                inherited = self._construct(*origin)
                own = [parameter for parameter in inherited if parameter.name not in {field.name for field in own}] + own
        return own

    def _find(self, home: Module, name: str) -> tuple[Module, ast.ClassDef] | None:
        "A class of the package, by the name it has in a module."
        origin = self.modules.get(home.imported_from(name), home)
        node = origin.definitions.get(name)
        return (origin, node) if isinstance(node, ast.ClassDef) else None

    def _member(self, home: Module, node: ast.FunctionDef, shown_in: str) -> Entry | None:
        if node.name.startswith("_") and not (node.name == "__call__" and ast.get_docstring(node)):
            return None
        if node.name in HOOKS and not ast.get_docstring(node):
            return None
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        if any(re.search(r"\.setter$|observe\b|validate\b|\bdefault\b", decorator) for decorator in decorators):
            return None  # called by Python or traitlets, not by users
        kinds = {"property": "property", "cached_property": "property", "classmethod": "classmethod", "staticmethod": "staticmethod"}
        kind = next((kinds[decorator] for decorator in decorators if decorator in kinds), "method")
        return self._function(home, node, shown_in, kind)

    @staticmethod
    def _function(home: Module, node: ast.FunctionDef, shown_in: str, kind: str) -> Entry:
        bound = kind in ("method", "classmethod", "property")
        return Entry(node.name, shown_in, kind, ast.get_docstring(node) or "", home.parameters(node, bound), home.returns(node), home=home.name)


def problems(package: Package) -> list[str]:
    "Modules and public names without a docstring; constants need a comment behind them or a value that can be shown."
    found = []
    for name, module in package.modules.items():
        if module.public and not module.text:
            found.append(f"{name} has no docstring: give its notebook a line `> ...` below the title")
    for entry in (entry for entries in package.entries.values() for entry in entries):
        names = [] if entry.text or entry.kind == "data" else [entry.full_name]
        if "Protocol" not in entry.bases:  # whose members are described by their names and types
            names += [f"{entry.full_name}.{member.name}" for member in entry.members if not member.text]
        found += [f"{name} has no docstring" for name in names]
    return found


# Pages


def cell_text(text: str) -> str:
    "Text for a cell of a Markdown table."
    text = " ".join(text.split())
    return re.sub(r"(?<!\\)([|$])" if "`" in text else r"(?<!\\)([|$<*])", r"\\\1", text)


def code(text: str) -> str:
    "Inline code for a cell of a Markdown table."
    return f"`{text}`".replace("|", "\\|") if text else ""


def signature(entry: Entry, types: bool) -> str:
    "The parameters in brackets; with their `types` where no table shows them."
    parts = []
    for parameter in entry.parameters:
        parts += [parameter.separator] if parameter.separator else []
        kind = f": {parameter.type}" if types and parameter.type else ""
        equals = " = " if kind else "="
        parts.append(parameter.name + kind + (f"{equals}{parameter.default}" if parameter.default else ""))
    arrow = f" -> {entry.returns.type}" if types and entry.returns else ""
    return f"({', '.join(parts)}){arrow}"


def table(entry: Entry) -> list[str]:
    "The parameters as a table, what is returned last."
    rows = [*entry.parameters, *([entry.returns] if entry.returns else [])]
    lines = [":::{table}", ":class: parameters", "", "| name | type | default | what it is |", "|---|---|---|---|"]
    for row in rows:
        name = "*returns*" if row is entry.returns else code(row.name)
        lines.append(f"| {name} | {code(row.type)} | {code(row.default)} | {cell_text(row.comment)} |")
    return [*lines, ":::", ""]


def has_table(entry: Entry) -> bool:
    "Whether there is more to say about the parameters than a signature does."
    rows = [*entry.parameters, *([entry.returns] if entry.returns else [])]
    return any(row.comment for row in rows)


def description(entry: Entry, colons: int) -> Iterator[str]:
    "The directive of a name, without its end: signature, docstring, parameters."
    kind = {"classmethod": "method", "staticmethod": "method", "data": "data"}.get(entry.kind, entry.kind)
    kind = "exception" if entry.is_error else kind
    shown = "" if kind in ("data", "property") else signature(entry, types=not has_table(entry))
    yield f"{':' * colons}{{py:{kind}}} {entry.name}{shown}"
    if entry.kind in ("classmethod", "staticmethod"):
        yield f":{entry.kind}:"
    if kind == "property" and entry.returns:
        yield f":type: {entry.returns.type}"
    yield ""
    if inherited := [base for base in entry.bases if base not in ("NamedTuple", "Protocol", "object")]:
        yield from (f"A kind of {', '.join(f'`{base}`' for base in inherited)}.", "")
    yield from (entry.text, "")
    if entry.kind == "data":
        lines = entry.source.splitlines()
        shown_lines = lines if len(lines) <= 16 else [*lines[:14], "..."]
        yield from ("```python", *(line if len(line) <= 200 else f"{line[:190]}…" for line in shown_lines), "```", "")
    if kind != "property" and has_table(entry):
        yield from table(entry)


def block(entry: Entry, source: str, example: Sequence[str]) -> str:
    "A public name on a page: what it is, where it is defined, its methods, an example."
    lines = [*description(entry, 6), source, "", *example, ""]
    for member in entry.members:
        lines += [*description(member, 5), ":::::", ""]
    return "\n".join([*lines, "::::::", ""])
