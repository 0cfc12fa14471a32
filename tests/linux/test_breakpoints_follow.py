"""Breakpoints at symbols follow the kernel: from reset, through its moves, to the next reset."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import KERNEL_TEXT, TreeBuilder
from fakes import Stop
from kernels import TEXT_VA, image, opened
from scripted import Scripted
from sparse_memory import SparseMemory
from stopped_guest import IMAGE_PA, SYMBOLS, Guest

from ptinspect.arch import a64
from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import GuestError, KernelFileError, OutOfSlots, TargetTimeout, UserError
from ptinspect.guest import guest as layer
from ptinspect.guest.breakpoints.breakpoints import NOT_USER, SymbolBreakpoints, symbol_breakpoints
from ptinspect.guest.breakpoints.kernel_place import LOOK_SECONDS, SLICE_SECONDS
from ptinspect.guest.breakpoints.reachable import checked, set_breakpoint
from ptinspect.guest.expression import address
from ptinspect.guest.names import names_at_hand
from ptinspect.guest.run_control import until
from ptinspect.link.state import RunState
from ptinspect.linux.image.code_parts import part_of, switches
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.image.symbols import NO_SYMBOLS, SymbolTable
from ptinspect.linux.running import efi
from ptinspect.linux.running.guest_view import GuestView
from ptinspect.linux.running.modules import Module

SWITCH, RETURNS, GOES = 0x4_0100, 0x4_011C, 0x4_015C
"""Offsets of __primary_switch, and of its two jumps: of a kernel of before 6.0."""
BLR_X8, BR_X8 = 0xD63F0100, 0xD61F0100
FIRST, HOT, EARLY, REWRITE, DATA = 0x2_0000, 0x2_4000, 0x2_8000, 0x4_0510, 0x9_8000
LOADS = 0x2_C000
MORE = [
    ("start_kernel", TEXT_VA + FIRST, "T"), ("kernel_clone", TEXT_VA + HOT, "T"),
    ("memset", TEXT_VA + EARLY, "T"), ("__idmap_text_start", TEXT_VA + 0x4_0000, "T"),
    ("__primary_switch", TEXT_VA + SWITCH, "t"), ("__next", TEXT_VA + SWITCH + 0x60, "t"),
    ("__idmap_text_end", TEXT_VA + 0x4_1000, "T"), ("_sinittext", TEXT_VA + 0x5_0000, "T"),
    ("initcall", TEXT_VA + 0x5_0100, "t"), ("_einittext", TEXT_VA + 0x5_8000, "T"),
    ("jiffies", TEXT_VA + DATA, "D"), ("do_init_module", TEXT_VA + LOADS, "t"),
]  # fmt: skip
MOVED = 0x1000_0000
BOOT, FINAL = 0x4700_0000, 0x4780_0000
OFF = {"TTBR1_EL1": 0, "TCR_EL1": 0, "SCTLR_EL1": 0, "VBAR_EL1": 0, "TTBR0_EL1": 0}
FIRMWARE = {"TTBR1_EL1": 0, "TTBR0_EL1": 0x47FF_F000, "VBAR_EL1": 0x4800}


def code() -> list[tuple[int, bytes]]:
    words = [a64.NOP] * 0x18
    words[(RETURNS - SWITCH) // 4], words[(GOES - SWITCH) // 4] = BLR_X8, BR_X8
    return [(SWITCH, struct.pack("<24I", *words))]


@pytest.fixture
def kernel(tmp_path: Path) -> KernelImage:
    return opened(tmp_path / "Image", SYMBOLS + MORE, image(text=code()))


def pa(offset: int, base: int = IMAGE_PA) -> int:
    return base + offset


def boot(base: int = IMAGE_PA) -> tuple[Guest, CpuState, CpuState, CpuState]:
    """A guest with KASLR; its CPU at reset, where the kernel is linked, and where it stays."""
    guest = Guest(MOVED, image_pa=base, text=code())
    for at, root, va in ((0x4710_0000, BOOT, TEXT_VA), (0x4790_0000, FINAL, TEXT_VA + MOVED)):
        tree = TreeBuilder(guest.regime, memory=guest.memory, tables_at=at, root=root)
        tree.map(va, base, size=0x10_0000, attributes=KERNEL_TEXT)
    reset = guest.cpu(pc=0x4000_0000, **OFF)
    linked = guest.cpu(pc=0, TTBR1_EL1=BOOT, VBAR_EL1=0)
    stays = guest.cpu(pc=0, TTBR1_EL1=FINAL, VBAR_EL1=0)
    return guest, reset, linked, stays


def followed(
    kernel: KernelImage, guest: Guest, states: Sequence[tuple[CpuState, int | None]]
) -> tuple[layer.Guest, Scripted, SymbolBreakpoints]:
    session = Scripted(guest.memory, states)
    fake: Any = session
    made = layer.Guest(session=fake)
    made._kernel = kernel
    return made, session, symbol_breakpoints(made)


def set_at(session: Scripted) -> set[int]:
    return {b.address for b in session.breakpoints}


def test_the_jumps_to_virtual_addresses_and_the_parts_of_the_code(kernel: KernelImage) -> None:
    assert switches(kernel) == (TEXT_VA + RETURNS, TEXT_VA + GOES)
    parts = {at: part_of(kernel, TEXT_VA + at) for at in (FIRST, REWRITE, 0x5_0100, DATA, 0x100)}
    assert list(parts.values()) == ["text", "identity", "init", "data", "head"]


def test_from_reset_to_where_the_kernel_stays(kernel: KernelImage) -> None:
    """As 5.10 with KASLR: it runs where it was linked, returns, and goes on where it stays."""
    guest, reset, linked, stays = boot()
    moved = TEXT_VA + MOVED
    script = [
        (reset, None), (linked, pa(RETURNS)), (stays, pa(GOES)), (stays, moved + FIRST), (stays, moved + HOT)
    ]  # fmt: skip
    held, session, breakpoints = followed(kernel, guest, script)
    made = breakpoints.add(address("kernel_clone"))
    assert set_at(session) == {pa(HOT)} and not breakpoints.place.known
    stop = held.stopped.run_until([], 5)
    assert (stop.pc, stop.breakpoint) == (moved + HOT, made.id)
    at = [places for places, _ in session.asked]
    assert at[0] == [pa(HOT), pa(GOES), pa(RETURNS)]  # no slow page but these, at their physical places
    assert {TEXT_VA + FIRST, TEXT_VA + HOT} <= set(at[1])  # for now
    assert {moved + FIRST, moved + HOT} <= set(at[2]) and TEXT_VA + HOT not in at[2]
    assert set(at[3]) == {moved + HOT, 0x4000_0000, 0}  # where the next boot begins; no page of the kernel
    assert [pause for _, pause in session.asked] == [SLICE_SECONDS] * 3 + [None]
    assert breakpoints.place.known and breakpoints.place.offset == MOVED


def test_on_the_way_back_they_are_where_the_code_ran_before_too(kernel: KernelImage) -> None:
    guest, reset, _, _ = boot()
    _, session, breakpoints = followed(kernel, guest, [(reset, None)])
    breakpoints.add(address("kernel_clone"))  # and then somebody goes elsewhere in the recording
    session.cpus, session.stop_token = [guest.cpu(pc=TEXT_VA + MOVED + HOT)], session.stop_token + 1
    with breakpoints.backwards():
        assert set_at(session) == {TEXT_VA + MOVED + HOT, pa(HOT)}
    assert set_at(session) == {TEXT_VA + MOVED + HOT}


def test_code_of_the_identity_map_keeps_its_physical_place(kernel: KernelImage) -> None:
    guest, _, _, _ = boot()
    state = guest.cpu()
    _, session, breakpoints = followed(kernel, guest, [(state, None)])
    breakpoints.add(address("idmap_kpti_install_ng_mappings+4"), condition="$w0 == 0")
    assert [(b.address, b.condition) for b in session.breakpoints] == [
        (pa(REWRITE + 4), f"{NOT_USER} && ((((signed int) $w0) == 0))")
    ]
    breakpoints.add(address("memset-4"))
    assert set_at(session) == {pa(REWRITE + 4), TEXT_VA + MOVED + EARLY - 4}


def test_a_physical_place_is_hit_by_this_code_alone(kernel: KernelImage) -> None:
    guest, _, _, _ = boot()
    lower = TreeBuilder(guest.regime, memory=guest.memory, tables_at=0x4610_0000, root=0x4600_0000)
    lower.map(pa(REWRITE) & ~0xFFF, 0x4480_0000)
    state = guest.cpu(pc=pa(REWRITE))
    held, session, breakpoints = followed(kernel, guest, [(state, None)])
    made = breakpoints.add(address("idmap_kpti_install_ng_mappings"))

    def passes(state: CpuState) -> bool:
        session.cpus, session.stop_token = [state], session.stop_token + 1
        return breakpoints.passes(Stop("breakpoint-hit", 0, made.id, state.pc))

    assert passes(guest.cpu(pc=pa(REWRITE), el=0))
    assert passes(guest.cpu(pc=pa(REWRITE)))  # the kernel, at an address that leads elsewhere
    assert not passes(guest.cpu(pc=pa(REWRITE), SCTLR_EL1=0))
    lower.map(pa(REWRITE) & ~0xFFF, pa(REWRITE) & ~0xFFF)
    assert not passes(guest.cpu(pc=pa(REWRITE)))
    assert held.state == "stopped"


def test_after_a_reset_they_wait_again(kernel: KernelImage) -> None:
    guest, reset, _, _ = boot()
    held, session, breakpoints = followed(kernel, guest, [(guest.cpu(), None)])
    breakpoints.add(address("kernel_clone"))
    assert set_at(session) == {TEXT_VA + MOVED + HOT}
    session.cpus, session.stop_token = [reset], session.stop_token + 1
    breakpoints.refresh()
    assert not breakpoints.place.known and set_at(session) == {pa(HOT)}
    assert breakpoints.addresses(address("kernel_clone")) == {pa(HOT)}
    assert held.state == "stopped"


def test_a_reset_that_nobody_saw_is_seen_where_the_next_boot_begins(kernel: KernelImage) -> None:
    guest, reset, linked, _ = boot()
    script = [
        (guest.cpu(pc=0), None), (reset, 0x4000_0000), (linked, pa(GOES)), (linked, TEXT_VA + FIRST),
        (linked, TEXT_VA + HOT),
    ]  # fmt: skip
    held, _, breakpoints = followed(kernel, guest, script)
    breakpoints.add(address("kernel_clone"))
    assert held.stopped.run_until([], 5).pc == TEXT_VA + HOT
    assert breakpoints.place.offset == 0


def test_a_temporary_one_is_gone_after_its_stop(kernel: KernelImage) -> None:
    guest, _, _, _ = boot()
    state, at = guest.cpu(), TEXT_VA + MOVED + HOT
    held, session, breakpoints = followed(kernel, guest, [(state, None), (state, at)])
    made = breakpoints.add(address("kernel_clone"), temporary=True)
    assert held.stopped.run_until([], 5).breakpoint == made.id
    breakpoints.refresh()
    assert breakpoints.all == [] and at not in set_at(session)


def test_one_that_is_deleted_in_gdb_is_gone(kernel: KernelImage) -> None:
    guest, _, _, _ = boot()
    _, session, breakpoints = followed(kernel, guest, [(guest.cpu(), None)])
    made = breakpoints.add(address("kernel_clone"))
    breakpoints.add(address("memset"))
    session.breakpoints = tuple(b for b in session.breakpoints if b.id != made.id)
    breakpoints.refresh()
    assert [one.address.text for one in breakpoints.all] == ["memset"]
    assert set_at(session) == {TEXT_VA + MOVED + EARLY}


def services_of_a_firmware(memory: SparseMemory, ends: int) -> None:
    """Write the tables by which UEFI tells where ExitBootServices is."""
    system, services = 0x47F0_0000, 0x47F1_0000
    memory.write(system, efi.SYSTEM + bytes(88) + services.to_bytes(8, "little"))
    memory.write(services, efi.SERVICES + bytes(224) + ends.to_bytes(8, "little"))
    memory.write(0x4FC0_0000, efi.SYSTEM + system.to_bytes(8, "little"))


def test_a_firmware_tells_where_the_kernel_is_when_its_services_end(kernel: KernelImage) -> None:
    where = 0x4C23_0000
    guest, _, _, stays = boot(where)
    ends = 0x47E0_1234
    flash = guest.cpu(pc=0x1000, **FIRMWARE)
    runs = guest.cpu(pc=0x47F0_1000, **FIRMWARE)
    at_end = guest.cpu(pc=ends, **FIRMWARE)
    moved = TEXT_VA + MOVED
    script = [
        (flash, None), (runs, None), (runs, None), (at_end, ends), (stays, pa(GOES, where)),
        (stays, moved + FIRST),
    ]  # fmt: skip
    held, session, breakpoints = followed(kernel, guest, script)
    breakpoints.add(address("start_kernel"))
    assert set_at(session) == set()
    services_of_a_firmware(guest.memory, ends)
    assert held.stopped.run_until([], 5).pc == moved + FIRST
    at = [set(places) for places, _ in session.asked]
    assert ends in at[0]
    assert {pa(GOES, where), pa(FIRST, where)} <= at[3]
    assert session.asked[0][1] == SLICE_SECONDS


def test_a_cpu_that_is_off_stands_in_flash_and_begins_no_boot(kernel: KernelImage) -> None:
    where, ends = 0x4C23_0000, 0x47E0_1234
    guest, _, _, stays = boot(where)
    runs, at_end = (guest.cpu(pc=pc, **FIRMWARE) for pc in (0x47F0_1000, ends))
    script = [
        (runs, None),
        (at_end, ends),
        (runs, None),
        (stays, pa(GOES, where)),
        (stays, TEXT_VA + MOVED + FIRST),
    ]
    held, session, breakpoints = followed(kernel, guest, script)
    session.off = (guest.cpu(pc=0, **FIRMWARE),)
    breakpoints.add(address("start_kernel"))
    services_of_a_firmware(guest.memory, ends)
    assert held.stopped.run_until([], 5).pc == TEXT_VA + MOVED + FIRST
    assert {pa(GOES, where), pa(FIRST, where)} <= set(session.asked[2][0])


def test_where_no_service_shows_itself_the_guest_is_looked_at_often(kernel: KernelImage) -> None:
    guest, _, _, _ = boot(0x4C23_0000)
    held, session, breakpoints = followed(kernel, guest, [(guest.cpu(pc=0x47F0_1000, **FIRMWARE), None)] * 3)
    breakpoints.add(address("start_kernel"))
    with pytest.raises(TargetTimeout):
        held.stopped.run_until([], 5)
    assert [pause for _, pause in session.asked] == [LOOK_SECONDS] * 3


def test_what_lies_where_it_stays_is_not_waited_for(kernel: KernelImage) -> None:
    guest, reset, _, _ = boot()
    held, session, breakpoints = followed(kernel, guest, [(reset, None)])
    rewrite, first = address("idmap_kpti_install_ng_mappings"), address("start_kernel")
    breakpoints.look()
    assert (breakpoints.waits_until(rewrite), bool(breakpoints.waits_until(first))) == ("", True)
    session.escort.everywhere = False  # inside a GDB of the user's nobody would set it later on
    assert set_breakpoint(held, rewrite)[0].id
    with pytest.raises(UserError, match="wait until it is known where the kernel runs"):
        set_breakpoint(held, first)
    assert set_at(session) == {pa(REWRITE)}


def test_no_breakpoint_is_set_where_a_cpu_that_is_off_stands(kernel: KernelImage) -> None:
    """GDB would have it step off, before all others may run."""
    guest, _, _, stays = boot()
    first = guest.cpu(pc=TEXT_VA + MOVED + FIRST, TTBR1_EL1=FINAL, VBAR_EL1=0)
    held, session, breakpoints = followed(kernel, guest, [(first, None), (stays, TEXT_VA + MOVED + HOT)])
    session.off = (guest.cpu(pc=0, TTBR1_EL1=0),)
    session.cpus = [first, *session.off]
    breakpoints.add(address("kernel_clone"))
    held.stopped.run_until([], 5)
    assert set_at(session) == {TEXT_VA + MOVED + HOT, 0x4000_0000}
    session.off = ()
    session.cpus, session.stop_token = [first], session.stop_token + 1
    breakpoints.depart()
    assert set_at(session) == {TEXT_VA + MOVED + HOT, 0x4000_0000, 0}, "it runs: a firmware may begin there"


class Loading:
    """The modules of a guest of which one is loaded from a stop at `loads` on, and has symbols at places."""

    def __init__(self, session: Scripted, loads: int, places: Sequence[int], state: str = "coming") -> None:
        self.session, self.loads, self.places, self.state = session, loads, places, state

    @property
    def known(self) -> tuple[Module, ...]:
        there = self.session.cpus[0].pc in (self.loads, *(place + 4 for place in self.places))
        return (Module("net", 0, self.state, (), 0),) if there else ()

    def table(self, module: Module) -> SymbolTable:
        return NO_SYMBOLS

    def lookup(self, name: str, module: str) -> list[tuple[Module, int]]:
        assert (name, module) == ("probe", "net")
        if not self.known:
            raise GuestError("no module net is loaded")
        return [(*self.known, place) for place in self.places]


def test_a_breakpoint_in_a_module_waits_until_it_is_loaded(
    kernel: KernelImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, _, _, stays = boot()
    loads, there = TEXT_VA + MOVED + LOADS, 0xFFFF_8000_0100_0000
    first = guest.cpu(pc=TEXT_VA + MOVED + FIRST, TTBR1_EL1=FINAL, VBAR_EL1=0)
    script = [(first, None), (stays, loads), (stays, there + 4), (stays, loads)]
    held, session, breakpoints = followed(kernel, guest, script)
    monkeypatch.setattr(GuestView, "modules", Loading(session, loads, [there]))
    made, doubts = set_breakpoint(held, address("probe+4 [net]"))
    assert doubts == () and set_at(session) == set()
    assert breakpoints.waits_until(address("probe+4 [net]")) == "module net is loaded"
    stop = held.stopped.run_until([], 5)
    assert (stop.pc, stop.breakpoint) == (there + 4, made.id)
    assert [loads in places for places, _ in session.asked] == [True, True]
    monkeypatch.setattr(GuestView, "modules", Loading(session, stop.pc, [], "live"))  # its init is freed
    with pytest.raises(KernelFileError, match="module net has no symbol 'probe'"):
        set_breakpoint(held, address("probe+4 [net]"))
    assert breakpoints.waits_until(made.address) == "module net is loaded again"
    monkeypatch.setattr(GuestView, "modules", Loading(session, loads, []))  # another one of that name
    with pytest.raises(KernelFileError, match=f"breakpoint {made.id}: module net has no symbol 'probe'"):
        held.stopped.run_until([], 5)
    assert set_at(session) & {there, there + 4} == set()
    assert breakpoints.waits_until(made.address) == "module net has it", "it is listed all the same"


def test_until_says_what_it_waits_for_and_leaves_nothing(kernel: KernelImage) -> None:
    guest, _, _, _ = boot(0x4C23_0000)
    firmware = guest.cpu(pc=0x47F0_1000, **FIRMWARE)
    held, session, breakpoints = followed(kernel, guest, [(firmware, None)] * 2)
    with pytest.raises(TargetTimeout, match="not known yet where kernel_clone will be"):
        until(held, [address("kernel_clone")], 1)
    assert breakpoints.all == [] and not breakpoints.active
    breakpoints.rest()
    assert set_at(session) == set()


def test_while_the_guest_runs_names_and_addresses_are_those_that_were_known(kernel: KernelImage) -> None:
    for moved in (MOVED, 0):
        guest = Guest(moved, text=code())
        held, session, _ = followed(kernel, guest, [(guest.cpu(pc=guest.va(FIRST)), None)])
        assert held.view.kaslr_offset == moved
        session.state = RunState.RUNNING
        assert names_at_hand(held).symbol("kernel_clone") == guest.va(HOT)
        assert str(held.nearest(guest.va(HOT))) == "kernel_clone+0x0"
    held, session, _ = followed(kernel, guest, [(guest.cpu(pc=guest.va(FIRST)), None)])
    session.state = RunState.RUNNING
    assert names_at_hand(held).symbol("kernel_clone") == TEXT_VA + HOT
    assert str(held.nearest(TEXT_VA + HOT)) == "kernel_clone+0x0, as linked"


def one_slot(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a breakpoint refused where there is one already."""
    insert = session.set_breakpoint

    def set_one(at: int, **options: Any) -> Any:
        if session.breakpoints:
            raise OutOfSlots("too few", "delete 1")
        return insert(at, **options)

    monkeypatch.setattr(session, "set_breakpoint", set_one)


def test_what_finds_no_slot_leaves_nothing(kernel: KernelImage, monkeypatch: pytest.MonkeyPatch) -> None:
    guest, _, _, _ = boot()
    held, session, breakpoints = followed(kernel, guest, [(guest.cpu(), None)] * 2)
    one_slot(session, monkeypatch)
    with pytest.raises(OutOfSlots):
        until(held, [address("kernel_clone"), address("start_kernel+4")], 1)
    assert breakpoints.all == [] and not breakpoints.active and session.breakpoints == ()


def test_of_several_places_all_are_set_or_none(kernel: KernelImage, monkeypatch: pytest.MonkeyPatch) -> None:
    guest, _, linked, _ = boot()
    _, session, breakpoints = followed(kernel, guest, [(linked, None)] * 2)
    breakpoints.look()
    one_slot(session, monkeypatch)
    with pytest.raises(OutOfSlots):
        breakpoints.add(address("kernel_clone"))
    assert breakpoints.all == [] and session.breakpoints == ()


def test_what_is_put_aside_stops_nobody_and_is_there_again(kernel: KernelImage) -> None:
    guest, _, _, _ = boot()
    _, session, breakpoints = followed(kernel, guest, [(guest.cpu(), None)])
    made = breakpoints.add(address("kernel_clone"))
    with breakpoints.aside():
        assert set_at(session) == set() and not breakpoints.active
    assert breakpoints.all == [made] and set_at(session) == {TEXT_VA + MOVED + HOT}


def test_without_a_kernel_file_nothing_runs_that_would_wait_for_ever(kernel: KernelImage) -> None:
    guest, reset, _, _ = boot()
    held, session, breakpoints = followed(kernel, guest, [(reset, None)])
    held._kernel = None
    made = breakpoints.add(address("start_kernel"))
    with pytest.raises(UserError, match=f"breakpoint {made.id} waits for the kernel file"):
        held.stopped.resume()
    held._kernel = kernel
    held.stopped.resume()
    assert pa(FIRST) in set_at(session)


def test_another_kernel_file_takes_them_along_and_those_it_has_no_symbol_for_are_gone(
    kernel: KernelImage, tmp_path: Path
) -> None:
    guest, _, _, _ = boot()
    held, session, breakpoints = followed(kernel, guest, [(guest.cpu(), None)])
    kept, lost = breakpoints.add(address("kernel_clone")), breakpoints.add(address("memset+4"))
    module = breakpoints.add(address("f [one]"))
    assert set_at(session) == {TEXT_VA + MOVED + HOT, TEXT_VA + MOVED + EARLY + 4}
    names = [
        (name, va + 0x40 * (name == "kernel_clone"), kind) for name, va, kind in MORE if name != "memset"
    ]
    held._kernel = opened(tmp_path / "other", SYMBOLS + names, image(text=code()))
    held.forget_stop()
    assert breakpoints.follow_another() == [lost]
    assert breakpoints.all == [kept, module]
    assert set_at(session) == {TEXT_VA + MOVED + HOT + 0x40}


def test_an_await_that_another_stop_ends_is_no_success(kernel: KernelImage) -> None:
    guest, reset, linked, _ = boot()
    held, session, breakpoints = followed(kernel, guest, [(reset, None), (linked, 0x4000_1000)])
    session.set_breakpoint(0x4000_1000)
    breakpoints._passing.clear()
    assert not breakpoints.place.known
    with pytest.raises((TargetTimeout, GuestError)):
        breakpoints.await_place(5)
        raise GuestError("it stopped elsewhere")
    assert not breakpoints.place.known and held.state == "stopped"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("jiffies", "this is data"),
        ("kernel_clone+2", "no instruction begins at"),
        ("pa:0x9000000000", "there is no memory at"),
        ("0xffff800010081002", "no multiple of 4"),
        ("0xff8f800010081000", "no address of the kernel's, which have 48 bits"),
        ("0x0f0f800010081000", "lies in neither half"),
    ],
)
def test_what_can_never_be_hit_is_refused(kernel: KernelImage, text: str, why: str) -> None:
    guest, _, _, _ = boot()
    held, _, _ = followed(kernel, guest, [(guest.cpu(), None)])
    with pytest.raises(UserError, match=why):
        checked(held, address(text))


@pytest.mark.parametrize("text", ["start_kernel", "0xffff800010000000"])
def test_for_a_cpu_that_there_is_not_it_is_refused(kernel: KernelImage, text: str) -> None:
    guest, reset, _, _ = boot()
    held, session, _ = followed(kernel, guest, [(reset, None)])
    with pytest.raises(UserError, match="no CPU 1: the guest has 1"):
        set_breakpoint(held, address(text), cpu=1)
    assert not session.breakpoints


def test_what_this_boot_has_passed_is_refused_for_now_and_told_for_later(kernel: KernelImage) -> None:
    guest, reset, _, _ = boot()
    held, session, _ = followed(kernel, guest, [(guest.cpu(pc=guest.va(HOT)), None)])
    doubts = checked(held, address("start_kernel"))[1]
    assert "the boot is past it" in doubts[0].text
    with pytest.raises(UserError, match="the boot is past it"):
        checked(held, address("start_kernel"), now=True)
    replay: Any = SimpleNamespace(mode="replay")
    session.replay = replay  # which goes back to it
    assert checked(held, address("start_kernel"))[1] == ()
    with pytest.raises(UserError, match="the boot is past it") as caught:
        checked(held, address("start_kernel"), now=True)
    assert "rc lead back" in caught.value.hint
    session.replay = None
    session.cpus, session.stop_token = [guest.cpu(pc=guest.va(FIRST))], session.stop_token + 1
    assert checked(held, address("start_kernel"))[1] == ()
    session.cpus, session.stop_token = [reset], session.stop_token + 1
    assert checked(held, address("start_kernel"), now=True)[1] == ()


def test_an_address_of_the_kernel_file_is_told_to_be_one_until_the_kernel_runs_there(
    kernel: KernelImage,
) -> None:
    guest, reset, _, _ = boot()
    number = address(f"{TEXT_VA + HOT + 8:#x}")
    held, _, _ = followed(kernel, guest, [(reset, None)])
    (doubt,) = checked(held, number)[1]
    assert "may run elsewhere (KASLR)" in doubt.text and doubt.hint == "break kernel_clone+0x8 follows it"
    with pytest.raises(TargetTimeout) as caught:
        until(held, [number], 0.1)
    assert caught.value.hint == f"{doubt.text}; {doubt.hint}"
    held, _, _ = followed(kernel, guest, [(guest.cpu(pc=guest.va(FIRST)), None)])
    assert ", but runs elsewhere" in checked(held, number)[1][0].text
    still = Guest(0, text=code())
    held, _, _ = followed(kernel, still, [(still.cpu(pc=still.va(FIRST)), None)])
    assert checked(held, number)[1] == ()


def test_code_that_is_not_there_is_told(kernel: KernelImage) -> None:
    guest, _, _, _ = boot()
    held, _, _ = followed(kernel, guest, [(guest.cpu(), None)])
    for text, why in (
        ("0xffff900000000000", "not mapped"),
        (f"{guest.va(0x6_0000):#x}", "may not execute"),
        (f"pa:{pa(HOT):#x}", "runs this code at its own addresses"),
    ):
        assert why in checked(held, address(text))[1][0].text
    assert checked(held, address("kernel_clone"))[1] == ()
    assert checked(held, address(f"pa:{pa(REWRITE):#x}"))[1] == ()
