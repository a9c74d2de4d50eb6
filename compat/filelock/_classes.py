"""How the classes of locks are made: as abstract base classes, so that they can be registered with filelock's; with its
signatures, for people and tools; and with singletons.
"""

from __future__ import annotations

import os
from abc import ABCMeta
from contextlib import ContextDecorator
from inspect import Parameter, Signature, signature
from os import getpid
from threading import RLock
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ._core import Core, canonical, shown_of

if TYPE_CHECKING:
    from ._core import Path

_OURS = __name__.rpartition(".")[0]


class _Meta(ABCMeta):
    """What neither __new__ nor __init__ can do: hand out a singleton without initialising it again, and call a
    subclass's narrower __init__, as virtualenv has it, without the options that it does not take."""

    _original: Any
    _later: dict[str, Any]

    @property
    def __signature__(cls) -> Signature:
        """That of the installed filelock, whose metaclass hides what a subclass takes, too."""
        return signature(cls._original)

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> None:
        super().__init__(name, bases, namespace, **options)
        taken = signature(cls.__init__).parameters  # type: ignore[misc]
        cls._narrow = all(parameter.kind is not Parameter.VAR_KEYWORD for parameter in taken.values()) and taken.keys()
        if "_original" not in namespace:  # one of its own, with the same name for messages, and singletons of its own
            cls._original = type(cls._original)(name, (cls._original,), {})

    def __call__(cls, lock_file: Path, *args: Any, **options: Any) -> Any:
        if cls._narrow:
            options = cls._without_defaults(options, cls._narrow)
        if options.get("lifetime") is not None:
            cls._ignore_lifetime(options.pop("lifetime"))  # type: ignore[attr-defined]
        if not options.get("is_singleton"):
            return super().__call__(lock_file, *args, **options)
        with _gate:
            key = (cls, getpid(), canonical(lock_file))
            found = _singletons.get(key)
            if found is None or not found._is_now(key[2]):
                found = _singletons[key] = super().__call__(lock_file, *args, **options)
            else:
                _ = found._options  # with which filelock compares what is wanted, as this, too, is a singleton
                known = signature(cls._original.__init__).parameters
                ours = cls.__module__.startswith(_OURS)  # else it may well take options of its own
                wanted = (name for name in options if name in known or (ours and name not in ("mirror", "interop")))
                cls._original(lock_file, *args, **{name: options[name] for name in wanted})
        return found

    def _without_defaults(cls, options: dict[str, Any], taken: Any) -> dict[str, Any]:
        parameters = signature(cls._original.__init__).parameters
        defaults = {name: parameter.default for name, parameter in parameters.items()} | cls._later
        unknown = [name for name in sorted(options.keys() - taken) if options[name] != defaults.get(name, ...)]
        if unknown:
            raise TypeError(f"{cls.__name__} does not support non-default lock options: {', '.join(unknown)}")
        return {name: value for name, value in options.items() if name in taken}


_singletons: WeakValueDictionary[tuple[type, int, str], Any] = WeakValueDictionary()
_gate = RLock()


def _open_gate() -> None:
    """In a forked child: another thread of the parent may have been inside."""
    global _gate
    _gate = RLock()


def base_of(original: Any, **later: Any) -> Any:
    """For a class of ours that stands in for this one of filelock's."""
    return _Meta("_Base", (Core, ContextDecorator), shown_of(original, later))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_gate)
