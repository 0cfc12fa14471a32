"""Which file holds which command, and the registry that they make."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from ptinspect.commands.framework.registry import Registry

ROOMS = Path(__file__).parent.parent
"""Every file in a folder beside this one may declare commands.

Each must import cheaply: numpy, elftools, pygdbmi and prompt_toolkit only inside handlers.
"""
_DECLARED = re.compile(r'^@command\(\s*"([a-z ]+)"(?:,\s*aliases=\(([^)]*)\))?', re.M)
_WORD = re.compile(r'"([^"]+)"')


@cache
def declared() -> Mapping[str, str]:
    """Return the modules that declare commands, and the names in each: `quit=q=exit, kpti run`.

    They are read from the source: a module is imported when one of its commands is wanted.
    """
    found = {}
    for path in sorted(ROOMS.glob("*/*.py")):
        names = ", ".join(_names(path.read_text("utf-8")))
        if names:
            found[f"{path.parent.name}.{path.stem}"] = names
    return found


def _names(source: str) -> Iterator[str]:
    for name, aliases in _DECLARED.findall(source):
        yield "=".join([name, *_WORD.findall(aliases)])


def build_registry() -> Registry:
    """Return a registry with every command; its modules are imported as they are needed."""
    registry = Registry()
    for module, names in declared().items():
        registry.declare(names, Load(registry, module))
    return registry


class Load:
    """Import a module and have its commands registered; the second time does nothing."""

    def __init__(self, registry: Registry, module: str) -> None:
        self._registry, self._module = registry, module
        self._done = False

    def __call__(self) -> None:
        """Do it."""
        if not self._done:
            self._done = True
            self._registry.add_all(importlib.import_module(f"ptinspect.commands.{self._module}"))
