"""Rewrites imports of the originals to those of their stand-ins, and nothing else; what it cannot, it notes.

    import filelock                 ->  import pidabs.compat.filelock as filelock
    from lockfile import LockFile   ->  from pidabs.compat.lockfile import LockFile
    import lockfile.pidlockfile     ->  import pidabs.compat.lockfile as lockfile, pidabs.compat.lockfile.pidlockfile

So each name stays bound to what it was bound to, or its stand-in.  Where `daemon.pidfile` is reached through `daemon`,
that becomes pidabs.compat.daemon, which hands python-daemon's other names through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import libcst as cst
from libcst.helpers import get_full_name_for_node
from libcst.metadata import PositionProvider, QualifiedNameProvider

from ._migrate_names import MODULES, OURS, is_family, names_an_original

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Note = Callable[[int, str], None]

_IMPORTERS = ("importlib.import_module", "importlib.__import__", "builtins.__import__")
_ASKING = ("find_spec", "find_loader", "get_loader", "importorskip", "version", "distribution", "requires")


class Imports(cst.CSTTransformer):
    METADATA_DEPENDENCIES = (PositionProvider, QualifiedNameProvider)

    def __init__(self, note: Note, lines: Sequence[str], shadowed: frozenset[str], through_daemon: bool) -> None:
        super().__init__()
        self._lines = lines
        self._note = note
        self._shadowed = shadowed
        self._daemon = through_daemon
        self._guards: list[bool] = []  # of the `try` that we are in, whether an ImportError passes unseen

    def _line(self, node: cst.CSTNode) -> int:
        return int(self.get_metadata(PositionProvider, node).start.line)

    # Imports

    def leave_ImportFrom(self, original_node: cst.ImportFrom, updated_node: cst.ImportFrom) -> cst.ImportFrom:
        module = get_full_name_for_node(original_node.module) if original_node.module else None
        if original_node.relative or module is None:
            return updated_node
        names = original_node.names
        imported = [] if isinstance(names, cst.ImportStar) else [_dotted(alias) for alias in names]
        if not (module in MODULES or (module == "daemon" and "pidfile" in imported)):
            stays = [module] if is_family(module) else []
            stays += [f"daemon.{name}" for name in imported if module == "daemon" and name == "runner"]
            self._note_those_that_stay(original_node, stays)
            return updated_node
        if not self._may_rewrite(original_node, module):
            return updated_node
        self._note_those_that_stay(original_node, [f"{module}.{name}" for name in imported if _is_private(name)])
        return updated_node.with_changes(module=_expression(OURS + module))

    def leave_Import(self, original_node: cst.Import, updated_node: cst.Import) -> cst.Import:
        aliases: list[cst.ImportAlias] = []
        for alias in original_node.names:
            module = _dotted(alias)
            if module in MODULES or (module == "daemon" and self._daemon):
                if self._may_rewrite(original_node, module):
                    aliases += _ours(alias, module)
                    continue
            elif is_family(module):
                self._note_those_that_stay(original_node, [module])
                if self._daemon and module.startswith("daemon."):
                    other = f"`from daemon import {module[7:]}` would not"
                    self._note(self._line(original_node), f"binds `daemon` to the original: {other}")
            aliases.append(alias)
        if aliases == list(original_node.names):
            return updated_node
        unique = {
            (_dotted(alias), alias.asname and get_full_name_for_node(alias.asname.name)): alias for alias in aliases
        }
        return updated_node.with_changes(names=_separated(list(unique.values()), updated_node))

    def _may_rewrite(self, node: cst.CSTNode, module: str) -> bool:
        top = module.partition(".")[0]
        if top in self._shadowed:
            text = f"{module}: there is a {top} beside this file, which it may mean; left as it is"
            self._note(self._line(node), text)
            return False
        if any(self._guards):
            self._note(
                self._line(node),
                f"{module}: imported only if it is there; where pidabs is not installed the other branch is taken, "
                "silently",
            )
        return True

    def _note_those_that_stay(self, node: cst.CSTNode, names: Iterable[str]) -> None:
        for name in names:
            if name.startswith("daemon.runner"):
                text = "daemon.runner makes locks of its own, from lockfile; left as it is"
            else:
                text = f"{name} is private to the original, or has no stand-in; what it gives is the original's"
            self._note(self._line(node), text)

    # Where an ImportError passes unseen

    def visit_Try_body(self, node: cst.Try) -> None:
        self._guards.append(any(_catches_import_errors(handler.type) for handler in node.handlers))

    def leave_Try_body(self, node: cst.Try) -> None:
        self._guards.pop()

    def visit_With_body(self, node: cst.With) -> None:
        calls = [item.item for item in node.items if isinstance(item.item, cst.Call)]
        suppressed = [argument.value for call in calls if _last(call.func) == "suppress" for argument in call.args]
        self._guards.append(any(map(_catches_import_errors, suppressed)))

    def leave_With_body(self, node: cst.With) -> None:
        self._guards.pop()

    # Strings

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.Call:
        names = {name.name for name in self.get_metadata(QualifiedNameProvider, original_node.func, set())}
        arguments = original_node.args
        if not arguments or names.isdisjoint(_IMPORTERS):
            return updated_node
        first = arguments[0].value
        text = first.evaluated_value if isinstance(first, cst.SimpleString) else None
        if not isinstance(text, str):
            if any(_text(part).startswith(("filelock", "lockfile", "daemon.pidfile")) for part in _strings(first)):
                text = "imports an original by a name that is put together here; left as it is"
                self._note(self._line(original_node), text)
            return updated_node
        if not is_family(text):
            return updated_node
        dunder = "importlib.import_module" not in names
        if text not in MODULES or (dunder and ("." in text or len(arguments) > 1)):
            self._note(self._line(original_node), f"imports {text} in a way that has to be rewritten by hand")
            return updated_node
        if not self._may_rewrite(original_node, text):
            return updated_node
        assert isinstance(first, cst.SimpleString)
        ours = first.with_changes(value=first.value.replace(text, OURS + text))
        changed = [updated_node.args[0].with_changes(value=ours), *updated_node.args[1:]]
        if dunder:  # which would give `pidabs`
            more = cst.parse_expression('f(x, fromlist=["__name__"])')
            assert isinstance(more, cst.Call)
            changed = [changed[0].with_changes(comma=more.args[0].comma), more.args[1]]
        return updated_node.with_changes(args=changed)

    def visit_Call(self, node: cst.Call) -> None:
        asked = _text(node.args[0].value) if node.args else ""
        if asked in MODULES and _last(node.func) in _ASKING:
            text = f"asks for {asked} by name; the original stays installed beside pidabs, so that need not change"
            self._note(self._line(node), text)

    def visit_SimpleString(self, node: cst.SimpleString) -> None:
        text = _text(node)
        named = names_an_original(text)
        if not named and text not in MODULES:
            return
        line = self._line(node)
        around = "".join(self._lines[max(line - 3, 0) : line])
        if "import_module" in around or "__import__" in around:
            return  # rewritten, or noted as a call
        if named:
            self._note(line, f"{text!r} names the original; if it is patched or looked up, put {OURS} in front")
        elif "sys.modules" in around:
            self._note(line, f"{text!r} in sys.modules is the original; ours is {OURS}{text}")


class ThroughDaemon(cst.CSTVisitor):
    """Whether `daemon.pidfile` is reached through the name `daemon`."""

    METADATA_DEPENDENCIES = (QualifiedNameProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def visit_ImportAlias(self, node: cst.ImportAlias) -> None:
        self.found |= _dotted(node) == "daemon.pidfile" and node.asname is None

    def visit_Attribute(self, node: cst.Attribute) -> None:
        if node.attr.value == "pidfile" and not self.found:
            base = get_full_name_for_node(node.value)
            names = {name.name for name in self.get_metadata(QualifiedNameProvider, node, set())}
            self.found = base is not None and "daemon.pidfile" in names


def _dotted(alias: cst.ImportAlias) -> str:
    return get_full_name_for_node(alias.name) or ""


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _expression(dotted: str) -> cst.BaseExpression:
    return cst.parse_expression(dotted)


def _ours(alias: cst.ImportAlias, module: str) -> list[cst.ImportAlias]:
    """What binds the same name: `import a.b` binds a, and makes a.b be there."""
    name = _expression(OURS + module)
    if alias.asname is not None:
        return [alias.with_changes(name=name)]
    top, dot, _ = module.partition(".")
    first = cst.ImportAlias(_expression(OURS + top), cst.AsName(cst.Name(top)))  # type: ignore[arg-type]
    return [first, cst.ImportAlias(name)] if dot else [first]  # type: ignore[arg-type]


def _separated(aliases: list[cst.ImportAlias], statement: cst.Import) -> list[cst.ImportAlias]:
    comma = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
    for alias in statement.names:
        if isinstance(alias.comma, cst.Comma):
            comma = alias.comma
            break
    return [
        *(alias if isinstance(alias.comma, cst.Comma) else alias.with_changes(comma=comma) for alias in aliases[:-1]),
        aliases[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT),
    ]


def _catches_import_errors(caught: cst.BaseExpression | None) -> bool:
    if isinstance(caught, cst.Tuple):
        return any(_catches_import_errors(element.value) for element in caught.elements)
    return caught is None or _last(caught) in ("ImportError", "ModuleNotFoundError", "Exception", "BaseException")


def _last(node: cst.CSTNode) -> str:
    return (get_full_name_for_node(node) or "").rpartition(".")[2]


def _text(node: cst.CSTNode) -> str:
    value = node.evaluated_value if isinstance(node, cst.SimpleString) else ""
    return value if isinstance(value, str) else ""


def _strings(node: cst.BaseExpression) -> Iterable[cst.CSTNode]:
    """The string literals in an expression that puts a name together."""
    if isinstance(node, cst.SimpleString):
        yield node
    elif isinstance(node, cst.BinaryOperation):
        yield from _strings(node.left)
        yield from _strings(node.right)
    elif isinstance(node, cst.FormattedString):
        for part in node.parts:
            if isinstance(part, cst.FormattedStringText):
                yield cst.SimpleString(repr(part.value))
    elif isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute):
        yield from _strings(node.func.value)
