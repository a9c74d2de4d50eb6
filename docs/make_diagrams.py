"""python docs/make_diagrams.py: draws docs/diagrams/*.svg, the pictures of docs/theory.md.

Each sequence is a list of steps below.  A step that our code does names its function; docs/theory.md has a table of the
same numbers and functions, and tests/test_theory.py holds the three together.  The colours follow the reader's light or
dark mode; each picture brings its own background, so it can be read on any page.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

DIRECTORY = Path(__file__).parent / "diagrams"

STYLE = """
text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: #1b1f24; }
text.words { paint-order: stroke; stroke: #ffffff; stroke-width: 5px; stroke-linejoin: round; }
.code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 12px; }
.strong { font-weight: 600; }
.faint { fill: #57606a; font-size: 12px; }
.paper { fill: #ffffff; stroke: #d0d7de; }
.box { fill: #f2f5f8; stroke: #8c959f; }
.kernel { fill: #fff4dc; stroke: #bf8700; }
.lock { fill: #dcf2e1; stroke: #2da44e; stroke-width: 2; }
.dead { fill: #fbe3e1; stroke: #cf222e; }
.line { stroke: #57606a; fill: none; stroke-width: 1.3; }
.life { stroke: #8c959f; stroke-dasharray: 3 4; }
.hold { fill: #2da44e; }
.number { fill: #0969da; }
.digit { fill: #ffffff; font-size: 11px; font-weight: 600; }
.head { fill: #57606a; }
.cross { stroke: #cf222e; stroke-width: 2.5; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  text.words { stroke: #14181d; }
  .faint { fill: #9aa4af; }
  .paper { fill: #14181d; stroke: #3d444d; }
  .box { fill: #20262d; stroke: #6e7681; }
  .kernel { fill: #352b13; stroke: #d29922; }
  .lock { fill: #16351f; stroke: #3fb950; }
  .dead { fill: #431d1b; stroke: #f85149; }
  .line, .life { stroke: #9aa4af; }
  .hold { fill: #3fb950; }
  .number { fill: #4493f8; }
  .digit { fill: #0d1117; }
  .head { fill: #9aa4af; }
  .cross { stroke: #f85149; }
}
"""


class Step(NamedTuple):
    """One line of a sequence.

    `who` acts; `to` is whom an arrow goes to, if it is another.  `does` is our function, `_module.function`; empty
    where the kernel acts, or a person.  `holds`: who holds the lock from here on; "" nobody, None as before.  `end`
    kills.
    """

    who: str
    to: str
    text: str
    does: str = ""
    holds: str | None = None
    end: bool = False


class Sequence(NamedTuple):
    title: str
    actors: tuple[str, ...]
    holds: str
    steps: tuple[Step, ...]


A, B, C, KERNEL = "A, the holder", "B, waits first", "C, waits next", "kernel: the queue"

SEQUENCES = {
    "handoff": Sequence(
        "A lock is taken, waited for, and handed over",
        (A, KERNEL, B),
        "",
        (
            Step(A, KERNEL, "bind, listen", "_queue.bind", A),
            Step(B, KERNEL, "bind: EADDRINUSE", "_queue.bind"),
            Step(B, KERNEL, "connect: enters the queue", "_queue.join"),
            Step(B, KERNEL, "'W', then sleeps", "_queue._take_turn"),
            Step(A, KERNEL, "lets go: accepts the head", "_handover.hand_over"),
            Step(A, B, "'O': do you still want it?", "_handover._ask"),
            Step(B, A, "'A': yes, I run", "_queue.accept_offer"),
            Step(A, B, "'L' and the listener, by SCM_RIGHTS", "_handover._grant", B),
            Step(A, A, "closes its copy", "_handover.hand_over"),
            Step(B, B, "checks it, calls listen", "_queue.receive"),
        ),
    ),
    "holder-killed": Sequence(
        "The holder is killed",
        (A, KERNEL, B, C),
        A,
        (
            Step(A, A, "SIGKILL", end=True),
            Step(KERNEL, KERNEL, "closes its descriptors: the name is free", holds=""),
            Step(KERNEL, B, "end of the connection"),
            Step(KERNEL, C, "end of the connection"),
            Step(C, KERNEL, "bind, listen: whoever is first", "_queue.wait", C),
            Step(B, KERNEL, "bind: EADDRINUSE", "_queue.wait"),
            Step(B, KERNEL, "connect: enters C's queue", "_queue.join"),
        ),
    ),
    "waiter-killed": Sequence(
        "A waiter is killed: in the queue, or with the grant on its way",
        (A, KERNEL, B, C),
        A,
        (
            Step(B, B, "SIGKILL: a dead entry stays", end=True),
            Step(A, KERNEL, "accepts the head, B", "_handover.hand_over"),
            Step(A, A, "'O' fails: next", "_handover._ask"),
            Step(A, KERNEL, "accepts C", "_handover.hand_over"),
            Step(A, C, "'O', 'A', 'L' and the listener", "_handover._grant", C),
            Step(C, C, "SIGKILL, before it has read that", end=True),
            Step(KERNEL, KERNEL, "drops the grant: the name is free", holds=""),
        ),
    ),
    "give-up": Sequence(
        "A waiter gives up, just as it is granted the lock",
        (A, KERNEL, B, C),
        A,
        (
            Step(B, B, "its time is up", "_queue._take_turn"),
            Step(A, B, "'L' and the listener", "_handover._grant", B),
            Step(B, KERNEL, "shutdown: no later grant", "_queue.give_up"),
            Step(B, B, "reads once more: the grant", "_queue.receive"),
            Step(B, B, "after a timeout: keeps it", "_queue._take_turn"),
            Step(B, C, "cancelled: to the next", "_handover.hand_over", C),
        ),
    ),
    "fork": Sequence(
        "The holder forks: alone, and inside across_fork()",
        ("A", "its child", "a child inside across_fork()"),
        "A",
        (
            Step("A", "its child", "fork: a copy of the listener"),
            Step("its child", "its child", "closes its copy", "_descriptors.close_inherited"),
            Step("its child", "A", "'1': go on", "_inherit.in_child"),
            Step("A", "a child inside across_fork()", "fork", "_inherit.prepare"),
            Step(
                "a child inside across_fork()",
                "a child inside across_fork()",
                "listen: is the holder",
                "_ownership._arrive",
                "a child inside across_fork()",
            ),
            Step("a child inside across_fork()", "A", "'1': it is mine", "_inherit.in_child"),
            Step("A", "A", "closes its copy", "_ownership._leave"),
            Step("A", "a child inside across_fork()", "end of the pair: go on", "_inherit.in_parent"),
        ),
    ),
    "barging": Sequence(
        "A newcomer cannot barge in: the name is never free on the way",
        (A, KERNEL, B, "N, a newcomer"),
        A,
        (
            Step(A, KERNEL, "accepts the head, B", "_handover.hand_over"),
            Step("N, a newcomer", KERNEL, "bind: EADDRINUSE", "_queue.bind"),
            Step(A, B, "'O', 'A', 'L' and the listener", "_handover._grant", B),
            Step("N, a newcomer", KERNEL, "connect: last in the queue", "_queue.join"),
            Step(A, KERNEL, "connect: last, too", "_queue.join"),
        ),
    ),
}

WIDTH, ROW, TOP, MARGIN = 760, 34, 80, 20


def text(x: float, y: float, words: str, style: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{style}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, style: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" class="{style}"/>'


def line(x1: float, y1: float, x2: float, y2: float, style: str = "line", arrow: bool = False) -> str:
    end = ' marker-end="url(#arrow)"' if arrow else ""
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="{style}"{end}/>'


def picture(title: str, height: float, parts: list[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
            f'height="{height:g}" role="img" aria-label="{escape(title)}">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            'orient="auto-start-reverse"><path d="M0 0 L8 4 L0 8 z" class="head"/></marker></defs>',
            box(0.5, 0.5, WIDTH - 1, height - 1, "paper"),
            text(MARGIN, 30, title, "strong", "start"),
            *parts,
            "</svg>",
            "",
        ]
    )


def sequence(drawn: Sequence) -> str:
    step_width = (WIDTH - 2 * MARGIN) / len(drawn.actors)
    columns = {actor: MARGIN + step_width * (number + 0.5) for number, actor in enumerate(drawn.actors)}
    bottom = TOP + ROW * (len(drawn.steps) + 0.3)
    parts = [text(WIDTH - MARGIN, 30, "green: holds the lock", "faint", "end")]
    ends = {step.who: number for number, step in enumerate(drawn.steps) if step.end}
    for actor, x in columns.items():
        parts.append(box(x - step_width / 2 + 6, 46, step_width - 12, 28, "kernel" if actor == KERNEL else "box"))
        parts.append(text(x, 65, actor, "strong"))
        parts.append(line(x, 76, x, TOP + ROW * (ends[actor] + 0.5) if actor in ends else bottom, "life"))
    parts += [
        f'<rect x="{columns[actor] - 4:g}" y="{since:g}" width="8" height="{until - since:g}" class="hold"/>'
        for actor, since, until in holding(drawn, bottom)
    ]
    for number, step in enumerate(drawn.steps):
        parts += arrow(step, number, columns, TOP + ROW * (number + 0.5))
    return picture(drawn.title, bottom + 16, parts)


def holding(drawn: Sequence, bottom: float) -> list[tuple[str, float, float]]:
    """Who holds the lock, from where to where."""
    found = []
    holder, since = drawn.holds, 76.0
    for number, step in enumerate(drawn.steps):
        if step.holds is not None:
            y = TOP + ROW * (number + 0.5)
            found.append((holder, since, y))
            holder, since = step.holds, y
    return [one for one in [*found, (holder, since, bottom)] if one[0]]


def arrow(step: Step, number: int, columns: dict[str, float], y: float) -> list[str]:
    x1, x2 = columns[step.who], columns[step.to]
    last = max(columns.values()) == x1
    parts = []
    if step.end:
        parts += [line(x1 - 7, y - 7, x1 + 7, y + 7, "cross"), line(x1 - 7, y + 7, x1 + 7, y - 7, "cross")]
    if x1 != x2:
        gap = 6 if x2 > x1 else -6
        parts.append(line(x1 + gap, y, x2 - gap, y, arrow=True))
        parts.append(text((x1 + x2) / 2, y - 5, step.text, "words"))
    else:
        parts.append(text(x1 - 22 if last else x1 + 22, y + 5, step.text, "words", "end" if last else "start"))
    if not step.end:
        parts.append(f'<circle cx="{x1:g}" cy="{y:g}" r="8.5" class="number"/>')
        parts.append(text(x1, y + 4, str(number + 1), "digit"))
    else:
        parts.append(f'<circle cx="{x1 - 20 if not last else x1 + 20:g}" cy="{y:g}" r="8.5" class="number"/>')
        parts.append(text(x1 - 20 if not last else x1 + 20, y + 4, str(number + 1), "digit"))
    return parts


def queue() -> str:
    """The lock itself: who has what open, and where the queue is."""
    title = "A held lock, three processes that wait, and one that only asked"
    parts = [
        box(20, 50, 190, 190, "box"),
        text(115, 72, "A, the holder", "strong"),
        box(38, 88, 154, 54, "lock"),
        text(115, 110, "the listener", "strong"),
        text(115, 129, "is the lock", "faint"),
        text(115, 170, "nothing runs for the", "faint"),
        text(115, 187, "queue: no thread, no", "faint"),
        text(115, 204, "timer, no file", "faint"),
        box(240, 50, 280, 190, "kernel"),
        text(380, 72, "kernel", "strong"),
        text(380, 94, r"name \0pidabs:nightly-backup", "code"),
        text(380, 122, "a dead entry stays of who was killed, gave", "faint"),
        text(380, 139, "up, or only asked who holds the lock", "faint"),
        text(380, 166, "the backlog, in the order of connect", "strong"),
        line(194, 115, 238, 115, arrow=True),
    ]
    for number, who in enumerate(["B", "dead", "C", "D"]):
        x = 256 + number * 64
        parts += [
            box(x, 178, 56, 46, "dead" if who == "dead" else "box"),
            text(x + 28, 198, str(number + 1), "strong"),
            text(x + 28, 215, who, "faint"),
        ]
    for number, (who, place) in enumerate([("B", 0), ("C", 2), ("D", 3)]):
        y, low, x = 50 + number * 66, 256 + number * 8, 284 + place * 64
        parts += [
            box(560, y, 180, 58, "box"),
            text(650, y + 23, f"{who}, a waiter", "strong"),
            text(650, y + 43, "sleeps in poll()", "faint"),
            f'<path d="M560 {y + 29} C 535 {y + 29}, 545 {low}, 510 {low} L {x + 10} {low} Q {x} {low} {x} {low - 10} '
            f'L {x} 226" class="line" marker-end="url(#arrow)"/>',
        ]
    return picture(title, 290, parts)


def draw() -> dict[str, str]:
    """File name -> its text."""
    return {"queue.svg": queue(), **{f"{name}.svg": sequence(drawn) for name, drawn in SEQUENCES.items()}}


def main() -> int:
    DIRECTORY.mkdir(exist_ok=True)
    for name, content in draw().items():
        (DIRECTORY / name).write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
