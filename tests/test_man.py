"""The man page: made from the parser, without a fault, and where man looks for it."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support import needs

from pidabs import cli
from pidabs.cli._parser import parser

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "pidabs.1"
SECTIONS = "NAME|SYNOPSIS|DESCRIPTION|COMMANDS|ENVIRONMENT|EXIT STATUS|EXAMPLES|SEE ALSO"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_man", ROOT / "docs" / "make_man.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_man = load()


def rendered() -> str:
    done = subprocess.run(
        ["mandoc", "-T", "utf8", "-O", "width=200", PAGE], capture_output=True, text=True, timeout=60, check=True
    )
    return re.sub(".\b", "", done.stdout)


def test_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == make_man.page(), "python docs/make_man.py >docs/pidabs.1"


def test_sections() -> None:
    assert "|".join(re.findall(r"^\.SH (.*)$", PAGE.read_text(), re.MULTILINE)) == SECTIONS


@needs("mandoc")
def test_each_command_with_its_options_and_exit_codes() -> None:
    text = re.sub(r"\s+", " ", rendered())
    assert [command.prog for command in make_man.commands()] == [f"pidabs {name}" for name in cli._COMMANDS]
    for command in make_man.commands():
        assert text.count(f" {command.prog} ") >= 2  # in the synopsis, and above its section
        assert str(command.epilog).replace("`", "") in text
        for option in make_man.options(command):
            assert ", ".join(option.option_strings) in text


@needs("mandoc")
def test_each_exit_code() -> None:
    assert [code for code, _ in make_man.codes()] == ["0", "1", "2", "3", "4", "69", "71", "128+N"]
    text = re.sub(r"\s+", " ", rendered())
    for code, meaning in make_man.codes():
        assert f"{code} {meaning}".replace("`", "") in text


@needs("mandoc")
def test_dashes_can_be_copied() -> None:
    """Unescaped they would be shown as hyphens, which no shell takes for an option's."""
    assert "\N{HYPHEN}" not in rendered()


def test_examples_are_right() -> None:
    examples = re.findall(r"^\.EX\n(.*?)^\.EE$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(examples).replace("\\", "").splitlines()
    assert len(lines) >= 5
    for line in lines:
        command = re.sub(r'^eval "\$\((.*)\)"$', r"\1", line)
        program, *arguments = shlex.split(command)
        assert program == "pidabs"
        parser().parse_args(arguments)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["mandoc", "-T", "lint", "-W", "warning"], marks=needs("mandoc")),
        pytest.param(["man", "--warnings", "-l", "-P", "true"], marks=needs("man")),
    ],
    ids=["mandoc", "man"],
)
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_checkers_find_no_fault(command: list[str], locale: str) -> None:
    done = subprocess.run(
        [*command, PAGE], capture_output=True, text=True, timeout=60, env={**os.environ, "LC_ALL": locale}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert command[0] == "man" or done.stdout == ""  # man shows the page


@pytest.mark.skipif("TOX_ENV_DIR" not in os.environ, reason="needs the built wheel, which tox installs")
@needs("man")
def test_man_finds_it_beside_the_command() -> None:
    found = subprocess.run(
        ["man", "-w", "pidabs"],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    ).stdout.strip()
    assert Path(found) == Path(sys.prefix) / "share" / "man" / "man1" / "pidabs.1"
    assert Path(found).read_bytes() == PAGE.read_bytes()
