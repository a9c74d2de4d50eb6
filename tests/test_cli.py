"""The command's parser and exit codes.  What each command does is tested beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from cli_support import one_line

from pidabs import cli

SCRIPT = Path(sys.executable).with_name("pidabs")
COMMANDS = [(SCRIPT,), (sys.executable, "-m", "pidabs")]


def run(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(list(map(str, command)), text=True, timeout=60, check=False, **options)


@pytest.mark.parametrize("command", COMMANDS, ids=["script", "module"])
def test_version(command: tuple[object, ...], tmp_path: Path) -> None:
    done = run(*command, "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"pidabs {version('pidabs')}\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"], ["no-such"], ["status"]], ids=str)
def test_is_called_pidabs_however_it_is_run(arguments: list[str], tmp_path: Path) -> None:
    script, module = (run(*command, *arguments, cwd=tmp_path) for command in COMMANDS)
    assert (module.returncode, module.stdout, module.stderr) == (script.returncode, script.stdout, script.stderr)
    assert (module.stdout or module.stderr).startswith(("usage: pidabs ", "pidabs: "))


def test_help_names_the_commands(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    assert "demo" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "whose"),
    [
        ([], "pidabs"),
        (["no-such-command"], "pidabs"),
        (["--vers"], "pidabs"),
        (["demo", "surplus"], "pidabs demo"),
        (["status"], "pidabs status"),
        (["status", "x", "y"], "pidabs status"),
        (["status", "x", "--no\nsuch"], "pidabs status"),
        (["wait", "x", "-w", "1_0"], "pidabs wait"),
        (["wait", "x", "-w", "1e3"], "pidabs wait"),
        (["run", "-z", "x", "true"], "pidabs run"),
        (["run", "-E", "1_0", "x", "true"], "pidabs run"),
    ],
    ids=str,
)
def test_wrong_usage(arguments: list[str], whose: str, capfd: pytest.CaptureFixture[str]) -> None:
    """One line, and the help that it refers to is that of the command."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert one_line(shown.err)
    assert shown.err.endswith(f"; see `{whose} --help`\n")


@pytest.mark.parametrize(
    ("raised", "code", "shown"),
    [
        ("pidabs.Unsupported('not here')", 69, "pidabs: not here\n"),
        ("pidabs.LockError('in the way')", 1, "pidabs: in the way\n"),
        ("OSError(24, 'Too many open files')", 1, "pidabs: Too many open files; raise the limit (ulimit -n)\n"),
        ("OSError(2, 'No such file', 'a\\nb')", 1, "pidabs: a\\nb: No such file\n"),
        ("KeyboardInterrupt()", -2, ""),
    ],
    ids=["unsupported", "lock", "descriptors", "file", "interrupt"],
)
def test_exit_codes_of_errors(raised: str, code: int, shown: str, tmp_path: Path) -> None:
    source = f"""
import sys, pidabs
from pidabs.cli import demo, main
def fail(_): raise {raised}
demo.demo = fail
sys.exit(main(['demo']))
"""
    done = run(sys.executable, "-c", source, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", shown)


@pytest.mark.parametrize("module", ["argparse", "pidabs.cli.ask"])
def test_interrupted_while_it_starts(module: str, tmp_path: Path) -> None:
    source = f"""
import os, signal, sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
signal.signal(signal.SIGINT, signal.default_int_handler)
from pidabs.cli import main
sys.exit(main(['list']))
"""
    done = run(sys.executable, "-c", source, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (-2, "", "")


def test_other_commands_do_not_pay_for_the_demo(tmp_path: Path) -> None:
    source = "import sys, pidabs.cli._parser as p; p.parse(['demo']); print('pidabs.cli.demo' in sys.modules)"
    assert run(sys.executable, "-c", source, cwd=tmp_path).stdout == "False\n"


# Whoever reads what we print ------------------------------------------------------------------------------------------

PRINTING = [["--help"], ["--version"], ["run", "--help"], ["completion", "bash"], ["doctor", "--quick"]]


@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", PRINTING, ids=str)
def test_output_that_is_full(arguments: list[str], buffered: bool, tmp_path: Path) -> None:
    """One line of ours, and none of Python's when it flushes at its exit."""
    with open("/dev/full", "w") as full:
        done = run(SCRIPT, *arguments, cwd=tmp_path, stdout=full, env=environment(buffered))
    if arguments[-1] == "--help" and not buffered and done.returncode == 0:
        assert done.stderr == ""  # argparse looks away, since Python 3.12
    else:
        assert (done.returncode, one_line(done.stderr)) == (71 if arguments[0] == "run" else 1, True)
        assert "No space left on device; " in done.stderr


@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", PRINTING, ids=str)
def test_reader_that_has_seen_enough(arguments: list[str], buffered: bool, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run(SCRIPT, *arguments, cwd=tmp_path, stdout=writer, env=environment(buffered))
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 141 or (arguments[-1] == "--help" and not buffered)


@pytest.mark.parametrize("arguments", PRINTING, ids=str)
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_output_that_is_closed(arguments: list[str], closed: str, tmp_path: Path) -> None:
    done = run("sh", "-c", f'exec "$@" {closed}', "sh", SCRIPT, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def environment(buffered: bool) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return kept if buffered else {**kept, "PYTHONUNBUFFERED": "1"}


# What it costs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["status", "x"], ["run", "x", "true"]], ids=str)
def test_no_compression_is_imported(words: list[str], tmp_path: Path) -> None:
    """As argparse does, through shutil, to ask how wide the terminal is."""
    source = "import sys; sys.path.insert(0, sys.argv[1]); from pidabs.cli._parser import parse; parse(sys.argv[2:])\n"
    source += "print(*sys.modules.keys() & {'shutil', 'zlib', 'bz2', 'lzma'})"
    path = Path(cli.__file__).parents[2]
    assert run(sys.executable, "-S", "-c", source, path, *words, cwd=tmp_path).stdout == "\n"
