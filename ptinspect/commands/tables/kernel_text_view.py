"""The kernel's text of its page tables, and how it differs from another one, for `import` and `diff`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptinspect.arch.bits import VirtAddr
from ptinspect.arch.levels import size_text
from ptinspect.dataclass import dataclass
from ptinspect.guest.guest import Guest
from ptinspect.guest.kernel_texts import kernel_text
from ptinspect.output.model import Column, Note, Report, Styled, Table, escape, headings

if TYPE_CHECKING:
    from ptinspect.linux.ptdump.kernel_text import TextRun

SHOWN = 200
"""Rows shown unless somebody chooses."""


@dataclass(frozen=True)
class TextRunResult:
    """One line of the text."""

    va_start: VirtAddr
    va_end: VirtAddr
    size: int
    level: str
    attributes: Sequence[str]
    marker: str


@dataclass(frozen=True)
class TextResult:
    """What a text lists as mapped."""

    file: str
    runs: Sequence[TextRunResult]
    skipped: int


@dataclass(frozen=True)
class SideResult:
    """What one of two texts has in a range."""

    level: str
    attributes: Sequence[str]


@dataclass(frozen=True)
class RangeResult:
    """A range in which two texts differ; None where nothing is mapped."""

    va_start: VirtAddr
    va_end: VirtAddr
    size: int
    a: SideResult | None
    b: SideResult | None


@dataclass(frozen=True)
class TextDiffResult:
    """How two texts differ."""

    a: str
    b: str
    identical: bool
    differences: Sequence[RangeResult]
    skipped: int
    not_compared: str


def show_text(guest: Guest, file: str, shown: int) -> Report:
    """List what is mapped; `shown` limits the rows, not the result."""
    text = kernel_text(guest, file)
    runs = [
        TextRunResult(
            va_start=VirtAddr(run.start),
            va_end=VirtAddr(run.end - 1),
            size=run.end - run.start,
            level=run.level,
            attributes=run.words,
            marker=run.marker,
        )
        for run in text.runs
        if run.mapped
    ]
    rows = [
        (
            Styled(f"{run.va_start:#018x}", "address"),
            size_text(run.size),
            run.level,
            " ".join(run.attributes),
            escape(run.marker),
        )
        for run in runs[:shown]
    ]
    body: list[Note | Table] = [
        Note(f"{file}: {len(runs)} runs", "title"),
        Table(headings("from", ">size", "level", "attributes", "marker"), rows, empty="nothing is mapped"),
    ]
    if len(runs) > shown:
        body.append(Note(f"… and {len(runs) - shown} more runs", "dim"))
    if text.skipped:
        body.append(Note(f"{text.skipped} lines of the file are none of the kernel's", "changed"))
    return Report(TextResult(file, runs, text.skipped), body)


def compare_texts(guest: Guest, a: str, b: str, shown: int) -> Report:
    """List the ranges in which two texts differ, or a text and a snapshot."""
    from ptinspect.linux.ptdump.kernel_text import UNKNOWN, compare

    first, second = kernel_text(guest, a), kernel_text(guest, b)
    found = list(compare(first.runs, second.runs))
    skipped = first.skipped + second.skipped
    result = TextDiffResult(
        a=a,
        b=b,
        identical=not found,
        differences=[
            RangeResult(VirtAddr(d.start), VirtAddr(d.end - 1), d.end - d.start, _side(d.a), _side(d.b))
            for d in found
        ],
        skipped=skipped,
        not_compared=UNKNOWN,
    )
    rows = [
        (Styled(f"{d.va_start:#018x}", "address"), size_text(d.size), _words(d.a), _words(d.b))
        for d in result.differences[:shown]
    ]
    if found:
        columns = headings("from", ">size", Column(escape(a)), Column(escape(b)))
        body: list[Note | Table] = [Note(f"{len(found)} ranges differ", "changed"), Table(columns, rows)]
    else:
        body = [Note("the same is mapped in both", "good")]
    if len(found) > shown:
        body.append(Note(f"… and {len(found) - shown} more", "dim"))
    if skipped:
        body.append(Note(f"{skipped} lines are none of the kernel's", "changed"))
    return Report(result, (*body, Note(UNKNOWN, "dim")))


def _side(run: TextRun | None) -> SideResult | None:
    return None if run is None else SideResult(run.level, run.words)


def _words(side: SideResult | None) -> str:
    return "not mapped" if side is None else " ".join((side.level, *side.attributes))
