"""numpy without what is not used here: its arrays alone take a third of the time that all of it takes.

`import numpy` runs numpy/__init__.py, which imports all that numpy has: linear algebra, polynomials, type
hints, and the documentation of each. Here numpy is a package of which a module is imported when it is used;
whoever asks for anything else of it has all of it, as if it had been imported so, but for documentation.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace

from ptinspect.imports import TURN, postpone, standing_in
from ptinspect.typed import Any

PACKAGES = ("numpy", "numpy.lib", "numpy.ma", "numpy.typing")
"""Those of which only parts are used."""
TRIED = ("2.0", "2.1", "2.2", "2.3", "2.4")
"""Versions of numpy that bear it; any other is imported as it is."""
PARTS = {
    "numpy._core.multiarray": "bincount unravel_index",
    "numpy.lib._arraysetops_impl": "isin unique",
    "numpy.lib._function_base_impl": "append diff iterable",
    "numpy.lib._npyio_impl": "load savez_compressed",
    "numpy.lib._shape_base_impl": "expand_dims split tile",
    "numpy.lib._stride_tricks_impl": "broadcast_to",
}
"""Module of numpy's -> what numpy has of it, of what is used here."""
_MODULES = {f"numpy.{name}": module for module, names in PARTS.items() for name in names.split()}
UNUSED = ("ast", "ctypes", "pickle", "platform", "tokenize")
"""What numpy's arrays import, and use for others."""
DOCUMENTATION = {
    "inspect": SimpleNamespace(cleandoc=str, signature=lambda function: None),
    "numpy._core._add_newdocs": SimpleNamespace(),
    "numpy._core._add_newdocs_scalars": SimpleNamespace(),
}
"""What of it documents and describes the rest -> what stands in for that."""


def use_parts_of_numpy() -> None:
    """Have `import numpy` import what is used of it. Only for a process that is ptinspect's own."""
    postpone(*UNUSED)
    if "numpy" not in sys.modules:
        sys.modules |= {name: _Unused(name) for name in PACKAGES}


class _Parts(ModuleType):
    """A package of numpy's whose own code has not run."""

    def __getattr__(self, name: str) -> Any:
        whole = f"{self.__name__}.{name}"
        if whole in _MODULES:
            setattr(self, name, getattr(import_module(_MODULES[whole]), name))
            return getattr(self, name)
        try:
            return import_module(whole)
        except ModuleNotFoundError:
            if type(self) is not _Parts:
                raise AttributeError(name) from None
            return getattr(_complete(self), name)


class _Unused(_Parts):
    """One before anything of numpy is used; another thread waits until the arrays are imported."""

    def __getattr__(self, name: str) -> Any:
        with TURN:
            numpy = sys.modules["numpy"]
            if type(numpy) is _Unused:
                if numpy.__spec__ is not None:  # they are being imported, and in this thread
                    return super().__getattr__(name)
                _import_arrays()
        return getattr(import_module(self.__name__), name)


class _Completing(_Parts):
    """One whose code is being run. No lock is held: those of the import system are taken in any order."""


class _Matrix:
    """What stands for `numpy.matrix` until there is one: arrays are asked whether they are of this class."""

    def __new__(cls, *values: Any, **named: Any) -> Any:
        return _complete(sys.modules["numpy"]).matrix(*values, **named)


def _import_arrays() -> None:
    """Import what most of numpy's functions are in; all of numpy where it is another version."""
    packages: list[Any] = [sys.modules[name] for name in PACKAGES]
    numpy, *others = packages
    _place(numpy, None)
    if import_module("numpy.version").version.rpartition(".")[0] not in TRIED:
        for package in others:
            del sys.modules[package.__name__]
        numpy.__spec__.loader.exec_module(numpy)
        numpy.__class__ = ModuleType
        return
    for name in ("_NoValue", "_CopyMode"):
        setattr(numpy, name, getattr(import_module("numpy._globals"), name))
    with standing_in(DOCUMENTATION):
        arrays = import_module("numpy._core")
    vars(numpy).update({name: getattr(arrays, name) for name in arrays.__all__})
    numpy.lib, numpy.ma, numpy.typing = others
    numpy.matrix, numpy.ma.is_masked = _Matrix, lambda array: False  # nothing is, before that is imported
    numpy.typing.NDArray = numpy.ndarray
    for package in others:
        _place(package, numpy.__path__)
    for package in packages:
        package.__class__ = _Parts


def _place(package: Any, path: Any) -> None:
    """Give a package what the import system gives it, but for running its code. Raises ImportError."""
    name = package.__name__
    spec = next(filter(None, (finder.find_spec(name, path) for finder in sys.meta_path)), None)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    package.__spec__, package.__path__, package.__file__ = spec, spec.submodule_search_locations, spec.origin
    package.__package__, package.__loader__ = name, spec.loader


def _complete(package: Any) -> Any:
    """Run a package's own code and return it."""
    kind: Any = type(package)
    if kind is _Parts:
        package.__class__ = _Completing
        package.__spec__.loader.exec_module(package)
        package.__class__ = ModuleType
    return package
