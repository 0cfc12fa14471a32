"""Sessions with a real QEMU and a real GDB on a guest of a few instructions."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from bare import CALL, LOAD, LOOP, LOOP_1, bare_kernel, counting
from conftest import need_gdb, need_qemu

from ptinspect.errors import ConnectError, TargetError, TargetLost, TargetRunning, TargetTimeout, UserError
from ptinspect.link.gdb import agent as agent_module
from ptinspect.link.gdb import process as process_module
from ptinspect.link.live import LiveSession
from ptinspect.link.qemu import stub_probe as stub_probe_module
from ptinspect.link.qemu.machine import Qemu
from ptinspect.link.qemu.stub_probe import STOPS_UNASKED_UNTIL
from ptinspect.link.session import RunState
from ptinspect.processes import has_ended, poll

pytestmark = pytest.mark.usefixtures("each_qemu")
DATA = 0x4600_0000
ROOT = Path(__file__).parents[2]

Launch = Callable[..., Qemu]
Attach = Callable[..., LiveSession]


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    need_gdb()
    need_qemu()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Launch]:
    started: list[Qemu] = []

    def begin(**options: object) -> Qemu:
        started.append(counting(tmp_path, **options))
        return started[-1]

    yield begin
    for qemu in started:
        qemu.end()


@pytest.fixture
def attach() -> Iterator[Attach]:
    attached: list[LiveSession] = []

    def begin(where: Qemu | str, **options: object) -> LiveSession:
        address = where if isinstance(where, str) else str(where.gdb_socket)
        attached.append(LiveSession.attach(address, **options))  # type: ignore[arg-type]
        return attached[-1]

    yield begin
    for session in attached:
        session.close()


@pytest.fixture
def qemu(start: Launch) -> Qemu:
    return start()


@pytest.fixture
def session(qemu: Qemu, attach: Attach) -> LiveSession:
    return attach(qemu)


# Launching


def test_launch_stops_at_reset_in_a_private_directory(qemu: Qemu, session: LiveSession) -> None:
    assert qemu.alive and qemu.directory.stat().st_mode & 0o777 == 0o700
    assert session.state is RunState.STOPPED and not session.was_running
    assert session.cpu_state(0).pc == 0x4000_0000 and session.cpu_count == 2
    session.close()
    qemu.close()
    assert not qemu.alive and not qemu.directory.exists()


def test_a_qemu_that_will_not_start(start: Launch) -> None:
    with pytest.raises(TargetError, match="nonsense") as caught:
        start(extra=("-cpu", "nonsense"))
    assert "qemu-system-aarch64 -machine virt" in caught.value.hint


def test_no_directory_is_left_of_a_qemu_that_will_not_start(
    start: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(TargetError):
        start(cpu="nonsense")
    assert not list(tmp_path.glob("ptinspect-*"))


def test_a_directory_with_awkward_characters(
    start: Launch, tmp_path: Path, attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a, b").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a, b"))
    qemu = start()
    session = attach(qemu)
    session.resume()
    session.interrupt()
    assert qemu.console.is_file() and "a, b" in str(qemu.console)


@pytest.mark.parametrize("keep", [False, True])
def test_qemu_outlives_ptinspect_only_if_asked(tmp_path: Path, keep: bool) -> None:
    code = (
        "import os, sys; from pathlib import Path; from ptinspect.link.qemu.machine import *;"
        f"q = launch(LaunchOptions(Path({str(bare_kernel(tmp_path))!r}), memory=128), keep={keep});"
        "print(q.pid, q.directory, flush=True); os._exit(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True, timeout=300, cwd=ROOT
    )
    pid, directory = done.stdout.split(maxsplit=1)
    try:
        assert keep is not poll(lambda: has_ended(int(pid)), 0.5 if keep else 60)
    finally:
        if not has_ended(int(pid)):
            os.kill(int(pid), signal.SIGKILL)
        shutil.rmtree(directory.strip(), ignore_errors=True)  # another run may have swept it


# Leaving it as it was found


def test_a_stopped_guest_stays_stopped(qemu: Qemu, attach: Attach) -> None:
    first = attach(qemu)
    first.set_breakpoint(LOOP)
    first.resume()
    assert first.wait_stop(300).pc == LOOP
    count = first.cpu_state(0).x[19]
    first.detach()
    second = attach(qemu)
    assert not second.was_running and second.cpu_state(0).pc == LOOP
    assert second.cpu_state(0).x[19] == count
    assert second.breakpoints == ()


def test_a_running_guest_runs_on_without_breakpoints(qemu: Qemu, attach: Attach) -> None:
    attach(qemu).detach(resume=True)
    counts = []
    for _ in range(2):
        session = attach(qemu)
        assert session.was_running
        counts.append(session.cpu_state(0).x[19])
        session.set_breakpoint(LOOP)
        session.resume()
        session.wait_stop(300)
        session.detach()
    assert counts[1] > counts[0] + 1000
    assert attach(qemu).was_running


def cannot_tell(session: LiveSession) -> bool:
    """Tell whether this QEMU keeps quiet about who paused the guest: then it is taken as one that ran."""
    major, minor = (int(part) for part in session.qemu_version.split(".")[:2])
    return (major, minor) >= STOPS_UNASKED_UNTIL


def test_a_running_guest_may_be_left_stopped(qemu: Qemu, attach: Attach) -> None:
    attach(qemu).detach(resume=True)
    attach(qemu).detach(resume=False)
    again = attach(qemu)
    assert again.monitor("info status").startswith("VM status: paused")
    assert again.was_running == cannot_tell(again)


def test_detaching_while_it_runs(qemu: Qemu, attach: Attach) -> None:
    session = attach(qemu)
    session.resume()
    session.detach()
    again = attach(qemu)
    assert again.was_running == cannot_tell(again)


def test_a_guest_whose_gdb_died_is_found_usable(qemu: Qemu, attach: Attach) -> None:
    session = attach(qemu)
    session.set_breakpoint(LOOP)
    session.resume()
    session.wait_stop(300)
    session.resume()
    session._gdb.process.kill()
    with pytest.raises(TargetLost, match=r"GDB ended|GDB takes no more commands"):
        while True:  # the guest may have come to the breakpoint once more before
            session.wait_stop(300)
            session.resume()
    again = attach(qemu)
    again.resume()
    with pytest.raises(TargetTimeout):
        again.wait_stop(0.2)


def test_a_second_debugger_is_refused_and_harms_nobody(
    qemu: Qemu, session: LiveSession, attach: Attach
) -> None:
    session.resume()
    with pytest.raises(ConnectError, match="another debugger"):
        attach(qemu)
    with pytest.raises(TargetTimeout):
        session.wait_stop(0.2)
    session.detach(resume=True)
    assert attach(qemu).was_running


# Memory


@pytest.fixture
def filled(start: Launch, attach: Attach, tmp_path: Path) -> tuple[LiveSession, bytes]:
    data = np.random.default_rng(7).bytes(2 << 20)
    (tmp_path / "data").write_bytes(data)
    loader = f"loader,file={tmp_path / 'data'},addr={DATA:#x},force-raw=on"
    return attach(start(extra=("-device", loader))), data


@pytest.mark.parametrize("pipelined", [True, False])
def test_tables_hold_what_the_machine_holds(filled: tuple[LiveSession, bytes], pipelined: bool) -> None:
    session, data = filled
    if not pipelined:
        session.gdb_command("python import ptinspect_agent; ptinspect_agent.give_wire_up()")
    assert "pipeline" in session.capabilities
    pages = np.concatenate([np.arange(0, 100), np.arange(101, 512, 3)]).astype(np.uint64)
    inside = np.uint64(DATA) + pages * np.uint64(4096)
    addresses = np.concatenate([inside, np.array([0x4800_0000, 0x80_0000_0000], dtype=np.uint64)])
    raw, readable = session.memory.read_tables(addresses, 4096)
    expected = np.frombuffer(data, dtype="<u8").reshape(512, 512)
    assert (raw[:-2] == expected[pages.astype(int)]).all()
    assert readable[:-2].all() and not readable[-2:].any()
    assert _mode(session) == "0"


def _mode(session: LiveSession) -> str:
    return session.gdb_command("maint packet qqemu.PhyMemMode").rpartition("received: ")[2].strip().strip('"')


def test_written_bytes_are_seen_by_gdb_and_by_the_guest(session: LiveSession) -> None:
    session.run_until([LOOP], 300)
    session.gdb_command(f"x/i {LOOP:#x}")
    session.write_physical((LOOP, (0x9100_0A73).to_bytes(4, "little")))  # add x19, x19, #2
    assert "#0x2" in session.gdb_command(f"x/i {LOOP:#x}")
    before = session.cpu_state(0).x[19]
    session.step_instructions(1, 0)
    assert session.cpu_state(0).x[19] == before + 2
    assert _mode(session) == "0"
    with pytest.raises(UserError, match="not in RAM"):
        session.write_physical((0x47FF_FFFF, b"ab"))


def test_ctrl_c_cancels_a_long_read(session: LiveSession) -> None:
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        for _ in range(1000):
            session.memory.read(0x4000_0000, 128 << 20)
    timer.join()
    assert session.state is RunState.STOPPED and _mode(session) == "0"
    assert session.memory.read(LOAD, 4) == bytes.fromhex("600080d2")


def test_gva2gpa_is_qemus_own_view(session: LiveSession) -> None:
    assert session.gva2gpa(LOAD + 4) == LOAD + 4


# Running


def test_breakpoints_and_steps(session: LiveSession) -> None:
    found = session.set_breakpoint(CALL)
    assert session.breakpoints == (found,)
    token = session.stop_token
    session.resume()
    stop = session.wait_stop(300)
    assert (stop.reason, stop.pc, stop.breakpoint, stop.cpu) == ("breakpoint-hit", CALL, found.id, 0)
    assert session.stop_token > token
    state = session.cpu_state(0)
    assert (state.x[0], state.x[1], state.x[2], state.x[3]) == (0xC400_0003, 1, LOOP_1, 0x1234)
    assert state.el == 1 and state.pc == CALL and not state.system["SCTLR_EL1"] & 1
    assert session.cpu_state(0) is state
    assert session.step_instructions(2, 0).pc == LOOP + 4
    assert session.cpu_state(0) is not state
    session.delete_breakpoint(found.id)
    assert session.breakpoints == ()


def test_each_cpu_has_its_registers(session: LiveSession) -> None:
    stop = session.run_until([LOOP_1], 300)
    assert stop.cpu == 1 and session.current_cpu == 1
    assert session.cpu_state(1).pc == LOOP_1 and session.cpu_state(1).x[0] == 0x1234
    assert session.cpu_state(0).pc in (CALL, LOOP, LOOP + 4)
    assert session.registers(1)["x0"] == 0x1234
    session.current_cpu = 0
    assert session.current_cpu == 0
    assert "= 0x1234" not in session.gdb_command("p/x $x0")
    session.gdb_command("thread 2")
    assert session.current_cpu == 1
    assert "= 0x1234" in session.gdb_command("p/x $x0")
    session.step_instructions(1, 1)
    assert session.current_cpu == 1
    assert session.cpu_state(1).x[20] == 1
    with pytest.raises(UserError, match="no CPU 2"):
        session.current_cpu = 2


def test_a_step_of_one_cpu_leaves_the_other_alone(session: LiveSession) -> None:
    session.run_until([LOOP_1], 300)
    other = session.cpu_state(0)
    session.step_instructions(4, 1)
    assert session.cpu_state(1).x[20] == 2
    assert session.cpu_state(0) == other


def test_a_breakpoint_of_one_cpu_lets_the_other_pass(session: LiveSession) -> None:
    session.run_until([LOOP_1], 300)
    assert session.set_breakpoint(LOOP_1, cpu=0).cpu == 0
    session.resume()
    with pytest.raises(TargetTimeout):
        session.wait_stop(0.3)
    session.interrupt(300)  # which has to meet the guest between two false hits
    session.set_breakpoint(LOOP_1, cpu=1)
    session.resume()
    assert session.wait_stop(300).cpu == 1


def test_a_condition_is_evaluated(session: LiveSession) -> None:
    session.set_breakpoint(LOOP, condition="$x19 == 5")
    session.resume()
    session.wait_stop(300)
    assert session.cpu_state(0).x[19] == 5


def test_interrupt_gets_through_a_storm_of_false_hits(session: LiveSession) -> None:
    session.set_breakpoint(LOOP, condition="$x19 == 0x123456789")
    for _ in range(5):
        session.resume()
        assert session.interrupt(300).signal == "SIGINT"


def test_interrupt_stops_a_running_guest(session: LiveSession) -> None:
    session.resume()
    assert session.state is RunState.RUNNING
    with pytest.raises(TargetRunning):
        session.cpu_state(0)
    with pytest.raises(TargetRunning):
        session.memory.read(LOAD, 4)
    with pytest.raises(TargetRunning):
        session.monitor("info status")
    stop = session.interrupt(300)
    assert stop.signal == "SIGINT" and session.state is RunState.STOPPED
    assert session.interrupt(1) == stop


def test_cancel_stops_a_running_guest(session: LiveSession) -> None:
    session.resume()
    session.cancel()
    assert session.wait_stop(300).signal == "SIGINT"


def test_run_until_gives_up_and_leaves_no_breakpoint(session: LiveSession) -> None:
    with pytest.raises(TargetTimeout):
        session.run_until([0x4000_8000], 0.2)
    assert session.state is RunState.STOPPED and session.breakpoints == ()


def test_run_until_keeps_breakpoints_of_the_user(session: LiveSession) -> None:
    mine = session.set_breakpoint(LOOP)
    assert session.run_until([LOOP, 0x4000_8000], 300).pc == LOOP
    assert [b.id for b in session.breakpoints] == [mine.id]


def test_commands_of_the_user(session: LiveSession) -> None:
    session.run_until([CALL], 300)
    assert "hvc" in session.gdb_command("x/i $pc")
    session.gdb_command("set $x0 = 7")
    assert session.cpu_state(0).x[0] == 7
    session.gdb_command("stepi")
    session.wait_stop(300)
    session.gdb_command(f"hbreak *{LOOP + 4:#x}")
    assert [b.address for b in session.breakpoints] == [LOOP + 4]
    session.gdb_command("continue")
    assert session.wait_stop(300).pc == LOOP + 4
    assert "paused" in session.monitor("info status")
    for line in ("kill", "target remote :1"):
        with pytest.raises(UserError):
            session.gdb_command(line)
    with pytest.raises(UserError):
        session.monitor("cont")


def test_a_reset_by_the_monitor_is_seen(start: Launch, attach: Attach) -> None:
    session = attach(start(extra=("-action", "reboot=reset")))
    session.run_until([LOOP], 300)
    assert session.cpu_state(0).pc == LOOP
    session.monitor("system_reset")
    session.monitor("info status")
    assert session.cpu_state(0).pc == 0x4000_0000


# Losing it


def test_qemu_killed_while_running(qemu: Qemu, session: LiveSession) -> None:
    session.resume()
    os.kill(qemu.pid, signal.SIGKILL)
    with pytest.raises(TargetLost, match="QEMU has ended"):
        session.wait_stop(300)
    with pytest.raises(TargetLost):
        session.memory.read(LOAD, 4)


def test_a_guest_that_switches_itself_off(session: LiveSession) -> None:
    lost: list[str] = []
    session.on_event(lambda name, fields: lost.append(name))
    session.run_until([CALL], 300)
    session.gdb_command("set $x0 = 0x84000008")  # PSCI SYSTEM_OFF
    session.resume()
    with pytest.raises(TargetLost, match="switched off"):
        session.wait_stop(300)
    poll(lambda: "lost" in lost, 60)  # told by another thread
    assert lost == ["running", "stopped", "running", "lost"]


@pytest.mark.parametrize("each_qemu", ["system"], indirect=True)
def test_a_qemu_that_hangs(qemu: Qemu, session: LiveSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "BASE_SECONDS", 0.5)
    monkeypatch.setattr(process_module, "CANCEL_SECONDS", 0.5)
    monkeypatch.setattr(stub_probe_module, "LEAVE_SECONDS", 0.5)
    session.lanes.choose("gdbstub")  # the host lane tells that QEMU is stopped, once it is
    os.kill(qemu.pid, signal.SIGSTOP)
    try:
        with pytest.raises(TargetTimeout, match="did not answer"):
            session.memory.read(LOAD, 4)
        with pytest.raises(TargetLost):
            session.memory.read(LOAD, 4)
        assert session.state is RunState.DEAD
        with pytest.raises(ConnectError, match=r"no answer|another debugger"):
            LiveSession.attach(str(qemu.gdb_socket), timeout=0.5)
    finally:
        os.kill(qemu.pid, signal.SIGCONT)
