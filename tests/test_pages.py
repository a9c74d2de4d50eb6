"""The tutorial, the recipes and the questions: what they show is typed and compared, page by page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import DOCS, SCRIPT, Reader, Root, blocks
from support import in_namespace, needs

PAGES = ["tutorial", "faq", "why", "errors", *sorted(f"howto/{path.stem}" for path in (DOCS / "howto").glob("*.md"))]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.close()


@needs("ss", "flock", "unshare")
@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, reader: Reader) -> None:
    path = DOCS / f"{page}.md"
    if "unshare" in path.read_text(encoding="utf-8"):
        in_namespace("--map-root-user", "--net", "--pid", "--fork")  # or skip
    reader.read(path)


def test_the_crontab(tmp_path: Path) -> None:
    root = Root(tmp_path)
    (crontab,) = blocks((DOCS / "howto" / "cron.md").read_text(), "cron")
    commands = [re.sub(r"^(\S+ +){5}", "", line) for line in crontab.splitlines()]
    assert len(commands) == 2
    for command in commands:
        assert SCRIPT.name == command.split()[0]
        program = root.program(command.split()[-1], "#!/bin/sh\necho works\n")
        done = root.shell(command, PIDABS_SCOPE=program.name)
        assert (done.returncode, done.stdout, done.stderr) == (0, "works\n", "")
