"""Holders killed: `python -m bench.killing PEER DIRECTORY` reads numbers, and answers each with so many times.

Each time is from the moment before kill(SIGKILL) of a holder to the moment after acquire() in a process that slept,
waiting, in microseconds.  The interpreter has loaded nothing but that lock: the kernel gives back the memory of a
killed process before it frees its lock, and the holders, which are forked, shall be small.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import time

from .children import Line, Troop, Worker
from .peers import Make, named


def main() -> None:
    peer = named(sys.argv[1])
    path = os.path.join(sys.argv[2], "some.pid")
    make = peer.load()
    gc.disable()
    with Troop() as troop:
        waiter = troop.start(lambda line: _wait(line, make, path))
        for number in sys.stdin:
            times = [_kill(troop, waiter, make, path, peer.longest_pause) for _ in range(int(number))]
            print(json.dumps(times), flush=True)


def _kill(troop: Troop, waiter: Worker, make: Make, path: str, pause: float) -> float:
    holder = troop.start(lambda line: hold(line, make, path))
    holder.hear()
    waiter.tell()
    waiter.until_asleep()
    time.sleep(random.uniform(0, pause))
    killed = time.monotonic_ns()
    os.kill(holder.pid, signal.SIGKILL)
    took = (waiter.hear() - killed) / 1e3
    troop.dismiss(holder)
    return took


def hold(line: Line, make: Make, path: str) -> None:
    lock = make(path)
    lock.acquire()
    line.say(0)
    line.listen()


def _wait(line: Line, make: Make, path: str) -> None:
    lock = make(path)
    while line.listen():
        lock.acquire()
        got = time.monotonic_ns()
        lock.release()
        line.say(got)


if __name__ == "__main__":
    main()
