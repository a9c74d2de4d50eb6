"""docs/demo.svg, the README's picture, shows what `pidabs demo` prints; so does one that is made now."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "demo.svg"
SVG = "{http://www.w3.org/2000/svg}"
COLUMN, LINE = 8, 18  # docs/make_recording.py's WIDTH and HEIGHT


def screen(picture: Path) -> list[str]:
    """The lines in it."""
    lines: dict[int, str] = {}
    for text in ElementTree.parse(picture).iter(f"{SVG}text"):
        line = ""
        for words in text:
            line = line.ljust(int(words.attrib["x"]) // COLUMN) + (words.text or "")
        lines[int(text.attrib["y"]) // LINE] = line
    return [lines.get(number, "") for number in range(max(lines) + 1)]


def steady(lines: list[str]) -> list[str]:
    """Without what differs from run to run: the numbers, and the name of the directory."""
    return [re.sub(r"\d+(\.\d+)?", "0", re.sub(r"/tmp/pidabs-demo-\w+/", "/tmp/", line)) for line in lines]


def printed() -> list[str]:
    environment = {**os.environ, "TMPDIR": "/tmp"}
    done = subprocess.run(
        [sys.executable, "-m", "pidabs", "demo"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return ["$ pidabs demo", *done.stdout.splitlines()]


def test_picture_shows_what_the_demo_prints(tmp_path: Path) -> None:
    made = tmp_path / "demo.svg"
    with made.open("w") as file:
        subprocess.run([sys.executable, ROOT / "docs" / "make_recording.py"], stdout=file, timeout=60, check=True)
    expected = steady(printed())
    assert expected == steady(screen(made))
    assert expected == steady(screen(PICTURE)), "made again by: python docs/make_recording.py >docs/demo.svg"


def test_picture_knows_nothing_of_where_it_was_made() -> None:
    text = "\n".join(screen(PICTURE))
    assert set(re.findall(r"/\w+/", text)) == {"/tmp/"}


def test_picture_needs_nothing_from_elsewhere() -> None:
    """GitHub and PyPI show no SVG that runs scripts or loads anything."""
    assert re.findall(r"https?://[^\"]*|<script|<image|@import|url\(", PICTURE.read_text()) == [
        "http://www.w3.org/2000/svg"
    ]
