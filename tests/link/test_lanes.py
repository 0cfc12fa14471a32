"""Lanes over a byte store: chosen, compared at every stop, dropped; and this process's own memory."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sparse_memory import SparseMemory

from ptinspect.arch.bits import PhysAddr
from ptinspect.errors import MemoryReadError, TargetError, TargetLost, UserError
from ptinspect.link.address import StubAddress
from ptinspect.link.lanes import hostmem
from ptinspect.link.lanes.hostmem import HostMemory
from ptinspect.link.lanes.lanes import LaneError, LaneMemory
from ptinspect.link.lanes.pmemsave import SavedMemory
from ptinspect.link.qemu.listener import listeners
from ptinspect.memory.source import RamBlock

LOW, HIGH = 0x4000_0000, 0x8000_0000
SIZE = 16 << 12
RAM = (RamBlock(PhysAddr(LOW), SIZE, "low"), RamBlock(PhysAddr(HIGH), SIZE, "high"))


def store(seed: int = 1) -> SparseMemory:
    memory = SparseMemory(RAM)
    random = np.random.default_rng(seed)
    for block in RAM:
        memory.write(block.start, random.bytes(SIZE))
    return memory


class Lane:
    """A lane that counts its reads and may fail."""

    def __init__(self, memory: SparseMemory, label: str) -> None:
        self.memory, self.label, self.fails, self.reads, self.slow = memory, label, "", 0, ""
        self.ram = RAM

    def read(self, pa: int, length: int) -> bytes:
        self.reads += 1
        if self.fails:
            raise LaneError(self.fails)
        return self.memory.read(pa, length)

    def read_several(self, ranges: Any) -> list[bytes]:
        return [self.read(*one) for one in ranges]

    def read_tables(self, addresses: Any, size: int) -> Any:
        self.reads += 1
        if self.fails:
            raise LaneError(self.fails)
        return self.memory.read_tables(addresses, size)

    def close(self) -> None:
        pass


class Set:
    """A gdbstub and one fast lane."""

    def __init__(self) -> None:
        self.truth = store()
        self.stub = Lane(self.truth, "gdbstub")
        self.fast = Lane(self.truth, "fast")
        self.token = 1
        self.guarded: TargetError | None = None
        stub: Any = self.stub
        self.lanes = LaneMemory(stub, {"fast": lambda: self.fast}, lambda: self.token, self.guard)

    def guard(self) -> None:
        if self.guarded is not None:
            raise self.guarded


def tables(*pas: int) -> Any:
    return np.array(pas, dtype=np.uint64)


def test_a_lane_is_compared_once_a_stop_and_block() -> None:
    s = Set()
    for _ in range(3):
        assert s.lanes.read(LOW + 0x2008, 16) == s.truth.read(LOW + 0x2008, 16)
    low = s.stub.reads
    s.lanes.read_tables(tables(LOW + 0x1000, HIGH + 0x3000), 4096)
    both = s.stub.reads
    s.lanes.read_tables(tables(LOW + 0x1000, HIGH + 0x3000), 4096)
    assert 0 < low < both == s.stub.reads
    s.token += 1
    s.lanes.read(LOW, 8)
    assert s.stub.reads > both and s.lanes.label == "fast" and not s.lanes.take_notices()


@pytest.mark.parametrize("at", [LOW + 0x5000, HIGH + 0x5000])
def test_a_lane_that_differs_is_dropped_with_a_message(at: int) -> None:
    s = Set()
    s.fast.memory = store()
    s.fast.memory.write(at + 8, b"\x00\xff" * 4)
    raw, readable = s.lanes.read_tables(tables(at), 4096)
    assert readable.all() and raw.tobytes() == s.truth.read(at, 4096)
    (notice,) = s.lanes.take_notices()
    assert "fast dropped" in notice and f"{at:#x}" in notice and "gdbstub" in notice
    assert s.lanes.label == "gdbstub" and not s.lanes.take_notices()


def test_it_is_compared_anew_when_the_guest_has_run() -> None:
    s = Set()
    s.fast.memory = store()
    s.lanes.read(LOW, 8)
    s.truth.write(LOW, b"changed!")
    s.token += 1
    assert s.lanes.read(LOW, 8) == b"changed!" and s.lanes.take_notices()


def test_pages_of_zeros_prove_nothing() -> None:
    s = Set()
    s.truth.write(LOW + 0x3000, bytes(4096))
    s.fast.memory = SparseMemory(RAM)
    assert s.lanes.read(LOW + 0x3000, 4096) == bytes(4096)
    assert "dropped" in s.lanes.take_notices()[0]


def test_an_error_of_a_lane_falls_back() -> None:
    s = Set()
    s.lanes.read(LOW, 8)
    s.fast.fails = "process 7: Bad address"
    assert s.lanes.read(LOW + 4096, 8) == s.truth.read(LOW + 4096, 8)
    assert "Bad address" in s.lanes.take_notices()[0] and s.lanes.label == "gdbstub"
    with pytest.raises(UserError, match="Bad address"):
        s.lanes.choose("fast")
    s.fast.fails = ""
    s.lanes.choose("auto")
    assert s.lanes.label == "fast"


def test_a_lost_target_is_an_error() -> None:
    s = Set()
    s.lanes.read(LOW, 8)
    s.guarded = TargetLost("gone")
    for read in (lambda: s.lanes.read(LOW, 8), lambda: s.lanes.read_tables(tables(LOW), 4096)):
        with pytest.raises(TargetLost):
            read()
    assert s.lanes.label == "gdbstub"


def test_outside_ram_is_an_error_on_every_lane() -> None:
    s = Set()
    for name in ("fast", "gdbstub"):
        s.lanes.choose(name)
        with pytest.raises(MemoryReadError):
            s.lanes.read(LOW + SIZE - 4, 8)
        raw, readable = s.lanes.read_tables(tables(LOW, LOW + SIZE), 4096)
        assert readable.tolist() == [True, False] and not raw[1].any()
    with pytest.raises(UserError, match="no lane"):
        s.lanes.choose("nonsense")
    assert s.lanes.mode == "gdbstub"


def test_a_lane_that_is_slow_is_used_only_by_name() -> None:
    s = Set()
    s.fast.slow = "each question takes 40 ms"
    assert s.lanes.read(LOW, 8) == s.truth.read(LOW, 8)
    assert s.lanes.label == "gdbstub" and s.fast.reads == 0 and s.lanes.far
    assert [f.why_not for f in s.lanes.facts(measure=False)] == ["each question takes 40 ms", ""]
    s.lanes.choose("fast")
    assert s.lanes.label == "fast"


def test_facts_name_the_lane_in_use() -> None:
    s = Set()
    facts = s.lanes.facts()
    assert [(f.name, f.chosen) for f in facts] == [("fast", True), ("gdbstub", False)]
    assert all(f.bytes_per_second for f in facts)


# The memory of a process: this one's


class Own:
    """Two RAM blocks in this process, and a monitor that says where."""

    def __init__(self) -> None:
        self.data = [np.random.default_rng(n).integers(0, 256, SIZE, dtype=np.uint8) for n in (1, 2)]
        self.shift = 0

    def monitor(self, command: str) -> str:
        pa = int(command.split()[1], 16)
        block = 0 if pa < HIGH else 1
        offset = pa - RAM[block].start
        address = self.data[block].ctypes.data + offset + (self.shift if offset else 0)
        return f"Host virtual address for {pa:#x} (mach-virt.ram) is {address:#x}\n"

    def open(self, pid: int = os.getpid(), ram: Sequence[RamBlock] = RAM) -> HostMemory:
        return HostMemory(pid, ram, self.monitor)


def test_host_memory_reads_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostmem, "IOV_MAX", 3)
    own = Own()
    memory = own.open()
    assert memory.read(LOW + 5, 100) == own.data[0][5:105].tobytes()
    pages = [0, 1, 2, 5, 7, 9, 11, 13]
    wanted = tables(*(LOW + 4096 * n for n in pages), LOW + SIZE, HIGH + 4096, HIGH + SIZE)
    raw, readable = memory.read_tables(wanted, 4096)
    assert readable.tolist() == [True] * 8 + [False, True, False]
    assert not raw[8].any() and not raw[10].any()
    assert raw[9].tobytes() == own.data[1][4096:8192].tobytes()
    for row, page in enumerate(pages):
        assert raw[row].tobytes() == own.data[0][4096 * page : 4096 * page + 4096].tobytes()
    with pytest.raises(MemoryReadError):
        memory.read(LOW + SIZE - 4, 8)
    assert str(os.getpid()) in memory.label


@pytest.mark.parametrize("few", [0, 16])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0], [3, 6, 0, 2, 5, 1, 4]])
def test_tables_are_read_into_their_rows(monkeypatch: pytest.MonkeyPatch, few: int, order: list[int]) -> None:
    monkeypatch.setattr(hostmem, "IOV_MAX", 3)
    monkeypatch.setattr(hostmem, "FEW", few)
    own = Own()
    memory = own.open()
    rows = np.array(order)
    for wanted in (
        tables(*(LOW + 4096 * n for n in (0, 1, 2, 5, 7, 9, 11))),
        tables(*(LOW + 4096 * n for n in (0, 1, 2, 5)), LOW + SIZE, HIGH + 4096, HIGH + SIZE),
    ):
        raw, good = memory.read_tables(wanted, 4096)
        out = np.full((9, 512), 7, dtype=np.uint64)
        assert memory.read_rows(wanted, 4096, out, rows).tolist() == good.tolist()
        assert (out[rows] == raw).all() and (out[7:] == 7).all()
        half = np.full((7, 512), 7, dtype=np.uint64)
        memory.read_rows(wanted, 2048, half, rows)
        assert (half[rows[good], :256] == raw[good, :256]).all() and (half[rows[good], 256:] == 7).all()


@pytest.mark.parametrize("few", [0, 16])
def test_nothing_is_written_outside_of_the_array(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    monkeypatch.setattr(hostmem, "FEW", few)
    memory = Own().open()
    wanted = tables(LOW, LOW + 4096)
    out = np.zeros((2, 512), dtype=np.uint64)
    for bad_out, rows, size in (
        (out, [0, 2], 4096),
        (out, [-1, 0], 4096),
        (out, [0, 1], 8192),
        (np.zeros((4, 512), dtype=np.uint64)[::2], [0, 1], 4096),
    ):
        with pytest.raises(ValueError, match="do not lie in"):
            memory.read_rows(wanted, size, bad_out, np.array(rows))
    assert not memory.read_rows(tables(), 4096, out, np.zeros(0, dtype=np.intp)).size and not out.any()


def test_rows_come_by_every_lane_and_a_lane_that_fails_is_replaced() -> None:
    s = Set()
    wanted, rows = tables(LOW, LOW + 4096, LOW + SIZE, HIGH), np.array([2, 0, 1, 3])
    raw, good = s.truth.read_tables(wanted, 4096)
    for broken in ("", "it broke"):
        s.fast.fails = broken
        out = np.full((4, 512), 9, dtype=np.uint64)
        assert s.lanes.read_rows(wanted, 4096, out, rows).tolist() == good.tolist()
        assert (out[rows] == raw).all()
    assert s.lanes.take_notices()


def test_blocks_that_touch_are_read_as_one() -> None:
    own = Own()
    ram = (RAM[0], RamBlock(PhysAddr(LOW + SIZE), SIZE))
    place = [own.data[0].ctypes.data, own.data[1].ctypes.data]

    def monitor(command: str) -> str:
        offset = int(command.split()[1], 16) - LOW
        address = place[offset // SIZE] + offset % SIZE
        return f"Host virtual address for 0x0 (ram) is {address:#x}"

    memory = HostMemory(os.getpid(), ram, monitor)
    expected = own.data[0][-4:].tobytes() + own.data[1][:4].tobytes()
    assert memory.read(LOW + SIZE - 4, 8) == expected


def test_host_memory_refuses_what_it_cannot_trust() -> None:
    own = Own()
    own.shift = 4096
    with pytest.raises(LaneError, match="one piece"):
        own.open()
    with pytest.raises(LaneError, match="does not tell"):
        HostMemory(os.getpid(), RAM, lambda _: "No memory is mapped at address 0x40000000")
    far = "Host virtual address for 0x0 (ram) is {:#x}"
    with pytest.raises(LaneError, match="does not hold"):
        HostMemory(os.getpid(), RAM, lambda c: far.format(int(c.split()[1], 16)))
    with pytest.raises(LaneError, match="has ended"):
        Own().open(pid=(1 << 22) + 1)


def test_memory_that_goes_away_is_an_error() -> None:
    own = Own()
    memory = own.open()
    memory._shifts = [(4096 - LOW) % (1 << 64)] * 2
    with pytest.raises(LaneError, match="Bad address"):
        memory.read(LOW, 8)
    assert ctypes.sizeof(ctypes.c_void_p) == 8


# Files of QEMU's


def saver(memory: SparseMemory, asked: list[str]) -> Any:
    def monitor(command: str) -> str:
        asked.append(command)
        _, pa, size, name = command.split(maxsplit=3)
        Path(name.strip('"')).write_bytes(memory.read(int(pa, 16), int(size)))
        return ""

    return monitor


def test_saved_memory_makes_a_new_directory_where_somebody_tidied_up() -> None:
    truth = store()
    memory = SavedMemory(RAM, saver(truth, []))
    first = memory._folder.path
    shutil.rmtree(first)
    assert memory.read(LOW, 8) == truth.read(LOW, 8)
    assert memory._folder.path != first
    memory.close()
    assert not memory._folder.path.exists()


def test_saved_memory_joins_what_lies_close() -> None:
    truth, asked = store(), list[str]()
    memory = SavedMemory(RAM, saver(truth, asked))
    asked.clear()
    wanted = tables(LOW, LOW + 0x3000, LOW + SIZE - 0x1000, HIGH + 0x1000, HIGH + SIZE)
    raw, readable = memory.read_tables(wanted, 4096)
    expected, same = truth.read_tables(wanted, 4096)
    assert (raw == expected).all() and (readable == same).all() and len(asked) == 2
    assert memory.read(HIGH + 3, 9) == truth.read(HIGH + 3, 9)
    with pytest.raises(MemoryReadError):
        memory.read(LOW + SIZE, 1)
    folder = memory._folder.path
    assert folder.stat().st_mode & 0o777 == 0o700
    memory.close()
    memory.close()
    assert not folder.exists()


@pytest.mark.parametrize("said", ["Could not open '/x': Permission denied", ""])
def test_a_qemu_that_writes_elsewhere_is_no_lane(said: str) -> None:
    with pytest.raises(LaneError, match=r"does not write|wrote"):
        SavedMemory(RAM, lambda _: said)


# The process


def test_the_process_behind_a_port_is_found_by_its_socket(tmp_path: Path) -> None:
    for folder in ("net", "7/fd", "8/fd"):
        (tmp_path / folder).mkdir(parents=True)
    row = "   0: 0100007F:04D2 00000000:0000 0A 0:0 0:0 0 0 0 {} 1"
    (tmp_path / "net/tcp").write_text("head\n" + row.format(4711) + "\n")
    (tmp_path / "7/fd/3").symlink_to("socket:[4712]")
    (tmp_path / "8/fd/3").symlink_to("socket:[4711]")
    assert listeners(StubAddress("localhost", 1234), tmp_path) == [8]
    assert listeners(StubAddress("localhost", 1235), tmp_path) == []
    assert listeners(StubAddress("example.org", 1234), tmp_path) == []
