"""Programs that share a cache, as they are on PyPI, with nothing edited: how they wait, and what a SIGKILL leaves."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from programs import Program, program
from real import WAYS, environment, sleeps_for_a_time, times_awake
from support import HOLD, child, wait_until

import pidabs

pytestmark = pytest.mark.timeout(300)

Install = Callable[..., Path]

BESIDE = Path(sys.executable).parent
"""Console commands of this environment."""

HOLD_FILE = """
    import filelock
    with filelock.FileLock(sys.argv[1]):
        say("held")
        listen()
    say("released")
"""
HOLDS = {"stock": HOLD_FILE, "pidabs": HOLD}


def lock_files(directory: Path) -> list[Path]:
    return list(directory.rglob("*.lock"))


# virtualenv ---------------------------------------------------------------------------------------------------


def virtualenv(way: str, path: Path, number: int) -> tuple[object, ...]:
    options = ("--no-periodic-update", "--app-data", path / "data", "--quiet")
    return *WAYS[way], BESIDE / "virtualenv", path / f"env{number}", *options


def wait_for_waiters(way: str, path: Path, processes: list[Program]) -> None:
    """Until all of them wait for this lock."""
    if way == "stock":
        wait_until(lambda: all(sleeps_for_a_time(process.pid) for process in processes), deadline=60)
    else:
        wait_until(lambda: pidabs.Lock(path).waiters() == len(processes), deadline=60)


def assert_only_stock_polls(way: str, processes: list[Program]) -> None:
    """Stock looks 20 times a second; on ours they sleep, once they have got there, until they have the lock."""
    for process in processes:
        if way == "stock":
            assert times_awake(process.pid) >= 5
        else:
            wait_until(lambda process=process: times_awake(process.pid) <= 1)  # type: ignore[misc]


@pytest.mark.parametrize("way", WAYS)
def test_virtualenvs_wait_for_the_image_of_pip(way: str, tmp_path: Path) -> None:
    """Many at once: all need what the first unpacks, and here that one takes its time."""
    with program(*virtualenv("stock", tmp_path, 0)) as first:
        assert first.process.wait(60) == 0
    (image,) = lock_files(tmp_path / "data" / "wheel")
    for path in lock_files(tmp_path):
        path.unlink()
    with ExitStack() as stack:
        holder = stack.enter_context(child(HOLDS[way], args=(str(image),)))
        holder.expect("held")
        makers = [stack.enter_context(program(*virtualenv(way, tmp_path, number))) for number in range(1, 5)]
        wait_for_waiters(way, image, makers)
        assert_only_stock_polls(way, makers)
        holder.tell()
        for maker in makers:
            assert maker.process.wait(60) == 0
            assert maker.errors() == ""
    assert len(list(tmp_path.glob("env*/bin/pip"))) == 5
    assert bool(lock_files(tmp_path / "data")) == (way == "stock")


# huggingface_hub ----------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """Serves one file, to those that ask for it first only when it is told."""

    asked: list[str]
    served: threading.Event
    body = b"the weights"

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("ETag", '"weights"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Cache-Control", "max-age=1000")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.reply(b"")

    def do_GET(self) -> None:
        if self.path.startswith("/some/model/"):
            self.asked.append(self.path)
            if not self.served.wait(120):
                return
        try:
            self.reply(self.body)
        except OSError:
            pass  # it was killed

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def hub() -> Iterator[tuple[type[Hub], str]]:
    class OneHub(Hub):
        asked: list[str] = []  # noqa: RUF012
        served = threading.Event()

    with ThreadingHTTPServer(("127.0.0.1", 0), OneHub) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield OneHub, f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            OneHub.served.set()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("way", WAYS)
def test_downloads_from_the_hub_wait_for_the_one_that_is_at_it(way: str, tmp_path: Path) -> None:
    """The first is killed in the middle: one of the others goes on, and none asks for what is there."""
    cache = tmp_path / "cache"
    download = (*WAYS[way], BESIDE / "hf", "download", "some/model", "weights", "--cache-dir", cache)
    lock = cache / ".locks" / "models--some--model" / "weights.lock"
    with hub() as (served, url), ExitStack() as stack:
        home = environment(HF_ENDPOINT=url, HF_HUB_DISABLE_TELEMETRY=1, HF_HOME=tmp_path)
        first = stack.enter_context(program(*download, env=home))
        wait_until(lambda: len(served.asked) == 1, deadline=60)
        others = [stack.enter_context(program(*download, env=home)) for _ in range(3)]
        wait_for_waiters(way, lock, others)
        assert_only_stock_polls(way, others)
        first.kill()
        wait_until(lambda: len(served.asked) == 2)
        served.served.set()
        for other in others:
            assert other.process.wait(60) == 0
        assert len(served.asked) == 2
    (file,) = cache.glob("models--some--model/snapshots/*/weights")
    assert file.read_bytes() == Hub.body
    assert bool(lock_files(cache)) == (way == "stock")


# CacheControl -------------------------------------------------------------------------------------------------

CACHED = """
import os, sys, threading
import cachecontrol, cachecontrol.caches, requests

def hook(event, args):
    "Wait for ever where it has the lock, and is about to write."
    writes = event == "open" and args[1] is None and len(os.path.basename(str(args[0]))) == 56  # os.open, a sha224
    if writes and sys.argv[3] == "slow":
        print("writing", flush=True)
        threading.Event().wait()

session = cachecontrol.CacheControl(requests.Session(), cache=cachecontrol.caches.FileCache(sys.argv[1]))
sys.addaudithook(hook)
print(session.get(sys.argv[2]).text, flush=True)
"""


@pytest.mark.parametrize("way", WAYS)
def test_cachecontrol_hangs_for_ever_after_sigkill(way: str, installed: Install, tmp_path: Path) -> None:
    """Version 0.12, the last one on lockfile: who is killed while it writes an answer to the cache leaves its lock."""
    (tmp_path / "get.py").write_text(CACHED)
    cache = tmp_path / "cache"
    home = environment(installed("cachecontrol[filecache]==0.12.14"))
    with hub() as (served, url):
        served.served.set()
        get = (*WAYS[way], tmp_path / "get.py", cache, f"{url}/some/model/page")
        with program(*get, "slow", env=home) as first:
            assert first.read_line(60) == "writing"
            first.kill()
        with program(*get, "fast", env=home) as second:
            if way == "stock":
                wait_until(lambda: len(served.asked) == 2 and sleeps_for_a_time(second.pid))
                assert times_awake(second.pid) >= 5
                (leftover,) = lock_files(cache)
                assert second.process.poll() is None
                leftover.unlink()  # what its users do
            assert second.read_line(60) == "the weights"
            assert second.wait() == 0
    assert not lock_files(cache)
