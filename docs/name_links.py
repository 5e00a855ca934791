"""Link the names of mdprop in code and in text to their reference. A Sphinx extension; build.py writes which page means what by a name (names.json)."""

import ast
import html
import json
import re
from pathlib import Path
from posixpath import dirname, relpath
from typing import Any

from sphinx.application import Sphinx

BLOCK = re.compile(r'(<div class="highlight-(?:python3?|ipython3|py) [^>]*>.*?<pre>)(.*?)(</pre>)', re.DOTALL)
WORD = re.compile(r'(?P<before><span class="o">\.</span>)?<span class="(?P<kind>n|nf|nc|ne)">(?P<name>\w+)</span>(?P<after><span class="o">=</span>)?')
INLINE = re.compile(r'(?P<open><code class="(?P<class>[^"]*)"><span class="pre">)(?P<name>(?:mdprop\.)?[\w.]+)(?P<rest>\(?[^<]*</span>)')
TYPE = re.compile(r"[A-Za-z_]\w+")
PARAMETERS = re.compile(r'<table class="[^"]*\bparameters\b.*?</table>', re.DOTALL)


class Links:
    "The names of one page."

    def __init__(self, page: str, names: dict[str, str], everything: dict[str, str]):
        self.page = page
        self.names = names  # as this page means them: {name: full name}
        self.everything = everything  # {full name: page of the reference}

    def address(self, full_name: str) -> str:
        "The relative address of a public name."
        return f"{relpath(self.everything[full_name], dirname(self.page) or '.')}.html#{full_name}"

    def link(self, full_name: str, shown: str) -> str:
        "A link to its reference."
        return f'<a class="name" href="{html.escape(self.address(full_name))}">{shown}</a>'

    def in_block(self, block: re.Match) -> str:
        "A block of code. A name of ours is linked: not an attribute or a keyword of something else, not a variable of that name."
        own = own_variables(html.unescape(re.sub(r"<[^>]+>", "", block[2])))

        def linked(word: re.Match) -> str:
            full_name = "" if word["name"] in own else self.names.get(word["name"], "")
            return word[0] if word["before"] or word["after"] or not full_name else self.link(full_name, word[0])

        return block[1] + WORD.sub(linked, block[2]) + block[3]

    def in_text(self, match: re.Match) -> str:
        "`name`, `name(...)` or `mdprop.module.name` in running text."
        name, rest = match["name"], match["rest"]
        full_name = name if name in self.everything else self.names.get(name)
        if "xref" in match["class"] or not full_name or not (rest == "</span>" or rest.startswith("(")):
            return match[0]
        return f"{match['open']}{self.link(full_name, name)}{rest}"

    def in_types(self, match: re.Match) -> str:
        "The types in a table of parameters."

        def linked(word: re.Match) -> str:
            full_name = self.names.get(word[0], "")
            return self.link(full_name, word[0]) if full_name and word[0][0].isupper() else word[0]

        return re.sub(r'(?<=<span class="pre">)([^<]+)(?=</span>)', lambda part: TYPE.sub(linked, part[1]), match[0])

    def everywhere(self, body: str) -> str:
        "A page with its names linked."
        body = PARAMETERS.sub(self.in_types, body)
        body = BLOCK.sub(self.in_block, body)
        return INLINE.sub(self.in_text, body)


def own_variables(code: str) -> set[str]:
    "Names that code gives to something of its own; none where it is no complete code."
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except SyntaxError:
        return set()
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored | {node.arg for node in nodes if isinstance(node, ast.arg)}


def link_names(app: Sphinx, page: str, _template: str, context: dict[str, Any], _tree: object) -> None:
    "Link the names in the body of a page."
    if "body" in context and page in app.names["pages"]:  # type: ignore[attr-defined]
        known = app.names  # type: ignore[attr-defined]
        context["body"] = Links(page, known["pages"][page], known["everything"]).everywhere(context["body"])


def setup(app: Sphinx) -> dict[str, Any]:
    "Called by Sphinx."
    app.names = json.loads((Path(app.srcdir) / "names.json").read_text(encoding="utf-8"))  # type: ignore[attr-defined]
    app.connect("html-page-context", link_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
