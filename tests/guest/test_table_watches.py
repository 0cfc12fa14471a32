"""Watches of descriptors: which stops are passed over, which are told, and what is followed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import KERNEL_DATA
from fakes import IMAGE, KERNEL, FakeSession, FakeSlots, Stop, context, kernel_tree, run

from ptinspect.errors import KernelFileError, OutOfSlots, UserError
from ptinspect.guest.breakpoints import descriptor_addresses
from ptinspect.guest.breakpoints.descriptor_addresses import mmu_switches
from ptinspect.guest.breakpoints.table_watches import TableWatches, table_watches
from ptinspect.guest.recordings import way_back
from ptinspect.link.state import Breakpoint
from ptinspect.linux.kpti.windows import fixmap_slots

DATA, CODE, CODE_PA = 0xFFFF_8000_2000_0000, KERNEL + 0x1_0000, IMAGE + 0x1_0000
LINEAR = 0xFFFF_0000_0100_0000
"""Where the tables of DATA are mapped too."""
STORE, LOAD, NOTHING = 0xF900_0041, 0xF940_0041, 0xD503_201F  # str x1, [x2]; ldr x1, [x2]; nop


@dataclass
class Watched(FakeSession):
    """Watchpoints, by number."""

    watched: dict[int, int] = field(default_factory=dict)
    most: int = 1000

    def watch_access(self, address: int, length: int, purpose: Any = None, of: int = 0) -> int:
        if len(self.watched) >= self.most:
            raise OutOfSlots("too few", "")
        assert length == 8 and of
        number = 100 + len(self.watched) + len(self.calls)
        self.calls.append(("watch", address))
        self.watched[number] = address
        return number

    def delete_place(self, number: int) -> None:
        self.watched.pop(number, None)


class World:
    """A guest whose tables lie where LINEAR maps them, and who executes what a test says."""

    def __init__(self, most: int = 1000) -> None:
        self.tree = kernel_tree()
        page = self.tree.table_at(DATA, 3)
        self.pte = page + 8 * self.tree.regime.index(DATA, 3)
        self.tree.map(LINEAR, page, size=4096, level=3, attributes=KERNEL_DATA)
        self.alias = LINEAR + self.pte % 4096
        self.ctx = context(self.tree)
        old = self.ctx.guest.session
        assert old is not None
        self.session = Watched(self.tree.memory, cpus=old.cpus, most=most)  # type: ignore[attr-defined]
        if most < 1000:
            self.session.slots = FakeSlots({"watchpoint": most, "breakpoint": 6})
        self.ctx.guest.session = self.session

    @property
    def watches(self) -> TableWatches:
        return table_watches(self.ctx.guest)

    def executed(self, word: int, va: int, value: int | None = None, pa: int | None = None) -> bool:
        """Stop after an instruction that touched an address; tell whether the guest runs on."""
        if value is not None:
            self.tree.memory.write(self.pte if pa is None else pa, value.to_bytes(8, "little"))
        self.tree.memory.write(CODE_PA, word.to_bytes(4, "little"))
        state = self.session.cpus[0]
        x = [0] * 31
        x[2] = va
        self.session.cpus = [replace(state, pc=CODE + 4, x=tuple(x))]
        number = next(n for n, watched in self.session.watched.items() if watched == va)
        self.session.stop_token += 1
        self.session.stop = Stop("access-watchpoint-trigger", 0, self.watches.all[0].id, CODE + 4, "", number)
        return self.watches.passes(self.session.stop)

    def raw(self) -> int:
        return int.from_bytes(self.tree.memory.read(self.pte, 8), "little")


@pytest.fixture
def world() -> World:
    return World()


def test_all_that_is_mapped_and_the_physical_address_are_watched(world: World) -> None:
    found = run(world.ctx, f"watch table {DATA:#x} --level pte").result
    (one,) = found["descriptors"]
    assert one["descriptor_pa"] == hex(world.pte) and one["level"] == 3
    assert {(a["va"], a["way"]) for a in one["addresses"]} >= {(hex(world.pte), "physical")}
    assert hex(world.alias) in {a["va"] for a in one["addresses"] if a["mapped"]}
    world.watches.depart()
    assert {world.alias, world.pte} <= set(world.session.watched.values())
    world.watches.rest()
    assert not world.session.watched


def test_a_window_that_shows_it_now_has_its_own_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptor_addresses, "_predicted", lambda *_: [(world.alias, "fixmap")])
    (one,) = run(world.ctx, f"watch table {DATA:#x} --level pte").result["descriptors"]
    assert [a["way"] for a in one["addresses"] if a["va"] == hex(world.alias) and a["mapped"]] == ["fixmap"]


def test_loads_and_stores_elsewhere_are_passed_and_stores_are_told(world: World) -> None:
    run(world.ctx, f"watch table {DATA:#x} --level pte")
    world.watches.depart()
    assert world.executed(LOAD, world.alias) and world.executed(NOTHING, world.alias)
    assert world.executed(STORE, world.pte)  # the address is no physical one while the MMU is on
    assert not world.executed(STORE, world.alias)
    (same,) = world.watches.seen
    assert same.before == same.after == world.raw() and same.how == "store"
    world.watches.depart()
    before = world.raw()
    assert not world.executed(STORE, world.alias, before | 0x800)
    (write,) = world.watches.seen
    assert (write.before, write.after, write.va) == (before, before | 0x800, world.alias)
    assert write.writer is not None and write.writer.pc == CODE
    assert world.watches.all[0].hits == 2


def test_what_nobody_saw_is_told_at_the_next_stop(world: World) -> None:
    run(world.ctx, f"watch table {DATA:#x} --level pte")
    world.watches.depart()
    before = world.raw()
    world.tree.memory.write(world.pte, (before & ~0x400).to_bytes(8, "little"))
    world.tree.memory.write(CODE_PA, NOTHING.to_bytes(4, "little"))
    world.session.cpus = [replace(world.session.cpus[0], pc=CODE + 4)]
    (write,) = world.watches.at_stop()
    assert (write.how, write.before, write.after, write.writer) == ("unseen", before, before & ~0x400, None)
    assert world.watches.at_stop() == (write,)
    world.watches.depart()
    assert world.watches.at_stop() == ()


def test_a_step_does_not_tell_again_what_was_told_before(world: World) -> None:
    run(world.ctx, f"watch table {DATA:#x} --level pte")
    world.watches.depart()
    assert not world.executed(STORE, world.alias, world.raw() | 0x800)
    assert len(world.watches.at_stop()) == 1
    world.session.stop_token += 1  # as a step does, on which nobody goes along
    assert world.watches.at_stop() == ()


def test_what_was_written_while_it_was_disabled_is_not_told(world: World) -> None:
    number = run(world.ctx, f"watch table {DATA:#x} --level pte").result["id"]
    run(world.ctx, f"disable {number}")
    world.watches.depart()
    world.tree.memory.write(world.pte, (world.raw() | 0x800).to_bytes(8, "little"))
    run(world.ctx, f"enable {number}")
    assert world.watches.at_stop() == ()


def test_a_watch_that_cannot_be_made_is_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ptinspect.guest.breakpoints.table_watches.spots", broken_off)
    with pytest.raises(KeyboardInterrupt):
        run(world.ctx, f"watch table {DATA:#x}")
    assert run(world.ctx, "break").result["watchpoints"] == [] and world.watches.all == []


def test_what_differs_at_another_position_of_a_recording_was_not_written(world: World) -> None:
    run(world.ctx, f"watch table {DATA:#x} --level pte")
    world.watches.depart()
    assert not world.executed(STORE, world.alias, world.raw() | 0x800)
    assert len(world.watches.at_stop()) == 1
    world.session.replay = SimpleNamespace(mode="replay", position=5)
    world.watches.rest()  # as `timeline goto` does
    world.tree.memory.write(world.pte, (world.raw() & ~0x800).to_bytes(8, "little"))
    assert world.watches.at_stop() == ()


class Recorded:
    """A recording of stores to one entry: position -> what it holds from there on."""

    mode, last = "replay", 1000

    def __init__(self, world: World, stores: dict[int, int], stops: int) -> None:
        self.world, self.stores, self.stops, self.position = world, stores, stops, 900
        world.tree.memory.write(CODE_PA, STORE.to_bytes(4, "little"))
        x = (0, 0, world.alias, *(0,) * 28)
        world.session.cpus = [replace(world.session.cpus[0], pc=CODE + 4, x=x)]
        world.session.replay = self

    def go_to(self, target: int, seconds: float = 0) -> Stop:
        self.world.watches.rest()
        self.position = target
        self.world.session.stop_token += 1
        value = [raw for at, raw in self.stores.items() if at <= target][-1]
        self.world.tree.memory.write(self.world.pte, value.to_bytes(8, "little"))
        return self.stands("position")

    def back(self, seconds: float) -> Stop:
        self.go_to(self.stops)
        return self.stands("breakpoint-hit", 7)

    def stands(self, reason: str, breakpoint: int | None = None) -> Stop:
        self.world.session.stop = Stop(reason, 0, breakpoint, CODE + 4, "")
        return self.world.session.stop

    def writers(self, guest: Any, pas: Any, seconds: float, since: int) -> Any:
        made = [at for at in self.stores if since < at <= self.position]
        writes = [SimpleNamespace(position=at, va=self.world.alias) for at in made]
        return SimpleNamespace(histories=lambda every: [SimpleNamespace(writes=writes)])


def test_on_the_way_back_it_stops_as_breakpoints_do(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = world.raw()
    run(world.ctx, f"watch table {DATA:#x} --level pte")
    number, stores = world.watches.all[0].id, {0: raw, 100: raw | 0x800, 300: raw | 0x800, 500: raw}
    recorded = Recorded(world, stores, stops=200)
    monkeypatch.setattr(way_back, "Writers", recorded.writers)
    met = []
    for _ in range(3):
        report = run(world.ctx, "rc")
        (write,) = report.result.get("writes", [None])
        met.append(
            (report.result["position"], report.result["breakpoint"], write and int(write["after"], 16))
        )
    assert met == [(500, number, raw), (300, number, raw | 0x800), (200, 7, None)]
    recorded.go_to(900)
    run(world.ctx, f"disable {number}")
    assert run(world.ctx, "rc").result["position"] == 200
    world.session.breakpoints = (Breakpoint(9, CODE, temporary=True),)
    with pytest.raises(UserError, match="breakpoint 9 is temporary"):
        run(world.ctx, "rc")


def test_a_step_in_a_replay_tells_what_it_wrote(world: World) -> None:
    run(world.ctx, f"watch table {DATA:#x} --level pte")
    pmd = world.watches.all[0].above[-1].pa
    table = world.tree.memory.read(pmd, 8)
    recorded = Recorded(world, {0: world.raw(), 901: world.raw() | 0x800}, stops=0)
    world.tree.memory.write(pmd, bytes(8))
    recorded.go_to(899)
    assert world.watches.at_stop() == () and world.watches.all[0].places == ()
    world.tree.memory.write(pmd, table)  # there it is mapped
    recorded.go_to(900)
    assert world.watches.at_stop() == ()
    recorded.go_to(901)
    recorded.stands("end-stepping-range")
    assert [write.va for write in world.watches.at_stop()] == [world.alias]


def test_the_watch_follows_when_a_table_on_the_path_is_replaced(world: World) -> None:
    run(world.ctx, f"watch table {DATA:#x} --level pte")
    world.watches.depart()
    (watch,) = world.watches.all
    pmd = watch.above[-1].pa
    raw = int.from_bytes(world.tree.memory.read(pmd, 8), "little")
    world.tree.memory.write(pmd, (raw | 0x800).to_bytes(8, "little"))
    assert world.executed(STORE, world.alias, pa=IMAGE + 0x2000, value=0) is False  # the store itself is one
    world.watches.depart()
    new = world.tree.new_table()
    world.tree.memory.write(new, world.tree.memory.read(world.pte & ~0xFFF, 4096))
    moved = raw & ~0xFFFF_FFFF_F000 | new
    world.tree.memory.write(pmd, moved.to_bytes(8, "little"))
    (write,) = world.watches.at_stop()
    assert (write.place.pa, write.after) == (pmd, moved)
    assert [place.pa for place in watch.places] == [new + world.pte % 4096]


def test_a_mark_on_the_path_above_the_level_stops_nothing(world: World) -> None:
    run(world.ctx, f"watch table {DATA:#x} --level pte")
    world.watches.depart()
    pmd = world.watches.all[0].above[-1].pa
    raw = int.from_bytes(world.tree.memory.read(pmd, 8), "little")
    world.tree.memory.write(pmd, (raw | 0x800).to_bytes(8, "little"))
    assert world.executed(LOAD, world.alias) and world.watches.seen == ()


def test_with_few_watchpoints_the_best_addresses_are_watched_and_the_rest_named() -> None:
    world = World(most=1)
    report = run(world.ctx, f"watch table {DATA:#x} --level pte")
    (one,) = report.result["descriptors"]
    assert [a["va"] for a in one["addresses"] if a["watched"]] == [one["addresses"][0]["va"]]
    assert list(world.session.watched.values()) == [int(one["addresses"][0]["va"], 16)]


def test_it_is_listed_disabled_and_deleted_as_others_are(world: World) -> None:
    number = run(world.ctx, f"watch table {DATA:#x}").result["id"]
    listed = run(world.ctx, "break").result["watchpoints"]
    assert [(one["id"], one["place"]) for one in listed] == [(number, f"tables of {DATA:#x}")]
    run(world.ctx, f"disable {number}")
    world.watches.depart()
    assert not world.session.watched
    run(world.ctx, f"enable {number}")
    world.watches.depart()
    assert world.session.watched
    run(world.ctx, f"delete {number}")
    assert not world.session.watched and run(world.ctx, "break").result["watchpoints"] == []


def test_where_a_cpu_switches_its_mmu_on_is_found_by_the_instruction(world: World) -> None:
    for at, word in (
        (IMAGE + 0x100, 0xD518_1003),
        (IMAGE + 0x200, 0xD51C_1000),
        (IMAGE + 0x300, 0xD518_2000),
    ):
        world.tree.memory.write(at, word.to_bytes(4, "little"))
    world.tree.memory.write(IMAGE + 0x402, 0xD518_1003.to_bytes(4, "little"))
    assert mmu_switches(world.ctx.guest, IMAGE) == (IMAGE + 0x104, IMAGE + 0x204)
    assert mmu_switches(world.ctx.guest, 0x10) == ()


class Image:
    """Code that calls __set_fixmap with constants."""

    text_va = 0xFFFF_8000_0000_0000
    at = 0x1000

    def __init__(self, slots: list[int | None]) -> None:
        code = np.full(0x800, NOTHING, "<u4")
        for n, slot in enumerate(slots):
            call = 16 * (n + 1)
            if slot is not None:
                code[call - 3] = 0x5280_0000 | slot << 5
            code[call] = 0x9400_0000 | (self.at // 4 - call) & 0x3FF_FFFF
        self.code, self.stored_size = code.tobytes(), 4 * len(code)

    def lookup(self, name: str) -> int:
        if self.at < 0:
            raise KernelFileError("none")
        return self.text_va + self.at

    def text_at(self, va: int, length: int) -> bytes:
        return self.code[va - self.text_va :][:length]


def test_slots_of_the_fixmap_are_those_that_code_maps_and_unmaps() -> None:
    image: Any = Image([132, 132, 261, 260, 262, 264, 264, 16383, None, 260, 261, 262])
    assert fixmap_slots(image) == (260, 261, 262, 264)
    none: Any = Image([])
    none.at = -1
    assert fixmap_slots(none) == ()
