"""The model of the protocol: it holds, each broken rule is found, and it speaks of functions that exist.

Needs spin and a C compiler; under tox, only in the environment `model`.
"""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from pages import DOCS, ROOT, functions, load

MODEL = (ROOT / "model" / "handoff.pml").read_text(encoding="utf-8")
DOC = (DOCS / "model.md").read_text(encoding="utf-8")


check = load(ROOT / "model" / "check.py")
CASES = [*check.CONFIGURATIONS, *check.MUTANTS, *check.LIMITS]
runs_spin = pytest.mark.skipif(os.environ.get("TOX_ENV_NAME", "model") != "model", reason="tox -e model runs it")


def steps_of_model() -> dict[str, set[str]]:
    """Each rule that says which functions do it, and these, as `_module.function`."""
    rules = re.findall(r"^(?:inline|active proctype) (\w+)\(.*?\) \{ /\* (.*?) \*/", MODEL, re.MULTILINE)
    named = {rule: set(re.findall(r"\b_[a-z]+\.\w+", comment)) for rule, comment in rules}
    return {rule: functions for rule, functions in named.items() if functions}


def steps_of_doc() -> dict[str, set[str]]:
    rows = re.findall(r"^\| `(\w+)` \| (`_.*?) \|", DOC, re.MULTILINE)
    return {rule: set(re.findall(r"`(_[a-z]+\.\w+)`", cell)) for rule, cell in rows}


@runs_spin
@pytest.mark.parametrize("case", [case for case in CASES if not case.long], ids=lambda case: case.name)
def test_model(case: Any) -> None:
    outcome = check.run(case)
    assert outcome.violated == case.violates, "\n".join(outcome.trace)


@runs_spin
def test_each_rule_is_taken() -> None:
    """A rule that can never be taken would be checked in vain."""
    assert check.never_taken("N=3 CRASHES=1 STOPS=1 GIVEUPS=1") == []
    assert check.never_taken("N=3 MOVES=1 CRASHES=1 STOPS=1 FORKS=1 GIVEUPS=1") == []


def test_each_switch_of_the_model_is_a_case() -> None:
    switches = set(re.findall(r"\b(?:BREAK|STRICT)_\w+", MODEL))
    assert switches == set(re.findall(r"\b(?:BREAK|STRICT)_\w+", " ".join(case.defines for case in CASES)))


def test_each_case_is_documented() -> None:
    assert re.findall(r"^\| `([a-z0-9-]+)` \| (?!`_)", DOC, re.MULTILINE) == [case.name for case in CASES]


def test_the_doc_names_the_functions_that_the_model_names() -> None:
    assert steps_of_doc() == steps_of_model()
    assert len(steps_of_model()) > 20


@pytest.mark.parametrize("rule", sorted(steps_of_model()))
def test_functions_that_do_a_step_exist(rule: str) -> None:
    for function in steps_of_model()[rule]:
        module, name = function.split(".")
        assert name in functions(module), function
