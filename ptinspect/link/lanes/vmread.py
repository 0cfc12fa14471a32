"""Copy memory of another process by process_vm_readv(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ptinspect.link.lanes.laneerror import GONE, LaneError

IOV_MAX = 1024
"""Most pieces of one call (Linux include/uapi/linux/uio.h, UIO_MAXIOV)."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.process_vm_readv.argtypes = [
    ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
]  # fmt: skip


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
            raise LaneError(reason(pid, ctypes.get_errno() if got < 0 else errno.EFAULT))


def copy_few(pid: int, theirs: Sequence[tuple[int, int]], ours: Sequence[tuple[int, int]]) -> None:
    """Copy pieces (address, bytes) of process `pid` to pieces of ours that hold as much in all.

    The same as `copy`, without arrays: for a few pieces that takes a third of the time.
    """
    remote = struct.pack(f"{2 * len(theirs)}Q", *(word for piece in theirs for word in piece))
    local = struct.pack(f"{2 * len(ours)}Q", *(word for piece in ours for word in piece))
    got = _libc.process_vm_readv(pid, local, len(ours), remote, len(theirs), 0)
    if got != sum(size for _, size in theirs):
        raise LaneError(reason(pid, ctypes.get_errno() if got < 0 else errno.EFAULT))


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


def reason(pid: int, code: int) -> str:
    """Say in words why the memory of a process cannot be read; `code` is an errno."""
    if code == errno.ESRCH:
        return f"QEMU (pid {pid}) {GONE}"
    if code in (errno.EPERM, errno.EACCES):
        return f"reading the memory of process {pid} is not permitted (ptrace(2), access mode checking)"
    return f"process {pid}: {os.strerror(code)}"
