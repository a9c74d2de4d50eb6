"""The completions: what is offered at each place, and that bash, zsh and fish put it into the line as one safe word."""

from __future__ import annotations

import argparse
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cli_support import one_line
from support import DEADLINE, needs

import pidabs
from pidabs import cli
from pidabs.cli import _candidates
from pidabs.cli._candidates import candidates
from pidabs.cli._parser import parser
from pidabs.cli.completion import Split, quote

SCRIPT = Path(sys.executable).with_name("pidabs")
BREAKS = " \t\n\"'><=;|&(:"
BASH_COMPLETION = "/usr/share/bash-completion/bash_completion"

# Each has to become one word of the line, and may not do anything.
HOSTILE = [
    "a b",
    "  two  spaces ",
    "it's",
    'say "x"',
    "$HOME",
    "$(touch pwned)",
    "`touch pwned`",
    "x;touch pwned;",
    "a&b|c<d>e",
    "a*?[b]",
    "{a,b}",
    "~root",
    "a\\b",
    "back\\",
    "100%",
    "a=b:c@d",
    "a#b",
    "!!",
    "^a^b",
    "(touch pwned)",
    "caf\u00e9 \u65e5\u672c",
]


# What is offered ----------------------------------------------------------------------------------------------


def offered(*words: str) -> set[str]:
    return {word for word, _ in candidates(list(words[:-1]), words[-1]).words}


def actions() -> Iterator[argparse.Action]:
    for action in parser()._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from command._actions


def test_each_argument_is_of_a_known_kind() -> None:
    """Whoever adds an option has to say what its values are."""
    nobody_can_guess = {"S", "CODE"}
    known = _candidates.FILES | nobody_can_guess | {"NAME", "LABEL", "SIG", "CMD", "COMMAND"}
    for action in actions():
        if action.nargs != 0 and action.choices is None and action.help != argparse.SUPPRESS:
            assert action.metavar in known, action


def test_commands() -> None:
    assert offered("") == set(cli._COMMANDS)
    assert dict(candidates([], "").words)["status"] == "say who holds a lock"


def test_options() -> None:
    assert offered("-") == {"-h", "--help", "--version"}
    assert offered("stop", "-") == {"-h", "--help", "--scope", "-w", "--timeout", "--kill"}
    assert offered("status", "--j") == {"-h", "--help", "--scope", "--json"}


def test_an_option_is_not_offered_twice() -> None:
    assert "--kill" not in offered("stop", "--kill", "-")


@pytest.mark.parametrize("given", [["-n"], ["--nonblock"], ["-w", "3"], ["-w3"], ["--timeout=3"]], ids=str)
def test_nor_beside_one_that_excludes_it(given: list[str]) -> None:
    assert offered("run", *given, "-").isdisjoint({"-n", "--nonblock", "-w", "--timeout"})


@pytest.mark.parametrize("words", [["stop", "-w"], ["run", "-E"], ["stop", "--timeout="], ["list"], ["demo"]], ids=str)
def test_nothing_is_offered_where_nothing_is_known(words: list[str]) -> None:
    place = candidates(words, "") if words[-1][-1] != "=" else candidates(words[:-1], words[-1])
    assert (place.words, place.files, place.command) == ([], False, -1)


@pytest.mark.parametrize(
    "words", [["no-such"], ["demo", "surplus"], ["stop", "--no-such"], ["list", "x", "y"]], ids=str
)
def test_nor_after_a_mistake(words: list[str]) -> None:
    place = candidates(words, "")
    assert (place.words, place.files, place.command) == ([], False, -1)


def test_choices_and_signals() -> None:
    assert offered("completion", "") == {"bash", "zsh", "fish"}
    assert {"TERM", "HUP", "USR1"} <= offered("signal", "x", "")


@pytest.mark.parametrize(
    "words",
    [["run", "--mirror", ""], ["run", "--mirror=x"], ["doctor", "--plot", "x"], ["status", "./x"], ["pid", "~/x"]],
    ids=str,
)
def test_files(words: list[str]) -> None:
    assert candidates(words[:-1], words[-1]).files


@pytest.mark.parametrize(
    ("words", "index"),
    [
        (["run", "x", ""], 2),
        (["run", "x", "--", ""], 3),
        (["run", "x", "--", "-"], 3),
        (["run", "x", "env", "-i", "--", ""], 2),
        (["run", "-n", "--mirror", "p", "x", ""], 5),
        (["run", "-nE", "3", "x", ""], 4),
        (["run", "-nE3", "x", ""], 3),
        (["run", "--", "-x", "cat", ""], 3),
        (["run", "--", "-x", "--", "cat", ""], 4),
    ],
    ids=str,
)
def test_the_commands_own_line(words: list[str], index: int) -> None:
    assert candidates(words[:-1], words[-1]).command == index


@pytest.fixture
def hold() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_names(name: str, hold: ExitStack, tmp_path: Path) -> None:
    for lock in (
        name,
        f"-{name}",
        tmp_path / "x.pid",
        f"~{name}",
        f"{name}\n",
        f"{name}\x1b[31m",
        f"{name}\udcff",
        "l" * 200 + name,
    ):
        hold.enter_context(pidabs.Lock(lock))
    ours = {word for word in offered("status", "") if name in word or str(tmp_path) in word}
    assert ours == {name, str(tmp_path / "x.pid")}
    assert ours == {word for word in offered("run", "") if name in word or str(tmp_path) in word}
    assert {name, f"-{name}"} <= offered("status", "--", "")
    assert not offered("status", "-").intersection({f"-{name}"})
    assert dict(candidates(["status"], "").words)[name] == "held"


def test_names_of_a_scope(name: str, hold: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    hold.enter_context(pidabs.Lock(name, scope="there"))
    assert name not in offered("status", "")
    assert "there" in offered("status", "--scope", "")
    assert "--scope=there" in offered("status", "--scope=t")
    for words in ["--scope", "there"], ["--scope=there"]:
        assert name in offered("status", *words, "")
    monkeypatch.setenv("PIDABS_SCOPE", "there")
    assert name in offered("status", "")


def test_asking_leaves_no_trace(name: str, hold: ExitStack) -> None:
    lock = hold.enter_context(pidabs.Lock(name))
    assert name in offered("status", "")
    assert lock.waiters() == 0


# bash's words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words", "current", "replaced", "open_quote"),
    [
        ("", [], "", 0, ""),
        ("p ", ["p"], "", 0, ""),
        ("p  a b", ["p", "a"], "b", 0, ""),
        ("p '' ''", ["p", ""], "", 0, ""),
        (r"p a\ b", ["p"], "a b", 0, ""),
        ("p 'a b", ["p"], "a b", 0, "'"),
        (r"p 'a\b", ["p"], r"a\b", 0, "'"),
        (r'p "a\b\"c', ["p"], r'a\b"c', 0, '"'),
        ("p x'y z", ["p"], "xy z", 1, "'"),
        ("p 'x y'z", ["p"], "x yz", 3, ""),
        ("p db:ma", ["p"], "db:ma", 3, ""),
        (r"p db\:ma", ["p"], "db:ma", 0, ""),
        ("p --a=b", ["p"], "--a=b", 4, ""),
        ("p --a='b", ["p"], "--a=b", 4, "'"),
        ("p a\\", ["p"], "a", 0, ""),
    ],
)
def test_split(line: str, words: list[str], current: str, replaced: int, open_quote: str) -> None:
    split = Split(line, BREAKS)
    assert split.understood
    assert (split.words, split.current, split.replaced, split.quote) == (words, current, replaced, open_quote)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (["bash", "ask", "pidabs sta", "=:"], ["nothing", "status"]),
        (["bash", "ask", "pidabs run x -- ec", "=:"], ["command 16"]),
        (["bash", "ask", "pidabs status $(x", "=:"], ["nothing"]),
        (["bash", "ask", "pidabs status /etc/pas", "=:"], ["files"]),
        (["zsh", "ask", "run", "x", "--", "ec"], ["command 3"]),
    ],
)
def test_what_the_shells_scripts_ask(
    question: list[str], answer: list[str], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert cli.main(["completion", *question]) == 0
    lines = os.fsdecode(capfdbinary.readouterr().out).splitlines()
    assert len(lines) == len(answer)
    assert all(line.startswith(start) for line, start in zip(lines, answer, strict=True))


@pytest.mark.parametrize("line", ["p $x", "p $(a b", "p `a", 'p "$x', "p $'a", "p 2>/dev/null a", "p (a"])
def test_split_leaves_alone_what_only_bash_knows(line: str) -> None:
    assert not Split(line, BREAKS).understood


@pytest.mark.parametrize("word", HOSTILE)
@pytest.mark.parametrize("inside", ["", "'", '"'])
def test_quote(word: str, inside: str) -> None:
    quoted = quote(word, inside)
    if quoted is None:
        assert (inside, "!" in word) == ('"', True)
        return
    echo = subprocess.run(
        ["bash", "-c", f"printf %s {inside}{quoted}{'' if quoted.endswith(inside) else inside}"],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert echo.stdout == word


# In the shells ------------------------------------------------------------------------------------------------

SHELLS = [
    pytest.param("bash-completion", marks=needs("bash", "setsid", files=(BASH_COMPLETION,))),
    *(pytest.param(shell, marks=needs(shell, "setsid")) for shell in ("bash", "zsh", "fish")),
]
every_shell = pytest.mark.parametrize("shell", SHELLS)

RC = {
    "bash": """
        PS1='READY> '
        HISTFILE=
        eval "$(command pidabs completion bash)"
        pidabs() { printf '%s\\0' "$@" >got.tmp; mv got.tmp got; }
    """,
    "bash-completion": f"""
        PS1='READY> '
        HISTFILE=
        . {BASH_COMPLETION}
        pidabs() {{ printf '%s\\0' "$@" >got.tmp; mv got.tmp got; }}
    """,
    "zsh": """
        PS1='READY> '
        fpath=($PWD/zsh $fpath)
        autoload -Uz compinit && compinit -u -D
        pidabs() { printf '%s\\0' "$@" >got.tmp; command mv got.tmp got; }
    """,
    "fish": """
        function fish_prompt; printf 'READY> '; end
        function fish_greeting; end
        function pidabs; printf '%s\\0' $argv >got.tmp; command mv got.tmp got; end
    """,
}
"""In each the completion is that of the real pidabs, but what would be run is only written down."""

FOUND_IN = {
    "bash-completion": ("bash", "bash-completion/completions/pidabs"),
    "zsh": ("zsh", "zsh/_pidabs"),
    "fish": ("fish", "fish/vendor_completions.d/pidabs.fish"),
}
"""Where the shells look for completions by themselves; bash alone does not."""


class Terminal:
    """A terminal with an interactive shell that shows its prompt."""

    def __init__(self, shell: str, directory: Path, rc: str = "") -> None:
        self.directory = directory
        config = directory / "fish" / "config.fish"
        for file in directory / "bashrc", directory / ".zshrc", config:
            file.parent.mkdir(exist_ok=True)
            file.write_text(RC[shell] + rc)
        if shell in FOUND_IN:
            name, path = FOUND_IN[shell]
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            with open(directory / path, "wb") as script:
                subprocess.run([SCRIPT, "completion", name], stdout=script, check=True, timeout=60)
        homes = ("HOME", "ZDOTDIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME")
        environment = {
            "PATH": f"{directory}/bin:{SCRIPT.parent}:/usr/local/bin:/usr/bin:/bin",
            "TERM": "xterm",
            "LC_ALL": "C.UTF-8",
            "COLUMNS": "1000",  # so that no line is wrapped
            **dict.fromkeys(homes, str(directory)),
        }
        command = {"zsh": ["zsh", "-d", "-i"], "fish": ["fish", "-i"]}.get(
            shell, ["bash", "--noprofile", "--rcfile", "bashrc", "-i"]
        )
        self.fd, theirs = pty.openpty()
        # setsid, since fish insists that the terminal controls it.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command], stdin=theirs, stdout=theirs, stderr=theirs, cwd=directory, env=environment
        )
        os.close(theirs)
        self.screen = b""
        try:
            self.read_until(lambda: b"READY> " in self.screen)
        except BaseException:
            self.close()
            raise

    def read_until(self, enough: Callable[[], bool]) -> None:
        """Read what it shows until then; fails past the deadline, and when the shell has ended."""
        end = time.monotonic() + DEADLINE
        while not enough():
            try:
                if select.select([self.fd], [], [], 0.02)[0]:
                    self.screen += os.read(self.fd, 65536)
            except OSError:
                end = 0
            assert time.monotonic() < end, self.screen.decode(errors="replace")

    def run(self, keys: str) -> list[str]:
        """What pidabs would be run with, after these keys and Enter."""
        got = self.directory / "got"
        got.unlink(missing_ok=True)
        os.write(self.fd, f"{keys}\r".encode())
        self.read_until(got.exists)
        assert not (self.directory / "pwned").exists()
        return got.read_bytes().decode().split("\0")[:-1]

    def close(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)
        os.close(self.fd)


@pytest.fixture
def terminal(shell: str, tmp_path: Path) -> Iterator[Terminal]:
    (tmp_path / "some file").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pidabs-test-program").touch(0o755)
    terminal = Terminal(shell, tmp_path)
    yield terminal
    terminal.close()


LINES = {
    "pidabs statu\t": ["status"],
    "pidabs stop --ki\t": ["stop", "--kill"],
    "pidabs completion fi\t": ["completion", "fish"],
    "pidabs signal x USR\t1": ["signal", "x", "USR1"],
    "pidabs run --mirror some\t": ["run", "--mirror", "some file"],
    "pidabs run --mirror=some\t": ["run", "--mirror=some file"],
    "pidabs status ./some\t": ["status", "./some file"],
    "pidabs run -n x -- pidabs-test-p\t": ["run", "-n", "x", "--", "pidabs-test-program"],
    "pidabs run --mirror=a:b 'x y' pidabs-test-p\t": ["run", "--mirror=a:b", "x y", "pidabs-test-program"],
    "pidabs run x cat some\t": ["run", "x", "cat", "some file"],
    "pidabs stop --timeout some\tx": ["stop", "--timeout", "somex"],
}


@every_shell
def test_words_of_the_parser(terminal: Terminal) -> None:
    assert {keys: terminal.run(keys) for keys in LINES} == LINES


@pytest.mark.parametrize("shell", [shell for shell in SHELLS if shell.values != ("bash",)])
def test_the_commands_own_completion(terminal: Terminal) -> None:
    """bash alone cannot ask for another command's."""
    assert terminal.run("pidabs run -n x -- pidabs statu\t") == ["run", "-n", "x", "--", "pidabs", "status"]


@every_shell
def test_a_lock_is_one_word(terminal: Terminal, hold: ExitStack, name: str) -> None:
    names = {f"{name[-8:]}{index:02}": hostile for index, hostile in enumerate(HOSTILE)}
    for start, hostile in names.items():
        hold.enter_context(pidabs.Lock(start + hostile))
    typed = {start: terminal.run(f"pidabs status {start}\t") for start in names}
    assert typed == {start: ["status", start + hostile] for start, hostile in names.items()}


@every_shell
@pytest.mark.parametrize("first", ["!", "=", "*", "'", " "])
def test_a_lock_whose_first_character_is_special(terminal: Terminal, first: str, hold: ExitStack, name: str) -> None:
    """Nothing is typed of it: the scope, which is all its own, makes it the only one."""
    hold.enter_context(pidabs.Lock(f"{first}root", scope=name[-20:]))
    typed = terminal.run(f"pidabs status --scope {name[-20:]} \t")
    assert typed == ["status", "--scope", name[-20:], f"{first}root"]


@every_shell
def test_a_lock_that_looks_like_an_option(terminal: Terminal, hold: ExitStack, name: str) -> None:
    hold.enter_context(pidabs.Lock(f"--{name}", scope=name[-20:]))
    before = ["status", "--scope", name[-20:]]
    assert terminal.run(f"pidabs {' '.join(before)} --{name[:10]}\t") == [*before, f"--{name[:10]}"]
    assert terminal.run(f"pidabs {' '.join(before)} -- --{name[:10]}\t") == [*before, "--", f"--{name}"]


@every_shell
@pytest.mark.parametrize("opening", ["'", '"'])
def test_a_lock_inside_quotes(terminal: Terminal, opening: str, hold: ExitStack, name: str) -> None:
    names = {f"{name[-8:]}{index:02}": hostile for index, hostile in enumerate(HOSTILE) if "!" not in hostile}
    for start, hostile in names.items():
        hold.enter_context(pidabs.Lock(f"my {start}{hostile}"))
    typed = {start: terminal.run(f"pidabs status {opening}my {start}\t") for start in names}
    assert typed == {start: ["status", f"my {start}{hostile}"] for start, hostile in names.items()}


@every_shell
def test_locks_with_a_common_beginning(shell: str, terminal: Terminal, hold: ExitStack, name: str) -> None:
    """Completed as far as they agree, even if what is next is to be quoted."""
    for ending in " 1", "$2":
        hold.enter_context(pidabs.Lock(f"{name[-8:]} lock{ending}"))
    escape = "\\" if shell == "fish" else ""  # the others have inserted that, too
    assert terminal.run(f"pidabs status {name[-8:]}\t{escape} \t") == ["status", f"{name[-8:]} lock 1"]


@every_shell
def test_a_colon_in_a_lock(terminal: Terminal, hold: ExitStack, name: str) -> None:
    """bash takes it for the end of a word."""
    hold.enter_context(pidabs.Lock(f"{name}:main"))
    assert terminal.run(f"pidabs status {name}:m\t") == ["status", f"{name}:main"]


@every_shell
def test_a_directory_of_the_same_name(terminal: Terminal, hold: ExitStack, name: str, tmp_path: Path) -> None:
    """With a slash behind it, as for a directory, it would be another lock."""
    (tmp_path / name).mkdir()
    hold.enter_context(pidabs.Lock(name))
    assert terminal.run(f"pidabs status {name[:-1]}\t") == ["status", name]


@every_shell
def test_silent_where_pidabs_fails(shell: str, tmp_path: Path) -> None:
    broken = tmp_path / "bin" / "pidabs"
    broken.parent.mkdir()
    broken.write_text(f'#!/bin/sh\n[ "$3" = ask ] || exec {SCRIPT} "$@"\necho dreadful >&2\nexit 1\n')
    broken.chmod(0o755)
    terminal = Terminal(shell, tmp_path)
    try:
        assert terminal.run("pidabs sta\t") == ["sta"]
        assert b"dreadful" not in terminal.screen
    finally:
        terminal.close()


# The scripts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shell", "check"),
    [
        pytest.param("bash", ["shellcheck", "-"], marks=needs("shellcheck")),
        pytest.param("bash", ["bash", "-n", "/dev/stdin"], marks=needs("bash")),
        pytest.param("zsh", ["zsh", "-n", "/dev/stdin"], marks=needs("zsh")),
        pytest.param("fish", ["fish", "--no-execute", "/dev/stdin"], marks=needs("fish")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_checkers_find_no_fault(shell: str, check: list[str], tmp_path: Path) -> None:
    script = tmp_path / "script"
    with open(script, "wb") as file:
        subprocess.run([SCRIPT, "completion", shell], stdout=file, check=True, timeout=60)
    with open(script, "rb") as file:
        done = subprocess.run(check, stdin=file, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["completion"],
        ["completion", "tcsh"],
        ["completion", "bash", "surplus"],
        ["completion", "bash", "ask", "pidabs "],
        ["completion", "bash", "ask", "pidabs ", "=:", "surplus"],
        ["completion", "zsh", "ask"],
    ],
    ids=str,
)
def test_wrong_usage(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = cli.main(arguments)
    except SystemExit as exc:
        code = exc.code
    assert code == 2
    assert one_line(capfd.readouterr().err)


@pytest.mark.skipif("TOX_ENV_DIR" not in os.environ, reason="needs the built wheel, which tox installs")
@pytest.mark.parametrize(
    ("shell", "path"),
    [
        ("bash", "bash-completion/completions/pidabs"),
        ("zsh", "zsh/site-functions/_pidabs"),
        ("fish", "fish/vendor_completions.d/pidabs.fish"),
    ],
)
def test_the_wheel_installs_them(shell: str, path: str) -> None:
    printed = subprocess.run([SCRIPT, "completion", shell], capture_output=True, check=True, timeout=60).stdout
    assert (Path(sys.prefix) / "share" / path).read_bytes() == printed
