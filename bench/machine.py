"""Where it was measured.  No names or paths of the machine: results are published."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import ROOT

CLOCK_READS = 20_000


def describe(directory: str) -> dict[str, object]:
    """For the results; `directory` is where the lock files are."""
    load = os.getloadavg()
    return {
        "cpu": _cpu(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": f"Linux {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load_at_start": [round(part, 2) for part in load],
        "lock_files_on": _file_system(directory),
        "clock_ns": round(_clock(), 1),
        "revision": _revision(),
    }


def versions(packages: list[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def two_cpus() -> tuple[set[int], set[int]]:
    """One for the holder and another for the waiter; the same one, if there is no other."""
    cpus = sorted(os.sched_getaffinity(0))
    return {cpus[0]}, {cpus[-1]}


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _clock() -> float:
    """Nanoseconds that reading the clock takes: part of each time that is measured with it."""
    found = []
    for _ in range(5):
        began = time.monotonic_ns()
        for _ in range(CLOCK_READS):
            time.monotonic_ns()
        found.append((time.monotonic_ns() - began) / CLOCK_READS)
    return statistics.median(found)


def _file_system(directory: str) -> str:
    """The type of the mount that holds the directory."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, mounted, this_kind, *_ = line.split()
        inside = directory == mounted or directory.startswith(mounted.rstrip("/") + "/")
        if inside and len(mounted) >= len(best):
            best, kind = mounted, this_kind
    return kind


def _revision() -> str:
    """Of the checkout, marked if it has changes."""
    command = ["git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
