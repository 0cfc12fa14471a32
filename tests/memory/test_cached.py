"""What is remembered, and for how long."""

from __future__ import annotations

import numpy as np
import pytest
from sparse_memory import SparseMemory

from ptinspect.arch.bits import PhysAddr
from ptinspect.errors import MemoryReadError
from ptinspect.memory import cached
from ptinspect.memory.cached import CachedMemory
from ptinspect.memory.source import RamBlock

BASE = 0x4000_0000


@pytest.fixture
def memory() -> SparseMemory:
    memory = SparseMemory([RamBlock(PhysAddr(BASE), 0x1_0800)])
    memory.write(BASE, bytes(range(256)) * 0x108)
    return memory


def test_a_page_is_read_once_until_the_guest_has_run(memory: SparseMemory) -> None:
    stop = [1]
    fast = CachedMemory(memory, lambda: stop[0])
    for pa, length in ((BASE + 8, 8), (BASE + 16, 8), (BASE, 4096), (BASE + 8, 0)):
        assert fast.read(pa, length) == memory.read(pa, length)
    memory.reads = 0
    fast.read(BASE + 24, 8)
    assert memory.reads == 0
    memory.write(BASE + 24, b"x" * 8)
    assert fast.read(BASE + 24, 8) != b"x" * 8
    stop[0] = 2
    assert fast.read(BASE + 24, 8) == b"x" * 8


def test_reads_across_pages_and_at_the_end_of_ram_are_right(memory: SparseMemory) -> None:
    fast = CachedMemory(memory, lambda: 0)
    for pa, length in ((BASE + 0xFFC, 8), (BASE + 0x1, 0x5000), (BASE + 0x1_07F8, 8), (BASE + 0xFFF8, 16)):
        assert fast.read(pa, length) == memory.read(pa, length)
    for pa, length in ((BASE - 4, 8), (BASE + 0x1_07FC, 8), (0, 8)):
        with pytest.raises(MemoryReadError) as caught:
            fast.read(pa, length)
        assert (caught.value.pa, caught.value.length) == (pa, length)


def test_what_is_remembered_is_bounded(memory: SparseMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "MAX_PAGES", 3)
    fast = CachedMemory(memory, lambda: 0)
    for page in range(10):
        fast.read(BASE + page * 4096, 8)
        assert len(fast._pages) <= 3


def test_tables_go_straight_through(memory: SparseMemory) -> None:
    fast = CachedMemory(memory, lambda: 0)
    assert fast.label == memory.label
    raw, readable = fast.read_tables(np.array([BASE], dtype=np.uint64), 4096)
    assert readable.all() and raw[0].astype("<u8").tobytes() == memory.read(BASE, 4096)
