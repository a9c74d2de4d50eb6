"""`python -m bench`: measures, prints, and writes results.json, the plots, and the tables of docs/performance.md."""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from . import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .peers import Peer

DOCS = Path(ROOT) / "docs"
PAGE = DOCS / "performance.md"
RESULTS = "results.json"


def main() -> int:
    for needed in "pidabs", "pidabs.compat":
        try:
            __import__(needed)
        except ImportError:
            print(f"{needed} is not installed here: pip install '.[bench]', in a clone of the repository")
            return 2
    from .measures import MEASURES
    from .peers import PEERS, named

    parser = argparse.ArgumentParser(prog="python -m bench", description="pidabs, side by side with its peers.")
    parser.add_argument("--light", action="store_true", help="everything once, with tiny counts: to see that it works")
    parser.add_argument("--only", action="append", choices=MEASURES, help="this measure; may be repeated")
    parser.add_argument("--peer", action="append", choices=[peer.name for peer in PEERS], help="of these locks only")
    parser.add_argument("--output", type=Path, help="directory (default: docs/bench, if all is measured)")
    parser.add_argument("--render", action="store_true", help="measure nothing: plots and tables of the last results")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that children are ended
    if options.render:
        results = json.loads(((options.output or DOCS / "bench") / RESULTS).read_text(encoding="utf-8"))
    else:
        peers = [named(name) for name in options.peer] if options.peer else PEERS
        results = run(options.light, options.only or list(MEASURES), peers)
    with tempfile.TemporaryDirectory() as scratch:
        failed = results.get("failed")
        partly = not options.render and (options.light or options.only or options.peer or failed)
        write(results, options.output or (Path(scratch) if partly else DOCS / "bench"))
    return 1 if failed else 0


def run(light: bool, names: list[str], peers: Iterable[Peer]) -> dict[str, object]:
    from . import machine
    from .children import BenchError
    from .measures import MEASURES
    from .peers import OLD_FILELOCK, PEERS
    from .session import Session

    began = time.monotonic()
    failed: list[str] = []
    if difference := stale():
        print(f"note: the installed pidabs is measured, and is not that of this checkout: {difference} differs")
    with Session(light, peers) as session:
        described = machine.describe(session.directory)
        packages = sorted({peer.package for peer in PEERS if peer.package})
        described["versions"] = {**machine.versions(packages), "an older filelock": OLD_FILELOCK}
        print(*(f"{key}: {value}" for key, value in described.items()), sep="\n")
        for peer, reason in session.absent.items():
            print(f"without {peer}: {reason}")
        for name in names:
            started = time.monotonic()
            print(f"\n{name}", flush=True)
            try:
                MEASURES[name](session)
            except (BenchError, TimeoutError, subprocess.SubprocessError) as exc:  # the others are worth having
                print(f"  FAILED: {exc}")
                failed.append(name)
            print(f"  ({time.monotonic() - started:.0f} s)")
        described["seconds"] = round(time.monotonic() - began, 1)
        return {
            "light": light,
            "machine": described,
            "absent": sorted(session.absent),
            "failed": failed,
            "goals": [],
            "figures": [asdict(each) for each in session.figures],
        }


def write(results: dict[str, object], output: Path) -> None:
    from .figures import Figure
    from .goals import goals
    from .tables import fill, goal_table

    results = {key: rounded(value) for key, value in results.items()}
    figures = [Figure(**each) for each in results["figures"]]  # type: ignore[attr-defined]
    reached = goals(figures)
    results["goals"] = [rounded({**asdict(goal), "met": goal.met}) for goal in reached]
    print("", *goal_table(reached), sep="\n")
    if results["light"]:
        print("These are of a light run, and say nothing but that it ran.")
    output.mkdir(parents=True, exist_ok=True)
    (output / RESULTS).write_text(as_json(results), encoding="utf-8")
    try:
        from .plots import draw
    except ImportError:
        print("no plots: matplotlib is not installed")
    else:
        draw(figures, output)
    page = fill(PAGE.read_text(encoding="utf-8"), results, figures)
    if output.resolve() == (DOCS / "bench").resolve():
        PAGE.write_text(page, encoding="utf-8")


def as_json(results: dict[str, object]) -> str:
    """One line for each figure, so that two runs can be compared."""
    lines = []
    for key, value in results.items():
        text = "[\n" + ",\n".join(map(json.dumps, value)) + "\n]" if isinstance(value, list) else json.dumps(value)
        lines.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def rounded(value: object) -> object:
    """Five digits that count: more are noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, list):
        return [rounded(each) for each in value]
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return value


def stale() -> str:
    """The first file of the checkout that differs from the installed one."""
    import pidabs

    installed = Path(pidabs.__file__).parent
    for package, place in (Path(ROOT) / "pidabs", Path()), (Path(ROOT) / "compat", Path("compat")):
        for path in sorted(package.rglob("*.py")):
            relative = path.relative_to(package)
            twin = installed / place / relative
            if installed != package and not (twin.exists() and filecmp.cmp(path, twin, shallow=False)):
                return os.path.join(package.name, relative)
    return ""


if __name__ == "__main__":
    sys.exit(main())
