from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also what takes minutes: Airflow")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: only with --long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="tox -e clients -- --long runs it"))


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A directory for PYTHONPATH that pip has put these distributions into, once in a session."""
    done: dict[tuple[str, ...], Path] = {}

    def install(*requirements: str) -> Path:
        if requirements not in done:
            target = tmp_path_factory.mktemp("installed")
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*command, "--no-compile", "--target", target, *requirements], check=True, timeout=300)
            done[requirements] = target
        return done[requirements]

    return install
