"""A worker on asyncio of which one is active: others wait, in order, and take over when it ends or is killed.

    python asyncio_worker.py example-worker        # works
    python asyncio_worker.py example-worker        # in another terminal: waits for its turn
    python asyncio_worker.py example-worker 5      # or gives up after 5 s, with exit code 1, and says who works

Shows: `async with` on a lock.  While it waits the event loop runs on, without a thread and without polling; SIGTERM
cancels the wait or the work, and neither leaves the lock behind.
"""

import asyncio
import signal
import sys

import pidabs


async def work() -> None:
    print("working", flush=True)
    while True:
        await asyncio.sleep(60)  # the worker's work


async def run(name: str, seconds: float | None) -> None:
    lock = pidabs.Lock(name, timeout=seconds)
    if lock.locked():
        print(f"waiting for {lock.holder()}", flush=True)
    async with lock:
        await work()


async def main() -> None:
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else None
    task = asyncio.create_task(run(sys.argv[1], seconds))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        print("ended", flush=True)
    except pidabs.Timeout as exc:
        sys.exit(f"example-worker: {exc}")


if __name__ == "__main__":
    asyncio.run(main())
