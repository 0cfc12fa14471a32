"""Page tables as text in the kernel's own form, line for line as /sys/kernel/debug/kernel_page_tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ptinspect.arch.levels import level_name
from ptinspect.arch.regime import Regime
from ptinspect.errors import UserError
from ptinspect.linux.ptdump.columns import Column, columns, mask_of
from ptinspect.linux.ptdump.markers import Frame, Marker, frame_of
from ptinspect.linux.ptdump.segments import Segment, segments
from ptinspect.linux.releases import TextForm
from ptinspect.snapshot.model import Snapshot

UNITS = "KMGTPE"


def kernel_lines(snapshot: Snapshot, form: TextForm | None = None) -> tuple[Iterator[str], Frame]:
    """Return the lines that the kernel would print for a snapshot, in its own form or another, and the frame.

    Raises UserError if the snapshot is of a part, of a lower half, or of an unknown kernel.
    """
    regime = snapshot.regime
    if not regime.upper or snapshot.va_range is not None or snapshot.truncated:
        raise UserError(f"the kernel's text needs a whole capture of its half; {snapshot.name!r} is none")
    frame = frame_of(snapshot, form)
    attributes = columns(frame.form, regime.mair)
    found = segments(snapshot, mask_of(attributes))
    return lines(found, frame.markers, attributes, frame.form, regime), frame


def lines(
    found: Iterable[Segment],
    markers: Sequence[Marker],
    attributes: Sequence[Column],
    form: TextForm,
    regime: Regime,
) -> Iterator[str]:
    """Yield the lines, without line ends, of what a walk meets.

    note_page() of arch/arm64/mm/ptdump.c is called once for each entry; here once for each stretch of
    equal ones, and at the entries where a marker is due.
    """
    state = _State(markers, attributes, form, regime)
    for segment in found:
        step = regime.entry_size(segment.level)
        yield from state.note(segment.va, segment.level, segment.bits)
        done = 0
        while (due := state.due) is not None:
            done = max(-(-(due - segment.va) // step), done + 1)
            if done >= segment.entries:
                break
            yield from state.note(segment.va + done * step, segment.level, segment.bits)
    yield from state.note(0, None, 0)


def size_text(size: int) -> str:
    """Return a size as the kernel does: the largest unit that divides it, right-aligned in ten columns."""
    delta, unit = size >> 10, 0
    while not delta & 1023 and unit < len(UNITS) - 1:
        delta, unit = delta >> 10, unit + 1
    return f"{delta:9d}{UNITS[unit]}"


class _State:
    """What the kernel's struct pg_state holds."""

    def __init__(
        self, markers: Sequence[Marker], attributes: Sequence[Column], form: TextForm, regime: Regime
    ) -> None:
        self._markers, self._attributes = markers, attributes
        self._form, self._regime = form, regime
        self._at = 0
        self._begun = form.zero
        self._start = 0
        self._level: int | None = regime.start_level if form.zero else None
        self._prot = 0
        self._texts: dict[tuple[int | None, int], str] = {}

    @property
    def due(self) -> int | None:
        """The address from which on the next marker is to be printed; None after the last."""
        return self._markers[self._at + 1].address if self._at + 1 < len(self._markers) else None

    def note(self, addr: int, level: int | None, prot: int) -> Iterator[str]:
        """Take note of an entry, as note_page() does; `level` None is the end."""
        if not self._begun:
            self._begun = True
            self._start, self._level, self._prot = addr, level, prot
            yield self._marker()
        elif prot != self._prot or level != self._level or self._reached(addr):
            if self._prot or self._form.holes:
                size = size_text(addr - self._start & (1 << 64) - 1)
                yield f"0x{self._start:016x}-0x{addr:016x}   {size} {self._text()}"
            if self._reached(addr):
                self._at += 1
                yield self._marker()
            self._start, self._level, self._prot = addr, level, prot
        if self._reached(addr):
            self._at += 1
            yield self._marker()

    def _reached(self, addr: int) -> bool:
        return self.due is not None and addr >= self.due

    def _marker(self) -> str:
        return f"---[ {self._markers[self._at].name} ]---"

    def _text(self) -> str:
        """Return the level's name and the attributes."""
        key = (self._level, self._prot)
        if key not in self._texts:
            assert self._level is not None
            name = level_name(self._level, self._regime).upper()  # the root's is PGD
            self._texts[key] = name + self._columns()
        return self._texts[key]

    def _columns(self) -> str:
        if not self._prot:
            return ""
        shown = (
            column.yes if self._prot & column.mask == column.value else column.no
            for column in self._attributes
        )
        return "".join(f" {text}" for text in shown if text is not None)
