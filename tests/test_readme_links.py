"""Links of the README and its kin lead to files that are there; on PyPI, the README's lead to this version's tag."""

from __future__ import annotations

import re
from importlib.metadata import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(path.name for path in ROOT.glob("*.md"))
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")
HOME = "https://github.com/pidabs/pidabs"
RAW = "https://raw.githubusercontent.com/pidabs/pidabs"


def links(text: str) -> list[tuple[bool, str]]:
    """Whether each is an image, and where it leads."""
    return [(bool(image), target) for image, target in LINK.findall(text)]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for _, target in links((ROOT / page).read_text(encoding="utf-8")):
        if "://" not in target:
            assert (ROOT / target.partition("#")[0]).exists(), target


def test_links_on_pypi() -> None:
    described = metadata("pidabs")
    assert described["Description-Content-Type"] == "text/markdown"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tag = f"v{described['Version']}"
    expected = [
        (image, target if "://" in target else f"{RAW}/{tag}/{target}" if image else f"{HOME}/blob/{tag}/{target}")
        for image, target in links(readme)
    ]
    assert links(described.get_payload()) == expected
    assert sum(image for image, _ in expected) == 2
