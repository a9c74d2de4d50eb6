"""A plugin of coverage.py: without it, what the children of `pidabs doctor` run is not counted.

The doctor kills each child that has answered, and the child is killed while it writes down which lines it ran.  In a
measured process it waits for a moment first, for the child to end by itself.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

_PATIENCE = 0.25  # seconds; a child that waits for its orders takes all of them


def coverage_init(registry: Any, options: Any) -> None:
    kill = os.kill

    def patient_kill(pid: int, number: int) -> None:
        caller, callers_caller = sys._getframe(1), sys._getframe(1).f_back
        if number == signal.SIGKILL and caller.f_globals.get("__name__") == "pidabs.cli._doctor_children":
            end = time.monotonic() + _PATIENCE
            while (
                callers_caller is not None
                and callers_caller.f_code.co_name == "end"
                and time.monotonic() < end
                and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None
            ):
                time.sleep(0.005)
        kill(pid, number)

    os.kill = patient_kill
