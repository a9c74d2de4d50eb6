"""Attempts to make the lock fail, from a checkout with `pip install -e '.[dev]'`:

    python -m stress storm --seconds 600      workers of every kind, killed, stopped and frozen at random
    python -m stress storm --kills 100000     the same, until so many have been killed
    python -m stress signals --count 50000    exceptions at random moments, and at every line

Each prints a table, or with --json one object, and exits with 1 if anything went wrong.

    arena      the memory that the workers share, and the detector of two owners
    clients    how a kind of lock is taken: timeouts, questions, cancellations
    workers    what a worker process does with it
    forking    workers that fork, and workers that exec
    freezer    cgroup v2's freezer, where it may be used
    storm      the tormentor
    order      waiters that are started one after the other, and have to be served so
    signals    exceptions out of signal handlers and tracing functions
    figures    what is counted, what is wrong, and how it is shown
"""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# `python -m` puts the working directory first: there the checkout's pidabs would hide the installed one, which alone
# has pidabs.compat.
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != ROOT]
sys.path.append(os.path.join(ROOT, "tests"))  # its helpers are used here, too
