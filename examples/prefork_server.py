"""A server that takes its lock, then detaches, then forks workers; no framework, only os.fork().

    python prefork_server.py /run/example.sock      # again: exit code 1, and who holds the lock
    nc -U /run/example.sock                         # a worker answers with its pid
    pidabs stop /run/example.sock

Shows: a refusal that reaches whoever starts it; `across_fork()` around the two forks that detach and only those, so
that the workers, which are forked later, do not hold the lock: kill the server with SIGKILL, and it is free at once,
whatever the workers do; and a socket file that is removed without asking, since who holds the lock knows that it is a
dead server's.
"""

import os
import select
import signal
import socket
import sys
from contextlib import suppress

import pidabs

WORKERS = 4
SIGNALS = {signal.SIGTERM, signal.SIGCHLD}


def listen(path: str) -> socket.socket:
    with suppress(FileNotFoundError):
        os.unlink(path)
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    server.setblocking(False)
    return server


def detach() -> None:
    if os.fork():
        os._exit(0)  # the lock has gone to the child
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    os.close(null)


def fork_worker(server: socket.socket, alive: tuple[int, int]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            os.close(alive[1])  # so that only the server has it open
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            work(server, alive[0])
        finally:
            os._exit(0)
    return pid


def work(server: socket.socket, alive: int) -> None:
    """Answer until the server is gone."""
    while alive not in select.select([server.fileno(), alive], [], [])[0]:
        with suppress(BlockingIOError, ConnectionError):  # another worker was faster; the client has left
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"%d\n" % os.getpid())  # the worker's work


def supervise(server: socket.socket) -> None:
    """Replace workers that end, until SIGTERM."""
    alive = os.pipe()  # nobody writes; its end is that of the server
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    workers = {fork_worker(server, alive) for _ in range(WORKERS)}
    while signal.sigwait(SIGNALS) == signal.SIGCHLD:
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            workers.remove(pid)
            workers.add(fork_worker(server, alive))
    os.close(alive[1])
    for pid in workers:
        os.waitpid(pid, 0)


def main() -> None:
    path = os.path.abspath(sys.argv[1])
    lock = pidabs.Lock(path, timeout=0)
    try:
        lock.acquire()
    except pidabs.Timeout as exc:
        sys.exit(f"example-server: {exc}")
    server = listen(path)
    with lock.across_fork():
        detach()
    supervise(server)
    os.unlink(path)
    lock.release()


if __name__ == "__main__":
    main()
