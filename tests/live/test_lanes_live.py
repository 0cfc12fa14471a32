"""The lanes to the memory of a real QEMU: the same bytes on all; a QEMU that dies or stands still."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bare import LOAD, LOOP, bare_kernel, counting
from conftest import need_gdb, need_qemu
from session import launched

from ptinspect.errors import ConnectError, MemoryReadError, TargetError, TargetLost
from ptinspect.link.live import LiveSession
from ptinspect.link.qemu.machine import Qemu, find_program
from ptinspect.link.session import RunState
from ptinspect.processes import poll, stopped
from ptinspect.tables.capture import capture

pytestmark = pytest.mark.usefixtures("each_qemu")
LANES = ("host", "pmemsave", "gdbstub")
OUTSIDE = 0x4800_0000
SOON = 25.0
"""Seconds; the gdbstub of a QEMU that stands still is waited for longer (remotetimeout, 30)."""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Qemu, LiveSession]]:
    need_gdb()
    need_qemu()
    qemu = counting(tmp_path)
    try:
        session = LiveSession.attach(str(qemu.gdb_socket))
        yield qemu, session
        session.close()
    finally:
        qemu.end()


def test_all_lanes_read_the_same(pair: tuple[Qemu, LiveSession]) -> None:
    qemu, session = pair
    memory = session.lanes
    assert memory.label == f"host RAM of QEMU (pid {qemu.pid})"
    addresses = np.arange(0x4000_0000, OUTSIDE + 0x2000, 0x5000, dtype=np.uint64)
    seen = set()
    for lane in LANES:
        memory.choose(lane)
        raw, readable = memory.read_tables(addresses, 4096)
        assert readable.tolist() == [int(pa) < OUTSIDE for pa in addresses]
        seen.add(raw.tobytes() + memory.read(LOAD - 3, 5000))
        assert memory.read(LOAD, 4) == bytes.fromhex("600080d2")
        for pa, length in ((OUTSIDE, 8), (OUTSIDE - 4, 8), (0x0900_0000, 4), (1 << 40, 8)):
            with pytest.raises(MemoryReadError):
                memory.read(pa, length)
        assert [f.name for f in memory.facts() if f.chosen] == [lane]
    assert len(seen) == 1 and not memory.take_notices()


def test_what_is_written_is_seen_on_every_lane(pair: tuple[Qemu, LiveSession]) -> None:
    _, session = pair
    for number, lane in enumerate(LANES):
        session.lanes.choose(lane)
        session.run_until([LOOP], 300)
        session.write_physical((LOAD + 0x1000, bytes([number + 1] * 16)))
        assert session.memory.read(LOAD + 0x1000, 16) == bytes([number + 1] * 16)


@pytest.mark.parametrize("lane", LANES)
def test_qemu_killed_between_reads(pair: tuple[Qemu, LiveSession], lane: str) -> None:
    qemu, session = pair
    session.lanes.choose(lane)
    session.memory.read(LOAD, 4)
    os.kill(qemu.pid, signal.SIGKILL)
    qemu.process.wait(60)
    with pytest.raises(TargetLost):
        session.memory.read_tables(np.array([0x4000_0000], dtype=np.uint64), 4096)
    assert session.state is RunState.DEAD and not session.lanes.take_notices()
    with pytest.raises(TargetLost):
        session.cpu_state(0)
    session.detach()


@pytest.mark.parametrize("moment", [0.0, 0.002, 0.01, 0.03])
def test_qemu_killed_in_the_middle_of_a_fast_read(pair: tuple[Qemu, LiveSession], moment: float) -> None:
    qemu, session = pair
    session.lanes.choose("host")
    pages = np.arange(0x4000_0000, OUTSIDE, 4096, dtype=np.uint64)
    threading.Timer(moment, os.kill, (qemu.pid, signal.SIGKILL)).start()
    deadline = time.monotonic() + 60
    with pytest.raises(TargetLost) as caught:
        while time.monotonic() < deadline:
            session.memory.read_tables(pages, 4096)
    assert session.state is RunState.DEAD and not session.lanes.take_notices()
    assert "gone" in caught.value.message or "over" in caught.value.message


@pytest.mark.parametrize("moment", [0.0, 0.002, 0.01])
def test_qemu_stopped_in_the_middle_of_a_fast_read(pair: tuple[Qemu, LiveSession], moment: float) -> None:
    qemu, session = pair
    pages = np.arange(0x4000_0000, OUTSIDE, 4096, dtype=np.uint64)
    before, _ = session.memory.read_tables(pages, 4096)
    threading.Timer(moment, os.kill, (qemu.pid, signal.SIGSTOP)).start()
    deadline = time.monotonic() + SOON
    try:
        with pytest.raises(TargetError, match="stopped by a signal"):
            while time.monotonic() < deadline:
                session.memory.read_tables(pages, 4096)
        assert time.monotonic() < deadline
    finally:
        os.kill(qemu.pid, signal.SIGCONT)
    assert (session.memory.read_tables(pages, 4096)[0] == before).all()
    assert session.state is RunState.STOPPED and not session.lanes.take_notices()


def test_a_qemu_that_stands_still_is_told_before_the_gdbstub_is_waited_for(
    pair: tuple[Qemu, LiveSession],
) -> None:
    qemu, session = pair
    session.run_until([LOOP], 300)
    session.lanes.choose("host")
    session.run_until([LOOP], 300)
    os.kill(qemu.pid, signal.SIGSTOP)
    poll(lambda: qemu.pid in stopped(states="T"), SOON)  # a busy machine takes its time to stop all threads
    try:
        start = time.monotonic()
        with pytest.raises(TargetError, match="stopped by a signal"):
            session.memory.read(LOAD, 64)
        assert time.monotonic() - start < SOON
    finally:
        os.kill(qemu.pid, signal.SIGCONT)
    assert len(session.memory.read(LOAD, 64)) == 64


def lanes_agree(session: LiveSession, pid: int) -> None:
    """All lanes are there and read the same."""
    assert session.memory.label == f"host RAM of QEMU (pid {pid})"
    session.write_physical((LOAD + 0x2000, bytes(range(256))))
    found = set()
    for lane in LANES:
        session.lanes.choose(lane)
        found.add(session.memory.read(LOAD - 3, 0x3000))
    assert len(found) == 1 and found.pop()[0x2003:0x2103] == bytes(range(256))
    assert not session.lanes.take_notices()


def test_the_process_behind_a_tcp_port_is_found(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [find_program(), "-machine", "virt", "-cpu", "cortex-a72", "-m", "128", "-display", "none"]
    words += ["-nic", "none", "-monitor", "none", "-serial", "none", "-kernel", str(bare_kernel(tmp_path))]
    qemu = subprocess.Popen([*words, "-gdb", f"tcp:127.0.0.1:{port}"], stdin=subprocess.DEVNULL)
    try:
        assert poll(lambda: f":{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text(), 60)
        session = LiveSession.attach(f":{port}")
        assert session.was_running and "pipeline" in session.capabilities
        lanes_agree(session, qemu.pid)
        with pytest.raises(ConnectError, match="another debugger"):
            LiveSession.attach(f"127.0.0.1:{port}")
        session.close()
    finally:
        qemu.kill()
        qemu.wait(10)


def test_ram_that_is_a_shared_file(tmp_path: Path) -> None:
    file = tmp_path / "ram"
    extra = ("-object", f"memory-backend-file,id=ram,size=128M,mem-path={file},share=on")
    qemu = counting(tmp_path, machine="virt,gic-version=3,memory-backend=ram", extra=extra)
    try:
        session = LiveSession.attach(str(qemu.gdb_socket))
        lanes_agree(session, qemu.pid)
        with file.open("rb") as ram:
            ram.seek(LOAD + 0x2000 - 0x4000_0000)
            assert ram.read(256) == bytes(range(256))
        session.close()
    finally:
        qemu.end()


def test_no_file_is_left_behind(pair: tuple[Qemu, LiveSession]) -> None:
    _, session = pair
    session.lanes.choose("pmemsave")
    folder = session.lanes._lanes["pmemsave"].memory._folder.path  # type: ignore[union-attr]
    assert folder.is_dir()
    session.close()
    assert not folder.exists()


def test_captures_of_a_kernel_are_bit_identical() -> None:
    with launched("5.10-cloud") as live:
        assert live("kpti run")["reached"]
        snapshot = live.ctx.guest.snapshots["after"]
        found = set()
        for lane in LANES:
            assert live(f"lane {lane}")["mode"] == lane
            tables, why = capture(live.ctx.guest.stopped.memory, snapshot.root.pa, snapshot.regime)
            assert not why
            found.add((tables.pa.tobytes(), tables.va.tobytes(), tables.raw.tobytes()))
        assert len(found) == 1
