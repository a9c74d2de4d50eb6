"""The pages of docs/, read as their reader does who types what they show, in a directory that stands for the root.

What a page's blocks mean, and what is done with them, from top to bottom:

    console     each line after `$ ` is typed, the lines below it are what appears.  Behind a `&` it is left running.
    sh          is run, and has to succeed; what installs something is not run
    python      is run, and has to succeed; what the comments behind its print() say is among what it prints
    any         after a line that ends with "`NAME`:" is a file of that name, and is not run; what is included, too

In what appears, a number stands for any number, `alice` for any user, and `...` for anything.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from support import DEADLINE

import pidabs

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SCRIPT = Path(sys.executable).with_name("pidabs")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DIRECTORIES = ("run", "var/spool", "var/cache", "var/log", "usr/local/bin", "etc/systemd", "etc/init.d", "etc/cron.d")


@dataclass
class Block:
    language: str
    text: str
    line: int
    file: str | None


def blocks_of(page: str) -> Iterator[Block]:
    for match in re.finditer(r"^```(\S*)([^\n]*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        before = page[: match.start()]
        named = re.search(r"`([\w./-]+)`:\n\n$", before)
        yield Block(match[1], match[2].strip() or match[3], before.count("\n") + 2, named and named[1])


def blocks(page: str, language: str) -> list[str]:
    return [block.text for block in blocks_of(page) if block.language == language]


def functions(module: str) -> set[str]:
    """The functions and methods of a module of pidabs, as it is installed; pages name them."""
    source = Path(str(pidabs.__file__)).with_name(f"{module}.py").read_text(encoding="utf-8")
    return {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}


def load(path: Path) -> Any:
    """A program beside the pages, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Root:
    """The directory that stands for the root."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = path / "run"
        for directory in DIRECTORIES:
            (path / directory).mkdir(parents=True)

    def here(self, text: str) -> str:
        for directory in DIRECTORIES:
            text = re.sub(rf"(?<![\w/])/{directory}\b", str(self.path / directory), text)
        return text.replace("/usr/bin/pidabs", str(SCRIPT))

    def program(self, name: str, text: str) -> Path:
        """Installed, executable."""
        path = self.path / "usr/local/bin" / name
        path.write_text(self.here(text))
        path.chmod(0o755)
        return path

    def environment(self, **variables: str) -> dict[str, str]:
        path = f"{self.path}/usr/local/bin:{SCRIPT.parent}:{SYSTEM_PATH}"
        plain = {"PIDABS_INTEROP": "", "PYTHONSAFEPATH": "1", "COLUMNS": ""}  # no width that ps would cut its lines to
        return {**os.environ, **plain, "PATH": path, **variables}

    def shell(self, text: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", self.here(text)],
            cwd=self.path,
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


class Reader:
    """Somebody with a page and a terminal.  The locks are in a scope of their own, which is not shown."""

    def __init__(self, path: Path) -> None:
        self.root = Root(path)
        self.scope = uuid4().hex[:8]
        self._jobs: list[subprocess.Popen[bytes]] = []
        self._screen, self._terminal = os.pipe()
        self._status = 0

    def read(self, page: Path) -> None:
        for block in blocks_of(page.read_text(encoding="utf-8")):
            if block.language == "{literalinclude}":
                block.text = (page.parent / block.text).read_text(encoding="utf-8")
            try:
                self._do(block)
            except BaseException as exc:
                exc.args = (f"line {block.line} of the page: {exc}",)
                raise

    def _do(self, block: Block) -> None:
        if block.file is not None:
            path = Path(self.root.here(block.file))
            path = self.root.path / path
            path.write_text(self.root.here(block.text))
            path.chmod(0o755)
        elif block.language == "console":
            first, *typed = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
            assert first == ""
            for text in typed:
                command, _, expected = text.partition("\n")
                while command.endswith("\\"):
                    more, _, expected = expected.partition("\n")
                    command = command[:-1] + more.removeprefix("> ")
                self.type(command, expected)
        elif block.language == "sh" and "pip install" in block.text:
            for extra in re.findall(r"\[(\w+)\]", block.text):
                assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE), extra
        elif block.language == "sh":
            done = self.root.shell(f"set -e\n{block.text}", **self._variables)
            assert done.returncode == 0, done.stdout + done.stderr
        elif block.language == "python":
            done = subprocess.run(
                [sys.executable, "-c", self.root.here(block.text)],
                cwd=self.root.path,
                env=self.root.environment(**self._variables),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, "")
            self._compare(said_by(block.text), self._shown(done.stdout), lines_only=True)

    def type(self, command: str, expected: str) -> None:
        """Type it, and see that this appears.  Who only asks may ask until the answer is right."""
        command = command.rstrip()
        stays = command.endswith("&")
        asks = re.match(r"pidabs (status|list|pid)|ss |cat ", command) is not None
        end = time.monotonic() + DEADLINE
        while True:
            job = subprocess.Popen(
                ["sh", "-c", f"(exit {self._status}); {self.root.here(command.removesuffix('&'))}"],
                cwd=self.root.path,
                env=self.root.environment(**self._variables),
                stdin=subprocess.DEVNULL,
                stdout=self._terminal,
                stderr=self._terminal,
                start_new_session=True,
            )
            self._jobs.append(job)
            try:
                self._appears(job, command, expected, 0.1 if asks else DEADLINE, stays)
            except AssertionError:
                if not asks or time.monotonic() > end:
                    raise
            else:
                return

    def _appears(self, job: subprocess.Popen[bytes], command: str, expected: str, patience: float, stays: bool) -> None:
        seen, lines_only = "", command.startswith(("pidabs list", "ss "))
        if not stays:
            job.wait(DEADLINE)
            self._status = job.returncode % 256 if job.returncode >= 0 else 128 - job.returncode
        end = time.monotonic() + patience
        while True:
            left = 0.05 if self._matches(expected, seen, lines_only) else end - time.monotonic()
            if not select.select([self._screen], [], [], max(0, left))[0]:
                break
            seen += os.read(self._screen, 1 << 16).decode()
        self._compare(expected, self._shown(seen), lines_only)

    def _matches(self, expected: str, seen: str, lines_only: bool) -> bool:
        try:
            self._compare(expected, self._shown(seen), lines_only)
        except AssertionError:
            return False
        return True

    def _compare(self, expected: str, shown: str, lines_only: bool = False) -> None:
        wanted = [self._pattern(line) for line in expected.splitlines()]
        lines = [squeezed(line) for line in shown.splitlines()]
        if lines_only:
            for pattern in wanted:
                assert any(re.fullmatch(pattern, line) for line in lines), f"{expected!r} not in {shown!r}"
        else:
            same = len(wanted) == len(lines) and all(map(re.fullmatch, wanted, lines))
            assert same, f"{expected!r} is not {shown!r}"

    def _pattern(self, line: str) -> str:
        pattern = re.escape(squeezed(self.root.here(line)).replace("alice", "@user@").replace("...", "@any@"))
        pattern = re.sub(r"\d+", r"\\d+", pattern.replace(re.escape(str(self.root.path)), "@root@"))
        pattern = pattern.replace("@root@", re.escape(str(self.root.path)))
        return pattern.replace("@user@", r"[\w.-]+").replace("@any@", ".*")

    def _shown(self, text: str) -> str:
        """What the reader of the page sees, who has no scope; some shells say what became of a job."""
        text = text.replace(f"pidabs@{self.scope}:", "pidabs:").replace(f"@{self.scope}:", "")
        return re.sub(rf"^  scope    {self.scope}\n|^(.*: \d+ )?(Killed|Terminated).*\n", "", text, flags=re.MULTILINE)

    @property
    def _variables(self) -> dict[str, str]:
        return {"PIDABS_SCOPE": self.scope}

    def close(self) -> None:
        """End what is left, daemons and other orphans included: whoever has our scope in its environment."""
        while any(self._end(int(pid)) for pid in filter(str.isdigit, os.listdir("/proc"))):
            pass
        for job in self._jobs:
            job.wait(DEADLINE)
        os.close(self._screen)
        os.close(self._terminal)

    def _end(self, pid: int) -> bool:
        """Whether it had to be ended."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            if f"PIDABS_SCOPE={self.scope}".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                return select.select([pidfd], [], [], DEADLINE)[0] != []
            return False
        except (OSError, ProcessLookupError):
            return False
        finally:
            os.close(pidfd)


def squeezed(line: str) -> str:
    return re.sub(r" +", " ", line).strip()


def said_by(program: str) -> str:
    """The comments behind its print(), line by line."""
    lines = program.splitlines()
    said = []
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            _, mark, comment = lines[(node.end_lineno or node.lineno) - 1].partition("  # ")
            said += [(node.lineno, comment)] if mark else []
    return "".join(f"{comment}\n" for _, comment in sorted(said))
