"""Record `pidabs demo` in a terminal of its own, as a moving picture: python docs/make_recording.py >docs/demo.svg

- What is shown is what the demo says, line by line; tests/test_recording.py compares them.
- It is played slowly enough to be read: a line takes PACE seconds at least, and a hundredth of that in the demo.
- The picture has a ground of its own, so that it can be read on a light page and on a dark one.  Where nothing moves,
  because the reader wants it so or his viewer cannot, it shows the first scenes.
"""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from html import escape
from itertools import groupby
from time import monotonic

from rich.style import Style
from rich.text import Text

COMMAND = "pidabs demo"
PACE, SCENE, LAST = 0.6, 1.2, 5.0  # seconds: after a line, before a scene, at the end
ROWS = 20  # of the window: the first two scenes
WIDTH, HEIGHT, SIZE = 8.0, 18, 13.2  # of a character, of a line, of the font
PAD, BAR = 16, 30
INK = {"red": "#ff7b72", "green": "#7ee787", "bold": "#ffffff"}
COLOURS = {1: "red", 2: "green"}  # by their numbers in a terminal
WORDS = re.compile(r"\S+(?: \S+)*")
DEADLINE = 60.0

STYLE = """\
.window {{ fill: #0d1117; stroke: #57606a; }}
text {{ fill: #c9d1d9; font: {size}px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
{inks}
.yet {{ fill: #0d1117; visibility: hidden; }}
@media (prefers-reduced-motion: no-preference) {{
  .yet {{ visibility: visible; animation: yet {seconds:.1f}s step-end infinite; }}
  .text {{ animation: scroll {seconds:.1f}s step-end infinite; }}
}}
@keyframes yet {{ {yet} }}
@keyframes scroll {{ {scroll} }}
"""


def record() -> list[tuple[float, str]]:
    """The demo's lines, with their escapes, and when each came, in seconds."""
    ours, theirs = pty.openpty()
    began = monotonic()
    # /tmp, whatever it is here: its name is shown.
    environment = {**os.environ, "TERM": "xterm-256color", "TMPDIR": "/tmp"}
    for unwanted in "NO_COLOR", "PIDABS_SCOPE":
        environment.pop(unwanted, None)
    command = [sys.executable, "-m", *COMMAND.split()]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        lines, rest = [], b""
        while data := _read(ours, began + DEADLINE - monotonic()):
            *whole, rest = (rest + data).split(b"\n")
            lines += [(monotonic() - began, line.decode().rstrip("\r")) for line in whole]
        os.close(ours)
    if process.returncode or rest:
        sys.exit(f"the demo failed, with {process.returncode}:\n" + "\n".join(line for _, line in lines))
    return lines


def _read(terminal: int, seconds: float) -> bytes:
    if not select.select([terminal], [], [], max(0.0, seconds))[0]:
        sys.exit(f"the demo takes longer than {DEADLINE:g} s")
    try:
        return os.read(terminal, 4096)
    except OSError:  # nobody has its other end any more
        return b""


def picture(lines: list[tuple[float, str]]) -> str:
    """The lines as SVG."""
    texts = [Text(f"$ {COMMAND}", Style(bold=True)), *(Text.from_ansi(line) for _, line in lines)]
    ends, before = [SCENE], 0.0  # when the next line is to be seen
    for (came, _), text in zip(lines, texts[1:], strict=True):
        ends.append(ends[-1] + max(came - before, PACE if text.plain else SCENE))
        before = came
    seconds = ends[-1] + LAST
    shown = range(1, len(texts) + 1)
    begins = [0.0, *ends[:-1]]
    width = PAD * 2 + WIDTH * max(len(text.plain) for text in texts)
    height = PAD * 2 + BAR + HEIGHT * ROWS
    style = STYLE.format(
        size=SIZE,
        inks="\n".join(f".{name} {{ fill: {ink}; }}" for name, ink in INK.items()),
        seconds=seconds,
        yet=_frames(begins, seconds, [count * HEIGHT for count in shown]),
        scroll=_frames(begins, seconds, [-max(0, count - ROWS) * HEIGHT for count in shown]),
    )
    rows = "\n".join(row for number, text in enumerate(texts) for row in _row(number, text))
    hidden = f'<rect class="yet" y="-{HEIGHT * 0.75:g}" width="100%" height="{HEIGHT * (len(texts) + ROWS)}"/>'
    dots = "".join(f'<circle cx="{20 + 18 * at}" cy="{BAR / 2 + 3:g}" r="5" fill="#57606a"/>' for at in range(3))
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" \
role="img" aria-label="A terminal: {COMMAND}">
<style>
{style}</style>
<rect class="window" x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1:g}" rx="8"/>
{dots}
<svg x="{PAD}" y="{PAD + BAR}" width="{width - 2 * PAD:g}" height="{HEIGHT * ROWS}">
<g transform="translate(0 {HEIGHT * 0.75:g})"><g class="text">
{rows}
{hidden}
</g></g>
</svg>
</svg>
"""


def _frames(begins: list[float], seconds: float, shifts: list[int]) -> str:
    """Keyframes: from each moment on, so many pixels down."""
    return " ".join(
        f"{100 * begin / seconds:.2f}% {{ transform: translateY({shift}px); }}"
        for begin, shift in zip(begins, shifts, strict=True)
    )


def _row(number: int, text: Text) -> list[str]:
    """Words of one style, at their own column: no two fonts are equally wide, and spaces in a row are lost in SVG."""
    styles = [_ink(text.style)] * len(text.plain)
    for span in text.spans:
        styles[span.start : span.end] = [_ink(span.style)] * (span.end - span.start)
    runs = []
    for ink, group in groupby(range(len(styles)), key=styles.__getitem__):
        columns = list(group)
        for words in WORDS.finditer(text.plain, columns[0], columns[-1] + 1):
            place = f'x="{words.start() * WIDTH:g}" textLength="{len(words[0]) * WIDTH:g}"'
            dress = f' class="{ink}"' if ink else ""
            runs.append(f"<tspan {place}{dress}>{escape(words[0], quote=False)}</tspan>")
    return [f'<text y="{number * HEIGHT}">{"".join(runs)}</text>'] if runs else []


def _ink(style: Style | str) -> str:
    if isinstance(style, str):
        return ""
    if style.color is not None and style.color.number is not None:
        return COLOURS[style.color.number]
    return "bold" if style.bold else ""


if __name__ == "__main__":
    sys.stdout.write(picture(record()))
