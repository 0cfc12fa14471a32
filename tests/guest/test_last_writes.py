"""Who made the changes between two snapshots, in a run of which every write is known."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from builders import REGIMES, snapshot_of
from fakes import kernel_tree
from test_writers import END, LINEAR, OTHER, PA, STORE, Run, guest_of

from ptinspect.analysis.diff import Change
from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.errors import UserError
from ptinspect.guest.recordings import last_writes
from ptinspect.guest.recordings.last_writes import last_writes as searched_in
from ptinspect.guest.recordings.last_writes import of_changes, that_unmapped
from ptinspect.snapshot.fact_names import POSITION, RECORDING
from ptinspect.snapshot.model import Snapshot

EVENTS = {
    5: (STORE, PA, PA, 0x11),
    1_000_000: (STORE, LINEAR, PA, 0x13),
    90_000_000: (STORE, LINEAR, PA, 0x15),
    300_000_000: (STORE, LINEAR, PA, 0x17),
}


def snapshot(name: str, at: int | None, recording: str = "r") -> Snapshot:
    tree = kernel_tree()
    made = snapshot_of(tree.memory, tree.root, tree.regime, name)
    facts = {} if at is None else {POSITION: str(at), RECORDING: recording}
    return replace(made, meta=replace(made.meta, extra=facts))


def change(before: int | None, after: int | None, pa: int = PA, pa_after: int = PA) -> Change:
    at = VirtAddr(0xFFFF_0000_0000_0000)
    return Change(at, VirtAddr(at + 4095), 3, PhysAddr(pa), before, after, ("lost",), PhysAddr(pa_after))


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Any:
    run = Run(EVENTS)
    run.last = END  # type: ignore[attr-defined]
    monkeypatch.setattr(last_writes, "replay_of", lambda guest: run)
    monkeypatch.setattr(last_writes, "recording_of", lambda guest: SimpleNamespace(id="r"))
    return guest_of(run, monkeypatch)


def found(guest: Any, a: int | None, b: int | None, made: Change) -> int | None:
    (write,) = of_changes(guest, [made], snapshot("a", a), snapshot("b", b), 60)
    assert guest.stopped.position == END
    return None if write is None else write.position


def test_the_last_write_between_the_two_snapshots_is_named(guest: Any) -> None:
    assert found(guest, 10, 100_000_000, change(0x11, 0x15)) == 90_000_000
    assert found(guest, 10, 2_000_000, change(0x11, 0x13)) == 1_000_000
    assert found(guest, 100_000_000, 10, change(0x15, 0x11)) == 90_000_000
    assert found(guest, None, 2_000_000, change(0x11, 0x13)) == 1_000_000
    assert found(guest, 1_000_000, 2_000_000, change(0x11, 0x13)) is None


def test_without_a_position_it_is_the_last_one_before_the_present(guest: Any) -> None:
    assert found(guest, 10, None, change(0x11, 0x17)) == 300_000_000


def test_a_table_that_was_put_in_place_of_another_may_have_been_written_before(guest: Any) -> None:
    assert found(guest, 2_000_000, 3_000_000, change(0x99, 0x13, pa=PA + 0x1000)) == 1_000_000


def test_what_could_not_be_compared_has_no_writer(guest: Any) -> None:
    assert found(guest, 10, 2_000_000, change(None, None)) is None


def test_snapshots_of_another_boot_are_refused(guest: Any) -> None:
    other = [snapshot("a", 10), snapshot("b", 2_000_000, "other")]
    with pytest.raises(UserError, match="'b' was not captured in this recording"):
        of_changes(guest, [change(0x11, 0x13)], *other, 60)
    with pytest.raises(UserError, match="'b' was not captured in this recording"):
        found(guest, 10, END + 1, change(0x11, 0x13))
    with pytest.raises(UserError, match=re.escape("holds 0x13 at position 2,000,000")):
        found(guest, 10, 2_000_000, change(0x11, 0x99))
    assert guest.stopped.position == END


def test_a_write_that_changes_nothing_gives_way_to_the_one_before(guest: Any) -> None:
    guest.stopped.events = {**EVENTS, 350_000_000: (STORE, LINEAR, PA, 0x17)}
    assert found(guest, 10, END, change(0x11, 0x17)) == 300_000_000
    assert found(guest, 320_000_000, END, change(0x17, 0x17)) == 350_000_000
    assert searched_in(guest, {PhysAddr(PA): 0x17}, END, 0, 60)[PhysAddr(PA)].before == 0x15


@pytest.mark.parametrize(("until", "expected"), [(300_000_000, 300_000_000), (200_000_000, None)])
def test_what_unmapped_is_the_last_write_before_which_it_was_mapped(
    guest: Any, monkeypatch: pytest.MonkeyPatch, until: int, expected: int | None
) -> None:
    run = guest.stopped

    def walk(memory: Any, va: int, root: int, regime: Any) -> Any:
        assert (memory, va, root) == (run, 5, 6)
        return SimpleNamespace(outcome="mapped" if run.position < until else "fault")

    monkeypatch.setattr(last_writes, "walk", walk)
    for order in ((OTHER, PA), (PA, OTHER)):
        steps = [SimpleNamespace(descriptor_pa=pa, raw=run.value(pa)) for pa in order]
        now: Any = SimpleNamespace(
            steps=(SimpleNamespace(descriptor_pa=8, raw=None), *steps), va=5, root_pa=6
        )
        write = that_unmapped(guest, now, REGIMES["4k-48"], 60)
        assert (None if write is None else write.position) == expected and run.position == END
