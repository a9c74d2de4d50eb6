"""The tutorial, the recipes and the questions: what they show is typed and compared, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import DOCS, Reader
from support import in_namespace

PAGES = ["tutorial", "faq", "why", "errors", *sorted(f"howto/{path.stem}" for path in (DOCS / "howto").glob("*.md"))]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.close()


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, reader: Reader) -> None:
    path = DOCS / f"{page}.md"
    if "unshare" in path.read_text(encoding="utf-8"):
        in_namespace("--map-root-user", "--net", "--pid", "--fork")  # or skip
    reader.read(path)
