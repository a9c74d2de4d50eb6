"""The site of these pages: `tox -e docs` builds it into docs/_build.

pidabs is imported as it is installed: pidabs.compat is part of it only there.  The pages are read on the code host,
too, so their links are those of the tree, and what lies outside docs/ is linked as ../examples/lock.c.  Here such a
link is a download, or, for a file that has a page of its own, leads to that page.
"""

from __future__ import annotations

import os
import re
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING

from pygments.lexers.special import TextLexer

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "pidabs"
author = copyright = "The pidabs developers"
version = release = version_of("pidabs")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pidabs {version}"
templates_path: list[str] = []

myst_heading_anchors = 4

# The docstrings are prose, with `code` in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_display_short_literal_types = True
python_maximum_signature_line_length = 100
# References out of this project, to Python's and the originals' classes above all, would need their inventories from
# the network.  Its own have to resolve; only what is named in annotations alone has no entry.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!pidabs\b).*"),
    (r"py:.*", r"pidabs\.(.*\.)?_\w+(\..*)?"),
]

# Prompts and what a program answers stay where they are.
copybutton_prompt_text = "$ "
copybutton_copy_empty_lines = False

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    ROOT / "README.md": "overview.md",
    ROOT / "CHANGELOG.md": "changelog.md",
    ROOT / "CONTRIBUTING.md": "contributing.md",
    ROOT / "RELEASING.md": "releasing.md",
    ROOT / "SECURITY.md": "security.md",
    ROOT / "examples": "examples.md",
    ROOT / "examples" / "README.md": "examples.md",
}
"""What lies outside docs/, and the page that shows it."""

_LINK = re.compile(r"(?<=\]\()(?!\w+:|[/#<])([^()\s#]+)(#[^()\s]+)?(?=\))")


def lead(text: str, directory: Path, page: Path) -> str:
    """The links of a text that was written in `directory` and is shown in `page`."""

    def of_page(match: re.Match[str]) -> str:
        target, anchor = match.groups()
        path = Path(os.path.normpath(directory / target))
        if path in PAGES:
            path = ROOT / "docs" / PAGES[path]
        elif not path.is_relative_to(ROOT / "docs"):
            anchor = None  # a line, or a heading, of a file that is downloaded
        return os.path.relpath(path, page.parent) + (anchor or "")

    return _LINK.sub(of_page, text)


def on_page(app: Sphinx, docname: str, content: list[str]) -> None:
    page = Path(app.env.doc2path(docname))
    content[0] = lead(content[0], page.parent, page)


def on_include(app: Sphinx, included: Path, parent: str, content: list[str]) -> None:
    page = Path(app.env.doc2path(app.env.docname))
    content[0] = lead(content[0], (Path(app.srcdir) / included).resolve().parent, page)


def setup(app: Sphinx) -> None:
    app.connect("source-read", on_page)
    app.connect("include-read", on_include)
    app.add_lexer("cron", TextLexer)  # Pygments has none, and warns
