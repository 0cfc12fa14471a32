"""The lanes to guest memory beside the gdbstub: which there are for a QEMU at an address."""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.link.address import StubAddress
from ptinspect.link.lanes.hostmem import open_host
from ptinspect.link.lanes.lanes import Lane, LaneError, Open
from ptinspect.link.lanes.pmemsave import SavedMemory
from ptinspect.link.qemu.listener import listeners
from ptinspect.link.qemu.monitor import Monitor
from ptinspect.memory.source import RamBlock


def beside(
    address: StubAddress, peer: int | None, ram: Sequence[RamBlock], monitor: Monitor
) -> dict[str, Open]:
    """Return the lanes beside the gdbstub, fastest first; `peer` is the process at a Unix socket."""

    def host() -> Lane:
        return open_host(address, peer, ram, monitor)

    def saved() -> Lane:
        if not address.path and not listeners(address):
            raise LaneError("QEMU is not known to run on this machine")
        return SavedMemory(ram, monitor)

    return {"host": host, "pmemsave": saved}
