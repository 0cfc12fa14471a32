"""The byte table, and sets of ranges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparse_memory import CHUNK, SparseMemory

from ptinspect.arch.bits import PhysAddr
from ptinspect.errors import MemoryReadError
from ptinspect.memory.ranges import Ranges
from ptinspect.memory.source import RamBlock

BASE = 0x4000_0000
BLOCKS = [RamBlock(PhysAddr(BASE), 4 * CHUNK), RamBlock(PhysAddr(BASE + 8 * CHUNK), 0x3000)]


def test_bytes_come_back_across_chunks_and_unwritten_ram_is_zero() -> None:
    memory = SparseMemory(BLOCKS)
    data = bytes(range(256)) * 64
    memory.write(BASE + CHUNK - 100, data)
    assert memory.read(BASE + CHUNK - 101, len(data) + 2) == b"\0" + data + b"\0"
    assert memory.read(BASE + 2 * CHUNK, 5) == bytes(5)


@pytest.mark.parametrize(
    ("pa", "length"),
    [(BASE - 1, 2), (BASE + 4 * CHUNK - 1, 2), (BASE + 8 * CHUNK + 0x2FFF, 2), (0, 1), (-8, 8), (1 << 64, 8)],
)
def test_a_byte_outside_ram_is_an_error(pa: int, length: int) -> None:
    memory = SparseMemory(BLOCKS)
    with pytest.raises(MemoryReadError) as caught:
        memory.read(pa, length)
    assert (caught.value.pa, caught.value.length) == (pa, length)
    with pytest.raises(MemoryReadError):
        memory.write(pa, bytes(length))


def test_tables_are_read_in_bulk_and_those_outside_ram_say_so() -> None:
    memory = SparseMemory(BLOCKS)
    memory.write(BASE + 0x1000, np.arange(512, dtype="<u8").tobytes())
    memory.write(BASE + 0x2800, b"\x11" * 0x800)
    asked = np.array(
        [0x1000, BASE, BASE + 0x1000, BASE + 0x2800, BASE + 4 * CHUNK - 0x800, BASE + 8 * CHUNK + 0x2000],
        dtype=np.uint64,
    )
    raw, readable = memory.read_tables(asked, 0x1000)
    assert readable.tolist() == [False, True, True, True, False, True]
    assert raw.shape == (6, 512) and raw.dtype == np.uint64
    assert not raw[[0, 1, 4, 5]].any()
    assert raw[2].tolist() == list(range(512))
    assert raw[3, 0] == 0x1111_1111_1111_1111 and raw[3, 256] == 0
    assert raw[3].astype("<u8").tobytes() == memory.read(BASE + 0x2800, 0x1000)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=12),
    st.integers(0, 70),
    st.integers(1, 12),
)
def test_ranges_agree_with_a_set_of_addresses(blocks: list[tuple[int, int]], pa: int, length: int) -> None:
    ranges = Ranges.of_blocks(RamBlock(PhysAddr(start), size) for start, size in blocks)
    inside = {a for start, size in blocks for a in range(start, start + size)}
    expected = set(range(pa, pa + length)) <= inside
    assert ranges.contains(pa, length) is expected
    assert ranges.contains_each(np.array([pa], dtype=np.uint64), length).tolist() == [expected]


def test_ranges_do_not_wrap() -> None:
    ranges = Ranges.of_blocks([RamBlock(PhysAddr(0), 0x1000), RamBlock(PhysAddr((1 << 64) - 0x1000), 0x1000)])
    top = (1 << 64) - 8
    assert ranges.contains(top, 8) and not ranges.contains(top, 16)
    assert ranges.contains_each(np.array([top, top - 8], dtype=np.uint64), 16).tolist() == [False, True]
