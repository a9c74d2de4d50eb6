"""The command's parser and exit codes.  What each command does is tested beside it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from pidabs import cli

SCRIPT = Path(sys.executable).with_name("pidabs")
COMMANDS = [(SCRIPT,), (sys.executable, "-m", "pidabs")]


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("command", COMMANDS, ids=["script", "module"])
def test_version(command: tuple[object, ...], tmp_path: Path) -> None:
    done = run(*command, "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"pidabs {version('pidabs')}\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"], ["no-such"], ["status"]], ids=str)
def test_is_called_pidabs_however_it_is_run(arguments: list[str], tmp_path: Path) -> None:
    script, module = (run(*command, *arguments, cwd=tmp_path) for command in COMMANDS)
    assert (module.returncode, module.stdout, module.stderr) == (script.returncode, script.stdout, script.stderr)
    assert (module.stdout or module.stderr).startswith("usage: pidabs ")


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    assert "demo" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["demo", "surplus"], ["--vers"]], ids=str)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("usage: pidabs")


@pytest.mark.parametrize(
    ("raised", "code", "shown"),
    [
        ("pidabs.Unsupported('not here')", 69, "pidabs: not here\n"),
        ("pidabs.LockError('in the way')", 1, "pidabs: in the way\n"),
        ("OSError(24, 'Too many open files')", 1, "pidabs: [Errno 24] Too many open files\n"),
        ("KeyboardInterrupt()", 130, ""),
    ],
    ids=["unsupported", "lock", "os", "interrupt"],
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


def test_other_commands_do_not_pay_for_the_demo(tmp_path: Path) -> None:
    source = "import sys, pidabs.cli as c; c.parse(['demo']); print('pidabs.cli.demo' in sys.modules)"
    assert run(sys.executable, "-c", source, cwd=tmp_path).stdout == "False\n"
