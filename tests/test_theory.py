"""docs/theory.md: its pictures are what the script draws, and its steps name functions that exist."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from pages import DOCS, functions, load

PAGE = (DOCS / "theory.md").read_text(encoding="utf-8")
SVG = "{http://www.w3.org/2000/svg}"


diagrams = load(DOCS / "make_diagrams.py")
DRAWN: dict[str, str] = diagrams.draw()


def steps_of_page(name: str) -> dict[int, str]:
    _, _, rest = PAGE.partition(f"<!-- steps: {name} -->\n")
    table, _, _ = rest.partition("\n\n")
    return {
        int(number): function
        for number, function in re.findall(r"^\| (\d+) \| `(\w+\.\w+)` \| \S", table, re.MULTILINE)
    }


@pytest.mark.parametrize("name", DRAWN)
def test_the_picture_is_what_the_script_draws(name: str) -> None:
    assert (DOCS / "diagrams" / name).read_text(encoding="utf-8") == DRAWN[name], "run python docs/make_diagrams.py"


def test_no_picture_is_left_over_and_each_is_shown() -> None:
    assert {path.name for path in (DOCS / "diagrams").iterdir()} == set(DRAWN)
    assert set(re.findall(r"!\[.+?\]\(diagrams/(.+?)\)", PAGE)) == set(DRAWN)


@pytest.mark.parametrize("name", DRAWN)
def test_the_picture_can_be_read_by_day_and_by_night(name: str) -> None:
    """Well-formed, with a background of its own, and with another colour in dark mode for each class that has one."""
    root = ElementTree.fromstring(DRAWN[name])
    assert root.find(f"{SVG}title") is not None
    first = root.find(f"{SVG}rect")
    assert first is not None
    assert first.get("class") == "paper"
    day, _, night = diagrams.STYLE.partition("@media (prefers-color-scheme: dark)")
    used = {style for element in root.iter() for style in element.get("class", "").split()}
    for style in used:
        rule = re.search(rf"\.{style}\b[^{{]*\{{([^}}]*)\}}", day)
        assert rule is not None, style
        if "#" in rule[1]:
            assert re.search(rf"\.{style}\b", night), style


@pytest.mark.parametrize("name", diagrams.SEQUENCES)
def test_the_page_names_the_functions_that_the_picture_shows(name: str) -> None:
    steps = diagrams.SEQUENCES[name].steps
    drawn = {number: step.does for number, step in enumerate(steps, 1) if step.does}
    assert steps_of_page(name) == drawn
    assert len(drawn) > 2


@pytest.mark.parametrize("function", sorted(set(re.findall(r"`(_[a-z]+\.\w+)`", PAGE))))
def test_functions_that_the_page_names_exist(function: str) -> None:
    module, name = function.split(".")
    assert name in functions(module), function
