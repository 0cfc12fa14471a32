"""Open the lanes to guest memory that a stub's address allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ptinspect.memory.source import PhysicalMemory, RamBlock
from ptinspect.target.address import StubAddress
from ptinspect.target.laneerror import LaneError
from ptinspect.target.peer import listeners

if TYPE_CHECKING:
    from ptinspect.target.hostmem import HostMemory
    from ptinspect.target.lanes import Open

Monitor = Callable[[str], str]
"""Runs a command of QEMU's monitor and returns what it prints."""


def lanes(
    address: StubAddress, peer: int | None, ram: Sequence[RamBlock], monitor: Monitor
) -> dict[str, Open]:
    """Return the lanes beside the gdbstub, fastest first; `peer` is the process behind a Unix socket."""

    def host() -> PhysicalMemory:
        return _host(address, peer, ram, monitor)

    def saved() -> PhysicalMemory:
        from ptinspect.target.pmemsave import SavedMemory

        if not address.path and not listeners(address):
            raise LaneError("QEMU is not known to run on this machine")
        return SavedMemory(ram, monitor)

    return {"host": host, "pmemsave": saved}


def _host(address: StubAddress, peer: int | None, ram: Sequence[RamBlock], monitor: Monitor) -> HostMemory:
    from ptinspect.target.hostmem import HostMemory

    pids = listeners(address) if peer is None else [peer]
    if not pids:
        raise LaneError("no process of this machine is known to be behind the gdbstub")
    problem = LaneError("")
    for pid in pids:
        try:
            return HostMemory(pid, ram, monitor)
        except LaneError as error:
            problem = error
    raise problem
