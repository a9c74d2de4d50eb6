"""Stands in for daemon of python-daemon 3.1.2: only `daemon.pidfile` has a lock, all else is handed through."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import daemon as _original

__all__ = list(_original.__all__)


def __getattr__(name: str) -> Any:
    return import_module(".pidfile", __name__) if name == "pidfile" else getattr(_original, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
