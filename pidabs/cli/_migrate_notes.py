"""Finds what a rewritten import cannot decide: code that counts on a lock being a file, or reaching further than ours.

Rule: a note says what was seen and what to look at.  It errs on the side of saying too much: what a path, a mode or a
process is for is not written in the code.  Only files that make, or are given, one of these locks are looked at.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

import libcst as cst
from libcst.helpers import get_full_name_for_node
from libcst.metadata import PositionProvider, QualifiedNameProvider

from .._remote import file_system
from ._migrate_names import LOCKS, WITHOUT_INTEROP, is_family, original_of

if TYPE_CHECKING:
    from collections.abc import Callable

    Note = Callable[[int, str], None]

_READS = "looks at the lock file, which is not there or says nothing now: ask lock.is_locked, or pidabs.holder(path)"
_DELETES = "removes or moves the lock file: there is none to clean up, and that frees no lock"
_CHMODS = "sets a mode or an owner of the lock file, which decides nothing now: any local user can take a lock"
_WATCHES = "watches the lock file, which does not change now: `pidabs wait`, or waiting for the lock, is woken at once"
_BREAKS = "break_lock leaves a live process its lock, with a warning; `pidabs stop --kill` ends the process instead"
_FORKS = "forks: a child does not hold its parent's lock; one taken before goes along only in across_fork()"
_USERS = "becomes, or starts, another user: the lock excludes all the same, but between users waiters race, unordered"
_MODE = "mode: there is no file whose mode could keep others out, or let them in"
_PRIVATE = "a private part of the original, which ours does not have"
_NETWORK = "a lock on a network file system, it seems: other hosts are not excluded; keep the original, or SoftFileLock"
_ALL_AT_ONCE = "has no interop: old code on this lock does not exclude with new code, so restart all its users at once"
_PATH = "a lock whose path is decided at run time: on NFS or a volume of several containers keep the original"

_CALLS = {
    **dict.fromkeys(["builtins.open", "io.open", "os.open", "os.stat", "os.lstat", "os.access", "glob.glob"], _READS),
    **dict.fromkeys([f"os.path.{name}" for name in ("exists", "lexists", "isfile", "getmtime", "getsize")], _READS),
    **dict.fromkeys(["os.remove", "os.unlink", "os.rename", "os.replace", "shutil.move", "shutil.rmtree"], _DELETES),
    **dict.fromkeys(["os.chmod", "os.chown", "os.lchown", "shutil.chown"], _CHMODS),
}
_METHODS = {
    **dict.fromkeys(["exists", "is_file", "stat", "lstat", "open", "read_text", "read_bytes", "glob", "touch"], _READS),
    **dict.fromkeys(["unlink", "rename", "replace"], _DELETES),
    **dict.fromkeys(["chmod", "lchmod"], _CHMODS),
}
_FORKING = re.compile(
    r"os\.fork(pty)?|pty\.fork|multiprocessing\.(\w+\.)*(Process|Pool|get_context)|"
    r"concurrent\.futures\.(process\.)?ProcessPoolExecutor"
)
_SWITCHING = re.compile(r"os\.(set(e|re|res)?[ug]id|initgroups|setgroups)|daemon\.(daemon\.)?change_process_owner")
_WATCHING = re.compile(r"watch|inotify|schedule", re.IGNORECASE)
_PATH_NAMED = re.compile(r"(lock|pid)_?(file)?_?(path|name)|lock_?file|pid_?file", re.IGNORECASE)
_FILE_NAMED = re.compile(r"""\.(lock|lck|pid)["']""")
_SHARED = re.compile(
    r"nfs|smb|cifs|gluster|ceph|lustre|beegfs|gpfs|(?<![a-z])efs(?![a-z])|/mnt/|/net/|//", re.IGNORECASE
)
_PRIVATE_NAMES = ("_context", "_acquire", "_release", "_lock_file_fd")


class Notes(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider, QualifiedNameProvider)

    def __init__(self, note: Note, module: cst.Module) -> None:
        super().__init__()
        self._note = note
        self._code = module.code_for_node
        self._classes: set[str] = set()  # of this file, derived from the originals or ours
        self._inside: list[bool] = []  # of the classes around us, whether they are such
        self._objects: set[str] = set()  # expressions that are locks
        self._paths: set[str] = set()  # and their paths
        self._literals: dict[str, str | None] = {}  # names that have one value, and None for those with several
        self._first: list[Callable[[], None]] = []  # what is looked at when all is known that is derived from them,
        self._later: list[Callable[[], None]] = []  # and what when all locks and paths are known
        self.used = False

    def _names(self, node: cst.CSTNode) -> set[str]:
        return {original_of(name.name) for name in self.get_metadata(QualifiedNameProvider, node, set())}

    def _say(self, node: cst.CSTNode, text: str) -> None:
        self._note(int(self.get_metadata(PositionProvider, node).start.line), text)

    def _is_lock_class(self, node: cst.CSTNode) -> bool:
        return any(name in LOCKS or name in self._classes for name in self._names(node))

    # What the file has to do with locks

    def visit_ImportFrom(self, node: cst.ImportFrom) -> None:
        module = original_of((node.module and get_full_name_for_node(node.module)) or "")
        self.used |= not node.relative and (is_family(module) or module == "daemon")

    def visit_Import(self, node: cst.Import) -> None:
        self.used |= any(is_family(original_of(get_full_name_for_node(alias.name) or "")) for alias in node.names)

    def visit_ClassDef(self, node: cst.ClassDef) -> None:
        derived = any(self._is_lock_class(base.value) for base in node.bases)
        if derived:
            self._classes.add(node.name.value)
        self._inside.append(derived)

    def leave_ClassDef(self, original_node: cst.ClassDef) -> None:
        self._inside.pop()

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:
        if self._inside and self._inside[-1] and node.name.value in _PRIVATE_NAMES:
            self._say(node, f"{node.name.value}: {_PRIVATE}")

    def visit_Assign(self, node: cst.Assign) -> None:
        for target in node.targets:
            self._assigned(target.target, node.value)
            self._first.append(partial(self._named, target.target, node.value))

    def visit_AnnAssign(self, node: cst.AnnAssign) -> None:
        if node.value is not None:
            self._assigned(node.target, node.value)
        self._first.append(partial(self._named, node.target, node.value))

    def visit_WithItem(self, node: cst.WithItem) -> None:
        if node.asname is not None:
            self._first.append(partial(self._named, node.asname.name, node.item))

    def _assigned(self, target: cst.BaseExpression, value: cst.BaseExpression) -> None:
        name = self._code(target)
        self._literals[name] = None if name in self._literals else _literal(value)

    def _named(self, name: cst.CSTNode, value: cst.CSTNode | None) -> None:
        if isinstance(value, cst.Call) and self._is_lock_class(value.func):
            self._objects.add(self._code(name))

    def visit_Attribute(self, node: cst.Attribute) -> None:
        if node.attr.value == "break_lock":
            self._later.append(partial(self._say, node, _BREAKS))
        elif node.attr.value in _PRIVATE_NAMES:
            owner = self._code(node.value)
            inside = bool(self._inside) and self._inside[-1] and owner in ("self", "super()", "cls")
            self._later.append(partial(self._if_lock, node, owner, inside))

    def _if_lock(self, node: cst.Attribute, owner: str, inside: bool) -> None:
        if inside or owner in self._objects:
            self._say(node, f"{node.attr.value}: {_PRIVATE}")

    # Calls

    def visit_Call(self, node: cst.Call) -> None:
        self._first.append(partial(self._lock_made, node))
        self._later.append(partial(self._called, node))

    def _lock_made(self, node: cst.Call) -> None:
        if not self._is_lock_class(node.func):
            return
        keywords = {argument.keyword.value: argument.value for argument in node.args if argument.keyword}
        first = node.args[0].value if node.args and node.args[0].keyword is None and not node.args[0].star else None
        path = first or keywords.get("lock_file") or keywords.get("path")
        if "mode" in keywords:
            self._say(node, _MODE)
        for name in sorted(self._names(node.func) & WITHOUT_INTEROP):
            self._say(node, f"{name.rpartition('.')[2]} {_ALL_AT_ONCE}")
        plain = self._plain(path) if path is not None else ""
        literal = self._literals.get(plain) or (_literal(path) if path is not None else None)
        self._paths.add(plain)
        if _SHARED.search(literal or plain):
            self._say(node, _NETWORK)
        elif literal is None:
            self._say(node, _PATH)
        elif file_system(literal):
            self._say(node, _NETWORK)

    def _called(self, node: cst.Call) -> None:
        names = self._names(node.func)
        keywords = {argument.keyword.value: argument.value for argument in node.args if argument.keyword}
        if any(_FORKING.fullmatch(name) for name in names):
            self._say(node, _FORKS)
        elif any(_SWITCHING.fullmatch(name) for name in names):
            self._say(node, _USERS)
        elif names & {"daemon.DaemonContext", "daemon.daemon.DaemonContext"}:
            self._daemon_made(node, keywords)
        elif any(name.startswith("subprocess.") for name in names) and "user" in keywords:
            self._say(node, _USERS)
        for text in sorted({_CALLS[name] for name in names if name in _CALLS}):
            if any(self._is_path(argument.value) for argument in node.args[:2]):
                self._say(node, text)
        if isinstance(node.func, cst.Attribute):
            method = node.func.attr.value
            if method in _METHODS and self._is_path(node.func.value):
                self._say(node, _METHODS[method])
        called = get_full_name_for_node(node.func) or ""
        if _WATCHING.search(called) and any(self._is_path(argument.value) for argument in node.args):
            self._say(node, _WATCHES)

    def _daemon_made(self, node: cst.Call, keywords: dict[str, cst.BaseExpression]) -> None:
        if "uid" in keywords or "gid" in keywords:
            self._say(node, _USERS)
        pidfile = keywords.get("pidfile")
        if pidfile is None or _text_is(pidfile, "None"):
            self._say(node, _FORKS)

    def _is_path(self, node: cst.BaseExpression) -> bool:
        plain = self._plain(node)
        if (plain and plain in self._paths) or _FILE_NAMED.search(plain):
            return True
        if isinstance(node, cst.Attribute) and node.attr.value in ("lock_file", "path", "unique_name"):
            return self._code(node.value) in self._objects
        name = node.attr.value if isinstance(node, cst.Attribute) else plain
        return name.isidentifier() and _PATH_NAMED.search(name) is not None

    def _plain(self, node: cst.BaseExpression) -> str:
        """The code of an expression, without what only changes a path's type."""
        while isinstance(node, cst.Call) and len(node.args) == 1 and not node.args[0].star:
            if get_full_name_for_node(node.func) not in ("str", "Path", "pathlib.Path", "os.fspath", "os.fsencode"):
                break
            node = node.args[0].value
        return self._code(node)

    def leave_Module(self, original_node: cst.Module) -> None:
        """Only now it is known which expressions are locks and paths."""
        if self.used:
            for look in [*self._first, *self._later]:
                look()


def _literal(node: cst.BaseExpression) -> str | None:
    value = node.evaluated_value if isinstance(node, cst.SimpleString | cst.ConcatenatedString) else None
    return value if isinstance(value, str) else None


def _text_is(node: cst.BaseExpression, text: str) -> bool:
    return isinstance(node, cst.Name) and node.value == text
