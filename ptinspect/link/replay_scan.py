"""Stores to some places in part of a recorded run, noted by gdbscripts/ptinspect_scan.py on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ptinspect.dataclass import dataclass
from ptinspect.errors import MiError
from ptinspect.link.gdb.agent import load_line
from ptinspect.link.gdb.mi import SECONDS, GdbLink, console
from ptinspect.link.qemu.monitor import translated

SCRIPT = "ptinspect_scan.py"
MOST = 500
"""Most stores of one run: it goes on from there."""
GRACE = 120.0
"""How much longer than its time a run may take to end."""


class Limit(NamedTuple):
    """Where a run is to stop: it is told to at one position, and steps from there to another."""

    stop: int
    target: int


class Scan(NamedTuple):
    """What is wanted of a run."""

    watched: Sequence[int]
    """It stops for stores to eight bytes at each of these virtual addresses."""
    cells: Sequence[int]
    """Physical addresses whose values are noted."""
    limits: Sequence[Limit]
    seconds: float
    stuck: Sequence[int]
    """It ends before a store at one of these positions."""


@dataclass(frozen=True)
class Hit:
    """A store to a place that was watched."""

    position: int
    """Instructions executed, this one included."""
    pc: int
    code: int | None
    """The instruction; None where the debugger cannot read it."""
    x: tuple[int, ...]
    """X0 to X30 before it."""
    sp: int
    watched: int
    """The virtual address that was watched."""
    pa: int | None
    """What that translated to; None if to nothing."""
    before: tuple[int, ...]
    """The values of the cells before it."""
    after: tuple[int, ...]


@dataclass(frozen=True)
class Look:
    """The values of the cells at a position."""

    position: int
    values: tuple[int, ...]


@dataclass(frozen=True)
class Seen:
    """What a run met."""

    hits: tuple[Hit, ...]
    looks: tuple[Look, ...]
    """One at each limit that was reached."""
    ended: str
    """limit, time, hits, interrupted, stuck, or `stopped:` and the stub's words."""


class Scanner:
    """The script inside a GDB."""

    def __init__(self, gdb: GdbLink) -> None:
        """Load it. Raises TargetError."""
        self._gdb = gdb
        console(gdb, load_line(SCRIPT), SECONDS)

    def run(self, wanted: Scan) -> Seen:
        """Run to the limits, and stop on the way for stores. Raises TargetError."""
        import json

        words = [str(int(1000 * wanted.seconds)), str(MOST)]
        words += map(_list, (wanted.watched, wanted.cells, wanted.stuck))
        words += [f"{limit.stop}:{limit.target}" for limit in wanted.limits]
        text = console(self._gdb, f"ptinspect-scan {' '.join(words)}", wanted.seconds + GRACE)
        try:
            found: Mapping[str, Any] = json.loads(text)
            looks = tuple(Look(int(at), tuple(values)) for at, values in found["looks"])
            return Seen(tuple(map(_hit, found["hits"])), looks, str(found["ended"]))
        except (ValueError, KeyError, TypeError) as error:
            raise MiError(f"GDB's answer about a replay is damaged: {error}") from error


def _list(addresses: Sequence[int]) -> str:
    return ",".join(f"{address:x}" for address in addresses) or "-"


def _hit(fields: Mapping[str, Any]) -> Hit:
    code = str(fields["code"])
    word = int.from_bytes(bytes.fromhex(code), "little") if len(code) == 8 else None
    return Hit(
        int(fields["position"]),
        int(fields["pc"]),
        word,
        tuple(fields["x"]),
        int(fields["sp"]),
        int(fields["watched"]),
        translated(str(fields["translated"])),
        tuple(fields["before"]),
        tuple(fields["after"]),
    )
