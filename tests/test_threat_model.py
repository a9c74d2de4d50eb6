"""docs/threat-model.md: the tests that it names exist, and the attacks that we test are on it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "threat-model.md").read_text(encoding="utf-8")
DEFINED = {
    path.name: set(re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    for path in TESTS.glob("test_*.py")
}
NAMED = sorted(set(re.findall(r"`(test_\w+)`", PAGE)))

NOT_ATTACKS = {
    "test_another_user_is_told_at_least_whose_squatter_it_is",
    "test_stranger_that_plants_all_the_time",
}
"""Of tests/test_hostile.py: what is beside one that the page names."""


@pytest.mark.parametrize("name", NAMED)
def test_named_test_exists(name: str) -> None:
    assert any(name in defined for defined in DEFINED.values())


def test_each_attack_is_on_the_page() -> None:
    assert DEFINED["test_hostile.py"] - NOT_ATTACKS <= set(NAMED)


def test_each_thing_worth_protecting_is_somewhere_attacked() -> None:
    assets = re.findall(r"^\| ([A-Z]) \| \*\*", PAGE, re.MULTILINE)
    assert len(assets) == len(set(assets)) > 5
    for letter in assets:
        assert re.search(rf"\| {letter}\b|\| \S.* \| {letter}[:, ]", PAGE.partition("## Who")[2]), letter
