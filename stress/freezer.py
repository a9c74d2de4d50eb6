"""cgroup v2's freezer: a cgroup for each worker, below our own.  Where we may not make them there is none."""

from __future__ import annotations

import os


class Freezer:
    """Raises OSError, which says why, where there is none."""

    def __init__(self, slots: int) -> None:
        self._root = os.path.join(_our_cgroup(), f"pidabs-stress-{os.getpid()}")
        self._made: list[str] = []
        try:
            self._make(self._root)
            for slot in range(slots):
                self._make(self._at(slot))
                with open(os.path.join(self._at(slot), "cgroup.freeze"), "rb"):
                    pass
            self._probe()
        except BaseException:
            self.remove()
            raise

    def _probe(self) -> None:
        """Making cgroups is not yet being allowed to move processes there."""
        pid = os.fork()
        if pid == 0:
            try:
                self.join(0)
                os._exit(0)
            finally:
                os._exit(1)
        if os.waitpid(pid, 0)[1] != 0:
            raise PermissionError(f"a process cannot be moved to {self._at(0)}")

    def _make(self, path: str) -> None:
        os.mkdir(path)
        self._made.append(path)

    def _at(self, slot: int) -> str:
        return os.path.join(self._root, str(slot))

    def join(self, slot: int) -> None:
        """Move this process, and whom it forks, to the slot's cgroup."""
        with open(os.path.join(self._at(slot), "cgroup.procs"), "wb", buffering=0) as file:
            file.write(b"0")

    def set(self, slot: int, frozen: bool) -> None:
        with open(os.path.join(self._at(slot), "cgroup.freeze"), "wb", buffering=0) as file:
            file.write(b"1" if frozen else b"0")

    def remove(self) -> None:
        while self._made:
            try:
                os.rmdir(self._made.pop())
            except OSError:
                pass  # somebody is left in there, which the storm has reported already


def _our_cgroup() -> str:
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        mounts = [line.split() for line in file]
    found = [fields[4] for fields in mounts if fields[fields.index("-") + 1] == "cgroup2"]
    if not found:
        raise FileNotFoundError("no cgroup v2 is mounted")
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        paths = [line.strip()[3:] for line in file if line.startswith("0::")]
    return os.path.join(found[0], paths[0].lstrip("/")) if paths else found[0]
