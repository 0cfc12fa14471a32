"""What a guest's tables are used for, without a command: values in, values out."""

from __future__ import annotations

import pytest
from builders import NG, TreeBuilder
from fakes import IMAGE, KERNEL, context, kernel_tree

from ptinspect.analysis.map import MapFilter
from ptinspect.arch.bits import PhysAddr
from ptinspect.errors import GuestError, UserError
from ptinspect.guest.capturing import capture_of, snap, snapshot_of
from ptinspect.guest.checkup import checkup
from ptinspect.guest.expression import address
from ptinspect.guest.guest import Guest
from ptinspect.guest.injection import descriptor_at, poke, undo_poke
from ptinspect.guest.mappings import physical_address, runs_of, ways_to
from ptinspect.guest.roots import source
from ptinspect.guest.table_choice import Tables


@pytest.fixture
def tree() -> TreeBuilder:
    return kernel_tree()


@pytest.fixture
def guest(tree: TreeBuilder) -> Guest:
    return context(tree).guest


def test_a_snapshot_is_kept_and_every_use_takes_it_in_place_of_the_guest(guest: Guest) -> None:
    kept = snap(guest, "a", Tables())
    assert guest.snapshots == {"a": kept}
    with pytest.raises(UserError, match="already"):
        snap(guest, "a", Tables())
    guest.session = None
    assert snapshot_of(guest, Tables(snap="a")) is kept
    with pytest.raises(UserError, match="not attached"):
        snapshot_of(guest, Tables())
    guest.drop_snapshots(["a"])
    assert guest.snapshots == {}


def test_a_whole_capture_is_read_once_at_a_stop(guest: Guest) -> None:
    first = snapshot_of(guest, Tables())
    assert snapshot_of(guest, Tables()) is first
    assert capture_of(guest, source(guest, Tables()), (KERNEL, KERNEL + 0xFFF)) is not first
    guest.session.stop_token += 1  # type: ignore[union-attr,misc]
    assert snapshot_of(guest, Tables()) is not first


def test_a_capture_tells_by_which_root_it_was_asked_for_each_time(guest: Guest) -> None:
    own = snapshot_of(guest, Tables())
    assert own.root.provenance.startswith("TTBR1")
    given = snapshot_of(guest, Tables(root=address(f"pa:{own.root.pa:#x}")))
    assert given.root.provenance.startswith("--root pa:") and given.tables is own.tables
    assert snapshot_of(guest, Tables()) is own


def test_levels_are_named_as_linux_does_and_ways_lead_back(guest: Guest) -> None:
    found = runs_of(guest, Tables(), MapFilter(), ["pmd"])
    assert [(run.va_start, run.pa_start, run.count) for run in found.items] == [(KERNEL, IMAGE, 2)]
    pa = physical_address(guest, Tables(), address(f"{KERNEL + 0x1234:#x}"))
    assert pa == IMAGE + 0x1234
    assert [hit.va for hit in ways_to(guest, Tables(), pa, 10).items] == [KERNEL + 0x1234]
    assert physical_address(guest, Tables(), address("pa:0x1000")) == PhysAddr(0x1000)
    with pytest.raises(GuestError, match="not mapped"):
        physical_address(guest, Tables(), address("0xffff900000000000"))


def test_a_poke_is_found_by_a_checkup_and_taken_back(guest: Guest, tree: TreeBuilder) -> None:
    snap(guest, "before", Tables())
    slot = tree.slot(KERNEL, 2)
    old = descriptor_at(guest, slot)
    assert poke(guest, slot, 0).old == old
    done = checkup(guest, Tables(), against="before")
    assert done.before is guest.snapshots["before"]
    first = done.findings.kept[0]
    assert (first.rule, first.va_start, first.raw) == ("entry-lost", KERNEL, 0)
    assert done.findings.totals == {"entry-lost": 1, "stack-lost": 1}
    assert undo_poke(guest).pa == slot and descriptor_at(guest, slot) == old
    assert checkup(guest, Tables(), against="before").findings.totals == {}
    poke(guest, slot, old ^ NG)
    tree.set(KERNEL, 2, old)
    with pytest.raises(UserError, match="changed it since"):
        undo_poke(guest)
    with pytest.raises(UserError, match="multiple of 8"):
        poke(guest, slot + 4, 0)
