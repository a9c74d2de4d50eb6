"""docs/performance.md and the plots say what docs/bench/results.json says.

That the benchmark runs is shown by `tox -e bench`; what it leaves out, here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

FILLED_AGAIN = """
import json
from bench.__main__ import DOCS, PAGE, RESULTS
from bench.figures import Figure
from bench.tables import fill
results = json.loads((DOCS / "bench" / RESULTS).read_text())
print(fill(PAGE.read_text(), results, [Figure(**each) for each in results["figures"]]), end="")
"""


def test_tables_are_made_of_the_results() -> None:
    command = [sys.executable, "-c", FILLED_AGAIN]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


def test_plots_are_made_of_the_results(tmp_path: Path) -> None:
    """Every word and number in them; where a line goes is matplotlib's business."""
    plots = sorted((ROOT / "docs" / "bench").glob("*.svg"))
    shutil.copy(ROOT / "docs" / "bench" / "results.json", tmp_path)
    command = [sys.executable, "-m", "bench", "--render", "--output", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True, timeout=60)
    assert [path.name for path in plots] == sorted(path.name for path in tmp_path.glob("*.svg"))
    for plot in plots:
        assert words_of(plot) == words_of(tmp_path / plot.name), plot


def words_of(plot: Path) -> list[str]:
    words = re.findall(r"<text [^>]*>([^<]*)</text>", plot.read_text(encoding="utf-8"))
    assert words
    return words


def test_what_interop_costs_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.interop", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    for kind in ("PIDLockFile", "FileLock"):
        assert re.search(rf"^{kind} .* times ours, .* times the original's$", done.stdout, re.MULTILINE)


HOLDERS_THAT_FAIL = """
from bench.children import BenchError
from bench.measure_death import Killer
from bench.peers import FLOCK
from bench.session import Session
with Session(True, [FLOCK]) as session:
    killer = Killer(session, FLOCK)
    for _ in range(2):
        try:
            killer.times("not a number")
        except BenchError:
            print("failed")
        killer._process.wait(60)
    killer.close()
"""


def test_a_measure_whose_interpreter_ends_fails_and_not_the_run() -> None:
    """The other measures are worth having."""
    command = [sys.executable, "-c", HOLDERS_THAT_FAIL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout) == (0, "failed\n" * 2), done.stderr


def test_results_are_of_a_whole_run() -> None:
    assert '"light": false' in (ROOT / "docs" / "bench" / "results.json").read_text(encoding="utf-8")
