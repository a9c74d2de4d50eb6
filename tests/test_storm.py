"""Real processes under a storm of SIGKILL, SIGSTOP and SIGCONT: no two owners, no stall, the lock free at the end.

The detector of two owners is a POSIX record lock on a plain file, taken right after acquire and dropped right before
release.  It does not use the lock under test, says who is in the way, is not inherited by forked children, and cannot
raise a false alarm when its owner is killed: the kernel drops record locks as it closes the descriptors (filp_close),
but sockets only after all of them (task work), so the marker is gone before the lock is free.

PIDABS_STORM_SECONDS (default 4) says how long each storm lasts.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from support import Child, child, wait_until

import pidabs

SECONDS = float(os.environ.get("PIDABS_STORM_SECONDS", "4"))
STALL = 2.0

STORM = """
    import fcntl, json, mmap, random, select, signal, struct, time, traceback
    import pidabs

    seed, name, directory, seconds, mix = sys.argv[1:]
    seconds = float(seconds)
    WORKERS = 6
    mirrored = "mirror" in mix
    MARKER, TROUBLE = os.path.join(directory, "marker"), os.path.join(directory, "trouble")
    open(MARKER, "w").close()
    counters = mmap.mmap(-1, 4096)  # shared with all workers: acquisitions of each, then whether to end
    END = 4088

    def count(slot): return struct.unpack_from("Q", counters, 8 * slot)[0]

    def trouble(text):
        fd = os.open(TROUBLE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, f"{time.monotonic():.4f} pid {os.getpid()}: {text}\\n".encode())
        os.close(fd)

    def work(slot, serial):
        dice = random.Random(f"{seed}-{serial}")
        marker = os.open(MARKER, os.O_RDWR | os.O_CLOEXEC)
        record = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        lock = pidabs.Lock(name, mirror=mirrored)
        children = []
        while not counters[END]:
            if dice.random() < 0.1:
                lock = pidabs.Lock(name, mirror=mirrored)
            try:
                lock.acquire(dice.choice([0, 0.001, 0.01, 0.05, 0.3, 10]))
            except pidabs.Timeout:
                continue
            try:
                fcntl.fcntl(marker, fcntl.F_SETLK, record)
            except OSError:
                found = fcntl.fcntl(marker, fcntl.F_GETLK, record)
                trouble(f"two owners: {struct.unpack('hhqqi4x', found)[4]} has it, too")
            if not lock.held: trouble("acquired, but not held")
            counters[8 * slot : 8 * slot + 8] = struct.pack("Q", count(slot) + 1)
            chance = dice.random()
            if chance < 0.3:
                time.sleep(dice.random() * 0.002)
            elif chance < 0.4 and "fork" in mix:
                if (pid := os.fork()) == 0:
                    if lock.held: trouble("a forked child holds the lock")
                    if dice.random() < 0.3: time.sleep(0.05)  # and outlives its parent, perhaps
                    os._exit(0)
                children.append(pid)
                if chance < 0.37: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                children = [pid for pid in children if not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)]
            fcntl.lockf(marker, fcntl.LOCK_UN)
            lock.release()

    def start(slot, serial):
        pid = os.fork()
        if pid == 0:
            try:
                work(slot, serial)
            except BaseException:
                trouble(traceback.format_exc())
            finally:
                os._exit(0)
        return pid, os.pidfd_open(pid)

    dice = random.Random(seed)
    began = progressed = time.monotonic()
    slots = [start(slot, slot) for slot in range(WORKERS)]
    serial = WORKERS
    asleep = {}
    kills = stops = total = 0
    longest = 0.0
    while (now := time.monotonic()) < began + seconds:
        time.sleep(dice.random() * 0.004)
        slot = dice.randrange(WORKERS)
        pid, pidfd = slots[slot]
        chance = dice.random()
        if chance < 0.35 and "kill" in mix:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            kills += 1
        elif chance < 0.7 and "stop" in mix and slot not in asleep:
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
            asleep[slot] = now + dice.choice([0.001, 0.01, 0.03, 0.2])
            stops += 1
        for slot, until in list(asleep.items()):
            if now > until:
                signal.pidfd_send_signal(slots[slot][1], signal.SIGCONT)
                del asleep[slot]
        for slot, (pid, pidfd) in enumerate(slots):
            if select.select([pidfd], [], [], 0)[0]:
                os.waitpid(pid, 0)
                os.close(pidfd)
                asleep.pop(slot, None)
                slots[slot] = start(slot, serial)
                serial += 1
        if (done := sum(map(count, range(WORKERS)))) != total:
            total = done
            longest = max(longest, time.monotonic() - progressed)
            progressed = time.monotonic()
        elif time.monotonic() - progressed > 10:
            trouble(f"nobody has got the lock for 10 s: {pidabs.holder(name)}; {[pid for pid, _ in slots]}")
            break
    longest = max(longest, time.monotonic() - progressed)

    counters[END] = 1
    for slot, (pid, pidfd) in enumerate(slots):
        signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        if slot % 2: signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    for pid, pidfd in slots:
        if not select.select([pidfd], [], [], 15)[0]:
            trouble(f"{pid} does not come to an end")
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitpid(pid, 0)
    try:
        pidabs.Lock(name).acquire(1).release()
    except pidabs.Timeout as exc:
        trouble(f"not free at the end: {exc}")
    found = open(TROUBLE).read() if os.path.exists(TROUBLE) else ""
    say(json.dumps({"kills": kills, "stops": stops, "acquired": total, "longest": round(longest, 3), "trouble": found}))
"""


@pytest.mark.timeout(60 + SECONDS)
@pytest.mark.parametrize("mix", ["kill", "stop", "kill stop fork", "kill stop fork mirror"])
def test_storm(mix: str, tmp_path: Path) -> None:
    path = str(tmp_path / "locked" / "x.pid")
    os.mkdir(os.path.dirname(path))
    seed = str(random.getrandbits(32))
    print("seed", seed)
    with child(STORM, args=(seed, path, str(tmp_path), str(SECONDS), mix)) as storm:
        result = json.loads(storm.read_line(deadline=SECONDS + 50))
    print(result)
    assert result["trouble"] == ""
    assert result["longest"] < STALL
    assert result["acquired"] > 20 * SECONDS
    assert result["kills"] > 5 * SECONDS or "kill" not in mix
    assert result["stops"] > 5 * SECONDS or "stop" not in mix
    wait_until(lambda: path not in [lock.name for lock in pidabs.list_locks()], "the lock is gone")
    wait_until(lambda: path.encode() not in Path("/proc/net/unix").read_bytes(), "no connection is left")


def test_the_detector_sees_two_owners(tmp_path: Path) -> None:
    """Two locks that do not exclude each other: the storm must say so, else it proves nothing."""
    path = str(tmp_path / "x.pid")
    sabotage = f"""
    import pidabs
    original = pidabs.Lock
    names = iter(range(10**9))
    def Lock(name, **kwargs): return original(f"{path}-{{os.getpid()}}-{{next(names)}}", **kwargs)
    pidabs.Lock = Lock
    """
    with child(sabotage + STORM, args=("1", path, str(tmp_path), "1", "kill")) as storm:
        result = json.loads(storm.read_line())
    assert "two owners" in result["trouble"]


DAEMONS = """
    import select, signal, time
    import pidabs
    kind, path, count = sys.argv[1:]
    if kind == "PIDLockFile":
        from pidabs.compat.lockfile.pidlockfile import PIDLockFile
        def take(): PIDLockFile(path).acquire()
        def locked(): return PIDLockFile(path).is_locked()
    else:
        def take():
            global lock
            lock = pidabs.Lock(path, mirror=True)
            lock.acquire(0)
        def locked(): return pidabs.Lock(path).locked()

    def daemon(reader, writer):
        try:
            take()
        except BaseException as exc:
            os.write(writer, b"refused: " + repr(exc).encode() + b" " + str(exc).encode())
            os._exit(1)
        if number % 10 == 0 and os.fork() == 0:
            os.close(writer)
            time.sleep(0.3)  # a worker, which outlives it
            os._exit(0)
        os.write(writer, b"up")
        signal.pause()

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    times = []
    for number in range(int(count)):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            daemon(reader, writer)
        os.close(writer)
        said = os.read(reader, 1000)
        os.close(reader)
        if said != b"up":
            say(f"start {number}:", said.decode())
            break
        if int(open(path).read()) != pid: say("the mirror is wrong")
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        began = time.monotonic()
        if number % 2:
            select.select([pidfd], [], [])
        else:
            while locked() and time.monotonic() < began + 5: pass
        times.append(time.monotonic() - began)
        reaped = os.waitpid(pid, 0) if number % 3 == 0 else None  # else a zombie, for now
        os.close(pidfd)
    else:
        say("fine", int(max(times) * 1000))
"""


@pytest.mark.parametrize("kind", ["Lock", "PIDLockFile"])
def test_thousand_daemons_are_started_killed_and_started(kind: str, tmp_path: Path) -> None:
    """Never a refusal once the kernel has let go: seen by its pidfd, or by looking at the lock."""
    if kind == "PIDLockFile":
        pytest.importorskip("lockfile")
    with child(DAEMONS, args=(kind, str(tmp_path / "daemon.pid"), "1000")) as helper:
        verdict = helper.read_line(deadline=60)
        assert verdict.startswith("fine"), verdict
        assert int(verdict.split()[1]) < STALL * 1000


QUEUER = """
    import pidabs
    lock = pidabs.Lock(sys.argv[1])
    while (turn := listen()):
        lock.acquire(15)
        with open(sys.argv[2], "a") as file: file.write(turn + "\\n")
        lock.release()
        say("done")
"""


def test_quiet_waiters_get_it_in_order(name: str, tmp_path: Path) -> None:
    order = tmp_path / "order"
    lock = pidabs.Lock(name)
    waiters = [Child(QUEUER, args=(name, str(order))) for _ in range(8)]
    expected = []
    try:
        for turn in range(15):
            random.shuffle(waiters)
            lock.acquire(15)
            for at, waiter in enumerate(waiters):
                waiter.tell(f"{turn}.{at}")
                expected.append(f"{turn}.{at}")
                wait_until(lambda at=at: lock.waiters() == at + 1, "it has joined")
            lock.release()
            for waiter in waiters:
                waiter.expect("done")
    finally:
        for waiter in waiters:
            waiter.close()
    assert order.read_text().split() == expected
