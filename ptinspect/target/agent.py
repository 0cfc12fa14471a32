"""The other side of gdbscripts/ptinspect_agent.py, which runs inside GDB."""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from pathlib import Path

from ptinspect.errors import MiError, TargetError
from ptinspect.target.mitext import quote
from ptinspect.target.process import GdbProcess

SCRIPT = "ptinspect_agent.py"
BYTES_PER_SECOND = 500_000
"""Slowest link for which a batch is given time."""
BASE_SECONDS = 10.0
WRITE_CHUNK = 64 << 10


def script_path() -> Path:
    """Return the script for GDB: in the installed package, or beside it in a source tree.

    Raises TargetError if it is in neither place.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "gdbscripts", package.parent / "gdbscripts"):
        if (folder / SCRIPT).is_file():
            return folder / SCRIPT
    raise TargetError(f"{SCRIPT} is missing from this installation of ptinspect")


class Agent:
    """Read and write guest-physical memory in batches."""

    def __init__(self, gdb: GdbProcess) -> None:
        """Load the script into GDB. Raises TargetError."""
        self._gdb = gdb
        self.pipelined = True
        """Use the socket's pipeline where the script finds the socket; False: GDB's own requests."""
        gdb.request(f"-interpreter-exec console {quote(f'source {script_path()}')}", BASE_SECONDS)

    def read(self, ranges: Sequence[tuple[int, int]]) -> bytes:
        """Return the bytes of the ranges (pa, size), one behind the other, in one round trip.

        An address without RAM reads as zeros: check before. Raises TargetError.
        """
        total = sum(size for _, size in ranges)
        text = ",".join(f"{pa:x}:{size:x}" for pa, size in ranges)
        way = "" if self.pipelined else " gdb"
        reply = self._gdb.request(f"-ptinspect-read {text}{way}", BASE_SECONDS + total / BYTES_PER_SECOND)
        try:
            data = binascii.a2b_base64(reply.field("data"), strict_mode=True)
        except binascii.Error as error:
            raise MiError(f"GDB's answer to a read of {total} bytes is damaged: {error}") from error
        if len(data) != total:
            raise MiError(f"GDB's answer to a read of {total} bytes holds {len(data)}")
        return data

    def write(self, pa: int, data: bytes) -> None:
        """Write bytes at a guest-physical address. Raises TargetError."""
        for start in range(0, len(data), WRITE_CHUNK):
            part = data[start : start + WRITE_CHUNK]
            self._gdb.request(f"-ptinspect-write {pa + start:x} {part.hex()}", BASE_SECONDS)

    def leave_physical_mode(self) -> bool:
        """Switch the stub to virtual addresses and flush GDB's caches; return whether pipelining works."""
        return self._gdb.request("-ptinspect-virtual", BASE_SECONDS).field("wire") == b"yes"
