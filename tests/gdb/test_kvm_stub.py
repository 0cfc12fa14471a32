"""What reaches the stub of a guest under KVM: GDB's own packets, to a stub that keeps KVM's rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import missing
from fake_stub import RAM_START
from kvm_stub import KvmStub

from ptinspect.errors import OutOfSlots, TargetError
from ptinspect.link.gdb.program import find_gdb
from ptinspect.link.gdb.slots import Purpose
from ptinspect.link.live import LiveSession
from ptinspect.link.state import RunState

pytestmark = pytest.mark.gdb
CODE = RAM_START + 0x1000
DFR0 = 0x1030_5106 & ~(15 << 12 | 15 << 20) | 5 << 12 | 3 << 20
"""Six breakpoints, four watchpoints, as a Cortex-A72 says."""

Attach = Callable[..., tuple[KvmStub, LiveSession]]


@pytest.fixture
def attach(tmp_path: Path) -> Iterator[Attach]:
    """Attach to a stub; no packet that writes into the guest may have come at the end."""
    try:
        gdb = find_gdb()
    except TargetError:
        missing("a GDB that knows aarch64")
    opened: list[tuple[KvmStub, LiveSession]] = []

    def start(**options: int) -> tuple[KvmStub, LiveSession]:
        stub = KvmStub(tmp_path / f"stub{len(opened)}", **options)
        opened.append((stub, LiveSession.attach(stub.address, gdb_path=gdb.path)))
        return opened[-1]

    yield start
    for stub, session in opened:
        session.close()
        stub.close()
        assert stub.wrong == []
        assert stub.set == {}


def test_kvm_and_its_slots_are_recognised(attach: Attach) -> None:
    stub, session = attach(dfr0=DFR0)
    assert session.accel == "kvm" and not session.holds_interrupts
    usage = session.slots_used()
    assert usage is not None and (usage.capacity.breakpoints, usage.capacity.watchpoints) == (6, 4)
    assert usage.capacity.source == "ID_AA64DFR0_EL1"
    assert not any(packet.startswith("Z") for packet in stub.packets)


@pytest.mark.parametrize(("breakpoints", "watchpoints"), [(6, 4), (2, 2), (16, 16), (0, 0)])
def test_without_the_register_the_stub_is_asked(attach: Attach, breakpoints: int, watchpoints: int) -> None:
    stub, session = attach(breakpoints=breakpoints, watchpoints=watchpoints)
    usage = session.slots_used()
    assert usage is not None and usage.capacity.source == "asked of the stub"
    assert (usage.capacity.breakpoints, usage.capacity.watchpoints) == (breakpoints, watchpoints)
    assert stub.set == {}


def test_breakpoints_of_every_kind_are_the_cpu_s(attach: Attach) -> None:
    stub, session = attach(dfr0=DFR0)
    session.set_breakpoint(CODE, hardware=False)
    session.gdb_command(f"break *{CODE + 8:#x}")
    session.gdb_command(f"tbreak *{CODE + 16:#x}")
    stub.route = [CODE + 4, CODE + 8]
    session.resume()
    assert session.wait_stop(10).pc == CODE + 8
    used = session.slots_used()
    assert used is not None and used.breakpoints == 3 and stub.most == 3
    session.write_physical(RAM_START, b"poked")
    assert stub.ram[:5] == b"poked"


def test_one_too_many_is_refused_before_the_guest_runs(attach: Attach) -> None:
    stub, session = attach(dfr0=DFR0)
    session.set_breakpoint(CODE, purpose=Purpose.GUARD)
    session.set_breakpoint(CODE + 4, purpose=Purpose.REWRITE)
    yours = [session.set_breakpoint(CODE + 4 * n).id for n in range(2, 6)]
    session.set_breakpoint(CODE)  # shares a slot
    with pytest.raises(OutOfSlots) as error:
        session.set_breakpoint(CODE + 64)
    said = error.value.message
    assert said.startswith("under KVM the CPU has 6 hardware breakpoints, 1 too few; in use: 1 (stack guard)")
    assert ", 2 (kpti), 3 (yours)" in said and error.value.hint == f"delete {yours[-1]}"
    session.delete_breakpoint(yours[-1])
    session.set_breakpoint(CODE + 64)
    stub.route = [CODE + 64]
    session.resume()
    assert session.wait_stop(10).pc == CODE + 64 and stub.most == 6


def test_what_gdb_could_not_insert_does_not_leave_the_guest_running(attach: Attach) -> None:
    """The register says six, and the stub takes two: GDB says `running` first, and takes it back."""
    stub, session = attach(dfr0=DFR0, breakpoints=2)
    numbers = [session.set_breakpoint(CODE + 4 * n).id for n in range(4)]
    session.resume()
    with pytest.raises(OutOfSlots, match="has 2 hardware breakpoints, 2 too few") as error:
        session.wait_stop(10)
    assert session.state is RunState.STOPPED
    assert error.value.hint == f"delete {numbers[3]} {numbers[2]}"
    for number in numbers[2:]:
        session.delete_breakpoint(number)
    stub.route = [CODE + 4]
    session.resume()
    assert session.wait_stop(10).pc == CODE + 4


def test_a_run_does_without_the_places_that_matter_less(attach: Attach) -> None:
    stub, session = attach(breakpoints=3)
    session.set_breakpoint(CODE + 0x100)
    stub.route = [CODE + 8, CODE + 12, CODE + 4]
    stop = session.run_until([CODE, CODE + 4, CODE + 8, CODE + 12], 10, needed=2)
    assert stop.pc == CODE + 4 and stub.most == 3
    with pytest.raises(OutOfSlots, match="1 too few"):
        session.run_until([CODE, CODE + 4, CODE + 8], 10)
    assert [b.address for b in session.breakpoints] == [CODE + 0x100]


def test_watchpoints(attach: Attach) -> None:
    _, session = attach(dfr0=DFR0)
    with pytest.raises(OutOfSlots, match="crosses an aligned word"):
        session.watch_access(RAM_START + 4, 8)
    numbers = [session.watch_access(RAM_START + 64 * n, 8) for n in range(4)]
    with pytest.raises(OutOfSlots, match="4 hardware watchpoints, 1 too few") as error:
        session.watch_access(RAM_START + 0x1000, 0x1000)
    assert error.value.hint == f"delete {numbers[-1]}"
    session.delete_breakpoint(numbers[-1])
    session.watch_access(RAM_START + 0x1000, 0x1000)
    session.resume()
    session.wait_stop(10)
