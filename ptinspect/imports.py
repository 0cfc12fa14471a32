"""Imports that leave out what is not used: some of a module's own imports take longer than the module."""

from __future__ import annotations

import sys
from _thread import RLock
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

from ptinspect.typed import Any

TURN = RLock()
"""Whoever makes a module of what stands for it has it."""


@contextmanager
def standing_in(modules: Mapping[str, Any]) -> Iterator[None]:
    """Have what is imported meanwhile take these for modules that are not imported yet; None for none."""
    early = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(early)
    try:
        yield
    finally:
        for name in early:
            del sys.modules[name]


def postpone(*names: str) -> None:
    """Have modules that are not imported yet be imported only when something of them is used.

    That is of the whole process: only for one that is ptinspect's own.
    """
    for name in names:
        sys.modules.setdefault(name, _Postponed(name))


class _Postponed(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name == "__path__":  # packages have it: each import asks for it
            raise AttributeError(name)
        with TURN:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)
