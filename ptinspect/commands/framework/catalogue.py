"""Which commands there are, read from the source: a module is imported when one of its commands is wanted.

Every file in a folder beside this one may declare commands. Each must import cheaply: numpy, elftools,
pygdbmi and prompt_toolkit only inside handlers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache

from ptinspect.dataclass import dataclass

ROOMS = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120 (pathlib takes longer than this module)
_MARK = b"\n@command("


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
    for declared in source.split(_MARK)[1:]:
        head, _, rest = declared.partition(b'summary="')
        before, *words = head.decode().split('"')
        if before.strip() or not "".join(words[-3:-2]).endswith("group="):
            raise ValueError(f"{module}: a command begins with its name, aliases, group and summary")
        yield Entry(module, tuple(words[0].split()), tuple(words[2:-3:2]), rest.partition(b'"')[0].decode())
