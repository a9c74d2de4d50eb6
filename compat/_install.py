"""`pidabs.compat.install`: from here on, what a program imports from the originals are our locks, with nothing edited.

An original is loaded as ever, under its own name, by the finder and loader that it would have without us.  Only when it
has been, each public name in it that leads to a class or function which pidabs.compat has a stand-in for leads to the
stand-in.  Which names these are is found by comparing the two modules.

Why not put our modules into sys.modules under the originals' names:
- filelock 4.2 imports most of itself when first asked, by its own name, and `import filelock.asyncio` looks there, too:
  some of it would come from the original after all.
- `filelock.__version__`, private modules, mock.patch("filelock.FileLock"), pickles and resources need the real module.
- Ours need the originals themselves: they get what they ask for while they are loaded, before any name is changed.

A name is changed when nothing tracked, original or stand-in, is being loaded by this thread any more: in between,
`lockfile` imports its own modules, and both sides each other's, and would meet halves of them.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pkgutil import iter_modules
from threading import RLock, local
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from . import __path__ as _our_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec

_PREFIX = "pidabs.compat."
_CHILDREN = os.path.join(os.path.dirname(__file__), "_children")

_replaced: dict[int, tuple[object, object]] = {}
"""Originals and what stands in for them, by the originals' ids: not every class can be hashed."""

_installing = RLock()


class _Thread(local):
    loading = 0

    def __init__(self) -> None:
        self.loaded: list[str] = []


_thread = _Thread()


def install(*, children: bool = False) -> None:
    """Make the imports of filelock, lockfile, its modules and daemon.pidfile that follow find our locks.

    Raises RuntimeError, and changes nothing, if a module has got one of the originals already: it would go on to lock
    files, and exclude nobody who is on sockets.  With `children`, Pythons that this process starts do the same.
    """
    with _installing:
        if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            _begin()
    if children:
        given = os.environ.get("PYTHONPATH")
        if _CHILDREN not in (given or "").split(os.pathsep):
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_CHILDREN, given)))


def _begin() -> None:
    finder = _Finder(_originals(_our_path, ""))
    sys.meta_path.insert(0, finder)
    _thread.loading += 1
    try:
        for name in sorted(finder.originals & sys.modules.keys()):
            _learn(name)
        late = sorted(set(_holders()))
        if late:
            raise RuntimeError(
                f"pidabs.compat.install() comes too late: {', '.join(late)} had been imported from the original; "
                "call it before"
            )
        _thread.loaded += sorted(finder.originals & sys.modules.keys())
    except BaseException:
        sys.meta_path.remove(finder)
        _thread.loaded.clear()
        _replaced.clear()
        raise
    finally:
        _thread.loading -= 1
    _settle()


def _originals(path: Sequence[str], prefix: str) -> frozenset[str]:
    """The modules that have a stand-in, by the names of the files here."""
    found = set()
    for module in iter_modules(path):
        if module.name[0] != "_":
            found.add(prefix + module.name)
            if module.ispkg:
                found |= _originals([os.path.join(part, module.name) for part in path], f"{prefix}{module.name}.")
    return frozenset(found)


class _Finder:
    """Finds what the others find, and has us told when it is loaded."""

    def __init__(self, originals: frozenset[str]) -> None:
        self.originals = originals

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.removeprefix(_PREFIX) not in self.originals:
            return None
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    if spec.loader is not None:
                        spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
                    return spec
        return None


class _Loader:
    """A module's own loader, and a word to us when it is done."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        spec.loader = self._own  # so that the module never shows us, to importlib.resources, say
        try:
            module: ModuleType | None = self._own.create_module(spec)
        finally:
            spec.loader = self  # type: ignore[assignment]
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._own
        _thread.loading += 1
        try:
            self._own.exec_module(module)
            _thread.loaded.append(module.__name__.removeprefix(_PREFIX))
        finally:
            _thread.loading -= 1
        _settle()


def _settle() -> None:
    """Put ours in place of the originals in what has been loaded, unless this thread is still loading some of it."""
    if _thread.loading:
        return
    _thread.loading = 1
    try:
        while _thread.loaded:
            _learn(_thread.loaded.pop())
            _replace()
    finally:
        _thread.loading = 0
        _thread.loaded.clear()


def _learn(name: str) -> None:
    """What in this original has a stand-in.  Nothing, if only the stand-in has been loaded so far."""
    original = sys.modules.get(name)
    if original is None:
        return
    try:
        ours = import_module(_PREFIX + name)
    except Exception as exc:
        where = getattr(original, "__file__", None) or "unknown"
        raise ImportError(f"pidabs.compat cannot stand in for {name} ({where}): {exc}", name=name) from exc
    for attribute, old in _public(original):
        new = getattr(ours, attribute, old)
        if new is not old and str(getattr(new, "__module__", "")).startswith(_PREFIX):
            _replaced[id(old)] = old, new


def _replace() -> None:
    for finder in sys.meta_path:
        if isinstance(finder, _Finder):
            for name in finder.originals & sys.modules.keys():
                for attribute, old in _public(sys.modules[name]):
                    if id(old) in _replaced:
                        setattr(sys.modules[name], attribute, _replaced[id(old)][1])


def _public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, value in list(vars(module).items()):
        if name[0] != "_" and _is_class_or_function(value):
            yield name, value


def _is_class_or_function(value: object) -> bool:
    return issubclass(type(value), (type, FunctionType))  # not isinstance, which asks proxies for their __class__


def _holders() -> Iterator[str]:
    """Who has an original, or a class derived from one, under a name of its own."""
    for name, module in list(sys.modules.items()):
        if _is_family(name):
            continue
        try:
            # Not vars(module), which would load what importlib.util.LazyLoader has put off.
            attributes = list(object.__getattribute__(module, "__dict__").items())
        except AttributeError:
            continue
        for attribute, value in attributes:
            if _is_class_or_function(value) and _has_an_original(value):
                yield f"{name}.{attribute}"


def _has_an_original(value: Any) -> bool:
    if id(value) in _replaced:
        return True
    derived = issubclass(type(value), type) and any(id(base) in _replaced for base in value.__mro__)
    return derived and not _is_family(value.__module__)


def _is_family(module: str) -> bool:
    return module.partition(".")[0] in ("filelock", "lockfile", "daemon", "pidabs")
