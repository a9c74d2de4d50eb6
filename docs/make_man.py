"""Make pidabs.1 from pidabs.1.in and the command's parser: python docs/make_man.py >docs/pidabs.1"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from pidabs.cli import _codes
from pidabs.cli._candidates import help_of
from pidabs.cli._parser import parser

HERE = Path(__file__).parent


def page() -> str:
    """The whole man page."""
    version = re.search(r'^version = "(.*)"$', (HERE.parent / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    filled = {
        "VERSION": f"pidabs {version[1]}",
        "SYNOPSIS": "\n.br\n".join([*map(usage, commands()), option_words(parser())]),
        "COMMANDS": "\n".join(map(command, commands())),
        "CODES": "\n".join(f".TP\n.B {roff(code)}\n{roff(meaning)}" for code, meaning in codes()),
    }
    template = (HERE / "pidabs.1.in").read_text(encoding="utf-8").partition("\n")[2]
    return re.sub("@([A-Z]+)@", lambda match: filled[match[1]], '.\\" Made by docs/make_man.py.\n' + template)


def commands() -> list[argparse.ArgumentParser]:
    """The parser of each command."""
    (found,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return list(found.choices.values())


def codes() -> list[tuple[str, str]]:
    """The table of pidabs/cli/_codes.py."""
    return re.findall(r"^(\S+) {2,}(.*)$", _codes.__doc__ or "", re.MULTILINE)


def usage(command: argparse.ArgumentParser) -> str:
    """A line of the synopsis."""
    excluded: set[argparse.Action] = set()
    words = [f"\\fB{roff(command.prog)}\\fR"]
    for group in command._mutually_exclusive_groups:
        excluded.update(group._group_actions)
        words.append("[" + " | ".join(shown(action) for action in group._group_actions) + "]")
    words += [f"[{shown(option)}]" for option in options(command) if option not in excluded]
    for argument in arguments(command):
        value = "{" + "|".join(argument.choices) + "}" if argument.choices else str(argument.metavar)
        rest = argument.metavar == "CMD"
        more = " ..." if argument.nargs == "+" else ""
        words.append(f"[\\-\\-] \\fI{value}\\fR [\\fIARG\\fR ...]" if rest else f"\\fI{roff(value)}\\fR{more}")
    return " ".join(words)


def option_words(top: argparse.ArgumentParser) -> str:
    return "\\fBpidabs\\fR " + " | ".join(f"\\fB{roff(option.option_strings[-1])}\\fR" for option in options(top))


def shown(option: argparse.Action) -> str:
    value = f" \\fI{roff(str(option.metavar))}\\fR" if option.nargs is None else ""
    return f"\\%\\fB{roff(option.option_strings[-1])}\\fR{value}"  # without hyphens of its own


def command(command: argparse.ArgumentParser) -> str:
    """The section of a command."""
    lines = [f".SS {roff(command.prog)}", roff(command.description or "")]
    for option in options(command):
        names = ", ".join(f"\\fB{roff(name)}\\fR" for name in option.option_strings)
        value = f" \\fI{roff(str(option.metavar))}\\fR" if option.nargs is None else ""
        lines += [".TP", names + value, sentence(option)]
    for argument in arguments(command):
        name = "{" + "|".join(argument.choices) + "}" if argument.choices else str(argument.metavar)
        lines += [".TP", f"\\fI{roff(name)}\\fR", sentence(argument)]
    return "\n".join([*lines, ".PP", roff(command.epilog or "")])


def options(command: argparse.ArgumentParser) -> list[argparse.Action]:
    """All but --help, which the page explains once."""
    return [action for action in command._actions if action.option_strings and action.dest != "help"]


def arguments(command: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in command._actions if not action.option_strings and action.help != argparse.SUPPRESS]


def sentence(action: argparse.Action) -> str:
    text = help_of(action)
    return roff(text[0].upper() + text[1:] + ".")


def roff(text: str) -> str:
    """Escaped; every dash a minus, as it has to be in what is to be typed."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub("`(.*?)`", r"\\fB\1\\fR", text)
    # A new line for each sentence, so that the formatter sees where it ends; none may begin like a request.
    return re.sub(r"(?<=[a-z0-9)]\.) (?=[A-Z0-9])", "\n", text.replace("'", "\\(aq")).replace("\n.", "\n\\&.")


if __name__ == "__main__":
    sys.stdout.write(page())
