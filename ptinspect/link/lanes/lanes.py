"""Choose the fastest way to guest memory that can be trusted at this stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ptinspect.dataclass import dataclass, field
from ptinspect.errors import MemoryReadError, TargetError, UserError
from ptinspect.link.lanes.pages import StopPages
from ptinspect.link.lanes.stubmem import StubMemory
from ptinspect.memory.source import PhysicalMemory, far, has_rows, read_rows


class LaneError(TargetError):
    """Report that a lane to guest memory cannot be used; another lane may."""


class QemuEnded(LaneError):
    """Report that QEMU has ended; the gdbstub explains that better."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"QEMU (pid {pid}) has ended")


class Lane(PhysicalMemory, Protocol):
    """Guest-physical memory that raises LaneError when it can be read no more."""

    slow: str
    """Why the gdbstub is faster all the same; empty if it is not. Such a lane is used if it is named."""

    def close(self) -> None:
        """Give back what is open. Safe to call twice."""


PAGE = 4096
AUTO, STUB = "auto", "gdbstub"
MEASURED = 256 << 10
"""Bytes that are read to measure the speed of a lane."""

Open = Callable[[], Lane]
Read = TypeVar("Read")


@dataclass
class LaneFacts:
    """Describe the state of a lane."""

    name: str
    """host, pmemsave, gdbstub."""
    label: str = ""
    """What it reads; empty if it was never opened."""
    why_not: str = ""
    """Why it cannot be used; empty if it can."""
    chosen: bool = False
    bytes_per_second: float | None = None
    """Measured by reading RAM, or None."""


@dataclass
class _Lane:
    open: Open
    memory: Lane | None = None
    reads: PhysicalMemory | None = None
    """The same, with what was read already at this stop where reading takes long."""
    why_not: str = ""
    trusted: tuple[int, set[int]] = field(default_factory=lambda: (-1, set()))

    def close(self, why_not: str) -> None:
        """Use it no more until it is chosen again."""
        if self.memory is not None:
            self.memory.close()
        self.memory = self.reads = None
        self.why_not, self.trusted = why_not, (-1, set())


class LaneMemory:
    """Read guest memory by the first lane that works; the gdbstub always does.

    At every stop the first page read in each RAM block is compared with the gdbstub's. A lane that
    fails or differs is not used until it is chosen again.
    """

    def __init__(
        self, stub: StubMemory, lanes: Mapping[str, Open], token: Callable[[], int], guard: Callable[[], None]
    ) -> None:
        """`lanes`: fastest first, each opened at first use. `guard` raises TargetError if nothing is read."""
        self._stub = stub
        self._stub_reads = StopPages(stub, token)
        self._lanes = {name: _Lane(open_) for name, open_ in lanes.items()}
        self._token, self._guard = token, guard
        self.mode = AUTO
        """What the user chose: auto or the name of a lane."""
        self._filled: dict[int, int] = {}
        self._notices: list[str] = []

    @property
    def names(self) -> tuple[str, ...]:
        """The lanes, fastest first."""
        return (*self._lanes, STUB)

    @property
    def label(self) -> str:
        """Name the way the bytes come; nothing is asked while the guest runs."""
        try:
            return self._by_lane(lambda name: (self._largest(),), lambda memory: memory.label)
        except TargetError:
            return self._stub.label

    def choose(self, mode: str) -> None:
        """Use one lane, or the fastest (`auto`); what was dropped before is tried again.

        Raises UserError if the lane cannot be used, TargetError.
        """
        if mode != AUTO and mode not in self.names:
            raise UserError(f"no lane {mode!r}", f"one of: {AUTO}, {', '.join(self.names)}")
        self._guard()
        for lane in self._lanes.values():
            lane.why_not = ""
        before, self.mode = self.mode, mode
        if mode in self._lanes:
            memory = self._open(mode)
            try:
                works = memory is not None and self._check(mode, memory, self._largest(), note=False)
            except LaneError as error:
                self._drop(mode, error, note=False)
                works = False
            if not works:
                self.mode = before
                raise UserError(f"lane {mode} cannot be used: {self._lanes[mode].why_not}")

    def take_notices(self) -> tuple[str, ...]:
        """Return what happened to the lanes since the last call."""
        found, self._notices = tuple(self._notices), []
        return found

    def facts(self, measure: bool = True) -> list[LaneFacts]:
        """Return the state of every lane, with its measured speed. Raises TargetError."""
        self._guard()
        chosen = self._choose()[0]
        found = []
        for name in self.names:
            memory = self._stub if name == STUB else self._open(name)
            why_not = "" if name == STUB else self._why_not(name)
            facts = LaneFacts(name, memory.label if memory else "", why_not, chosen=name == chosen)
            if memory is not None and measure:
                try:
                    facts.bytes_per_second = self._speed(memory)
                except LaneError as error:
                    facts.why_not = error.message
            found.append(facts)
        return found

    def _why_not(self, name: str) -> str:
        """Return why a lane is not used; empty if it could be."""
        lane = self._lanes[name]
        slow = "" if lane.memory is None or self.mode != AUTO else lane.memory.slow
        return lane.why_not or slow

    def read(self, pa: int, length: int) -> bytes:
        """Return `length` bytes at `pa`. Raises MemoryReadError outside RAM, TargetError."""
        if length == 0:
            return b""
        return self._by_lane(lambda name: (pa, pa + length - 1), lambda memory: memory.read(pa, length))

    def read_tables(
        self, addresses: NDArray[np.uint64], size: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Read many tables; see PhysicalMemory."""
        return self._by_lane(
            lambda name: self._first_of_each_block(name, addresses),
            lambda memory: memory.read_tables(addresses, size),
        )

    def read_rows(
        self, addresses: NDArray[np.uint64], size: int, out: NDArray[np.uint64], rows: NDArray[np.intp]
    ) -> NDArray[np.bool_]:
        """Read many tables into rows of an array; see RowMemory."""
        readable = np.zeros(out.shape[0], dtype=np.bool_)
        self._by_lane(
            lambda name: self._first_of_each_block(name, addresses),
            lambda memory: read_rows(memory, addresses, size, (out, rows), readable),
        )
        return readable[rows]

    @property
    def far(self) -> bool:
        """Tell whether each read is a request; see AheadMemory."""
        return far(self._reads(self._choose()[0]))

    def read_ahead(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Read what is going to be read, where each request takes long; see AheadMemory."""

        def ahead(memory: PhysicalMemory) -> None:
            if far(memory):
                memory.read_ahead(ranges)

        self._by_lane(lambda name: [pa for pa, _ in ranges], ahead)

    def _by_lane(
        self, compared: Callable[[str], Iterable[int]], read: Callable[[PhysicalMemory], Read]
    ) -> Read:
        """Read by the first lane that agrees with the gdbstub at the addresses `compared`."""
        while True:
            self._guard()
            name, memory = self._choose()
            try:
                if self._check(name, memory, *compared(name)):
                    return read(self._reads(name))
            except LaneError as error:
                self._drop(name, error)

    def close(self) -> None:
        """Give back what the lanes hold."""
        for lane in self._lanes.values():
            lane.close("closed")

    # Choosing

    def _choose(self) -> tuple[str, PhysicalMemory]:
        for name in self._lanes if self.mode == AUTO else [self.mode]:
            memory = self._open(name) if name in self._lanes else None
            if memory is not None and (self.mode != AUTO or not memory.slow):
                return name, memory
        return STUB, self._stub

    def _reads(self, name: str) -> PhysicalMemory:
        """Return what reads by a lane: one that costs a request for each read remembers pages."""
        if name == STUB:
            return self._stub_reads
        lane = self._lanes[name]
        assert lane.memory is not None
        if lane.reads is None:
            asks = not has_rows(lane.memory)
            lane.reads = StopPages(lane.memory, self._token) if asks else lane.memory
        return lane.reads

    def _open(self, name: str) -> Lane | None:
        lane = self._lanes[name]
        if lane.why_not:
            return None
        if lane.memory is None:
            try:
                lane.memory = lane.open()
            except LaneError as error:
                lane.why_not = error.message
        return lane.memory

    def _drop(self, name: str, error: LaneError, *, note: bool = True) -> None:
        self._lanes[name].close(error.message)
        if note and not isinstance(error, QemuEnded):
            self._notices.append(
                f"memory lane {name} dropped: {error.message}; reading by {self._choose()[0]}"
            )

    # Trusting

    def _first_of_each_block(self, name: str, addresses: NDArray[np.uint64]) -> list[int]:
        """Return one of the addresses in each RAM block that was not compared yet at this stop."""
        if name == STUB or not addresses.size:
            return []
        found = []
        trusted = self._trusted(name)
        first, last = int(addresses[0]), int(addresses[-1])
        for number, block in enumerate(self._stub.ram):
            if number not in trusted and block.start <= last and first < block.end:
                at = int(np.searchsorted(addresses, np.uint64(block.start)))
                if at < addresses.size and int(addresses[at]) < block.end:
                    found.append(int(addresses[at]))
        return found

    def _trusted(self, name: str) -> set[int]:
        """Return the numbers of the RAM blocks that were compared at this stop."""
        lane, token = self._lanes[name], self._token()
        if lane.trusted[0] != token:
            lane.trusted = (token, set())
        return lane.trusted[1]

    def _check(self, name: str, memory: PhysicalMemory, *addresses: int, note: bool = True) -> bool:
        """Compare pages with the gdbstub; drop the lane and return False if one differs.

        A page of zeros proves little: one that held something before, in the same block, is compared too.
        """
        if name == STUB:
            return True
        trusted = self._trusted(name)
        for pa in addresses:
            number = self._block(pa)
            if number is None or number in trusted:
                continue
            pages = {pa & -PAGE, self._filled.get(number, int(self._stub.ram[number].start) & -PAGE)}
            differs = self._differing(number, memory, sorted(pages))
            if differs is not None:
                self._drop(name, LaneError(f"it differs from the gdbstub at pa:{differs:#x}"), note=note)
                return False
            trusted.add(number)
        return True

    def _differing(self, number: int, memory: PhysicalMemory, pages: list[int]) -> int | None:
        """Return the first of the pages of a RAM block that the gdbstub reads otherwise, or None.

        The lane reads first: it reports a stopped QEMU at once, where the gdbstub waits for it.
        """
        block = self._stub.ram[number]
        ranges = [(max(page, int(block.start)), min(page + PAGE, block.end)) for page in pages]
        sizes = [(start, end - start) for start, end in ranges]
        try:
            found = [memory.read(*size) for size in sizes]
        except MemoryReadError as error:
            return error.pa & -PAGE
        for page, ours, truth in zip(pages, found, self._stub.read_several(sizes), strict=True):
            if any(truth):
                self._filled[number] = page
            if ours != truth:
                return page
        return None

    def _block(self, pa: int) -> int | None:
        return next((n for n, block in enumerate(self._stub.ram) if block.contains(pa)), None)

    def _largest(self) -> int:
        """Return the first address of the largest RAM block."""
        return int(max(self._stub.ram, key=lambda block: block.size).start)

    def _speed(self, memory: PhysicalMemory) -> float:
        pa = self._largest()
        length = next(min(MEASURED, block.end - pa) for block in self._stub.ram if block.contains(pa))
        memory.read(pa, min(PAGE, length))
        start = time.perf_counter()
        memory.read(pa, length)
        return length / max(time.perf_counter() - start, 1e-9)
