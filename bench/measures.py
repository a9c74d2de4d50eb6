"""All of them, by name, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Callable

from . import (
    measure_contention,
    measure_death,
    measure_growth,
    measure_handoff,
    measure_start,
    measure_uncontended,
    measure_waiting,
)
from .session import Session

MEASURES: dict[str, Callable[[Session], None]] = {
    measure_start.IMPORT: measure_start.imports,
    measure_uncontended.NAME: measure_uncontended.measure,
    measure_handoff.NAME: measure_handoff.measure,
    measure_death.NAME: measure_death.measure,
    measure_start.COMMAND: measure_start.commands,
    measure_growth.GROWTH: measure_growth.growth,
    measure_growth.LISTING: measure_growth.listing,
    measure_waiting.NAME: measure_waiting.measure,
    measure_contention.NAME: measure_contention.measure,
}
