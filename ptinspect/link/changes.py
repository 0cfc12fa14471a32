"""What a session changes in the guest's memory, and how that is undone: by it, or by a later one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Protocol

from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import GuestError, PtinspectError
from ptinspect.link.address import StubAddress
from ptinspect.link.journal import GUARD, PAINT, POKE, Change, Detour, Journal, attaching
from ptinspect.link.qemu.stub_probe import leave
from ptinspect.memory.source import PhysicalMemory

LOCK_SECONDS = 30.0
"""How long somebody who attaches at the same moment may take."""


class Guest(Protocol):
    """The part of a session that changing needs; see Session."""

    current_cpu: int

    @property
    def memory(self) -> PhysicalMemory: ...
    @property
    def cpu_count(self) -> int: ...
    def cpu_state(self, cpu: int) -> CpuState: ...
    def write_physical(self, *parts: tuple[int, bytes]) -> None: ...
    def gdb_command(self, line: str) -> str: ...


class Changes:
    """Change words of a stopped guest; each change is written down before it is made."""

    def __init__(self, guest: Guest, journal: Journal) -> None:
        self._guest, self._journal = guest, journal

    def made(self, what: str) -> tuple[Change, ...]:
        """Return the changes of one kind that are in the guest, the oldest first."""
        return tuple(change for change in self._journal.changes if change.what == what)

    def make(self, changes: Sequence[Change], detours: Iterable[Detour] = ()) -> None:
        """Change words, in this order. Raises TargetError, UserError."""
        self._journal.add(changes, detours)
        self._guest.write_physical(*((c.pa, _bytes(c.new, c) * c.count) for c in changes))

    def undo(self, changes: Sequence[Change]) -> int:
        """Put back the words that still hold what was written, in the opposite order; return how many.

        A CPU that is in code to be removed takes its detour first. Raises TargetError.
        """
        if any(change.what == GUARD and self._holds(change) for change in changes):
            self._lead_out()
        backwards = changes[::-1]
        together = [backwards] if _apart(changes) else [[change] for change in backwards]
        count = sum(self._put_back(part) for part in together)
        self._journal.remove(changes)
        return count

    def undo_all(self) -> Mapping[str, int]:
        """Put back all but pokes; return how many words of each kind there were. Raises TargetError."""
        counts = {what: self.undo(found) for what in (GUARD, PAINT) if (found := self.made(what))}
        return {what: count for what, count in counts.items() if count}

    def left_behind(self) -> list[str]:
        """Put back what an earlier session left in this guest; return a sentence about each.

        A guest that holds none of it is another one, or was started again. Raises TargetError.
        """
        found = [
            f"put back: {count} words of the {what} of an earlier session, which had no time to"
            for what, count in self.undo_all().items()
        ]
        for change in self.made(POKE):
            if self._holds(change):
                found.append(
                    f"pa:{change.pa:#x} holds {change.new:#x}, which an earlier session poked there "
                    f"in place of {change.old:#x}; poke undo takes it back"
                )
            else:
                self._journal.remove([change])
        return found

    def _holds(self, change: Change) -> bool:
        try:
            return self._guest.memory.read(change.pa, change.width) == _bytes(change.new, change)
        except GuestError:
            return False

    def _put_back(self, changes: Sequence[Change]) -> int:
        """Put back the words that hold what was written, all at once; return how many did."""
        parts, count = [], 0
        for change in changes:
            try:
                now = self._guest.memory.read(change.pa, change.width * change.count)
            except GuestError:  # no RAM there: another machine
                continue
            old, new = _bytes(change.old, change), _bytes(change.new, change)
            words = [now[at : at + change.width] for at in range(0, len(now), change.width)]
            if new in words:
                count += words.count(new)
                parts.append((change.pa, b"".join(old if word == new else word for word in words)))
        if parts:
            self._guest.write_physical(*parts)
        return count

    def _lead_out(self) -> None:
        """Let every CPU that is in ptinspect's code continue in the kernel's own."""
        guest, detours = self._guest, {detour.pc: detour for detour in self._journal.detours}
        chosen = guest.current_cpu
        for cpu in range(guest.cpu_count if detours else 0):
            detour = detours.get(guest.cpu_state(cpu).pc)
            if detour is None:
                continue
            guest.current_cpu = cpu
            if detour.x0:
                guest.gdb_command(f"set $x0 = ${detour.x0}")
            guest.gdb_command(f"set $pc = {detour.to:#x}")
        guest.current_cpu = chosen


def _apart(changes: Sequence[Change]) -> bool:
    """Tell whether no two changes have bytes in common."""
    areas = sorted((change.pa, change.pa + change.width * change.count) for change in changes)
    return all(one[1] <= other[0] for one, other in pairwise(areas))


def _bytes(value: int, change: Change) -> bytes:
    return value.to_bytes(change.width, "little")


def leave_as_found(address: StubAddress, running: bool | None, detach: Callable[[bool | None], None]) -> str:
    """Leave a guest whose debugger has died: what was changed is put back, and it runs if it ran.

    `running` None: the debugger died before it knew; the guest's monitor decides.

    `detach` attaches a session and leaves the guest by it, where registers may have to be changed. Returns
    what became of the guest.
    """
    try:
        if any(change.what != POKE for change in Journal.of(address).changes):
            detach(running)
        else:
            with attaching(address, LOCK_SECONDS):
                from ptinspect.link.relay import put_back

                put_back(address)
                leave(address, running, heard=running is not None, clear=running is not None)
    except PtinspectError as error:
        return f"the guest is not as it was found: {error.message}"
    return f"the guest was left {'running' if running else 'stopped'}"
