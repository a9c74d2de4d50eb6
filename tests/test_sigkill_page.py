"""docs/sigkill.md: its script runs, and shows the order of events that the page tells."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
SCRIPT = DOCS / "when_free.py"
PAGE = (DOCS / "sigkill.md").read_text(encoding="utf-8")
COUNT = 10
ROW = re.compile(
    r"^(\S.*?) {2,}([\d.]+) +([\d.]+) {3}(\d+) of (\d+) {3}(\d+) of (\d+) {3}(\d+) of (\d+)$", re.MULTILINE
)

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="this Python was built on an old system")


def rows(text: str) -> dict[str, tuple[int, int, int, int]]:
    """What noticed it -> how often the name was free, the pidfd readable and the process reaped, and of how many."""
    return {row[0]: (int(row[3]), int(row[5]), int(row[7]), int(row[4])) for row in ROW.findall(text)}


@pytest.mark.parametrize("heap", [0, 16])
def test_the_name_is_free_first(heap: int) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--count", str(COUNT), "--heap", str(heap)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = rows(done.stdout)
    by_name, by_pidfd, by_waitpid, copied = found.values()
    assert (by_name[0], by_name[3]) == (COUNT, COUNT)
    assert by_pidfd == by_waitpid == (COUNT,) * 4
    assert copied == (0, COUNT, COUNT, COUNT)
    assert list(found) == list(rows(PAGE))


def test_the_output_on_the_page_says_the_same() -> None:
    by_name, by_pidfd, by_waitpid, copied = rows(PAGE).values()
    count = by_name[3]
    assert by_name[0] == count > by_name[1]
    assert by_pidfd == by_waitpid == (count,) * 4
    assert copied[0] == 0
    assert f"{count - by_name[1]} times of {count} before" in " ".join(PAGE.split())


def test_tests_that_the_page_names_exist() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    for name in set(re.findall(r"`(test_\w+)`", PAGE)):
        assert f"def {name}(" in source, name
