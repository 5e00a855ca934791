"""Sphinx's settings for the site. `make docs` builds it: build.py gathers the pages first."""

import sys
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

_settings = ConfigParser(delimiters=["="], interpolation=None)
_settings.read(HERE.parent / "settings.ini", encoding="utf-8")

project = "mdprop"
author = _settings["DEFAULT"]["author"]
version = release = _settings["DEFAULT"]["version"]
copyright = author  # no year: the same source gives the same site

extensions = ["myst_nb", "sphinx.ext.mathjax", "name_links"]
nitpicky = True
nitpick_ignore_regex = [("py:(?!obj).*", ".*"), ("py:obj", r"(?!mdprop\.).*")]  # types in signatures, most of them of other libraries

nb_execution_mode = "off"  # the notebooks run in `make test`; the site shows what they keep
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
add_module_names = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

mathjax_path = "mathjax/tex-svg.js"  # a copy of our own: the site asks no other server for anything
mathjax3_config = {"options": {"enableMenu": False}}

html_theme = "furo"
html_title = "mdprop"
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_search_summary = False  # a page that is opened as a file may not read another one
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072b2", "color-brand-content": "#0072b2"},
    "dark_css_variables": {"color-brand-primary": "#56b4e9", "color-brand-content": "#56b4e9"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
