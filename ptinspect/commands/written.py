"""A write to a descriptor, in results and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptinspect.arch.bits import VirtAddr
from ptinspect.arch.descriptor import decode
from ptinspect.arch.regime import Regime
from ptinspect.dataclass import dataclass
from ptinspect.output.descriptor_words import in_words
from ptinspect.output.encode import Hex
from ptinspect.output.model import escape

if TYPE_CHECKING:
    from ptinspect.guest.recordings.writers import Write


@dataclass(frozen=True)
class StoreResult:
    """A write to a descriptor, and who made it."""

    before: Hex
    after: Hex
    changes: Sequence[str]
    """The words of diff; none where the value stayed, or where the level is not known."""
    how: str
    """store; hardware: the walk of the CPU's MMU; unknown; unseen: since the last stop, nobody saw how."""
    va: VirtAddr | None
    """The address that the store used: a physical one while the MMU is off."""
    pc: VirtAddr | None
    place: str
    instruction: str
    cpu: int | None
    el: int | None
    mmu_on: bool | None
    task: str
    pid: int | None
    calls: Sequence[str]
    source: str
    """`file:line` of the instruction, where there is debug information of it."""


@dataclass(frozen=True)
class WriteResult(StoreResult):
    """A write in a recording."""

    position: int
    pc: VirtAddr
    cpu: int
    el: int


def write_result(write: Write, level: int | None, regime: Regime | None) -> WriteResult:
    """Return a write to a descriptor of a table at `level`; None where that is not known."""
    changes = changes_of(write.before, write.after, level, regime)
    return WriteResult(
        changes=changes, **{name: value for name, value in vars(write).items() if name != "pa"}
    )


def changes_of(before: int, after: int, level: int | None, regime: Regime | None) -> list[str]:
    """Return what differs, in the words of diff; nothing where the level is not known."""
    from ptinspect.analysis.classify import kinds_of

    return [] if level is None or regime is None else list(kinds_of(before, after, level, regime))


def value(raw: int, level: int | None, regime: Regime | None) -> str:
    """Return a descriptor, and what it says where the level of its table is known."""
    text = "" if level is None or regime is None else in_words(decode(raw, level, regime))
    return f"{raw:#018x} {text}".rstrip()


def what_changed(write: StoreResult) -> str:
    """Say what a write made of the value."""
    return ", ".join(write.changes) or ("same value" if write.before == write.after else "")


def code(write: StoreResult) -> str:
    """Return the instruction and its place."""
    return f"{escape(write.place)}: {escape(write.instruction)}".rstrip(": ")


def way(write: StoreResult) -> str:
    """Say in which way it was written."""
    mmu = {True: "MMU on", False: "MMU off", None: ""}[write.mmu_on]
    where = "" if write.va is None else f" to {write.va:#x}"
    how = {
        "store": f"a store{where}",
        "hardware": "the table walk of the CPU itself",
        "unknown": "not by a store of this instruction",
    }
    return f"{how[write.how]}, cpu {write.cpu}, EL{write.el}, {mmu}".rstrip(", ")


def task(write: StoreResult) -> str:
    """Name the task; empty where there is none, or nobody can tell."""
    return f"{escape(write.task)} (pid {write.pid})" if write.task else ""


def writer_rows(write: StoreResult, way: str) -> list[tuple[str, str]]:
    """Return what is known of who wrote, and in which way, but for the callers."""
    return [("by", code(write)), ("source", escape(write.source)), ("way", way), ("task", task(write))]


def value_rows(write: StoreResult, level: int | None, regime: Regime | None) -> list[tuple[str, str]]:
    """Return what was written, read at the level of its table where that is known."""
    return [
        ("before", value(write.before, level, regime)),
        ("after", value(write.after, level, regime)),
        ("changed", what_changed(write)),
    ]


def call_rows(write: StoreResult) -> list[tuple[str, str]]:
    """Return the callers, innermost first."""
    return [("called by" if n == 0 else "", escape(call)) for n, call in enumerate(write.calls)]


def told(write: WriteResult) -> list[str]:
    """Tell in a few lines who wrote."""
    lines = [f"written at position {write.position:,} by {code(write)}"]
    lines.append("  " + ", ".join(filter(None, (escape(write.source), way(write), task(write)))))
    if write.calls:
        lines.append(f"  called by {' <- '.join(map(symbol, write.calls))}")
    return lines


def symbol(place: str) -> str:
    """Return the symbol of a place, or its address where it has none."""
    return escape(place.partition(" ")[2].strip("()") or place)
