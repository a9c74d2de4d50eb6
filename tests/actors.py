"""Processes with several threads that do what a test tells them, for the tests of random call sequences.

An Actor runs `code`, whose functions named `do_*` it calls on order in the thread that the order names, and sends back
what they return, or what they raise as [type, arguments].  A function may block: its answer comes when it comes.
"""

from __future__ import annotations

import json
import textwrap
import time
from typing import Any

from support import DEADLINE, Child

THREADS = 3

_SERVER = r"""
import gc, json, queue, threading, warnings

_speaking = threading.Lock()
_local = threading.local()
warnings.simplefilter("always")
warnings.filterwarnings("ignore", "This process.*multi-threaded, use of fork", DeprecationWarning)  # since Python 3.12
warnings.showwarning = lambda message, category, *rest: _local.shown.add(category.__name__)


def outcome(function, *args):
    "What it returned or raised, and which warnings that caused."
    outer, _local.shown = getattr(_local, "shown", set()), set()
    try:
        result = ["returned", function(*args)]
    except Exception as exc:
        arguments = ["".join(arg) if isinstance(arg, str) else repr(arg) for arg in exc.args]
        result = ["raised", type(exc).__name__, arguments, str(exc)]
    shown, _local.shown = _local.shown, outer
    return result + [sorted(shown)] if shown else result


def in_child(function, *args):
    "The outcome in a forked child, which ends without any ado."
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writable, json.dumps(outcome(function, *args)).encode())
        finally:
            os._exit(0)
    os.close(writable)
    with open(readable) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def descriptors():
    gc.collect()
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(f"{number} {os.readlink('/proc/self/fd/' + number)}")
        except FileNotFoundError:
            pass  # the listing's own
    return sorted(found)


def _work(orders):
    while True:
        number, name, args = orders.get()
        answer = outcome(globals()["do_" + name], *args)
        with _speaking:
            say(json.dumps([number, answer]))


def serve(threads):
    everybodys = [queue.SimpleQueue() for _ in range(threads)]
    for orders in everybodys:
        threading.Thread(target=_work, args=(orders,), daemon=True).start()
    # The main thread itself carries out what is for no thread: it is never blocked.
    while order := listen():
        number, thread, name, args = json.loads(order)
        if thread is not None:
            everybodys[thread].put((number, name, args))
        else:
            answer = outcome(globals()["do_" + name], *args)
            with _speaking:
                say(json.dumps([number, answer]))
    os._exit(0)
"""


class Actor:
    def __init__(self, code: str, *args: str) -> None:
        served = textwrap.dedent(_SERVER) + textwrap.dedent(code) + f"\nserve({THREADS})\n"
        self.child = Child(served, args=args)
        self.waiting: set[int] = set()
        self._answers: dict[int, Any] = {}
        self._orders = 0

    @property
    def pid(self) -> int:
        return self.child.pid

    def start(self, thread: int | None, name: str, *args: Any) -> int:
        """Order something; its number."""
        self._orders += 1
        self.waiting.add(self._orders)
        self.child.tell(json.dumps([self._orders, thread, name, args]))
        return self._orders

    def has_answered(self, number: int) -> bool:
        while not self.child.says_nothing(0):
            self._read()
        return number in self._answers

    def answer(self, number: int) -> Any:
        end = time.monotonic() + DEADLINE
        while number not in self._answers:
            self._read(end - time.monotonic())
        self.waiting.discard(number)
        return self._answers.pop(number)

    def do(self, thread: int | None, name: str, *args: Any) -> Any:
        """Order something and wait for what comes of it."""
        return self.answer(self.start(thread, name, *args))

    def result(self, thread: int | None, name: str, *args: Any) -> Any:
        """The same for what must not raise."""
        kind, value, *rest = self.do(thread, name, *args)
        assert (kind, rest) == ("returned", []), (value, rest)
        return value

    def _read(self, deadline: float = DEADLINE) -> None:
        number, answer = json.loads(self.child.read_line(deadline))
        self._answers[number] = answer

    def end(self) -> None:
        self.child.close()
