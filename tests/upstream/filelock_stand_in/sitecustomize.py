"""On PYTHONPATH: every interpreter that imports `filelock` gets pidabs.compat.filelock under that name.

Three importers need the real one: pidabs itself; filelock's own modules, which import each other relatively; and a
test that names a private module (`filelock._soft`).  The real modules stay where they are, in `sys.modules` under their
own names; only the package's name leads to the stand-in.
"""

import sys
from importlib.machinery import ModuleSpec

OURS = "pidabs.compat.filelock"


ModuleType = type(sys)  # the least that can be imported: it is paid by every interpreter


class StandIn(ModuleType):
    """`filelock`, asked for a name: the shim's; for pidabs, and for private modules, the real one's."""

    def __init__(self, real: ModuleType, shim: ModuleType) -> None:
        super().__init__("filelock", real.__doc__)
        self.__dict__.update(__spec__=real.__spec__, __path__=real.__path__, __file__=real.__file__)
        self.__dict__.update(_real=real, _shim=shim)

    def __getattr__(self, name: str) -> object:
        if sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] == "pidabs":
            return getattr(self._real, name)
        if name.startswith("_") and f"filelock.{name}" in sys.modules:
            return sys.modules[f"filelock.{name}"]
        return getattr(self._shim, name)

    def __setattr__(self, name: str, value: object) -> None:
        # Whoever imports filelock.asyncio, the import system then sets it here; the shim has its own.
        super().__setattr__(name, value) if name != "asyncio" else setattr(self._real, name, value)

    def __dir__(self) -> list[str]:
        return dir(self._shim)


class PutInPlace:
    def __init__(self, real: ModuleSpec) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        from importlib import import_module
        from importlib.util import module_from_spec

        real = sys.modules["filelock"] = module_from_spec(self.real)
        self.real.loader.exec_module(real)
        # The import system takes from sys.modules what it hands out.
        sys.modules["filelock"] = StandIn(real, import_module(OURS))


class Finder:
    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        # Once only: our own import of filelock, and its parent's lookup by a submodule, are for the other finders.
        if name != "filelock" or OURS in sys.modules:
            return None
        from importlib.util import find_spec

        sys.meta_path.remove(self)
        real = find_spec(name)
        return real and ModuleSpec(name, PutInPlace(real), is_package=True)


sys.meta_path.insert(0, Finder())
