"""Builds the sdist and the wheel, and checks what is published: `tox -e package`; `-- DIRECTORY` keeps them there.

Rules:
- The sdist holds what git has, all of it, and beside that only what setuptools writes.
- Who builds does not show: another directory, umask, time zone, language or hash seed gives the same bytes.
- The wheel of the sdist is that of the checkout.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from zlib import ZLIB_RUNTIME_VERSION

ROOT = Path(__file__).parent.parent
WRITTEN = {"PKG-INFO", "setup.cfg", *(f"pidabs.egg-info/{name}" for name in (
    "PKG-INFO", "SOURCES.txt", "dependency_links.txt", "entry_points.txt", "requires.txt", "top_level.txt"
))}  # fmt: skip


def main() -> int:
    tracked = run("git", "ls-files", "-z", cwd=ROOT).split("\0")[:-1]
    when = os.environ.get("SOURCE_DATE_EPOCH") or run("git", "log", "-1", "--format=%ct", cwd=ROOT).strip()
    with tempfile.TemporaryDirectory(prefix="pidabs-package-") as scratch:
        one = tree(Path(scratch, "one"), tracked, umask=0o022)
        two = tree(Path(scratch, "another", "with a longer name"), tracked, umask=0o077)
        build(one, when, umask=0o022)
        build(two, when, umask=0o077, TZ="Asia/Tokyo", LC_ALL="C", PYTHONHASHSEED="1")
        sdist, wheel = sorted(one.glob("dist/*"), key=lambda path: path.suffix)
        same(sdist, two / "dist" / sdist.name)
        same(wheel, two / "dist" / wheel.name)
        build(one, when, "--wheel", "--outdir=direct", umask=0o022)
        same(wheel, one / "direct" / wheel.name)
        complete(sdist, set(tracked))
        for check in (
            ("twine", "check", "--strict", str(sdist), str(wheel)),
            ("check_wheel_contents", "--config", str(ROOT / "pyproject.toml"), str(wheel)),
            ("pyroma", "--min=10", str(one)),
        ):
            print(run(sys.executable, "-m", *check, cwd=one).strip())
        print(f"by Python {platform.python_version()}, setuptools {version('setuptools')}, zlib {ZLIB_RUNTIME_VERSION}")
        for built in sdist, wheel:
            if sys.argv[1:]:
                os.makedirs(sys.argv[1], exist_ok=True)
                shutil.copy(built, sys.argv[1])
            print(f"{built.name}: {built.stat().st_size // 1024} KiB, sha256 {digest(built)}")
    return 0


def tree(place: Path, tracked: list[str], umask: int) -> Path:
    """A checkout, under that umask, of the files as they are now."""
    for name in tracked:
        copy = place / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy)
        copy.chmod((0o777 if (ROOT / name).stat().st_mode & 0o100 else 0o666) & ~umask)
    return place


def build(place: Path, when: str, *options: str, umask: int, **environment: str) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", *options]
    environment = {**os.environ, **environment, "SOURCE_DATE_EPOCH": when}
    done = subprocess.run(
        command, cwd=place, env=environment, umask=umask, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode:
        sys.exit(done.stdout.decode(errors="replace"))


def same(one: Path, other: Path) -> None:
    if one.read_bytes() != other.read_bytes():
        kept = Path(tempfile.mkdtemp(prefix="pidabs-differ-"))
        shutil.copy(one, kept / f"1-{one.name}")
        shutil.copy(other, kept / f"2-{one.name}")
        sys.exit(f"{one.name} was built twice and differs; both are in {kept}")


def complete(sdist: Path, tracked: set[str]) -> None:
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if not member.isdir()}
    if missing := tracked - names:
        sys.exit(f"not in the sdist, see MANIFEST.in: {', '.join(sorted(missing))}")
    if stray := names - tracked - WRITTEN:
        sys.exit(f"in the sdist, but not in git: {', '.join(sorted(stray))}")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
