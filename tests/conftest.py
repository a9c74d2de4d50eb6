from __future__ import annotations

import errno
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, Child

from pidabs import _diag, _handover


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A lock name that no other test uses, nor another run of the suite."""
    return f"test-{request.node.originalname[:40]}-{uuid.uuid4().hex[:8]}"


@pytest.fixture(autouse=True)
def patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Releases wait long for a waiter's answer, unless the test is marked `impatient`."""
    if request.node.get_closest_marker("impatient") is None:
        for name, seconds in PATIENCE.items():
            monkeypatch.setattr(_handover, name, seconds)
        monkeypatch.setattr(Child, "patience", f"from pidabs import _handover\nvars(_handover).update({PATIENCE})\n")


@pytest.fixture
def no_netlink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel cannot be asked what sockets there are, and /proc/net/unix has to say."""

    def fail(*args: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(_diag, "socket", fail)


@pytest.fixture
def public_dir() -> Iterator[Path]:
    """A directory that other users can reach, as they cannot reach tmp_path."""
    with tempfile.TemporaryDirectory(prefix="pidabs-test-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(os.path.realpath(name))
