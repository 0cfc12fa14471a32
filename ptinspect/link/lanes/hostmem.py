"""Guest-physical memory straight from the RAM of the QEMU process on this machine."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptinspect.errors import MemoryReadError, TargetError
from ptinspect.link.address import StubAddress
from ptinspect.link.lanes.lanes import LaneError, QemuEnded
from ptinspect.link.qemu.listener import listeners
from ptinspect.memory.ranges import Ranges
from ptinspect.memory.source import RamBlock

FEW = 16
"""Tables that are not worth being joined."""
PROBES = 2
"""Places of a RAM block at which QEMU is asked for its own address."""
PAGE = 4096
IOV_MAX = 1024
"""Most pieces of one call (Linux include/uapi/linux/uio.h, UIO_MAXIOV)."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.process_vm_readv.argtypes = [
    ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
]  # fmt: skip
_HVA = re.compile(r"Host virtual address for 0x[0-9a-f]+ \(.*\) is (0x[0-9a-f]+)")
_MAP = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) r", re.MULTILINE)


class ProcessState:
    """Follow one process; a later one of the same number is not taken for it.

    The open file of proc(5) belongs to the process, not to its number: reading it fails (ESRCH) once
    that process has ended, whoever has the number then.
    """

    def __init__(self, pid: int) -> None:
        """Open its file. Raises LaneError if there is no such process."""
        self.pid = pid
        try:
            self._file = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise QemuEnded(pid) from error

    def read(self) -> str:
        """Return the letter of the state (proc(5), stat). Raises LaneError if the process has ended."""
        try:
            words = os.pread(self._file, 1024, 0)
        except OSError as error:
            raise QemuEnded(self.pid) from error
        state = words[words.rfind(b")") + 2 :][:1].decode("ascii", "replace")
        if state in "ZX":
            raise QemuEnded(self.pid)
        return state

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class HostMemory:
    """Read RAM by process_vm_readv(2): no round trip, no stop of QEMU."""

    slow = ""
    """Never."""

    def __init__(self, pid: int, ram: Sequence[RamBlock], monitor: Callable[[str], str]) -> None:
        """Ask QEMU where its RAM lies and make sure that process `pid` has it there.

        Raises LaneError with the reason if this memory cannot be read, TargetError.
        """
        self.pid = pid
        self._state = ProcessState(pid)
        try:
            self._locate_ram(ram, monitor)
        except BaseException:
            self.close()
            raise

    def _locate_ram(self, ram: Sequence[RamBlock], monitor: Callable[[str], str]) -> None:
        mapped = _mapped(self.pid)
        blocks = sorted(ram, key=lambda block: block.start)
        largest = max(blocks, key=lambda block: block.size)
        if all(end - start < largest.size for start, end in mapped.pairs()):  # another's process: no QEMU
            raise LaneError(f"process {self.pid} does not hold the guest's {largest.name or 'RAM'}")
        addresses = [_host_address(block, monitor) for block in blocks]
        for block, address in zip(blocks, addresses, strict=True):
            if not mapped.contains(address, block.size):
                raise LaneError(f"process {self.pid} does not hold the guest's {block.name or 'RAM'}")
        self._firsts = [int(block.start) for block in blocks]
        self._lasts = [block.end - 1 for block in blocks]
        self._shifts = [(a - b.start) % (1 << 64) for a, b in zip(addresses, blocks, strict=True)]
        word = np.empty(1, dtype=np.uint64)
        copy_few(self.pid, [(addresses[0], 8)], [(word.ctypes.data, 8)])

    @property
    def label(self) -> str:
        """Name the process."""
        return f"host RAM of QEMU (pid {self.pid})"

    def close(self) -> None:
        """Give back what is open. Safe to call twice."""
        self._state.close()

    def read(self, pa: int, length: int) -> bytes:
        """Return `length` bytes at `pa`. Raises MemoryReadError outside RAM, LaneError, TargetError."""
        if length == 0:
            return b""
        pieces = []
        at, end = pa, pa + length
        while at < end:
            block = self._block(at)
            if block < 0:
                raise MemoryReadError(pa, length, "not in RAM")
            step = min(end, self._lasts[block] + 1) - at
            pieces.append(((at + self._shifts[block]) % (1 << 64), step))
            at += step
        out = ctypes.create_string_buffer(length)
        copy_few(self.pid, pieces, [(ctypes.addressof(out), length)])
        self._check()
        return out.raw

    def read_tables(
        self, addresses: NDArray[np.uint64], size: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Read many tables; see PhysicalMemory. A row that no single RAM block holds is unreadable."""
        raw = np.empty((addresses.shape[0], size // 8), dtype=np.uint64)
        return raw, self.read_rows(addresses, size, raw, None)

    def read_rows(
        self, addresses: NDArray[np.uint64], size: int, out: NDArray[np.uint64], rows: NDArray[np.intp] | None
    ) -> NDArray[np.bool_]:
        """Read tables straight into rows of an array, or in order (None); see RowMemory."""
        count, stride = addresses.shape[0], out.shape[1] * 8
        if not out.flags.c_contiguous or size > stride:
            raise ValueError("the rows do not lie in the array")
        if count == 0:
            return np.zeros(0, dtype=np.bool_)
        block = self._block(int(addresses[0]))
        one = block >= 0 and int(addresses[-1]) + size - 1 <= self._lasts[block]
        if one and count <= FEW:
            places = range(count) if rows is None else rows.tolist()
            if not 0 <= min(places) <= max(places) < out.shape[0]:
                raise ValueError("the rows do not lie in the array")
            base, shift = out.ctypes.data, self._shifts[block]
            theirs = [((pa + shift) % (1 << 64), size) for pa in addresses.tolist()]
            copy_few(self.pid, theirs, [(base + stride * row, size) for row in places])
            self._check()
            return np.ones(count, dtype=np.bool_)
        return self._read_many(addresses, size, out, np.arange(count) if rows is None else rows)

    def _read_many(
        self, addresses: NDArray[np.uint64], size: int, out: NDArray[np.uint64], rows: NDArray[np.intp]
    ) -> NDArray[np.bool_]:
        if not 0 <= int(rows.min()) <= int(rows.max()) < out.shape[0]:
            raise ValueError("the rows do not lie in the array")
        block = np.searchsorted(np.array(self._firsts, dtype=np.uint64), addresses, side="right") - 1
        last = addresses + np.uint64(size - 1)
        readable: NDArray[np.bool_] = (block >= 0) & (last >= addresses)
        readable &= last <= np.array(self._lasts, dtype=np.uint64)[block]
        if not readable.all():
            out[rows[~readable]] = 0
            addresses, block, rows = addresses[readable], block[readable], rows[readable]
        theirs = addresses + np.array(self._shifts, dtype=np.uint64)[block]
        ours = rows.astype(np.uint64) * np.uint64(out.shape[1] * 8) + np.uint64(out.ctypes.data)
        copy(self.pid, theirs, ours, size)
        self._check()
        return readable

    def _block(self, pa: int) -> int:
        """Return the number of the block that holds an address; -1 if none does."""
        block = bisect_right(self._firsts, pa) - 1
        return block if block >= 0 and pa <= self._lasts[block] else -1

    def _check(self) -> None:
        """Make sure that it was still this QEMU, alive and not stopped by a signal."""
        if self._state.read() in "Tt":
            raise TargetError(
                f"QEMU (pid {self.pid}) is stopped by a signal or a debugger",
                f"kill -CONT {self.pid} lets it continue",
            )


def questions(block: RamBlock) -> dict[int, str]:
    """Return offsets in a block, and what QEMU's monitor is asked to learn where its memory is there."""
    last = (block.size - 1) // PAGE * PAGE
    offsets = sorted({last * n // (PROBES - 1) // PAGE * PAGE for n in range(PROBES)})
    return {offset: f"gpa2hva {block.start + offset:#x}" for offset in offsets}


def _host_address(block: RamBlock, monitor: Callable[[str], str]) -> int:
    """Return QEMU's address of a block, asked at several places of it. Raises LaneError, TargetError."""
    found = set()
    for offset, question in questions(block).items():
        match = _HVA.search(monitor(question))
        if match is None:
            raise LaneError(f"QEMU does not tell where pa:{block.start + offset:#x} lies")
        found.add(int(match[1], 16) - offset)
    if len(found) != 1:
        raise LaneError(f"the block at pa:{block.start:#x} does not lie in one piece")
    return found.pop()


def _mapped(pid: int) -> Ranges:
    """Return what a process has mapped for reading. Raises LaneError."""
    try:
        text = Path(f"/proc/{pid}/maps").read_bytes()
    except OSError as error:
        raise _failed(pid, error.errno or errno.EIO) from error
    return Ranges.of_pairs([(int(start, 16), int(end, 16)) for start, end in _MAP.findall(text)])


def copy(pid: int, theirs: NDArray[np.uint64], ours: NDArray[np.uint64], size: int) -> None:
    """Copy `size` bytes from each address of process `pid` to the address of ours in the same place.

    Our memory must be there and writable: nothing checks it. Raises LaneError if not all can be read.
    """
    for start in range(0, theirs.shape[0], IOV_MAX):
        part = slice(start, start + IOV_MAX)
        remote, local = _joined(theirs[part], size), _joined(ours[part], size)
        got = _libc.process_vm_readv(
            pid, local.ctypes.data, local.shape[0], remote.ctypes.data, remote.shape[0], 0
        )
        if got != size * theirs[part].shape[0]:
            raise _failed(pid, ctypes.get_errno() if got < 0 else errno.EFAULT)


def copy_few(pid: int, theirs: Sequence[tuple[int, int]], ours: Sequence[tuple[int, int]]) -> None:
    """Copy pieces (address, bytes) of process `pid` to pieces of ours that hold as much in all.

    The same as `copy`, without arrays: for a few pieces that takes a third of the time.
    """
    remote = struct.pack(f"{2 * len(theirs)}Q", *(word for piece in theirs for word in piece))
    local = struct.pack(f"{2 * len(ours)}Q", *(word for piece in ours for word in piece))
    got = _libc.process_vm_readv(pid, local, len(ours), remote, len(theirs), 0)
    if got != sum(size for _, size in theirs):
        raise _failed(pid, ctypes.get_errno() if got < 0 else errno.EFAULT)


def _joined(addresses: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """Return (address, bytes) of the runs of neighbours, or of each one where few are; shape (n, 2)."""
    count = addresses.shape[0]
    breaks = np.nonzero(addresses[1:] - addresses[:-1] != size)[0]
    if breaks.shape[0] > count // 2:
        found = np.empty((count, 2), dtype=np.uint64)
        found[:, 0] = addresses
        found[:, 1] = size
        return found
    bounds = np.concatenate([[0], breaks + 1, [count]])
    found = np.empty((bounds.shape[0] - 1, 2), dtype=np.uint64)
    found[:, 0] = addresses[bounds[:-1]]
    found[:, 1] = (bounds[1:] - bounds[:-1]) * size
    return found


def _failed(pid: int, code: int) -> LaneError:
    """Return why the memory of a process cannot be read; `code` is an errno."""
    if code == errno.ESRCH:
        return QemuEnded(pid)
    if code in (errno.EPERM, errno.EACCES):
        return LaneError(
            f"reading the memory of process {pid} is not permitted (ptrace(2), access mode checking)"
        )
    return LaneError(f"process {pid}: {os.strerror(code)}")


def open_host(
    address: StubAddress, peer: int | None, ram: Sequence[RamBlock], monitor: Callable[[str], str]
) -> HostMemory:
    """Return the memory of the process behind a stub: `peer`, or one that listens there.

    Raises LaneError with the reason if there is none, TargetError.
    """
    pids = listeners(address) if peer is None else [peer]
    if not pids:
        raise LaneError("no process of this machine is known to serve the gdbstub")
    problem = LaneError("")
    for pid in pids:
        try:
            return HostMemory(pid, ram, monitor)
        except LaneError as error:
            problem = error
    raise problem
