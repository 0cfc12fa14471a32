"""Argument types: addresses and ranges that name symbols and registers, sizes, levels, numbers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ptinspect.arch.bits import MASK64
from ptinspect.arch.levels import LEVEL_NAMES
from ptinspect.errors import UserError
from ptinspect.guest.expression import Address, address, address_range, parse_number, parse_size

RANGE_HELP = "range: A..B (B not included), A+LENGTH, or one address"

Read = TypeVar("Read")
"""What a type makes of the text."""


def number(text: str) -> int:
    """Read an unsigned 64-bit number. Raises UserError."""
    value = parse_number(text)
    if value is None or value > MASK64:
        raise UserError(f"{text!r} is not a 64-bit number", "write 0x… or decimal")
    return value


def location(text: str) -> Address:
    """Read the address of an instruction; GDB's `*ADDR` is the same here. Raises UserError."""
    return address(text.removeprefix("*"))


def size(text: str) -> int:
    """Read a size in bytes: 4096, 0x1000, 4K, 2M, 1G. Raises UserError."""
    value = parse_size(text)
    if not value:
        raise UserError(f"{text!r} is not a size", "write bytes, or 4K, 2M, 1G")
    return value


def level(text: str) -> int | str:
    """Read a level: -1 to 3, or Linux's name of it (pgd, p4d, pud, pmd, pte). Raises UserError."""
    if text.lower() in LEVEL_NAMES:
        return text.lower()
    if re.fullmatch(r"-1|[0-3]", text):
        return int(text)
    raise UserError(f"{text!r} is not a level", "write -1 to 3, or pgd, p4d, pud, pmd, pte")


def whole(minimum: int, maximum: int) -> Callable[[str], int]:
    """Return a type that reads a number between `minimum` and `maximum`, both included."""

    def read(text: str) -> int:
        value = parse_number(text)
        if value is None or not minimum <= value <= maximum:
            raise UserError(f"{text!r} is not a number from {minimum} to {maximum}")
        return value

    return read


def either(*words: str, other: Callable[[str], Read]) -> Callable[[str], Read | str]:
    """Return a type that takes one of these words as it is, and reads all else by another type."""
    return lambda text: text if text in words else other(text)


PID = whole(0, 1 << 22)
"""The type of a thread's id."""


def seconds(text: str) -> float:
    """Read a time in seconds: 30, 0.5, 30s, 2m. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|ms)?", text)
    if not match:
        raise UserError(f"{text!r} is not a time", "write seconds: 30, 0.5, 2m")
    return float(match[1]) * {"s": 1.0, "m": 60.0, "ms": 0.001}[match[2] or "s"]


def snapshot(text: str) -> str:
    """Read the name of a snapshot or of a snapshot file; `Guest.snapshot_or_file` finds it."""
    if not text:
        raise UserError("a snapshot's name cannot be empty")
    return text


def command_word(text: str) -> str:
    """Read a word of a command's name."""
    return text


def register_name(text: str) -> str:
    """Read the name of a register, with or without `$`."""
    return text.removeprefix("$")


def guest_name(text: str) -> str:
    """Read the name of a reference guest."""
    return text


_KINDS: dict[object, str] = {
    address: "address",
    address_range: "address",
    location: "address",
    snapshot: "snapshot",
    command_word: "command",
    level: "level",
    register_name: "register",
    guest_name: "guest",
    Path: "file",
}


def completes(kind: str, reader: Callable[[str], Read]) -> Callable[[str], Read]:
    """Have `reader`, the type of an argument, completed as `kind` (commands/candidates.py)."""
    _KINDS[reader] = kind
    return reader


def completion_kind(action: argparse.Action) -> str:
    """Return what completes an argument: address, snapshot, command, file, or nothing."""
    return _KINDS.get(action.type, "")
