"""What an expression may ask of the guest, of a snapshot, or of the kernel file alone."""

from __future__ import annotations

from functools import cached_property

from ptinspect.arch.bits import MASK64
from ptinspect.errors import GuestError, KernelFileError, PtinspectError, UserError
from ptinspect.guest.expression import address
from ptinspect.guest.expressions.c_evaluator import Variable
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import cpu_state, located, names_at_hand, spelling
from ptinspect.linux.image.c_types import CTypes

MOST_AHEAD = 64 << 10
"""Bytes that are read at once."""
CODE = "tTwW"


class GuestScope:
    """Answer for a guest that is stopped, for a snapshot, or for a kernel file."""

    def __init__(self, guest: Guest, cpu: int | None = None, snap: str | None = None) -> None:
        self._guest, self._cpu, self._snap = guest, cpu, snap
        names = self.names = names_at_hand(guest, cpu, snap)
        self.symbol, self.physical, self.register = names.symbol, names.physical, names.register
        self._ahead: tuple[int, bool, bytes] = (0, False, b"")

    @cached_property
    def types(self) -> CTypes:
        """The types of the kernel file, or of the language alone."""
        if self._guest.kernel is None:
            return CTypes(None, "the kernel's types need the kernel file")
        try:
            return CTypes(self._guest.kernel.types)
        except KernelFileError as error:
            return CTypes(None, error.message)

    def spelling(self, name: str) -> str:
        """Return how GDB spells a register."""
        return spelling(self._guest, cpu_state(self._guest, self._cpu), name)

    def variable(self, name: str) -> Variable | None:
        """Return a variable: one that each CPU has is the chosen CPU's."""
        kernel = self._guest.kernel
        if kernel is None or name not in kernel.symbols or kernel.kind_of(name) in CODE:
            return None
        known = self.types.variable(name)
        if known is None:
            return None
        kind, each = known
        if self._snap or self._guest.state != "stopped":
            return None if each else Variable(kind, self.symbol(name), physical=False)
        at = located(self._guest, address(name), self._cpu)
        if not each:
            return Variable(kind, at.address, at.physical)
        from ptinspect.linux.running.tasks import per_cpu_offset

        offset = per_cpu_offset(cpu_state(self._guest, self._cpu))
        return Variable(kind, (at.address + offset) & MASK64, physical=False)

    def task(self) -> int:
        """Return the address of the task that the chosen CPU runs."""
        from ptinspect.linux.running.tasks import Tasks

        if self._snap:
            raise UserError("$current: a snapshot does not tell which task ran")
        found = Tasks(self._guest.view).current(cpu_state(self._guest, self._cpu))
        if found is None:
            raise GuestError("$current: it is not known which task runs", "stack tasks lists them")
        return found.address

    def read(self, address: int, length: int, *, physical: bool) -> bytes:
        """Return what memory holds. Raises GuestError where it cannot be read."""
        start, flat, data = self._ahead
        if physical == flat and start <= address and address + length <= start + len(data):
            return data[address - start : address - start + length]
        if self._snap:
            return self._captured(address, length, physical)
        physical = physical or self._guest.is_flat(address)
        self._guest.require("a value in memory", stopped=True)
        found, missing = self._guest.read(address, length, physical=physical)
        if missing or len(found) < length:
            raise GuestError(missing or f"{address:#x}: {length} bytes cannot be read")
        return found

    def read_ahead(self, address: int, length: int, *, physical: bool) -> None:
        """Have what follows answered by one read, if it can be read."""
        try:
            data = self.read(address, min(length, MOST_AHEAD), physical=physical)
        except PtinspectError:
            return
        self._ahead = (address, physical, data)

    def _captured(self, address: int, length: int, physical: bool) -> bytes:
        from ptinspect.snapshot.memory import SnapshotMemory
        from ptinspect.tables.walk import walk

        assert self._snap is not None
        snapshot = self._guest.snapshot_or_file(self._snap)
        memory = SnapshotMemory(snapshot)
        pa: int | None = address
        if not physical:
            pa = walk(memory, address, snapshot.root.pa, snapshot.regime).pa
        if pa is None:
            raise GuestError(f"{address:#x} is not mapped in snapshot {snapshot.name!r}")
        return memory.read(pa, length)
