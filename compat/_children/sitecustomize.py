"""On the PYTHONPATH of what a program starts that runs on our locks: its Pythons do as it does.

Cheap, as every one of them pays for it: nothing of pidabs is imported before the first import of an original.  The
sitecustomize that there is without us runs, too.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class _First:
    """Looks out for the first import of an original."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in ("filelock", "lockfile", "daemon.pidfile"):
            return None
        try:
            sys.meta_path.remove(self)
        except ValueError:
            return None  # another thread was faster
        try:
            from pidabs.compat import install
        except ImportError:
            print(
                f"pidabs.compat: {sys.executable} has no pidabs: its {name} is the original, and excludes only others "
                "that lock files; install pidabs there",
                file=sys.stderr,
            )
            return None
        install()
        for finder in list(sys.meta_path):  # install's is among them
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return None


def _next() -> None:
    from importlib.util import module_from_spec

    spec = PathFinder.find_spec(__name__)
    if spec is not None and spec.loader is not None:
        sys.modules[__name__] = module = module_from_spec(spec)
        spec.loader.exec_module(module)


sys.meta_path.insert(0, _First())
sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(__file__)]
_next()
