"""Lets tox find every interpreter that pyenv has installed; by itself it finds those that `pyenv global` names."""

from __future__ import annotations

import os
from pathlib import Path

_versions = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser() / "versions"
_found = sorted(str(python) for python in _versions.glob("3.1?.*/bin/python"))
if _found:
    os.environ.setdefault("TOX_DISCOVER", os.pathsep.join(_found))
