"""pidabs beside what a user would pick instead, measured in one run: `python -m bench`, from a checkout.

General layout, each file importing only what stands above it:

    figures           what was measured: medians, spreads, ratios
    machine           where it was measured, and with which versions
    peers             the locks, behind one interface
    children          forked processes that obey, fall asleep, and never outlive us
    killing           holders killed, by an interpreter that has loaded nothing but their lock
    crowd             many processes at one lock, forked by such an interpreter
    session           what one run has in hand; subjects take turns
    measure_*         one file for each kind of measure
    measures          all of them, by name
    goals             what was to be reached, and whether it was
    tables            Markdown for docs/performance.md
    plots             SVG
    interop           what `interop` costs, by a command of its own

It is the installed pidabs that is measured, so that pidabs.compat is there and nothing of the checkout is in its place.
"""

from __future__ import annotations

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

sys.path[:] = [path for path in sys.path if os.path.abspath(path or os.curdir) != ROOT]
