"""The reason why a lane cannot be used."""

from __future__ import annotations

from ptinspect.errors import TargetError

GONE = "has gone"
"""How the reason ends where there is no QEMU any more: the gdbstub says the same better."""


class LaneError(TargetError):
    """Report that a lane to guest memory cannot be used; another lane may."""
