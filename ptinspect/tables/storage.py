"""Where descriptors are kept: in memory, or if they are many in a mapped file without a name."""

from __future__ import annotations

import mmap
import os

import numpy as np
from numpy.typing import NDArray

from ptinspect.errors import UserError
from ptinspect.files import cache_directory

IN_MEMORY = 1 << 30
"""Bytes of descriptors that are kept in memory; more are the system's to write out when memory is short."""
MOST = 16 << 30
"""Bytes of descriptors that are kept at all: the tables of a guest of 8 TiB, page by page."""


def most_bytes() -> int:
    """Return how many bytes of descriptors there is room for: those in a file take half of what is free."""
    folder = cache_directory()
    while not folder.exists():
        folder = folder.parent
    disk = os.statvfs(folder)
    return max(IN_MEMORY, min(MOST, disk.f_bavail * disk.f_frsize // 2))


def zeros(count: int, words: int) -> NDArray[np.uint64]:
    """Return descriptors that are all 0, shape (count, words).

    Raises UserError if there is no room for them on the disk.
    """
    size = count * words * 8
    if size <= IN_MEMORY:
        return np.zeros((count, words), dtype=np.uint64)
    import tempfile

    folder = cache_directory()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(
                file.fileno(), 0, size
            )  # a hole that finds no room later would end the process
            room = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise UserError(
            f"no room for {size >> 20} MiB of tables in {folder}: {error.strerror or error}",
            "PTINSPECT_CACHE names another directory; --range or --max-tables captures less",
        ) from error
    return np.frombuffer(room, dtype=np.uint64).reshape(count, words)
