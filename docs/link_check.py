"""Check the finished site: every link leads somewhere, and no page asks another server for anything."""

import re
from html.parser import HTMLParser
from pathlib import Path
from posixpath import dirname, join, normpath
from urllib.parse import unquote, urlsplit

LOADS = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src"), ("video", "src")}  # fetched without a click


class Page(HTMLParser):
    "The addresses on a page, and the places on it that can be linked to."

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.addresses: list[tuple[str, bool]] = []  # address, whether it is fetched without a click
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        "Called for every tag."
        for name, value in attributes:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value or "")
            elif name in ("href", "src") and value is not None and not (tag == "link" and dict(attributes).get("rel") == "canonical"):
                self.addresses.append((value, (tag, name) in LOADS))


def broken_links(site: Path) -> list[str]:
    "What is wrong with the links of a folder of pages, one line each."
    pages = {path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for name, page in pages.items():
        for address, fetched in page.addresses:
            parts = urlsplit(address)
            if parts.scheme in ("http", "https") or parts.netloc:
                found += [f"{name}: fetches {address} from another server"] if fetched else []
                continue
            if parts.scheme in ("data", "mailto", "javascript"):
                continue
            target = normpath(join(dirname(name), unquote(parts.path))) if parts.path else name
            if not (site / target).is_file():
                found.append(f"{name}: {address} leads nowhere")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{name}: {address}: there is no such place on that page")
    for path in sorted(site.rglob("*.css")):
        addresses = re.findall(r"url\([\"']?(https?:[^)\"']+)", path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(site).as_posix()}: fetches {address} from another server" for address in addresses]
    return sorted(set(found))
