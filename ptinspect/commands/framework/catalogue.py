"""Which commands there are, read from the source: a module is imported when one of its commands is wanted.

Every file in a folder beside this one may declare commands. Each must import cheaply: numpy, elftools,
pygdbmi and prompt_toolkit only inside handlers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache

from ptinspect.dataclass import dataclass

ROOMS = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120 (pathlib takes longer than this module)
_MARK = b"\n@command("
_DECLARED = rb'\s*"([a-z -]+)"(?:,\s*aliases=\(([^)]*)\))?,\s*group="[^"]*",\s*summary="([^"]*)"'


@dataclass(frozen=True)
class Entry:
    """Say of a command what its declaration begins with, in literals."""

    module: str
    """The module that declares it, within `ptinspect.commands`."""
    words: tuple[str, ...]
    aliases: tuple[str, ...]
    summary: str


@cache
def catalogue() -> tuple[Entry, ...]:
    """Return every command, by module."""
    return tuple(_entries())


def _entries() -> Iterator[Entry]:
    rooms = sorted(room.name for room in os.scandir(ROOMS) if room.is_dir())
    for room in rooms:
        for file in sorted(os.listdir(f"{ROOMS}/{room}")):  # noqa: PTH208
            if file.endswith(".py"):
                with open(f"{ROOMS}/{room}/{file}", "rb", 0) as source:  # noqa: PTH123
                    yield from _of_module(f"{room}.{file[:-3]}", source.read())


def _of_module(module: str, source: bytes) -> Iterator[Entry]:
    at = source.find(_MARK)
    while at >= 0:
        at += len(_MARK)
        found = re.compile(_DECLARED).match(source, at)
        if found is None:
            raise ValueError(f"{module}: a command begins with its name, aliases, group and summary")
        name, aliases, summary = (part.decode() for part in found.groups(b""))
        words = tuple(re.findall(r'"([^"]+)"', aliases)) if aliases else ()
        yield Entry(module, tuple(name.split()), words, summary)
        at = source.find(_MARK, at)
