"""A real GDB and a stub without a machine: sessions, the script inside GDB, and what breaks them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import need_gdb
from fake_stub import RAM_START, FakeStub

from ptinspect.errors import ConnectError, MiError, TargetError, TargetLost, UserError
from ptinspect.link import connect, live
from ptinspect.link.address import StubAddress
from ptinspect.link.gdb import program as gdb_module
from ptinspect.link.gdb import starting
from ptinspect.link.gdb.agent import LAYOUT, load_line
from ptinspect.link.gdb.mi import quote
from ptinspect.link.gdb.process import GdbProcess
from ptinspect.link.gdb.program import Gdb, check_gdb, find_gdb
from ptinspect.link.live import LiveSession
from ptinspect.link.qemu.listener import is_busy
from ptinspect.link.qemu.stub_probe import probe
from ptinspect.link.session import RunState
from ptinspect.processes import has_ended, poll, stopped

PAGE = 4096


@pytest.fixture(scope="module")
def gdb() -> Gdb:
    return need_gdb()


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[FakeStub]:
    with FakeStub(tmp_path / "a stub.sock") as served:
        yield served


@pytest.fixture
def session(gdb: Gdb, stub: FakeStub) -> Iterator[LiveSession]:
    attached = LiveSession.attach(stub.address, gdb_path=gdb.path)
    yield attached
    attached.close()


def page(pa: int) -> bytes:
    """What the stub's RAM holds at first."""
    return bytes(range(256)) * (PAGE // 256) if pa >= RAM_START else b""


# Finding a GDB


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_gdb_that_is_found_has_a_version(gdb: Gdb) -> None:
    assert int(gdb.version.split(".")[0]) >= gdb_module.OLDEST


def test_the_chosen_gdb_is_the_only_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TargetError, match=r"no usable GDB \(/nonexistent"):
        find_gdb("/nonexistent/gdb")
    monkeypatch.setenv("PTINSPECT_GDB", script(tmp_path / "g", "echo no gdb"))
    with pytest.raises(TargetError, match="no GDB, or one without Python"):
        find_gdb()


def test_a_gdb_of_another_architecture(tmp_path: Path) -> None:
    path = script(tmp_path / "g", 'echo "Undefined item: aarch64"; echo "ptinspect-check: 13.1 True"')
    with pytest.raises(TargetError, match="knows no aarch64"):
        check_gdb(path)


def test_a_gdb_that_is_too_old(tmp_path: Path) -> None:
    text = """echo 'The target architecture is set to "aarch64".'; echo "ptinspect-check: 10.1 False" """
    with pytest.raises(TargetError, match=r"version 10\.1 is too old"):
        check_gdb(script(tmp_path / "g", text))


# Attaching


@pytest.mark.parametrize("text", ["exit 1", "cat > /dev/null", "echo '^done'"])
def test_a_program_that_is_no_gdb_makes_way_for_one_that_is(
    gdb: Gdb, stub: FakeStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    other = script(tmp_path / "g", text)
    for module in (gdb_module, starting):
        monkeypatch.setattr(module, "candidates", lambda path: iter((other, gdb.path)))
    session = LiveSession.attach(stub.address, timeout=5)
    try:
        assert session.gdb_version == gdb.version and session.state is RunState.STOPPED
    finally:
        session.close()


@pytest.mark.parametrize("ran", [True, False])
def test_a_gdb_that_cannot_be_used_is_named_with_the_reason(
    stub: FakeStub, tmp_path: Path, ran: bool
) -> None:
    """The guest is left as it was found, if it was stopped before that was known."""
    stub.was_running = ran
    for path, why in (
        (script(tmp_path / "g", "echo no gdb"), "no GDB, or one without Python"),
        ("/nonexistent/gdb", "No such file"),
    ):
        with pytest.raises(ConnectError, match=why):
            LiveSession.attach(stub.address, gdb_path=path)
        assert ("D;1" in stub.packets) is (ran and bool(stub.packets))
        stub.packets.clear()


def test_a_gdb_that_is_not_needed_in_the_end_is_ended(gdb: Gdb, stub: FakeStub) -> None:
    begun = starting.Starting(gdb.path)
    stub.overrides["qqemu.sstepbits"] = ""
    with pytest.raises(ConnectError, match="not QEMU's"):
        LiveSession.attach(stub.address, starting=begun)
    assert has_ended(begun.process.process.pid) and begun.file == -1


def test_a_session_reads_registers_and_ram(session: LiveSession) -> None:
    assert session.state is RunState.STOPPED and session.stop.reason == "attached"
    assert session.cpu_count == 1 and not session.was_running
    assert session.qemu_version == "7.2.22"
    assert [(b.start, b.size) for b in session.ram] == [(RAM_START, 1 << 20)]
    assert session.cpu_state(0).x == (0,) * 31


def test_what_a_session_sends_ahead_it_asks_for(session: LiveSession) -> None:
    process = session._gdb
    assert isinstance(process, GdbProcess)
    asked, *places = process._ahead
    assert asked == LAYOUT and places and all("monitor gpa2hva" in place for place in places)
    session.registers(0)
    assert list(process._ahead) == places, "no process has this RAM: the lane that needs them does not open"


def test_something_is_done_while_gdb_connects(gdb: Gdb, stub: FakeStub) -> None:
    begun, seen = starting.Starting(gdb.path), list[bool]()
    begun.meanwhile = (seen.append(begun.process.busy) for _ in range(2))
    LiveSession.attach(stub.address, starting=begun).close()
    assert seen == [True, True]


def test_registers_of_a_stop_cost_one_request(session: LiveSession, stub: FakeStub) -> None:
    values = [0x1111_0000_0000_0000 + n for n in range(33)]
    words = b"".join(value.to_bytes(8, "little") for value in values) + (0x6000_03C5).to_bytes(4, "little")
    stub.overrides["g"] = words.hex()
    session.cpu_state(0)
    session._tracker.touch()
    stub.packets.clear()
    state = session.cpu_state(0)
    assert (*state.x, state.sp, state.pc) == tuple(values) and state.pstate == 0x6000_03C5
    assert stub.packets == ["Hgp1.1", "g", "Hgp1.1"] and session.cpu_state(0) is state
    assert session.registers(0)["x5"] == values[5]
    stub.overrides["g"] = words[:200].hex()
    session._tracker.touch()
    with pytest.raises(TargetError, match="registers of cpu 0"):
        session.cpu_state(0)


def test_attaching_leaves_a_physical_mode_of_others(gdb: Gdb, stub: FakeStub) -> None:
    stub.physical = True
    session = LiveSession.attach(stub.address, gdb_path=gdb.path)
    try:
        assert not stub.physical
    finally:
        session.close()


@pytest.mark.parametrize("packet", ["g", "qRcmd,696e666f206d7472656520"])
def test_attaching_that_fails_late_leaves_the_guest_running(gdb: Gdb, stub: FakeStub, packet: str) -> None:
    stub.was_running = True
    stub.overrides[packet] = "E01"
    with pytest.raises(ConnectError):
        LiveSession.attach(stub.address, gdb_path=gdb.path)
    assert stub.packets[-1] == "D;1"


def test_a_stub_that_hangs_gdb_is_given_up_in_time(gdb: Gdb, stub: FakeStub) -> None:
    stub.overrides["g"] = None
    stub.overrides["p"] = None
    before = time.monotonic()
    with pytest.raises(ConnectError, match="did not answer"):
        LiveSession.attach(stub.address, gdb_path=gdb.path, timeout=1)
    assert time.monotonic() - before < 20  # far from GDB's own 30 s


def test_a_symbol_file_that_is_none(gdb: Gdb, stub: FakeStub, tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF but not really")
    with pytest.raises(ConnectError, match="GDB cannot use"):
        LiveSession.attach(stub.address, gdb_path=gdb.path, symbol_file=tmp_path / "vmlinux")


# Physical memory


@pytest.mark.parametrize("pipelined", [True, False])
def test_batches_of_tables(session: LiveSession, stub: FakeStub, pipelined: bool) -> None:
    if not pipelined:
        session.gdb_command("python import ptinspect_agent; ptinspect_agent.give_wire_up()")
    assert "pipeline" in session.capabilities
    order = np.arange(128, dtype="<u8").repeat(PAGE // 8)
    stub.ram[: 128 * PAGE] = order.tobytes()
    rows = [*range(0, 64), *range(65, 128, 2)]
    addresses = np.uint64(RAM_START) + np.array(rows, dtype=np.uint64) * np.uint64(PAGE)
    raw, readable = session.memory.read_tables(addresses, PAGE)
    assert readable.all() and not stub.physical
    assert (raw == np.array(rows, dtype=np.uint64)[:, None]).all()


def test_a_read_of_odd_size(session: LiveSession) -> None:
    assert session.memory.read(RAM_START + 3, 5000) == (page(RAM_START) * 2)[3:5003]


def test_writes_go_to_physical_memory(session: LiveSession, stub: FakeStub) -> None:
    data = os.urandom(5000)
    before = session.stop_token
    session.write_physical((RAM_START + 7, data))
    assert stub.ram[7:5007] == data and not stub.physical
    assert session.stop_token != before
    assert session.memory.read(RAM_START, 5010)[7:5007] == data
    parts = [(RAM_START + 8 * number, bytes([number])) for number in range(200)]
    session.write_physical(*parts, (RAM_START + 4096, bytes(200_000)))
    assert stub.ram[:1600:8] == bytes(range(200))
    assert stub.ram[4096:204_096] == bytes(200_000) and not stub.physical
    with pytest.raises(UserError):
        session.write_physical((RAM_START, b"x"), (0, b"y"))
    assert stub.ram[0] == 0, "none of it is written"


@pytest.mark.parametrize("pipelined", [True, False])
def test_an_error_in_a_read_leaves_physical_mode(
    session: LiveSession, stub: FakeStub, pipelined: bool
) -> None:
    if not pipelined:
        session.gdb_command("python import ptinspect_agent; ptinspect_agent.give_wire_up()")
    stub.overrides[f"m{RAM_START + PAGE:x},"] = "E22"
    with pytest.raises(MiError):
        session.memory.read(RAM_START, 4 * PAGE)
    assert not stub.physical
    assert session.memory.read(RAM_START, 8) == page(RAM_START)[:8]


@pytest.mark.parametrize("pipelined", [True, False])
def test_ctrl_c_in_a_read_leaves_physical_mode(session: LiveSession, stub: FakeStub, pipelined: bool) -> None:
    if not pipelined:
        session.gdb_command("python import ptinspect_agent; ptinspect_agent.give_wire_up()")
    reads, cancelled = threading.Event(), threading.Event()
    plain, cancel = stub._replies, session._gdb.cancel

    def slow(body: str) -> list[str]:
        if body.startswith("m"):
            reads.set()
            cancelled.wait(60)
        return plain(body)

    stub._replies = slow  # type: ignore[method-assign]
    session._gdb.cancel = lambda: (cancel(), cancelled.set())  # type: ignore[method-assign]

    def interrupt() -> None:
        reads.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        session.memory.read(RAM_START, 1 << 20)
    thread.join()
    stub._replies = plain  # type: ignore[method-assign]
    assert sum(p.startswith("m") for p in stub.packets) < 512  # it was cut short
    assert not stub.physical
    assert session.state is RunState.STOPPED
    assert session.memory.read(RAM_START + 5, 8) == page(RAM_START)[5:13]


def test_a_socket_that_does_not_speak_for_the_stub_is_given_up(session: LiveSession, stub: FakeStub) -> None:
    stub.overrides["qqemu.PhyMemMode"] = "0"
    stub.packets.clear()
    assert session.memory.read(RAM_START, 2 * PAGE) == page(RAM_START) * 2
    assert sum(p.startswith("m") for p in stub.packets) == 4
    assert stub.packets.count("Qqemu.PhyMemMode:1") == 2  # for the question on the socket, and by GDB
    assert session.memory.read(RAM_START, 8) == page(RAM_START)[:8]
    assert not stub.physical


def test_a_stub_without_physical_mode_is_not_read(session: LiveSession, stub: FakeStub) -> None:
    stub.overrides["Qqemu.PhyMemMode:1"] = ""
    with pytest.raises(TargetError):
        session.memory.read(RAM_START, 8)


def test_a_stub_that_goes_away(session: LiveSession, stub: FakeStub) -> None:
    stub.close()
    with pytest.raises(TargetLost):
        session.memory.read(RAM_START, 8)
    assert session.state is RunState.DEAD
    with pytest.raises(TargetLost):
        session.cpu_state(0)


# Leaving


def test_detaching_takes_breakpoints_and_physical_mode_along(session: LiveSession, stub: FakeStub) -> None:
    session.set_breakpoint(0x1000)
    session.gdb_command("maint packet Qqemu.PhyMemMode:0")
    stub.physical = True
    session.detach()
    assert not stub.physical
    assert session.state is RunState.DEAD
    assert "D" not in stub.packets
    session.close()


def test_detaching_from_a_guest_that_ran_resumes_it(gdb: Gdb, stub: FakeStub) -> None:
    stub.was_running = True
    session = LiveSession.attach(stub.address, gdb_path=gdb.path)
    assert session.was_running
    session.detach()
    assert stub.packets[-1] == "D;1"


def test_gdb_ends_with_the_session(session: LiveSession) -> None:
    process = session._gdb.process
    session.close()
    assert process.wait(20) == -signal.SIGKILL, "nobody waits for it there"


def test_plain_gdb_frees_the_stub_when_it_detaches(gdb: Gdb, stub: FakeStub) -> None:
    process = GdbProcess([gdb.path, "-nx", "-q", "--interpreter=mi3"])
    try:
        for line in (
            load_line(),
            "python import ptinspect_agent",
            f"target remote {stub.address}",
            "python ptinspect_agent.read_physical([(0x40000000, 8)])",
        ):
            process.request(f"-interpreter-exec console {quote(line)}", 20)
        process.expect_end()
        process.request("-target-disconnect", 20)
        assert probe(StubAddress.parse(stub.address), 5).architecture == "aarch64"
    finally:
        process.close()


def test_text_of_a_command(session: LiveSession) -> None:
    assert session.gdb_command('echo "x" é\\n') == '"x" é\n'
    with pytest.raises(MiError, match="Undefined command"):
        session.gdb_command("nonsense")
    assert session.escort.command("output $nobodys", 5) == "void"


# Somebody dies


MARK = f"ptinspect-{os.getpid()}"
"""Of debuggers that no other ptinspect wakes."""
ATTACHED = """
import sys, time
from ptinspect.link.gdb import starting
from ptinspect.link.live import LiveSession
starting.MARK = sys.argv[3]
session = LiveSession.attach(sys.argv[1], gdb_path=sys.argv[2])
print(session._gdb.process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_guest_whose_debugger_is_killed_is_left_as_it_was_found(
    gdb: Gdb, stub: FakeStub, number: int, ran: bool
) -> None:
    stub.was_running = ran
    command = [sys.executable, "-c", ATTACHED, stub.address, gdb.path, MARK]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        debugger = int(child.stdout.readline())
        stub.packets.clear()
        child.send_signal(number)
        child.wait(20)
    _wait_for(lambda: not Path(f"/proc/{debugger}").exists() and "Qqemu.PhyMemMode:0" in stub.packets)
    _wait_for(lambda: not is_busy(StubAddress.parse(stub.address)))
    assert stub.running is ran


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_guest_whose_gdb_is_killed_is_left_as_it_was_found(
    gdb: Gdb, stub: FakeStub, number: int, ran: bool
) -> None:
    stub.was_running = ran
    session = LiveSession.attach(stub.address, gdb_path=gdb.path)
    os.kill(session._gdb.process.pid, number)  # type: ignore[attr-defined]
    _wait_for(lambda: session.state is RunState.DEAD)
    with pytest.raises(TargetLost, match="the guest was left " + ("running" if ran else "stopped")):
        session.cpu_state(0)
    assert stub.running is ran
    with pytest.raises(TargetLost, match=r"GDB (ended|has left)"):
        session.resume()
    session.close()
    assert stub.running is ran


@pytest.mark.parametrize(("ran", "woken"), [(False, False), (True, False), (True, True)])
def test_a_gdb_that_was_stopped_when_its_ptinspect_died_leaves_the_guest_to_the_next(
    gdb: Gdb, stub: FakeStub, monkeypatch: pytest.MonkeyPatch, ran: bool, woken: bool
) -> None:
    """Also to one that finds it woken already, by another ptinspect that attaches at the same moment."""
    monkeypatch.setattr(connect, "MARK", MARK)
    stub.was_running = ran
    command = [sys.executable, "-c", ATTACHED, stub.address, gdb.path, MARK]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        debugger = int(child.stdout.readline())
        os.kill(debugger, signal.SIGSTOP)
        _wait_for(lambda: debugger in stopped(states="T"))
        child.kill()
    assert not has_ended(debugger)
    stub.packets.clear()
    if woken:
        os.kill(debugger, signal.SIGCONT)
    session = LiveSession.attach(stub.address, gdb_path=gdb.path)
    assert has_ended(debugger)
    first = next(packet for packet in stub.packets if packet in ("Qqemu.PhyMemMode:0", "?"))
    assert first == "Qqemu.PhyMemMode:0", "the heir has left the guest before the next attach"
    session.close()
    assert stub.running is ran


@pytest.mark.parametrize("ran", [False, True])
def test_a_guest_whose_qemu_is_stopped_is_left_as_it_was_found_when_that_continues(
    gdb: Gdb, stub: FakeStub, monkeypatch: pytest.MonkeyPatch, ran: bool
) -> None:
    stub.was_running = ran
    session = LiveSession.attach(stub.address, gdb_path=gdb.path)
    stub.packets.clear()
    with monkeypatch.context() as patch:
        patch.setattr(live, "is_stopped", lambda address: True)
        os.kill(session._gdb.process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        _wait_for(lambda: session.state is RunState.DEAD)
        with pytest.raises(TargetLost, match="when QEMU, which a signal has stopped, continues"):
            session.cpu_state(0)
        session.close()
    _wait_for(lambda: "Qqemu.PhyMemMode:0" in stub.packets)
    _wait_for(lambda: not is_busy(StubAddress.parse(stub.address)))
    assert stub.running is ran


def _wait_for(done: Callable[[], bool]) -> None:
    assert poll(done, 60)


# Others at the same guest


def test_a_guest_that_stands_as_it_stood(session: LiveSession) -> None:
    assert session.look() == ""
    token = session.stop_token
    assert session.look() == "" and session.stop_token == token


@pytest.mark.parametrize("announces", [False, True])
def test_a_guest_that_somebody_else_let_run_is_noticed_and_stands(
    session: LiveSession, stub: FakeStub, announces: bool
) -> None:
    assert session.look() == ""
    token = session.stop_token
    stub.announces, stub.running = announces, True
    assert session.look().startswith("the guest was running, and was stopped again")
    assert not stub.running and session.stop_token > token
    assert session.look() == ""
    assert session.memory.read(RAM_START, PAGE) == page(RAM_START)
    assert session.cpu_state(0).x == (0,) * 31


@pytest.mark.parametrize("change", [{"registers": "CPU#0\r\n PC=0\r\n"}, {"status": "paused (prelaunch)"}])
def test_a_guest_that_somebody_else_reset_is_noticed(
    session: LiveSession, stub: FakeStub, change: dict[str, str]
) -> None:
    assert session.look() == ""
    token = session.stop_token
    for name, value in change.items():
        setattr(stub, name, value)
    assert session.look().startswith("the guest is not where it stopped")
    assert session.stop_token > token
    assert session.look() == ""


def test_code_is_disassembled_whatever_memory_holds(session: LiveSession) -> None:
    """Also at addresses that neither the CPU nor the stub can read."""
    code = bytes.fromhex("1f2003d5 02000094")
    for at in (0x4100_0000, 0xFFFF_8000_1108_0000):
        lines = session.disassemble(at, code).split("\n")
        assert [line.split() for line in lines[:2]] == [
            [f"{at:#x}:", "nop"],
            [f"{at + 4:#x}:", "bl", f"{at + 12:#x}"],
        ]
    assert session.disassemble(0x4100_0000, code * 1000).count("nop") == 1000
