"""What a forked child of the command leaves open."""

from __future__ import annotations

import os

_MOST_DESCRIPTORS = 65536
"""Of those beyond, which hardly anybody has, some may stay open; the limit itself may be a billion."""


def close_all_but(*keep: int) -> None:
    """Without a look at /proc, which need not be there."""
    start = 0
    for fd in sorted(keep):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, _MOST_DESCRIPTORS)
