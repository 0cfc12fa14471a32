"""Pages of a stopped guest: each is read once a stop, whole; nothing is kept when the guest has run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sparse_memory import SparseMemory

from ptinspect.arch.bits import PhysAddr
from ptinspect.errors import MemoryReadError
from ptinspect.link.lanes import pages
from ptinspect.link.lanes.pages import PAGE, StopPages
from ptinspect.memory.source import RamBlock, far

START, SIZE = 0x4000_0000, 64 * PAGE + 100
RAM = (RamBlock(PhysAddr(START), SIZE, "ram"), RamBlock(PhysAddr(0x8000_0000), PAGE, "high"))


class Far:
    """Memory that notes what is asked of it."""

    label = "far"

    def __init__(self) -> None:
        self.memory = SparseMemory(RAM)
        self.memory.write(START, np.random.default_rng(1).bytes(SIZE))
        self.asked: list[Any] = []

    def read(self, pa: int, length: int) -> bytes:
        self.asked.append((pa, length))
        return self.memory.read(pa, length)

    def read_tables(self, addresses: Any, size: int) -> Any:
        self.asked.append((addresses.tolist(), size))
        return self.memory.read_tables(addresses, size)


class Stop:
    """Its pages at a stop."""

    def __init__(self) -> None:
        self.far, self.token = Far(), 1
        self.pages = StopPages(self.far, lambda: self.token)


def tables(*numbers: int) -> Any:
    return np.array([START + n * PAGE for n in numbers], dtype=np.uint64)


def test_words_of_a_page_cost_one_request() -> None:
    stop = Stop()
    for at in (0x2008, 0x2010, 0x2FF8, 0x2000):
        assert stop.pages.read(START + at, 8) == stop.far.memory.read(START + at, 8)
    assert stop.far.asked == [([START + 0x2000], PAGE)]


def test_a_range_costs_one_request_for_what_is_missing() -> None:
    stop = Stop()
    stop.pages.read(START + 0x2000, 8)
    assert stop.pages.read(START + 0x1FF0, 0x2020) == stop.far.memory.read(START + 0x1FF0, 0x2020)
    assert stop.far.asked[1:] == [([START + 0x1000, START + 0x3000, START + 0x4000], PAGE)]


def test_tables_and_words_are_the_same_pages() -> None:
    stop = Stop()
    raw, readable = stop.pages.read_tables(tables(1, 2, 9), PAGE)
    again, _ = stop.pages.read_tables(tables(2, 3, 9), PAGE)
    assert readable.all() and (again[[0, 2]] == raw[[1, 2]]).all()
    assert again.tobytes() == b"".join(stop.far.memory.read(int(pa), PAGE) for pa in tables(2, 3, 9))
    stop.pages.read(START + 0x3008, 8)
    large, _ = stop.pages.read_tables(tables(0, 2), 2 * PAGE)
    assert large.tobytes() == b"".join(stop.far.memory.read(int(pa), 2 * PAGE) for pa in tables(0, 2))
    assert [asked for asked, _ in stop.far.asked] == [tables(*n).tolist() for n in ([1, 2, 9], [3], [0])]


def test_a_new_stop_and_a_write_forget() -> None:
    stop = Stop()
    stop.pages.read(START, 8)
    stop.far.memory.write(START, b"changed!")
    assert stop.pages.read(START, 8) != b"changed!"
    stop.token += 1
    assert stop.pages.read(START, 8) == b"changed!"


def test_what_is_read_ahead_is_not_asked_for_again() -> None:
    stop = Stop()
    assert far(stop.pages) and not far(stop.far.memory)
    stop.pages.read_ahead([(START + 8, 8), (START + 0x5FFF, 2), (0x7000_0000, 8), (START + SIZE - 4, 8)])
    assert len(stop.far.asked) == 1
    for at in (0x10, 0x5008, 0x6008):
        assert stop.pages.read(START + at, 8) == stop.far.memory.read(START + at, 8)
    assert len(stop.far.asked) == 1


def test_the_border_of_ram_within_a_page() -> None:
    stop = Stop()
    end = START + SIZE
    assert stop.pages.read(end - 8, 8) == stop.far.memory.read(end - 8, 8)
    assert stop.pages.read(end - PAGE, PAGE) == stop.far.memory.read(end - PAGE, PAGE)
    for pa, length in ((end - 4, 8), (end, 8), (0, 8), (-8, 8), (1 << 64, 8), ((1 << 64) - 4, 8)):
        with pytest.raises(MemoryReadError):
            stop.pages.read(pa, length)
    raw, readable = stop.pages.read_tables(tables(0, 64, 65), PAGE)
    assert readable.tolist() == [True, False, False] and not raw[1:].any()
    assert stop.pages.read(START, 0) == b""


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST", 4)
    monkeypatch.setattr(pages, "LARGE", 8 * PAGE)
    stop = Stop()
    stop.pages.read_tables(tables(*range(16)), PAGE)
    stop.pages.read(START, 9 * PAGE)
    assert not stop.pages._pages()
    for n in range(6):
        assert stop.pages.read(START + n * PAGE, 8) == stop.far.memory.read(START + n * PAGE, 8)
    assert len(stop.pages._pages()) == 4


def test_tables_that_are_no_pages_are_passed_on() -> None:
    stop = Stop()
    raw, _ = stop.pages.read_tables(np.array([START + 64, START + 0x200], dtype=np.uint64), 64)
    assert raw.tobytes() == stop.far.memory.read(START + 64, 64) + stop.far.memory.read(START + 0x200, 64)
    assert not stop.pages._pages()
