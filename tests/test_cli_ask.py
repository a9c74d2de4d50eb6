"""`pidabs status`, `pid`, `list` and `wait`, against real holders, and where the kernel does not answer."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import termios
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from cli_support import COMMAND, INHERITED, PASSED_ON, no_file, no_netlink, one_line, run, run_as_another
from support import DEADLINE, HOLD, child, in_namespace, needs_root, run_in, wait_until

import pidabs
from pidabs import _diag, cli
from pidabs.cli import _find, _text, ask

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "command-schema.json").read_text())


def main(*arguments: str) -> int:
    return cli.main(arguments)


def matches_schema(value: Any, schema: dict[str, Any] = SCHEMA["$defs"]["lock"]) -> bool:
    """As much of JSON Schema as ours uses."""
    types = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
    assert schema["properties"].keys() == set(schema["required"]) == value.keys()
    for key, rule in schema["properties"].items():
        kinds = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
        assert any(isinstance(value[key], types[kind]) for kind in kinds), (key, value[key])
        assert type(value[key]) is not bool or "boolean" in kinds
        if "pattern" in rule:
            assert re.search(rule["pattern"], value[key])
    return True


def listed(name: str, output: str) -> dict[str, Any]:
    (found,) = [lock for lock in json.loads(output) if name in lock["name"]]
    return dict(found)


def dead_entries(name: str) -> int:
    found = _diag.find(pidabs.Lock(name).address)
    assert found is not None
    return found.queued - pidabs.Lock(name).waiters()


# A lock that is free, held, waited for ---------------------------------------------------------------------------


def test_free(name: str) -> None:
    done = run("status", name)
    assert (done.returncode, done.stdout, done.stderr) == (3, f"{name} is free\n", "")
    done = run("pid", name)
    assert (done.returncode, done.stdout, done.stderr) == (
        3,
        "",
        f"pidabs: lock '{name}' is free: there is no pid to print\n",
    )
    done = run("wait", name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = run("status", "--json", name)
    answer = json.loads(done.stdout)
    assert matches_schema(answer)
    assert done.returncode == 3
    assert (answer["held"], answer["pid"], answer["inode"], answer["waiters"]) == (False, None, None, 0)


def test_held(name: str) -> None:
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        done = run("status", name)
        assert (done.returncode, done.stderr) == (0, "")
        lines = [line.split(None, 1) for line in done.stdout.splitlines()]
        assert lines[0] == [name, "is held"]
        assert [line[0] for line in lines[1:]] == ["pid", "user", "command", "running", "waiters"]
        assert lines[1][1] == str(process.pid)
        assert lines[5][1] == "0"
        done = run("pid", name)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{process.pid}\n", "")
        command = run("list").stdout
        assert re.search(rf"^ *{process.pid} .* 0  {name} ", command, re.MULTILINE)


def test_json(name: str) -> None:
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        one, many = run("status", "--json", name), run("list", "--json")
        assert (one.returncode, many.returncode) == (0, 0)
        for answer in json.loads(one.stdout), listed(name, many.stdout):
            assert matches_schema(answer)
            assert (answer["name"], answer["scope"], answer["held"]) == (name, None, True)
            assert (answer["pid"], answer["uid"], answer["waiters"]) == (process.pid, os.getuid(), 0)
            assert name in answer["command"]
            assert bytes.fromhex(answer["address"]) == pidabs.Lock(name).address
            assert os.readlink(f"/proc/{process.pid}/fd/3") == f"socket:[{answer['inode']}]"
            assert 0 <= answer["running"] < 120


def test_waiters_and_who_has_gone(name: str) -> None:
    with pidabs.Lock(name) as lock, child(HOLD, args=(name,)) as waiter:
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as gone:
                gone.connect(lock.address)
        wait_until(lambda: _find.one(pidabs.Lock(name)).waiters == 1)  # type: ignore[union-attr]
        assert json.loads(run("status", "--json", name).stdout)["waiters"] == 1
        assert listed(name, run("list", "--json").stdout)["waiters"] == 1
        waiter.kill()


def test_scope(name: str) -> None:
    with pidabs.Lock(name, scope="blue"):
        assert run("status", name).returncode == 3
        assert run("pid", name, "--scope", "blue").stdout == f"{os.getpid()}\n"
        assert run("pid", name, env={"PIDABS_SCOPE": "blue"}).stdout == f"{os.getpid()}\n"
        assert "\n  scope    blue\n" in run("status", "--scope", "blue", name).stdout
        assert listed(name, run("list", "--json").stdout)["scope"] == "blue"
        assert f"  @blue:{name}  " in run("list").stdout


def test_path(name: str, tmp_path: Path) -> None:
    with pidabs.Lock(tmp_path / name):
        done = run("status", f"./{name}", cwd=tmp_path)
        assert done.stdout.startswith(f"{os.path.realpath(tmp_path)}/{name} is held\n")


def test_no_lock_at_all() -> None:
    code = "import pidabs.cli as cli\ncode = cli.main(['list']); say(code, cli.main(['list', '--json']))"
    done = run_in(in_namespace("--net"), code)
    assert done.stdout == "No lock is held in this network namespace.\n[]\n0 0\n", done.stderr


# Names -----------------------------------------------------------------------------------------------------------

STRANGE = [b" a b", b"\t", b"\n\n", b"\xff\xfe", b"\x1b[31m\x1b]0;x\x07", b"\\x1b", "é".encode(), b"\xc2\x9b31m", b"\r"]
STRANGE += ["\u202e\u200b".encode(), "表".encode(), b"'\"", b"\x7f", b"%s{}"]


@pytest.mark.parametrize("tail", STRANGE, ids=repr)
def test_strange_names_are_shown_escaped_and_told_exactly(
    name: str, tail: bytes, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    raw = name.encode() + tail
    text = os.fsdecode(raw)
    with pidabs.Lock(raw) as lock:
        codes = [main("status", text), main("pid", text), main("list"), main("wait", "-w", "0", text)]
        shown = capfdbinary.readouterr()
        assert codes == [0, 0, 0, 1]
        main("status", "--json", text)
        one = json.loads(capfdbinary.readouterr().out)
        main("list", "--json")
        many = listed(name, capfdbinary.readouterr().out.decode("ascii"))
        assert matches_schema(one)
        assert one["address"] == many["address"] == lock.address.hex()
        assert one["name"] == many["name"] == raw.decode("utf-8", "replace")
        for number in "0", "FOO":
            main("signal", text, number)
        main("stop", text)  # it refuses to stop itself
    main("status", text)
    main("pid", text)
    main("signal", text, "0")
    for output in shown, capfdbinary.readouterr():
        for line in output.out.split(b"\n") + output.err.split(b"\n"):
            assert line.decode().isprintable(), line


def test_usage_errors_are_escaped_too(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (["status", name, "\x1b[31m"], ["wait", name, "-w", "\x1b[31m"], ["\x1b[31m"]):
        with pytest.raises(SystemExit):
            main(*arguments)
        assert capfd.readouterr().err.replace("\n", "").isprintable()


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize("utf8", ["0", "1"])
def test_locale(name: str, locale: str, utf8: str) -> None:
    environment = {"LC_ALL": locale, "PYTHONUTF8": utf8, "PYTHONCOERCECLOCALE": "0"}
    raw = name.encode() + "-é表".encode()
    with pidabs.Lock(raw):
        done = run("status", raw.decode(), env=environment, text=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(name.encode())
        done = run("list", "--json", env=environment, text=False)
        assert listed(name, done.stdout.decode("ascii"))["name"] == raw.decode()
        done = run("list", env=environment, text=False)
        assert (done.returncode, done.stderr) == (0, b"")
        done = run("wait", "-w", "0", raw.decode(), env=environment, text=False)
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)


def test_signal_to_a_name_that_looks_like_an_option(name: str) -> None:
    assert run("signal", "--", f"--{name}", "TERM").returncode == 3


@pytest.mark.parametrize("command", ["status", "pid", "wait", "stop"])
def test_name_that_looks_like_an_option(command: str, name: str) -> None:
    option = f"--{name}"
    with child(HOLD, args=(option,)) as process:
        process.expect("held")
        done = run(
            command, *(("-w", "5") if command == "stop" else ("-w", "0") if command == "wait" else ()), "--", option
        )
        assert done.returncode == (1 if command == "wait" else 0), done.stderr
        assert option in done.stdout + done.stderr or done.stdout == f"{process.pid}\n"


@pytest.mark.parametrize("command", ["status", "pid", "wait", "stop", "signal"])
@pytest.mark.parametrize("bad", [("",), ("#x",), ("--scope", "a:b", "x"), ("--scope", "", "x")], ids=repr)
def test_bad_names(command: str, bad: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(command, *bad, *(["TERM"] if command == "signal" else []))
    assert exit_.value.code == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert one_line(shown.err)


def test_name_that_does_not_fit(name: str) -> None:
    long = name + "x" * 200 + "-" + name
    with pidabs.Lock(long):
        done = run("status", long)
        assert (done.returncode, done.stdout.split()[0]) == (0, long)
        found = listed(name, run("list", "--json").stdout)
        assert found["name"].startswith("#")
        assert json.loads(run("status", "--json", long).stdout)["address"] == found["address"]


def test_a_name_as_list_shows_it(name: str) -> None:
    """Is enough to find a lock, but not to take it."""
    with child(HOLD, args=("/x/" * 40 + name,)) as process:
        process.expect("held")
        (shown,) = [line.split()[3] for line in run("list").stdout.splitlines() if line.split()[3].endswith(name)]
        assert run("pid", shown).stdout == f"{process.pid}\n"
        assert json.loads(run("status", "--json", shown).stdout)["name"] == shown
        assert run("wait", "-w", "0", shown).returncode == 1
        assert run("signal", shown, "0").returncode == 0
        for words in ("run", shown, "true"), ("status", shown[:-1]), ("stop", shown + "x"), ("pid", shown[:34]):
            done = run(*words)
            assert (done.returncode, done.stdout, one_line(done.stderr)) == (2, "", True)
        assert run("stop", shown).returncode == 0
    assert run("status", shown).stdout == f"{shown} is free\n"


GONE = """
    from pidabs.cli import ask, main
    os.chdir(sys.argv[1]); os.rmdir(sys.argv[1])
    sys.exit(main([*sys.argv[2:]]))
"""


@pytest.mark.parametrize(
    ("command", "code"),
    [(["pid", "./x"], 4), (["stop", "./x"], 4), (["run", "./x", "true"], 71), (["run", "--mirror", "x", "y", "z"], 71)],
    ids=str,
)
def test_directory_that_is_gone(command: list[str], code: int, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = run_in(["env"], GONE, str(gone), *command)
    assert (done.returncode, one_line(done.stderr)) == (code, True)
    assert "give an absolute one" in done.stderr


# Where the answer goes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [("status",), ("status", "--json"), ("pid",), ("list",), ("list", "--json")], ids=str
)
def test_output_that_takes_nothing(command: tuple[str, ...], name: str) -> None:
    arguments = command if command[0] == "list" else (*command, name)
    with pidabs.Lock(name):
        with open("/dev/full", "w") as full:
            done = run(*arguments, stdout=full, stderr=subprocess.PIPE, capture_output=False)
        assert (done.returncode, one_line(done.stderr)) == (4, True), done.stderr
        reader, writer = os.pipe()
        os.close(reader)
        done = run(*arguments, stdout=writer, stderr=subprocess.PIPE, capture_output=False)
        os.close(writer)
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
        quiet = subprocess.run(
            ["sh", "-c", '"$@" >&- 2>&-', "sh", *COMMAND, *arguments], cwd="/", timeout=60, check=False
        )
        assert quiet.returncode == 0


def test_errors_that_cannot_be_written(name: str) -> None:
    with open("/dev/full", "w") as full:
        assert run("pid", name, stdout=full, stderr=full, capture_output=False).returncode == 3


def on_a_terminal(columns: int, *arguments: str) -> list[str]:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen([*COMMAND, *arguments], cwd="/", stdin=follower, stdout=follower) as process:
        os.close(follower)
        output = b""
        try:
            while data := os.read(leader, 4096):
                output += data
        except OSError:  # EIO: the other end is closed
            pass
        assert process.wait(DEADLINE) == 0
    os.close(leader)
    return output.decode().split("\r\n")


@pytest.mark.parametrize("columns", [50, 80, 0])
def test_table_fits_the_terminal(name: str, columns: int) -> None:
    long = f"{name}-{'表' * 10}"
    with child(HOLD, args=(long, "x" * 300)) as process:
        process.expect("held")
        lines = on_a_terminal(columns, "list")
        (line,) = [line for line in lines if line.split()[:1] == [str(process.pid)]]
        if columns:
            assert max(map(_text.width, lines)) <= columns
            assert "…" in line
        else:
            assert "x" * 300 in line
        (line,) = [line for line in run("list").stdout.split("\n") if f"  {long}  " in line]
        assert "x" * 300 in line


def test_table() -> None:
    rows = [("PID", "NAME"), ("1", "a"), ("4711", "表b")]
    assert _text.table(rows, (0,), (0, 0)) == " PID  NAME\n   1  a\n4711  表b"
    assert _text.cut("abcdef", 4) == "abc…"
    assert _text.cut("表表表", 5) == "表表…"
    assert _text.cut("abcd", 4) == "abcd"
    assert _text.cut("e\u0301e\u0301e\u0301", 2) == "e\u0301…"
    assert _text.cut("ab", 1) == "…"
    ascii_only = io.TextIOWrapper(io.BytesIO(), "ascii")
    assert [_text.cut("abcdefgh", limit, ascii_only) for limit in (1, 3, 5)] == ["...", "...", "ab..."]
    assert [_text.duration(s) for s in (0.4, 61, 3600, 90061, 86400 * 30 + 59)] == [
        "0 s", "1 min 1 s", "1 h", "1 d 1 h", "30 d 59 s",
    ]  # fmt: skip


def test_shown_names_are_never_the_same() -> None:
    texts = ["\x1b", "\\x1b", "\x9b", "\udc9b", "\\u009b", "\n", "\\n", "\\", "\\\\", "a", "\u202e", "\U000e0001"]
    shown = [_text.show(text) for text in texts]
    assert len(set(shown)) == len(texts)
    assert all(text.isprintable() for text in shown)
    assert shown[:5] == ["\\x1b", "\\\\x1b", "\\u009b", "\\x9b", "\\\\u009b"]


# Who may see what ------------------------------------------------------------------------------------------------


@needs_root
def test_holder_is_another_user(name: str) -> None:
    code = "import pidabs\nos.setgroups([]); os.setgid(12348); os.setuid(12349)\n"
    with child(code + textwrap.dedent(HOLD), args=(name,)) as process:
        process.expect("held")
        done = run("status", name)
        assert f"pid      {process.pid}\n  user     12349\n" in done.stdout
        found = listed(name, run("list", "--json").stdout)
        assert (found["pid"], found["uid"], found["user"]) == (process.pid, 12349, "12349")


@needs_root
def test_another_user_asks(name: str) -> None:
    """It cannot look into the holder's descriptors, and is told all the same."""
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        assert run_as_another("pid", name).stdout == f"{process.pid}\n"
        found = listed(name, run_as_another("list", "--json").stdout)
        assert (found["pid"], found["uid"], found["user"]) == (process.pid, 0, "root")
        assert name in found["command"]


def test_holder_in_another_pid_namespace(name: str) -> None:
    command = in_namespace("--pid", "--fork", "--mount-proc")
    code = "from pidabs.cli import main\nsay(main(sys.argv[1:]))"
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        done = run_in(command, code, "pid", name)
        assert (done.stdout, one_line(done.stderr)) == ("4\n", True)
        assert "it is in another pid namespace" in done.stderr
        done = run_in(command, code, "status", name)
        assert done.stdout.endswith("\n0\n")
        assert "  pid      unknown: it is in another pid namespace; ask from there\n" in done.stdout
        found = listed(name, run_in(command, code, "list", "--json").stdout.rpartition("]")[0] + "]")
        assert (found["pid"], found["command"], found["held"]) == (None, None, True)
        assert matches_schema(found)


def test_without_proc(name: str) -> None:
    command = [*in_namespace("--mount"), "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    with pidabs.Lock(name):
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
            pytest.skip("/proc cannot be hidden here")
        code = "from pidabs.cli import main\nsay(main(sys.argv[1:]))"
        assert run_in(command, code, "pid", name).stdout == f"{os.getpid()}\n0\n"
        done = run_in(command, code, "status", name)
        assert "command" not in done.stdout
        assert done.stdout.endswith("  waiters  0\n0\n")


def test_without_netlink(name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_diag, "socket", no_netlink)
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        assert [main("pid", name), main("wait", "-w", "0.1", name)] == [0, 1]
        assert capfd.readouterr().out == f"{process.pid}\n"
        assert main("list", "--json") == 0
        assert listed(name, capfd.readouterr().out)["pid"] == process.pid
    assert [main("status", name), main("wait", name)] == [3, 0]


def test_kernel_that_cannot_be_asked(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_diag, "socket", no_netlink)
    monkeypatch.setattr(_diag, "open", no_file, raising=False)
    for command in ("status", name), ("pid", name), ("list",), ("list", "--json"), ("wait", name), ("stop", name):
        assert main(*command) == 4
        shown = capfd.readouterr()
        assert (shown.out, one_line(shown.err)) == ("", True), shown
    assert main("status", "--json", name) == 4
    answer = json.loads(capfd.readouterr().out)
    assert matches_schema(answer)
    assert (answer["held"], answer["waiters"]) == (None, None)


def test_no_descriptor_left(name: str) -> None:
    code = """
    import resource
    from pidabs.cli import ask, main, stop
    from pidabs.cli._parser import parse
    parse(["list"])
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
    name = sys.argv[1]
    for command in ["status", name], ["pid", name], ["list"], ["wait", name], ["stop", name]:
        say(main(command))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))  # what measures the coverage writes a file
    """
    done = run_in(["env"], code, name)
    assert done.stdout == "4\n" * 5, done.stderr
    assert "raise the limit" in done.stderr
    assert all(one_line(line + "\n") for line in done.stderr.splitlines())


# Found without a trace -------------------------------------------------------------------------------------------


def test_listing_leaves_no_trace_where_it_may_look(name: str) -> None:
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        for _ in range(3):
            (found,) = [lock for lock in _find.every() if lock.name == name]
            assert found.pid == process.pid
        assert dead_entries(name) == 0


def test_asking_again_and_again_leaves_few_entries(name: str) -> None:
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        for _ in range(40):
            found = _find.one(pidabs.Lock(name))
            assert found is not None
            assert found.pid == process.pid
        assert dead_entries(name) <= 16


def test_asking_stops_before_the_queue_is_full(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /proc shows nothing, as it does to who is neither root nor the holder's user."""
    monkeypatch.setattr(_find, "openers", lambda inodes: {})
    monkeypatch.setattr(_find, "_MOST", 20)
    with child(HOLD, args=(name,)) as process:
        process.expect("held")
        pids = []
        for _ in range(25):
            found = _find.one(pidabs.Lock(name))
            assert found is not None
            pids.append(found.pid)
        assert pids == [process.pid] * 20 + [None] * 5
        assert found.why == "its queue has 20 entries of those who only asked"
        assert dead_entries(name) == 20


def test_who_only_binds(name: str) -> None:
    code = """
    import socket
    sock = socket.socket(socket.AF_UNIX); sock.bind(b"\\0pidabs:" + sys.argv[1].encode())
    say("bound"); listen()
    """
    with child(code, args=(name,)) as process:
        process.expect("bound")
        assert run("pid", name).stdout == f"{process.pid}\n"
        assert listed(name, run("list", "--json").stdout)["pid"] == process.pid


def test_full_queue(name: str) -> None:
    code = """
    import socket
    sock = socket.socket(socket.AF_UNIX); sock.bind(b"\\0pidabs:" + sys.argv[1].encode()); sock.listen(0)
    say("held"); listen()
    """
    with child(code, args=(name,)) as process, socket.socket(socket.AF_UNIX) as only:
        process.expect("held")
        only.connect(pidabs.Lock(name).address)
        done = run("status", name)
        assert f"  pid      {process.pid}\n" in done.stdout
        assert "  waiters  1\n" in done.stdout


def test_lock_that_a_child_has_inherited(name: str) -> None:
    """Its parent took it and is gone: the one who has it now is named."""
    with child(INHERITED, args=(name,)) as process:
        keeper, brand = sorted((process.read_line(), process.read_line()), key=int, reverse=True)
        assert brand != keeper
        assert run("pid", name).stdout == f"{keeper}\n"
        assert str(listed(name, run("list", "--json").stdout)["pid"]) == keeper


def test_lock_that_several_have_inherited(name: str) -> None:
    code = INHERITED.replace("listen(9)", "listen(99)")
    code = code.replace("if os.fork() == 0:", "if os.fork() == 0 or os.fork() == 0:")
    with child(code, args=(name,)) as process:
        _, first, second = sorted(int(process.read_line()) for _ in range(3))
        for command in ("pid", name), ("stop", name), ("run", "-n", name, "true"):
            done = run(*command)
            assert (done.returncode, done.stdout, one_line(done.stderr)) == (1 if "run" in command else 4, "", True)
            assert "has it no longer" in done.stderr
            assert f"`ps -fp {first},{second}` says more" in done.stderr
        done = run("status", name)
        assert (done.returncode, f"`ps -fp {first},{second}`" in done.stdout) == (0, True)


@needs_root
def test_lock_pressed_into_the_hands_of_another_user(name: str) -> None:
    with child(PASSED_ON, args=(name,)) as process:
        process.expect("has it")
        assert [run("pid", name).returncode, run("status", name).returncode] == [4, 0]
        assert listed(name, run("list", "--json").stdout)["pid"] is None


def test_many_of_everything(name: str) -> None:
    """1000 locks, 10,000 other sockets, a queue of 2000."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 15000:
        pytest.skip("needs 15,000 descriptors")
    code = """
    import contextlib, io, json, pidabs, resource, socket, time
    from pidabs.cli import main
    resource.setrlimit(resource.RLIMIT_NOFILE, (15000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with open("/proc/sys/net/core/somaxconn", "w") as file: file.write("4096")
    def answer(*command):
        with contextlib.redirect_stdout(io.StringIO()) as out: assert main(command) == 0
        return json.loads(out.getvalue())
    others = [socket.socket(socket.AF_UNIX) for _ in range(10000)]
    for number, other in enumerate(others):
        other.bind(b"\\0other-%d" % number)
    listener = socket.socket(socket.AF_UNIX); listener.bind(b"\\0pidabs:queue"); listener.listen(4096)
    waiters = [socket.socket(socket.AF_UNIX) for _ in range(2000)]
    for waiter in waiters: waiter.connect(b"\\0pidabs:queue")
    (queue,) = answer("list", "--json")
    say(queue["waiters"], queue["pid"], answer("status", "--json", "queue")["waiters"])
    for other in others: other.close()
    locks = [pidabs.Lock(f"lock-{number:04}").acquire() for number in range(1000)]
    began = time.process_time()
    many = answer("list", "--json")
    cpu = time.process_time() - began
    say(len(many), {lock["pid"] == os.getpid() for lock in many}, cpu < 3)
    """
    done = run_in(in_namespace("--net"), code)
    first, second, *_ = *done.stdout.split("\n"), ""
    assert first.split()[::2] == ["2000", "2000"], done.stderr
    assert second == "1001 {True} True", done.stderr


# wait ------------------------------------------------------------------------------------------------------------


def test_wait_through_a_handing_over(name: str) -> None:
    with child(HOLD, args=(name,)) as first, child(HOLD, args=(name,)) as second:
        came = wait_until(lambda: [one for one in (first, second) if not one.says_nothing(0)])
        holder, waiter = (first, second) if came == [first] else (second, first)
        holder.expect("held")
        wait_until(lambda: pidabs.Lock(name).waiters() == 1)
        with subprocess.Popen([*COMMAND, "wait", name], cwd="/") as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            holder.tell()
            holder.expect("released")
            waiter.expect("held")  # at once, in spite of who watches
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            assert (dead_entries(name), pidabs.Lock(name).waiters()) == (0, 0)
            waiter.tell()
            waiter.expect("released")
            assert process.wait(DEADLINE) == 0


def test_wait_for_a_death(name: str) -> None:
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        with subprocess.Popen([*COMMAND, "wait", name], cwd="/") as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            holder.kill()
            assert process.wait(DEADLINE) == 0
        assert run("status", name).returncode == 3  # not taken


def test_wait_no_longer_than_this(name: str) -> None:
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        began = time.monotonic()
        done = run("wait", "--timeout", "0.3", name)
        assert time.monotonic() - began >= 0.3
        assert (done.returncode, done.stdout, one_line(done.stderr)) == (1, "", True)
        assert f"still held after 0.3 s, by pid {holder.pid} (" in done.stderr


def test_wait_that_is_over_as_the_lock_is_freed(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        monkeypatch.setattr(ask, "one", lambda lock: holder.kill() or _find.one(lock))
        assert main("wait", "-w", "0", name) == 0
        assert capfd.readouterr().err == ""


@pytest.mark.parametrize("source", ["netlink", "proc"])
def test_wait_looks_seldom(
    name: str, source: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Twenty times a second at most, and less where a look takes long."""
    if source == "proc":
        monkeypatch.setattr(_diag, "socket", no_netlink)
    now = [0.0]
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    def tick() -> float:
        now[0] += 0.0001
        return now[0]

    monkeypatch.setattr(ask, "sleep", sleep)
    monkeypatch.setattr(ask, "monotonic", tick)
    with child(HOLD, args=(name,)) as holder:
        holder.expect("held")
        assert main("wait", "-w", "1", name) == 1
    assert 15 <= len(pauses) <= 21
    assert min(pauses[:-1]) >= 0.05


def test_wait_interrupted(name: str) -> None:
    with pidabs.Lock(name):
        code = "from pidabs.cli import ask, main\nsay('ready')\nsys.exit(main(['wait', sys.argv[1]]))"
        with child(code, args=(name,), stderr=subprocess.PIPE) as process:
            process.expect("ready")
            with pytest.raises(subprocess.TimeoutExpired):
                process.process.wait(0.3)
            process.signal(signal.SIGINT)
            assert process.wait() == -signal.SIGINT  # so that a script stops there, too
            assert process.process.stderr is not None
            assert process.process.stderr.read() == b""


def test_wait_for_oneself(name: str) -> None:
    """As in `pidabs run x -- pidabs wait x`: that would be for ever."""
    code = """
    import pidabs
    lock = pidabs.Lock(sys.argv[1]).acquire()
    os.set_inheritable(lock.fileno(), True)
    os.execv(sys.executable, [sys.executable, "-m", "pidabs", "wait", sys.argv[1]])
    """
    done = run_in(["env"], code, name)
    assert (done.returncode, one_line(done.stderr)) == (1, True)


# What it costs ---------------------------------------------------------------------------------------------------


def test_status_imports_little() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules)\n"
    code += "from pidabs.cli import main; main(['status', 'nobody-has-this'])\n"
    code += "print(*sorted(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(Path(pidabs.__file__).parents[1])],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    imported = set(done.stdout.split())
    assert "pidabs.cli.ask" in imported
    heavy = {"json", "asyncio", "typing", "subprocess", "dataclasses", "inspect", "pathlib", "socket", "hashlib", "pwd"}
    assert not imported & heavy
    assert not imported & {"pidabs.cli.demo", "pidabs.cli.stop", "pidabs.cli.run"}


def test_status_starts_soon(name: str) -> None:
    """In processor time, against Python itself: other processes do not disturb that much."""

    def cost(*command: str) -> float:
        best = 1e9
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *command], cwd="/", stdout=subprocess.DEVNULL, timeout=60, check=False)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return best

    python, status = cost("-c", "pass"), cost("-m", "pidabs", "status", name)
    assert status < 6 * python  # 3 is usual
