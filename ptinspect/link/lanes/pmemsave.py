"""Guest-physical memory through files that QEMU's monitor writes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ptinspect.errors import MemoryReadError
from ptinspect.link.lanes.lanes import LaneError
from ptinspect.memory.ranges import Ranges
from ptinspect.memory.source import RamBlock
from ptinspect.processes import PrivateDirectory

GAP = 96 << 10
"""Bytes that are read and thrown away rather than asking once more."""
CHUNK = 64 << 20
"""Most bytes of one file."""
FAR_SECONDS = 0.008
"""An answer that takes longer comes from afar."""


class SavedMemory:
    """Read RAM by `pmemsave` into a private directory, on a file system shared with QEMU."""

    def __init__(self, ram: Sequence[RamBlock], monitor: Callable[[str], str]) -> None:
        """Make the directory and try it. Raises LaneError if QEMU does not write there, TargetError."""
        self._monitor = monitor
        self._ranges = Ranges.of_blocks(ram)
        self._folder = _directory()
        self.slow = ""
        """Why the gdbstub is the better way, which answers many requests at a time; empty if it is not."""
        try:
            seconds = min(self._try(ram[0]), self._try(ram[0]))
            if seconds > FAR_SECONDS:
                self.slow = f"each question takes {1000 * seconds:.0f} ms, which the gdbstub takes for many"
        except BaseException:
            self.close()
            raise

    @property
    def label(self) -> str:
        """Name the command."""
        return "pmemsave"

    def close(self) -> None:
        """Remove the directory. Safe to call twice."""
        self._folder.remove()

    def read(self, pa: int, length: int) -> bytes:
        """Return `length` bytes at `pa`. Raises MemoryReadError outside RAM, LaneError, TargetError."""
        if length == 0:
            return b""
        if not self._ranges.contains(pa, length):
            raise MemoryReadError(pa, length, "not in RAM")
        return b"".join(self._save(pa + at, min(CHUNK, length - at)) for at in range(0, length, CHUNK))

    def read_tables(
        self, addresses: NDArray[np.uint64], size: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Read many tables; see PhysicalMemory. What lies close together comes in one file."""
        readable = self._ranges.contains_each(addresses, size)
        raw = np.zeros((addresses.shape[0], size // 8), dtype=np.uint64)
        rows = np.nonzero(readable)[0]
        for part in self._groups(rows, addresses, size):
            first, last = int(addresses[part[0]]), int(addresses[part[-1]])
            data = np.frombuffer(self._save(first, last + size - first), dtype=np.uint8)
            offsets = (addresses[part] - np.uint64(first)).astype(np.int64)
            windows = np.lib.stride_tricks.sliding_window_view(data, size)
            raw[part] = windows[offsets].view("<u8")
        return raw, readable

    def _groups(
        self, rows: NDArray[np.intp], addresses: NDArray[np.uint64], size: int
    ) -> list[NDArray[np.intp]]:
        """Divide rows where a gap is wide, leaves RAM, or the file would grow too long."""
        groups: list[NDArray[np.intp]] = []
        if not rows.size:
            return groups
        wide = np.nonzero(np.diff(addresses[rows]) > size + GAP)[0] + 1
        for part in np.split(rows, wide):
            first, last = int(addresses[part[0]]), int(addresses[part[-1]])
            if last + size - first <= CHUNK and self._ranges.contains(first, last + size - first):
                groups.append(part)
            else:
                groups += [part[n : n + 1] for n in range(part.size)]
        return groups

    def _try(self, block: RamBlock) -> float:
        """Have a word of RAM written; return how long that took, seconds."""
        start = time.perf_counter()
        self._save(block.start, min(8, block.size))
        return time.perf_counter() - start

    def _save(self, pa: int, length: int) -> bytes:
        """Have QEMU write a range and return it. Raises LaneError, TargetError."""
        if not self._folder.path.is_dir():  # somebody has removed it
            self._folder.remove()
            self._folder = _directory()
        path = self._folder.path / "memory"
        path.unlink(missing_ok=True)
        answer = self._monitor(f'pmemsave {pa:#x} {length} "{path}"').strip()
        try:
            with path.open("rb") as file:
                data = file.read(length + 1)
        except OSError as error:
            raise LaneError(f"QEMU does not write files here: {answer or error.strerror}") from error
        if answer or len(data) != length:
            raise LaneError(f"QEMU wrote {len(data)} bytes instead of {length}: {answer}")
        return data


def _directory() -> PrivateDirectory:
    """Make a directory for QEMU's files, in memory if there is a place for that. Raises LaneError."""
    try:
        return PrivateDirectory("/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None)
    except OSError as error:
        raise LaneError(f"no directory for QEMU's files: {error.strerror}") from error
