"""ELF cores: what QEMU writes, and what nobody should."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptinspect.errors import MemoryReadError, UserError
from ptinspect.memory.dumpfile import HEADER, PROGRAM, is_elf, load_core

BASE = 0x4000_0000


def note(name: bytes, kind: int, body: bytes) -> bytes:
    name += b"\0"
    pad = bytes(-len(name) % 4)
    return struct.pack("<III", len(name), len(body), kind) + name + pad + body + bytes(-len(body) % 4)


def prstatus(x0: int = 7, pc: int = 0xFFFF_8000_1000_0000) -> bytes:
    registers = [x0, *range(1, 31), 0xFFFF_8000_1234_0000, pc, 0x3C5]
    return bytes(112) + struct.pack("<34Q", *registers) + bytes(8)


def core(
    pieces: list[tuple[int, bytes]],
    notes: bytes = b"",
    *,
    machine: int = 183,
    kind: int = 4,
    count: int | None = None,
) -> bytes:
    """Write a core as QEMU's dump-guest-memory does: headers, notes, memory."""
    programs = b""
    at = HEADER.size + PROGRAM.size * (len(pieces) + 1)
    programs += PROGRAM.pack(4, 0, at, 0, 0, len(notes), len(notes), 0)
    at += len(notes)
    for pa, data in pieces:
        programs += PROGRAM.pack(1, 0, at, 0, pa, len(data), len(data), 0)
        at += len(data)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    number = len(pieces) + 1 if count is None else count
    head = HEADER.pack(ident, kind, machine, 1, 0, HEADER.size, 0, 0, 64, PROGRAM.size, number, 64, 0, 0)
    return head + programs + notes + b"".join(data for _, data in pieces)


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_memory_and_registers_are_where_the_file_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    low, high = rng.bytes(0x3000), rng.bytes(0x1000)
    notes = note(b"CORE", 1, prstatus()) + note(b"LINUX", 0x400, bytes(5)) + note(b"CORE", 1, prstatus(9, 16))
    notes += note(b"VMCOREINFO", 0, b"OSRELEASE=6.1.0\nPAGESIZE=4096\n")
    path = put(tmp_path / "core", core([(BASE + 0x8000, high), (BASE, low)], notes))
    assert is_elf(path)
    memory, found = load_core(path)
    with memory:
        assert [(block.start, block.size) for block in memory.ram] == [
            (BASE, 0x3000),
            (BASE + 0x8000, 0x1000),
        ]
        assert memory.read(BASE + 5, 0x1000) == low[5:0x1005]
        assert memory.read(BASE + 0x8000, 0x1000) == high
        for pa, length in ((BASE - 1, 2), (BASE + 0x2FFF, 2), (BASE + 0x7FFF, 2), (BASE + 0x9000, 1)):
            with pytest.raises(MemoryReadError):
                memory.read(pa, length)
        raw, readable = memory.read_tables(np.array([BASE, BASE + 0x3000, BASE + 0x8000], np.uint64), 0x1000)
        assert readable.tolist() == [True, False, True]
        assert raw[2].tobytes() == high
    assert [(cpu.cpu, cpu.x[0], cpu.pc) for cpu in found.cpus] == [(0, 7, 0xFFFF_8000_1000_0000), (1, 9, 16)]
    assert found.cpus[0].sp == 0xFFFF_8000_1234_0000 and found.cpus[0].el == 1
    assert found.vmcoreinfo.startswith("OSRELEASE=6.1.0")


def test_reads_go_across_pieces_that_touch(tmp_path: Path) -> None:
    memory, _ = load_core(put(tmp_path / "core", core([(BASE, b"a" * 16), (BASE + 16, b"b" * 16)])))
    assert memory.read(BASE + 12, 8) == b"aaaabbbb"


def test_nothing_is_read_where_the_end_is_not_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, _ = load_core(put(tmp_path / "core", core([(BASE, b"a" * 16)])))
    monkeypatch.setattr(memory, "_read", lambda *_: pytest.fail("it was read"))
    with pytest.raises(MemoryReadError):
        memory.read(BASE, 1 << 40)


def test_a_file_that_shrinks_is_an_error_and_no_zeros(tmp_path: Path) -> None:
    path = put(tmp_path / "core", core([(BASE, b"a" * 0x2000)]))
    memory, _ = load_core(path)
    data = path.read_bytes()
    path.write_bytes(data[:-0x1000])
    assert memory.read(BASE, 0x1000) == b"a" * 0x1000
    with pytest.raises(MemoryReadError):
        memory.read(BASE, 0x1001)
    _, readable = memory.read_tables(np.array([BASE, BASE + 0x1000], np.uint64), 0x1000)
    assert readable.tolist() == [True, False]


def overlapping() -> bytes:
    return core([(BASE, b"a" * 32), (BASE + 16, b"b" * 32)])


def far() -> bytes:
    data = bytearray(core([(BASE, b"a" * 32)]))
    PROGRAM.pack_into(data, HEADER.size + PROGRAM.size, 1, 0, 1 << 60, 0, BASE, 32, 32, 0)
    return bytes(data)


def huge() -> bytes:
    data = bytearray(core([(BASE, b"a" * 32)]))
    PROGRAM.pack_into(data, HEADER.size + PROGRAM.size, 1, 0, 0, 0, BASE, 1 << 63, 1 << 63, 0)
    return bytes(data)


def long_notes() -> bytes:
    data = bytearray(core([(BASE, b"a" * 32)]))
    PROGRAM.pack_into(data, HEADER.size, 4, 0, 176, 0, 0, 1 << 40, 1 << 40, 0)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (core([(BASE, b"a" * 32)])[:-1], "truncated"),
        (core([(BASE, b"a" * 32)])[:100], "truncated"),
        (core([(BASE, b"a" * 32)])[:40], "truncated"),
        (overlapping(), "contradicts itself"),
        (far(), "truncated"),
        (huge(), "address bits|truncated"),
        (long_notes(), "bytes of notes"),
        (core([(BASE, b"a")], machine=62), "another machine"),
        (core([(BASE, b"a")], kind=2), "kernel or program"),
        (core([(BASE, b"a")], count=0xFFFF), "too many"),
        (core([(BASE, b"a")], count=3000), "truncated"),
        (core([]), "holds no memory"),
        (core([(BASE, b"a")], note(b"CORE", 1, bytes(64))), "cut short"),
        (core([((1 << 52) - 1, b"ab")]), "address bits"),
    ],
)
def test_what_makes_no_sense_is_refused(data: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        load_core(put(tmp_path / "core", data))


def test_the_same_memory_twice_is_allowed_if_it_is_the_same_bytes(tmp_path: Path) -> None:
    """As dump-guest-memory -p writes it: a piece for each virtual mapping."""
    data = bytearray(core([(BASE, b"0123456789"), (BASE + 4, b"")]))
    at = HEADER.size + 2 * PROGRAM.size
    start = HEADER.size + 3 * PROGRAM.size
    PROGRAM.pack_into(data, at, 1, 0, start + 4, 0xFFFF_0000_0000_0000, BASE + 4, 6, 6, 0)
    memory, _ = load_core(put(tmp_path / "core", bytes(data)))
    assert memory.read(BASE, 10) == b"0123456789"


@settings(max_examples=150)
@given(st.data())
def test_any_damage_is_a_clear_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    good = bytearray(core([(BASE, b"a" * 64)], note(b"CORE", 1, prstatus())))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    path = put(tmp_path_factory.mktemp("fuzz") / "core", bytes(good[: data.draw(st.integers(0, len(good)))]))
    try:
        memory, _ = load_core(path)
    except UserError:
        return
    with memory:
        for block in memory.ram:
            assert len(memory.read(block.start, min(block.size, 64))) == min(block.size, 64)
