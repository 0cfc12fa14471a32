"""Guest-physical memory straight from the RAM of the QEMU process on this machine."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptinspect.errors import MemoryReadError, TargetError
from ptinspect.memory.ranges import Ranges
from ptinspect.memory.source import RamBlock
from ptinspect.target.laneerror import GONE, LaneError

IOV_MAX = 1024
"""Most pieces of one call (Linux include/uapi/linux/uio.h, UIO_MAXIOV)."""
PROBES = 5
"""Places of a RAM block at which QEMU is asked for its own address."""
PAGE = 4096

_HVA = re.compile(r"Host virtual address for 0x[0-9a-f]+ \(.*\) is (0x[0-9a-f]+)")
_MAP = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.process_vm_readv.argtypes = [
    ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
]  # fmt: skip


@dataclass(frozen=True)
class HostBlock:
    """Say where a RAM block lies in QEMU's address space."""

    block: RamBlock
    """The block."""
    address: int
    """QEMU's own virtual address of its first byte."""


class HostMemory:
    """Read RAM by process_vm_readv(2): no round trip, no stop of QEMU."""

    def __init__(self, pid: int, ram: Sequence[RamBlock], monitor: Callable[[str], str]) -> None:
        """Ask QEMU where its RAM lies and make sure that process `pid` has it there.

        Raises LaneError with the reason if this memory cannot be read, TargetError.
        """
        self.pid = pid
        self._born = _stat(pid)[1]
        mapped = _mapped(pid)
        blocks = [HostBlock(block, _host_address(block, monitor)) for block in ram]
        for host in blocks:
            if not mapped.contains(host.address, host.block.size):
                raise LaneError(f"process {pid} does not hold the guest's {host.block.name or 'RAM'}")
        blocks.sort(key=lambda host: host.block.start)
        self._ranges = [Ranges([host.block]) for host in blocks]
        self._starts = np.array([host.block.start for host in blocks], dtype=np.uint64)
        self._lasts = np.array([host.block.end - 1 for host in blocks], dtype=np.uint64)
        with np.errstate(over="ignore"):
            self._shift = np.array([host.address for host in blocks], dtype=np.uint64) - self._starts
        _copy(pid, np.array([[blocks[0].address, 8]], dtype=np.uint64), np.empty(1, dtype=np.uint64))

    @property
    def label(self) -> str:
        """Name the way the bytes come."""
        return f"host RAM of QEMU (pid {self.pid})"

    def read(self, pa: int, length: int) -> bytes:
        """Return `length` bytes at `pa`. Raises MemoryReadError outside RAM, LaneError, TargetError."""
        if length == 0:
            return b""
        pieces = []
        at, end = pa, pa + length
        while at < end:
            slot = self._slot(at)
            if slot < 0:
                raise MemoryReadError(pa, length, "not in RAM")
            step = min(end, int(self._lasts[slot]) + 1) - at
            pieces.append(((at + int(self._shift[slot])) % (1 << 64), step))
            at += step
        out = np.empty(length, dtype=np.uint8)
        self._copy(np.array(pieces, dtype=np.uint64), out)
        return out.tobytes()

    def read_tables(
        self, addresses: NDArray[np.uint64], size: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Read many tables; see PhysicalMemory. A row that no single RAM block holds is unreadable."""
        slot = np.searchsorted(self._starts, addresses, side="right") - 1
        last = addresses + np.uint64(size - 1)
        readable: NDArray[np.bool_] = (slot >= 0) & (last >= addresses)
        readable &= last <= self._lasts[np.maximum(slot, 0)]
        whole = bool(readable.all())
        wanted, blocks = (addresses, slot) if whole else (addresses[readable], slot[readable])
        raw = np.empty((wanted.shape[0], size // 8), dtype=np.uint64)
        if wanted.shape[0]:
            self._copy(_pieces(wanted + self._shift[blocks], size), raw)
        if whole:
            return raw, readable
        out = np.zeros((addresses.shape[0], size // 8), dtype=np.uint64)
        out[readable] = raw
        return out, readable

    def _slot(self, pa: int) -> int:
        for number, ranges in enumerate(self._ranges):
            if ranges.contains(pa):
                return number
        return -1

    def _copy(self, pieces: NDArray[np.uint64], out: NDArray[np.uint8] | NDArray[np.uint64]) -> None:
        """Copy, and make sure that it was still this QEMU, alive and not stopped by a signal."""
        _copy(self.pid, pieces, out)
        state, born = _stat(self.pid)
        if born != self._born:
            raise LaneError(f"QEMU (pid {self.pid}) {GONE}")
        if state in "Tt":
            raise TargetError(
                f"QEMU (pid {self.pid}) is stopped by a signal or a debugger",
                f"kill -CONT {self.pid} lets it go on",
            )


def _pieces(hosts: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """Return (address, bytes) of the runs of neighbours, in order; shape (n, 2)."""
    breaks = np.nonzero(np.diff(hosts) != size)[0] + 1
    starts = np.concatenate([[0], breaks])
    counts = np.diff(np.concatenate([starts, [hosts.shape[0]]]))
    return np.stack([hosts[starts], counts.astype(np.uint64) * np.uint64(size)], axis=1)


def _copy(pid: int, pieces: NDArray[np.uint64], out: NDArray[np.uint8] | NDArray[np.uint64]) -> None:
    """Fill `out` with the pieces of another process's memory. Raises LaneError."""
    target, done = out.ctypes.data, 0
    for start in range(0, pieces.shape[0], IOV_MAX):
        part = np.ascontiguousarray(pieces[start : start + IOV_MAX])
        size = int(part[:, 1].sum())
        local = np.array([target + done, size], dtype=np.uint64)
        got = _libc.process_vm_readv(pid, local.ctypes.data, 1, part.ctypes.data, part.shape[0], 0)
        if got != size:
            raise LaneError(_reason(pid, ctypes.get_errno() if got < 0 else errno.EFAULT))
        done += size


def _reason(pid: int, code: int) -> str:
    if code == errno.ESRCH:
        return f"QEMU (pid {pid}) {GONE}"
    if code in (errno.EPERM, errno.EACCES):
        return f"reading the memory of process {pid} is not permitted (ptrace(2), access mode checking)"
    return f"process {pid}: {os.strerror(code)}"


def _host_address(block: RamBlock, monitor: Callable[[str], str]) -> int:
    """Return QEMU's address of a block, asked at several places of it. Raises LaneError, TargetError."""
    last = (block.size - 1) // PAGE * PAGE
    found = set()
    for offset in sorted({last * n // (PROBES - 1) // PAGE * PAGE for n in range(PROBES)}):
        text = monitor(f"gpa2hva {block.start + offset:#x}")
        match = _HVA.search(text)
        if match is None:
            raise LaneError(f"QEMU does not say where pa:{block.start + offset:#x} lies")
        found.add(int(match[1], 16) - offset)
    if len(found) != 1:
        raise LaneError(f"the block at pa:{block.start:#x} does not lie in one piece")
    return found.pop()


def _mapped(pid: int) -> Ranges:
    """Return what a process has mapped for reading. Raises LaneError."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    except OSError as error:
        raise LaneError(_reason(pid, error.errno or errno.EIO)) from error
    found = (_MAP.match(line) for line in lines)
    return Ranges(
        RamBlock(int(m[1], 16), int(m[2], 16) - int(m[1], 16))  # type: ignore[arg-type]
        for m in found
        if m is not None
    )


def _stat(pid: int) -> tuple[str, str]:
    """Return state and start time of a process (proc(5), stat). Raises LaneError if it has gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123 - a Path costs more
            words = file.read(4096).decode("ascii", "replace").rpartition(")")[2].split()
    except OSError as error:
        raise LaneError(f"QEMU (pid {pid}) {GONE}") from error
    if words[0] in "ZX":
        raise LaneError(f"QEMU (pid {pid}) {GONE}")
    return words[0], words[19]
