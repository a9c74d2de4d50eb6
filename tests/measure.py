"""Run the tests, and count which lines and branches of pidabs they run, those of all child processes included.

    tox -e coverage [-- PYTEST'S ARGUMENTS]

What coverage.py needs beyond pyproject.toml: a directory that children of any uid may write to, and a plugin for the
doctor's (measured/patience.py), which children find whatever their PYTHONPATH is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).parent

LEFT_OUT = ("storm", "interop_storm", "model", "filelock_clients")
"""They measure other programs, or none; tox's other environments run them."""

TRACED = (
    "exception_at_every_line or exception_at_opcodes or second_exception_during_the_tidy_up or raises_at_any_time or "
    "raises_during_a_fork or sweep_of_one_thread"
)
"""Of test_exceptions.py, what replaces coverage.py's tracing, or is a matter of microseconds."""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="pidabs-coverage-") as directory:
        os.chmod(directory, 0o1777)
        environment = {
            **os.environ,
            "COVERAGE_FILE": f"{directory}/data",
        }
        # Before a1_coverage.pth, by which coverage.py begins.
        Path(sysconfig.get_path("purelib"), "a0_patience.pth").write_text(f"{HERE / 'measured'}\n", encoding="utf-8")

        def coverage(*arguments: str) -> int:
            return subprocess.run(
                [sys.executable, "-m", "coverage", *arguments], env=environment, check=False
            ).returncode

        ignored = (f"--ignore=tests/test_{name}.py" for name in LEFT_OUT)
        # Not `-m pytest`, which would import the checkout's pidabs, without pidabs.compat.
        pytest = str(Path(sys.executable).with_name("pytest"))
        failed = coverage("run", pytest, "-k", f"not ({TRACED})", *ignored, *sys.argv[1:])
        coverage("combine", "--quiet")
        return coverage("report") or failed


if __name__ == "__main__":
    sys.exit(main())
