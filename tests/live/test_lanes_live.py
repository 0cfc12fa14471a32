"""The lanes to the memory of a real QEMU: the same bytes on all; a QEMU that dies or stands still."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bare import LOAD, LOOP, bare_kernel
from conftest import missing
from session import launched

from ptinspect.errors import MemoryReadError, TargetError, TargetLost
from ptinspect.paging.capture import capture
from ptinspect.target.gdb import find_gdb
from ptinspect.target.qemu import PROGRAM, LaunchOptions, Qemu, launch
from ptinspect.target.session import RunState, Session

pytestmark = pytest.mark.live
LANES = ("host", "pmemsave", "gdbstub")
OUTSIDE = 0x4800_0000


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Qemu, Session]]:
    if shutil.which(PROGRAM) is None:
        missing(PROGRAM)
    try:
        find_gdb()
    except TargetError as error:
        missing(error.message)
    qemu = launch(LaunchOptions(bare_kernel(tmp_path), smp=2, memory=128, append=""))
    try:
        session = Session.attach(str(qemu.gdb_socket))
        yield qemu, session
        session.close()
    finally:
        qemu.end()


def test_all_lanes_read_the_same(pair: tuple[Qemu, Session]) -> None:
    qemu, session = pair
    memory = session.memory
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


def test_what_is_written_is_seen_on_every_lane(pair: tuple[Qemu, Session]) -> None:
    _, session = pair
    for number, lane in enumerate(LANES):
        session.memory.choose(lane)
        session.run_until([LOOP], 20)
        session.write_physical(LOAD + 0x1000, bytes([number + 1] * 16))
        assert session.memory.read(LOAD + 0x1000, 16) == bytes([number + 1] * 16)


@pytest.mark.parametrize("lane", LANES)
def test_qemu_killed_between_reads(pair: tuple[Qemu, Session], lane: str) -> None:
    qemu, session = pair
    session.memory.choose(lane)
    session.memory.read(LOAD, 4)
    os.kill(qemu.pid, signal.SIGKILL)
    qemu.process.wait(10)
    with pytest.raises(TargetLost):
        session.memory.read_tables(np.array([0x4000_0000], dtype=np.uint64), 4096)
    assert session.state is RunState.DEAD and not session.memory.take_notices()


def test_a_qemu_that_stands_still_is_told_at_once_and_may_go_on(pair: tuple[Qemu, Session]) -> None:
    qemu, session = pair
    before = session.memory.read(LOAD, 64)
    os.kill(qemu.pid, signal.SIGSTOP)
    try:
        with pytest.raises(TargetError, match="stopped by a signal"):
            for _ in range(100_000):
                session.memory.read(LOAD, 64)
    finally:
        os.kill(qemu.pid, signal.SIGCONT)
    assert session.memory.read(LOAD, 64) == before and session.state is RunState.STOPPED


def test_no_file_is_left_behind(pair: tuple[Qemu, Session]) -> None:
    _, session = pair
    session.memory.choose("pmemsave")
    folder = session.memory._lanes["pmemsave"].memory._folder  # type: ignore[union-attr]
    assert folder.is_dir()
    session.close()
    assert not folder.exists()


def test_captures_of_a_kernel_are_bit_identical() -> None:
    with launched("5.10-cloud") as live:
        assert live("kpti run")["reached"]
        snapshot = live.ctx.snapshots["after"]
        found = set()
        for lane in LANES:
            assert live(f"lane {lane}")["mode"] == lane
            tables, why = capture(live.ctx.stopped.memory, snapshot.root.pa, snapshot.regime)
            assert not why
            found.add((tables.pa.tobytes(), tables.va.tobytes(), tables.raw.tobytes()))
        assert len(found) == 1
