"""Read the kernel's text of its page tables again: what was mapped, as runs without physical addresses."""

from __future__ import annotations

import io
import itertools
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ptinspect.errors import UserError
from ptinspect.files import open_input
from ptinspect.linux.layout.geometry import TOP

MAX_BYTES = 24 << 20
"""A larger file is none; a kernel with KASAN prints some hundred kilobytes."""
MAX_LINES = 2_000_000
_RUN = re.compile(
    r"0x([0-9a-f]{16})-0x([0-9a-f]{16})\s+\d+[KMGTPE] (PGD|P4D|PUD|PMD|PTE)((?: [ A-Za-z/-]+)?)\s*"
)
_MARKER = re.compile(r"---\[ (.{1,60}) \]---\s*")
UNKNOWN = (
    "physical addresses, table descriptors, KPTI's marks on them, and bits without a column (DBM, software "
    "bits, NS) are not in the text: they are not compared"
)


@dataclass(frozen=True, slots=True)
class TextRun:
    """One line."""

    start: int
    """First address."""
    end: int
    """First address past the end; 2^64 at the top."""
    level: str
    """PGD, P4D, PUD, PMD or PTE."""
    words: tuple[str, ...]
    """Attributes as printed; none where nothing is mapped."""
    marker: str
    """The last marker above the line."""

    @property
    def mapped(self) -> bool:
        """Tell whether anything is there."""
        return bool(self.words)

    @property
    def what(self) -> tuple[str, ...]:
        """What is compared: level and attributes; nothing where nothing is mapped."""
        return (self.level, *self.words) if self.words else ()


@dataclass(frozen=True)
class Text:
    """A whole text."""

    runs: tuple[TextRun, ...]
    """The lines, in order of address."""
    skipped: int
    """Lines that are none of the kernel's: prompts, messages of a console."""


@dataclass(frozen=True, slots=True)
class TextDifference:
    """A range in which two texts differ."""

    start: int
    """First address."""
    end: int
    """First address past the end."""
    a: TextRun | None
    """What the first has; None where nothing is mapped."""
    b: TextRun | None
    """What the second has."""


def is_text(path: Path) -> bool:
    """Tell whether a file begins like the kernel's text of its page tables; console lines may precede it."""
    try:
        with open_input(path) as file:
            head = file.read(16 << 10).decode("ascii", "replace")
    except OSError:
        return False
    return any(_RUN.fullmatch(line) or _MARKER.fullmatch(line) for line in head.splitlines())


def load(path: Path) -> Text:
    """Read a file. Raises UserError if there is no such text in it, or it contradicts itself."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{path}: {size} bytes, more than {MAX_BYTES} are not read")
        with io.TextIOWrapper(open_input(path), encoding="utf-8", errors="replace") as file:
            return parse(file, str(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def parse(lines: Iterable[str], name: str) -> Text:
    """Read lines. Raises UserError as `load` does."""
    runs: list[TextRun] = []
    marker, skipped = "", 0
    words: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, 1):
        if number > MAX_LINES:
            raise UserError(f"{name}: more than {MAX_LINES} lines")
        text = line.rstrip("\r\n")
        found = _RUN.fullmatch(text)
        if found is not None:
            start, end = int(found[1], 16), int(found[2], 16) or TOP
            if start >= end or (runs and start < runs[-1].end):
                raise UserError(f"{name}:{number}: {text[:60]!r} does not follow the line before it")
            if found[4] not in words:
                words[found[4]] = tuple(found[4].split())
            runs.append(TextRun(start, end, found[3], words[found[4]], marker))
        elif (mark := _MARKER.fullmatch(text)) is not None:
            marker = mark[1]
        elif text.strip():
            skipped += 1
    if not runs:
        raise UserError(f"{name}: no line of it is one of the kernel's page tables")
    return Text(tuple(runs), skipped)


def compare(a: Sequence[TextRun], b: Sequence[TextRun]) -> Iterator[TextDifference]:
    """Yield the ranges that differ in level or attributes, joined where what differs is the same."""
    edges = sorted({edge for run in (*a, *b) for edge in (run.start, run.end)})
    last: TextDifference | None = None
    starts = [run.start for run in a], [run.start for run in b]
    for start, end in itertools.pairwise(edges):
        one, two = _mapped(a, starts[0], start), _mapped(b, starts[1], start)
        if _what(one) == _what(two):
            continue
        found = TextDifference(start, end, one, two)
        if last is not None and last.end == start and _same(last, found):
            last = replace(last, end=end)
            continue
        if last is not None:
            yield last
        last = found
    if last is not None:
        yield last


def _same(a: TextDifference, b: TextDifference) -> bool:
    return (_what(a.a), _what(a.b)) == (_what(b.a), _what(b.b))


def _what(run: TextRun | None) -> tuple[str, ...]:
    return () if run is None else run.what


def _mapped(runs: Sequence[TextRun], starts: list[int], address: int) -> TextRun | None:
    """Return the run that maps an address; None if none does."""
    run = runs[bisect_right(starts, address) - 1] if starts and starts[0] <= address else None
    return run if run is not None and address < run.end and run.mapped else None
