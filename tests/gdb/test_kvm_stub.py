"""What reaches the stub of a guest under KVM: GDB's own packets, to a stub that keeps KVM's rules."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import need_gdb
from fake_stub import RAM_START
from kvm_cpu import ADD_X0_1, MRS_X1_DAIF, MSR_SPSR_X22, NOP, STR_X0_X1, SVC, VECTORS
from kvm_stub import KvmStub

from ptinspect.errors import OutOfSlots
from ptinspect.files import CACHE_VARIABLE
from ptinspect.link import relay
from ptinspect.link.address import StubAddress
from ptinspect.link.connect import RELAY
from ptinspect.link.gdb.recorder import Tracer
from ptinspect.link.gdb.slots import Purpose
from ptinspect.link.journal import step_is_open, step_place
from ptinspect.link.live import LiveSession
from ptinspect.link.state import RunState
from ptinspect.processes import poll, running_with

CODE = RAM_START + 0x1000
DFR0 = 0x1030_5106 & ~(15 << 12 | 15 << 20) | 5 << 12 | 3 << 20
"""Six breakpoints, four watchpoints, as a Cortex-A72 says."""

Pair = tuple[KvmStub, LiveSession]
Attach = Callable[..., Pair]


@pytest.fixture
def attach(tmp_path: Path) -> Iterator[Attach]:
    """Attach to a stub; no packet that writes into the guest may have come at the end."""
    gdb = need_gdb()
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
    assert session.accel == "kvm"
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
    assert session.wait_stop(60).pc == CODE + 8
    used = session.slots_used()
    assert used is not None and used.breakpoints == 3 and stub.most == 3
    session.write_physical((RAM_START, b"poked"))
    assert stub.ram[:5] == b"poked"


def test_a_condition_that_cannot_be_evaluated_is_told(attach: Attach) -> None:
    stub, session = attach(dfr0=DFR0)
    made = session.set_breakpoint(CODE + 8, condition="1 / ($x0 - $x0)")
    session.set_breakpoint(CODE + 16)
    stub.route = [CODE + 4, CODE + 8]
    session.resume()
    why = "Division by zero"
    assert session.wait_stop(60).words == f"breakpoint {made.id}, whose condition cannot be evaluated: {why}"
    stub.route = [CODE + 12, CODE + 16]
    session.resume()
    assert session.wait_stop(60).untold == ""


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
    assert session.wait_stop(60).pc == CODE + 64 and stub.most == 6


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
    assert session.wait_stop(60).pc == CODE + 4


def test_a_run_does_without_the_places_that_matter_less(attach: Attach) -> None:
    stub, session = attach(breakpoints=3)
    session.set_breakpoint(CODE + 0x100)
    stub.route = [CODE + 8, CODE + 12, CODE + 4]
    stop = session.run_until([CODE, CODE + 4, CODE + 8, CODE + 12], 10, needed=2)
    assert stop.pc == CODE + 4 and stub.most == 3
    with pytest.raises(OutOfSlots, match="1 too few"):
        session.run_until([CODE, CODE + 4, CODE + 8], 10)
    assert [b.address for b in session.breakpoints] == [CODE + 0x100]


@pytest.mark.parametrize("command", ["disable", "ignore 1 100"])
def test_a_breakpoint_that_does_not_stop_is_none_for_a_run_to_there(attach: Attach, command: str) -> None:
    stub, session = attach(dfr0=DFR0)
    session.set_breakpoint(CODE + 8)
    session.gdb_command(command)
    stub.route = [CODE + 8, CODE + 12]
    assert session.run_until([CODE + 8], 10).pc == CODE + 8
    assert [b.address for b in session.breakpoints] == [CODE + 8]


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
    session.wait_stop(60)


def loop(attached: Pair, *words: int, **registers: int) -> Pair:
    """Give the CPU a loop, entered at CODE with interrupts enabled: X0 counts, then these instructions."""
    stub, session = attached
    code = [NOP, ADD_X0_1, *words]
    stub.cpu.words |= {CODE + 4 * n: word for n, word in enumerate(code)}
    stub.cpu.words[CODE + 4 * len(code)] = 0x1400_0000 | -len(code) & 0x3FF_FFFF
    stub.cpu.regs |= {"PC": CODE, "CPSR": 5, "X0": 0, **registers}
    session.gdb_command("maint flush register-cache")
    return attached


def go(session: LiveSession) -> int:
    session.resume()
    session.wait_stop(60)
    return session.cpu_state(0).x[0]


@pytest.mark.parametrize("words", [(), (NOP,)])
def test_five_rounds_are_five_stops_though_an_interrupt_is_always_pending(
    attach: Attach, words: tuple[int, ...]
) -> None:
    stub, session = loop(attach(dfr0=DFR0), *words)
    assert session.holds_interrupts
    session.set_breakpoint(CODE + 4)
    assert [go(session) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert stub.cpu.regs["CPSR"] == 5 and session.breakpoints[0].hits == 5


def test_gdb_s_own_steps_over_a_breakpoint_whose_condition_does_not_hold(attach: Attach) -> None:
    _, session = loop(attach(dfr0=DFR0))
    session.set_breakpoint(CODE, condition="$x0 == 3")
    number = session.set_breakpoint(CODE + 4).id
    session.gdb_command(f"ignore {number} 100")
    assert go(session) == 3 and session.stop.pc == CODE


def test_a_watchpoint_names_the_writer_not_the_vector(attach: Attach) -> None:
    stub, session = loop(attach(dfr0=DFR0), STR_X0_X1, X1=CODE + 0x800)
    session.watch_access(CODE + 0x800, 8)
    for n in (1, 2, 3):
        assert go(session) == n
        assert session.stop.pc == CODE + 12 and stub.cpu.stored[CODE + 0x800] == n


def test_areas_are_watched_that_no_list_has(attach: Attach) -> None:
    stub, session = loop(attach(dfr0=DFR0), STR_X0_X1, X1=CODE + 0x800)
    session.gdb_command("set breakpoint always-inserted on")
    first, other, last = session.watch_areas([(CODE + 0x800, 8), (CODE + 0x840, 8), (CODE + 0x880, 8)])
    assert max(first, other, last) < 0 and session.breakpoints == ()
    session.delete_breakpoint(other)
    assert list(stub.set.values()) == ["watchpoint"] * 2
    assert go(session) == 1
    assert (session.stop.breakpoint, session.stop.reason) == (first, "access-watchpoint-trigger")
    assert session.stop.words == "a watched area"
    session.unwatch_areas()
    assert stub.set == {} and session.watch_areas([]) == []


def test_what_is_stepped_sees_its_own_flags(attach: Attach) -> None:
    stub, session = loop(attach(dfr0=DFR0), MRS_X1_DAIF, SVC)
    stub.cpu.words[VECTORS + 0x1000] = MSR_SPSR_X22
    for _ in range(3):
        session.step_instructions(1, 0)
    assert session.cpu_state(0).x[1] == 0 and session.stop.pc == CODE + 12
    stop = session.step_instructions(1, 0)
    state = session.cpu_state(0)
    assert stop.pc == VECTORS + 0x200 and (state.pstate, state.system["SPSR_EL1"]) == (0x3C5, 5)
    assert state.system["ELR_EL1"] == CODE + 16 and state.x[22] == 0x1000 + 22


def comes_to(stub: KvmStub, pstate: int) -> bool:
    """Tell whether PSTATE is this before long."""
    return poll(lambda: stub.cpu.regs["CPSR"] == pstate, 30)


@pytest.mark.parametrize("executed", [False, True])
def test_where_relay_and_gdb_are_killed_in_the_middle_the_flags_are_put_back(
    attach: Attach, executed: bool
) -> None:
    stub, session = loop(attach(dfr0=DFR0))
    record = step_place(StubAddress.parse(stub.address))
    stub.overrides["vCont;s"] = None
    session.gdb_command("stepi")
    assert comes_to(stub, 0xC5) and f'"pc": {CODE}' in record.read_text()
    del stub.overrides["vCont;s"]
    if executed:
        stub.cpu.step()
    (pid_of_relay,) = running_with(RELAY, stub.address)
    for pid in (pid_of_relay, session._gdb.process.pid):  # type: ignore[attr-defined]
        os.kill(pid, signal.SIGKILL)
    assert comes_to(stub, 5) and stub.cpu.regs["PC"] == CODE + 4 * executed
    session.close()
    assert not record.exists()


def test_another_guest_at_the_same_place_is_left_alone(attach: Attach) -> None:
    stub, session = attach(dfr0=DFR0)
    session.close()
    record = step_place(StubAddress.parse(stub.address))
    before = {"thread": "p01.01", "pc": CODE, "pstate": 5, "word": NOP, "vbar": 1, "tpidr": 3}
    record.write_text(json.dumps(before))
    stub.cpu.regs |= {"PC": CODE, "CPSR": 0xC5}
    LiveSession.attach(stub.address).close()
    assert stub.cpu.regs["CPSR"] == 0xC5 and not record.exists()


def test_a_record_goes_with_the_relay_whose_steps_were_finished(attach: Attach) -> None:
    stub, session = loop(attach(dfr0=DFR0))
    record = step_place(StubAddress.parse(stub.address))
    session.step_instructions(2, 0)
    assert record.read_text() == ""
    session.close()
    assert poll(lambda: not record.exists(), 30)


def test_a_stub_that_finishes_no_step_is_not_waited_for_by_the_next_debugger(
    attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "LAST_SECONDS", 0.2)
    stub, session = attach(dfr0=DFR0)
    session.close()
    address = StubAddress.parse(stub.address)
    own = {"thread": "p01.01", "pc": CODE, "pstate": 5, "word": NOP, "vbar": VECTORS, "tpidr": 3}
    step_place(address).write_text(json.dumps(own))
    assert step_is_open(address)
    stub.cpu.regs |= {"PC": VECTORS + 0x200, "CPSR": 0x3C5, "ELR_EL1": CODE}
    stub.overrides["vCont;s"] = None
    assert not relay.put_back(address) and step_is_open(address)
    step_place(address).unlink()


def test_a_gdb_with_a_python_of_its_own_does_not_give_its_home_to_the_relay(tmp_path: Path) -> None:
    gdb = need_gdb()
    wrapper = tmp_path / "gdb"
    home = f"python import os; os.environ['PYTHONHOME'] = '{tmp_path}'"
    wrapper.write_text(f'#!/bin/sh\nexec {gdb.path} -ex "{home}" "$@"\n')
    wrapper.chmod(0o755)
    stub = KvmStub(tmp_path / "stub")
    session = LiveSession.attach(stub.address, gdb_path=str(wrapper))
    try:
        assert session.holds_interrupts
    finally:
        session.close()
        stub.close()


def test_a_directory_that_cannot_be_looked_into_keeps_nobody_from_attaching(
    attach: Attach, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / ("long" * 100)))
    _, session = loop(attach(dfr0=DFR0))
    assert session.step_instructions(1, 0).pc == CODE + 4


def test_a_relay_outlives_its_gdb_until_the_step_is_over(attach: Attach) -> None:
    stub, session = loop(attach(dfr0=DFR0))
    stub.hold = True
    session.gdb_command("stepi")
    assert comes_to(stub, 0xC5)
    os.kill(session._gdb.process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    stub.hold = False
    assert comes_to(stub, 5) and stub.cpu.regs["PC"] == CODE + 4


def test_a_trace_keeps_what_it_has_when_the_time_is_over(attach: Attach) -> None:
    stub, session = loop(attach(dfr0=DFR0))
    records, ended = Tracer(session).step(0, 4096, 200, [])
    steps = len(records) - 1
    assert ended == "time" and 0 < steps < 4096
    assert stub.cpu.regs["X0"] == (steps + 1) // 3  # no step led into the vector
    records, ended = Tracer(session).step(0, 4096, 60_000, [CODE + 8])
    assert ended == "place" and records["pc"][-1] == CODE + 8


def test_a_step_that_answers_late_costs_no_record(attach: Attach) -> None:
    stub, session = loop(attach(dfr0=DFR0))
    stub.hold = True
    release = threading.Timer(2, setattr, (stub, "hold", False))
    release.start()
    records, ended = Tracer(session).step(0, 4096, 300, [])
    release.join()
    assert ended == "time" and list(records["pc"]) == [CODE, CODE + 4]
    assert stub.cpu.regs["CPSR"] == 5 and session.state is RunState.STOPPED
