"""What arguments may hold, and those that many commands have: which CPU, which snapshot, which tables."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping

from ptinspect.arch.bits import MASK64
from ptinspect.commands.framework.command import Argument, argument
from ptinspect.dataclass import replace
from ptinspect.errors import UserError
from ptinspect.guest.expression import ADDRESS_HELP, Address, address, address_range, parse_number, parse_size
from ptinspect.guest.table_choice import ROOT_HELP, RULES, RULES_HELP, Tables, root_choice
from ptinspect.typed import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

RANGE_HELP = "range: A..B (B not included), A+LENGTH, or one address"

Read = TypeVar("Read")
"""What a type makes of the text."""


def number(text: str) -> int:
    """Read an unsigned 64-bit number. Raises UserError."""
    value = parse_number(text)
    if value is None or value > MASK64:
        raise UserError(f"{text!r} is not a 64-bit number", "write 0x… or decimal")
    return value


def computed(text: str) -> Address:
    """Read an address, or a C expression that is one: init_task.stack, *(u64*)$sp. Raises UserError."""
    try:
        if "." not in text and "$current" not in text:  # a sum, as most are: nothing more is imported
            return address(text)
    except UserError:
        pass
    from ptinspect.guest.expressions.computed import address as read

    return read(text)


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
    from ptinspect.arch.levels import LEVEL_NAMES

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


_PID = whole(0, 1 << 22)
TASK_HELP = "PID, or task:NAME"


def task(text: str) -> int | str:
    """Read which task: its PID, or its name, with or without `task:` before it. Raises UserError."""
    named = text.removeprefix("task:")
    if not named:
        raise UserError(f"{text!r} names no task", TASK_HELP)
    return _PID(named) if named.isdecimal() else named


def task_word(text: str) -> int | str:
    """Read the same where a bare name could be another word."""
    if not text.isdecimal() and not text.startswith("task:"):
        raise UserError(f"{text!r} is no task", TASK_HELP)
    return task(text)


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


def piece(text: str) -> str:
    """Read a piece of an expression."""
    return text


def command_word(text: str) -> str:
    """Read a word of a command's name."""
    return text


def file(text: str) -> Path:
    """Read the path of a file or of a directory."""
    from pathlib import Path  # it takes longer to import than most commands to run

    return Path(text)


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
    computed: "address",
    piece: "address",
    snapshot: "snapshot",
    command_word: "command",
    level: "level",
    register_name: "register",
    file: "file",
    guest_name: "guest",
}


FIXED: dict[str, Mapping[str, str]] = {}
"""Kind -> the words that complete it, each with its meaning, for kinds that have always the same."""


def completes(
    kind: str, reader: Callable[[str], Read], words: Mapping[str, str] | None = None
) -> Callable[[str], Read]:
    """Have `reader`, the type of an argument, completed as `kind` (candidates.py), or by these words."""
    _KINDS[reader] = kind
    if words is not None:
        FIXED[kind] = words
    return reader


def completion_kind(action: argparse.Action) -> str:
    """Return what completes an argument: address, snapshot, command, file, or nothing."""
    from pathlib import Path

    return "file" if action.type is Path else _KINDS.get(action.type, "")


CPU_NUMBER = completes("cpu", whole(0, 1023))
"""The type of `--cpu`."""


CPU_OR_ALL = completes("cpu", either("all", other=whole(0, 1023)))
"""The same, where all of them may be shown."""
completes("root", root_choice)


def cpu_argument(meaning: str = "whose registers count (default: the one that stopped)") -> Argument:
    """Declare `--cpu`, the one way to choose a CPU for one command."""
    return argument("--cpu", type=CPU_NUMBER, metavar="N", help=meaning)


def timeout_argument(meaning: str, default: float | None = None) -> Argument:
    """Declare `--timeout`, the one way to limit how long a command may take."""
    return argument("--timeout", type=seconds, default=default, metavar="SECONDS", help=meaning)


def number_argument(name: str, lowest: int, most: int, meaning: str, **options: Any) -> Argument:
    """Declare a number, N, from `lowest` to `most`."""
    return argument(name, type=whole(lowest, most), metavar="N", help=meaning, **options)


def switch(name: str, meaning: str, *names: str, **options: Any) -> Argument:
    """Declare an option that is given or not; `names` are others that it has."""
    return argument(name, *names, action="store_true", help=meaning, **options)


def snapshot_argument(name: str, meaning: str, **options: Any) -> Argument:
    """Declare the name of a snapshot, or of its file."""
    return argument(name, type=snapshot, metavar="SNAP", help=meaning, **options)


def output_argument(meaning: str, *names: str, **options: Any) -> Argument:
    """Declare the file that a command writes: the handler takes `output`."""
    more = {"dest": "output", "type": file, "metavar": "FILE", **options}
    return argument(*(names or ("-o",)), written="file", help=meaning, **more)


def within(keyword: str, kind: Callable[..., Any], *parts: Argument) -> tuple[Argument, ...]:
    """Return arguments that the handler takes as one object, of which they are fields, by this keyword."""
    return tuple(replace(each, within=(keyword, kind)) for each in parts)


CPU = cpu_argument()
SNAP = snapshot_argument("--snap", "use this snapshot (a name, or a file) instead of the guest")
MODULES = argument("--modules", type=file, metavar="DIR", help="a directory with .ko files of modules")
ROOT = argument("--root", type=root_choice, metavar="ROOT", help=ROOT_HELP)
SEARCH_SECONDS = 300.0
SEARCH_LIMIT = timeout_argument(f"limit of the search for who wrote ({SEARCH_SECONDS:.0f})", SEARCH_SECONDS)
"""How long a recording may be searched for writes (`guest.recordings`)."""
RULE = argument("--regime", choices=RULES, help=RULES_HELP)
TABLES = within("tables", Tables, ROOT, RULE, CPU, SNAP)
"""Which tables: the handler takes `tables`. The first ones alone are for commands that need the guest."""
PART = argument(
    "--range", dest="part", type=address_range, metavar="RANGE", help=f"only a part; {RANGE_HELP}"
)
"""Which addresses: the handler takes `part`."""
LEAVES = (
    argument(
        "--type",
        dest="memory_type",
        default="",
        metavar="TYPE",
        help="part of the memory type: device, normal, nc",
    ),
    argument("--cont", action="store_true", default=None, help="only leaves with the contiguous hint"),
    argument("--pa", type=address_range, metavar="RANGE", help="only leaves that lead into this range"),
)
"""Which leaves: the handler takes `memory_type`, `cont`, `pa`."""


REPEATED: Mapping[str, Any] = {"action": "append", "default": []}
"""For an option that may be repeated: the handler takes a list."""


def levels_argument(meaning: str) -> Argument:
    """Declare `--level`, which may be repeated: the handler takes `levels`."""
    return argument("--level", "-l", dest="levels", type=level, metavar="L", help=meaning, **REPEATED)


WHERE = argument("where", nargs="*", type=address, metavar="WHERE", help=f"end here; {ADDRESS_HELP}")
"""Addresses that end a run."""


def address_argument(name: str, **options: Any) -> Argument:
    """Declare an address."""
    return argument(name, type=computed, help=ADDRESS_HELP, **options)
