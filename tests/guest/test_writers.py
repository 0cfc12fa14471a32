"""The writes of a descriptor, found in a run of which every write is known, by ways that are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import MiError, UserError
from ptinspect.guest.recordings import writers
from ptinspect.guest.recordings.writers import Writers
from ptinspect.link.replay_scan import Hit, Look, Seen

PA, OTHER = 0x4120_0018, 0x4130_0018
LINEAR, WINDOW = 0xFFFF_0000_0120_0018, 0xFFFF_FDFF_FE5F_8018
CODE = 0x4008_0000
STORE, NOTHING, LOAD = 0xF900_0041, 0xD503_201F, 0xF940_0041  # str x1, [x2]; nop; ldr x1, [x2]
END = 400_000_000
UNREAD: dict[str, Any] = {"is_flat": lambda _: True, "read": lambda *_, **__: (b"", "")}
"""Code that only GDB can read."""
STATE = 60_000_000


class Run:
    """A run of END instructions; `events`: position after it -> (word, x2, PA, the value then)."""

    def __init__(self, events: dict[int, tuple[int, int, int, int]]) -> None:
        self.events, self.position = events, END
        self.mapped: Callable[[int, int], int | None] = lambda va, at: {LINEAR: PA, PA: PA}.get(va)
        self.moves = 0

    def value(self, pa: int) -> int:
        found = [
            (at, new) for at, (_, _, place, new) in self.events.items() if place == pa and at <= self.position
        ]
        return max(found, default=(0, 7))[1]

    def next(self) -> tuple[int, int, int, int]:
        return self.events.get(self.position + 1, (NOTHING, 0, 0, 0))

    # what a replay does

    def go_to(self, target: int, seconds: float = 0) -> None:
        self.position = target
        self.moves += 1

    def run_to(self, target: int, deadline: float) -> None:
        assert target > self.position
        self.position = target

    def scan(
        self, watched: Sequence[int], cells: Sequence[int], limits: Sequence[int], deadline: float
    ) -> Seen:
        hits, looks = [], []
        for limit in limits:
            assert limit > self.position
            for at in sorted(at for at in self.events if self.position < at <= limit):
                word, va, _, _ = self.events[at]
                self.position = at - 1
                before, pa = self.values(cells), self.mapped(va, at)
                self.position = at
                if va in watched and word == STORE:
                    x = (0, 0, va, *[0] * 28)
                    hits.append(Hit(at, CODE, word, x, 0, va, pa, before, self.values(cells)))
            self.position = limit
            looks.append(Look(limit, self.values(cells)))
        return Seen(tuple(hits), tuple(looks), "limit")

    def values(self, cells: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.value(pa) for pa in cells)

    @property
    def states(self) -> list[int]:
        return list(range(0, END, STATE))

    def without_breakpoints(self) -> Any:
        return nullcontext()

    # what a session does

    current_cpu = 0

    def gva2gpa(self, va: int) -> int | None:
        return CODE if va == CODE else self.mapped(va, self.position)

    def read(self, pa: int, length: int) -> bytes:
        if pa == CODE:
            return self.next()[0].to_bytes(4, "little")
        return self.value(pa).to_bytes(length, "little")

    @property
    def memory(self) -> Run:
        return self

    def cpu_state(self, cpu: int) -> CpuState:
        x = [0] * 31
        x[2] = self.next()[1]
        return CpuState(0, tuple(x), 0, CODE, 0x3C5, {"SCTLR_EL1": 1})

    def gdb_command(self, line: str) -> str:
        return "=> 0x40080000:\tstr\tx1, [x2]\n"


def guest_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a guest without a kernel file that stands at the end of a recorded run."""
    monkeypatch.setattr(writers, "replay_of", lambda guest: run)
    monkeypatch.setattr(Writers, "_aliases", lambda self, pa: [pa, LINEAR])
    view = property(lambda self: (_ for _ in ()).throw(UserError("no kernel")))
    kind: Callable[..., Any] = type("G", (SimpleNamespace,), {"view": view})
    known = {"kept": {}, "snapshots": {}, "place": lambda pc, **_: hex(pc), "progress": lambda *a: None}
    return kind(session=run, stopped=run, **known, **UNREAD)


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], Writers]:
    return lambda run: Writers(guest_of(run, monkeypatch), [PA], 1e9)


def values(found: Writers, *, every: bool) -> list[tuple[int, int, int, str]]:
    (history,) = found.histories(every=every)
    assert found.replay.position == END and history.first == (7 if every or not history.writes else None)
    return [(w.position, w.before, w.after, w.how) for w in history.writes]


def test_stores_by_known_addresses_are_found_with_those_that_change_nothing(search: Any) -> None:
    run = Run({
        5: (STORE, PA, PA, 0x11), 300: (STORE, LINEAR, PA, 0x13), 301: (LOAD, LINEAR, 0, 0),
        390_000_000: (STORE, LINEAR, PA, 0x13),
    })  # fmt: skip
    expected = [(5, 7, 0x11, "store"), (300, 0x11, 0x13, "store"), (390_000_000, 0x13, 0x13, "store")]
    assert values(search(run), every=True) == expected
    assert values(search(run), every=False) == expected[-1:]


def test_a_store_through_a_window_is_found_by_the_value_and_its_window_is_watched_then(search: Any) -> None:
    run = Run({
        20_000_000: (STORE, WINDOW, PA, 0x11), 70_000_000: (STORE, WINDOW, OTHER, 0x99),
        90_000_001: (STORE, WINDOW, PA, 0x22), 90_000_003: (STORE, WINDOW, PA, 0x11),
        120_000_000: (STORE, LINEAR, PA, 0x33),
    })  # fmt: skip
    run.mapped = lambda va, at: (
        (OTHER if 60_000_000 < at < 80_000_000 else PA) if va == WINDOW else {LINEAR: PA}.get(va)
    )
    assert [w[:3] for w in values(search(run), every=True)] == [
        (20_000_000, 7, 0x11), (90_000_001, 0x11, 0x22), (90_000_003, 0x22, 0x11), (120_000_000, 0x11, 0x33)
    ]  # fmt: skip
    del run.events[120_000_000]
    assert [w[0] for w in values(search(run), every=False)] == [90_000_003]


def test_what_lies_beside_is_found_by_the_same_window_without_another_division(
    search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, beside = Run({}), PA + 8
    run.events = {
        at + n * 104: (STORE, WINDOW + place - PA, place, at)
        for at in (50_000_000, 60_000_000)
        for n, place in enumerate((PA, beside, PA + 16))
    }
    run.mapped = lambda va, at: (
        PA + va - WINDOW if 0 <= va - WINDOW < 24 else PA if va in (PA, LINEAR) else None
    )
    divided: list[int] = []
    own = Writers._changed
    monkeypatch.setattr(Writers, "_changed", lambda self, *a: divided.append(a[0]) or own(self, *a))
    found = search(run)
    found.aliases = {pa: {pa} for pa in (PA, beside, PA + 16)}
    found.now = {pa: run.value(pa) for pa in found.aliases}
    for every in (False, True):
        histories = found.histories(every=every)
        assert [[w.position for w in h.writes] for h in histories] == [
            [50_000_000 + n * 104, 60_000_000 + n * 104][not every :] for n in range(3)
        ]
    assert len(divided) == 1


def test_none_is_looked_for_before_the_position_that_was_named(search: Any) -> None:
    run = Run({5: (STORE, PA, PA, 0x11), 300_000_000: (STORE, LINEAR, PA, 0x13)})
    for since, expected in ((0, [300_000_000]), (299_999_999, [300_000_000]), (300_000_000, [])):
        found = search(run)
        found.since = since
        (history,) = found.histories(every=False)
        assert [w.position for w in history.writes] == expected and history.first is None


def test_what_the_walk_of_the_mmu_sets_is_no_store(search: Any) -> None:
    run = Run({9: (STORE, PA, PA, 0x703), 123_456_789: (LOAD, 0xFFFF_8000_0000_0000, PA, 0x703 | 1 << 7)})
    found = values(search(run), every=True)
    assert found == [(9, 7, 0x703, "store"), (123_456_789, 0x703, 0x783, "hardware")]


def test_an_instruction_that_the_debugger_cannot_read_is_shown_without_its_words(search: Any) -> None:
    run = Run({9: (LOAD, 0xFFFF_8000_0000_0000, PA, 7 | 1 << 10)})

    def unreadable(line: str) -> str:
        raise MiError("Cannot access memory at address 0x40080000")

    run.gdb_command = unreadable  # type: ignore[method-assign]
    (history,) = search(run).histories(every=True)
    assert [(w.position, w.how, w.instruction) for w in history.writes] == [(9, "hardware", "")]


def test_a_store_that_changes_nothing_is_found_where_a_stretch_ends_too(search: Any) -> None:
    last = 360_000_001  # the second stretch ends there: a state lies before it
    ends = (END, last, writers.LOOK)
    run = Run(dict.fromkeys(ends, (STORE, PA, PA, 7)))
    assert [w[0] for w in values(search(run), every=True)] == sorted(ends)
    assert [w[0] for w in values(search(run), every=False)] == [END]
    del run.events[END]
    assert [w[0] for w in values(search(run), every=False)] == [last]


def test_what_nothing_wrote_has_no_writes(search: Any) -> None:
    assert values(search(Run({})), every=False) == [] and values(search(Run({})), every=True) == []
