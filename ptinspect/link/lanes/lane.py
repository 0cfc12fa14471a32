"""One way to guest memory beside the gdbstub."""

from __future__ import annotations

from typing import Protocol

from ptinspect.errors import TargetError
from ptinspect.memory.source import PhysicalMemory


class LaneError(TargetError):
    """Report that a lane to guest memory cannot be used; another lane may."""


class QemuEnded(LaneError):
    """Report that QEMU has ended; the gdbstub explains that better."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"QEMU (pid {pid}) has ended")


class Lane(PhysicalMemory, Protocol):
    """Guest-physical memory that raises LaneError when it can be read no more."""

    def close(self) -> None:
        """Give back what is open. Safe to call twice."""
