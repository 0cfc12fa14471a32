"""Breakpoints as GDB keeps them, and the count of the few in hardware that a guest under KVM has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Unpack

from ptinspect.dataclass import replace
from ptinspect.errors import MiError, OutOfSlots
from ptinspect.link.gdb.mi import SECONDS, GdbLink, console, quote
from ptinspect.link.gdb.slots import (
    Capacity,
    Held,
    Kind,
    Purpose,
    Usage,
    capacity_of,
    missing,
    shortage,
    used,
    watch_fault,
)
from ptinspect.link.state import Breakpoint, Manner, RunTracker

MOST = 16
"""Slots of a kind that an arm64 CPU can have (Arm ARM D19.2.59, ID_AA64DFR0_EL1)."""
NOWHERE = 0xFFFF_FFFF_FFFF_0000
"""Where the stub is asked how many it takes: addresses that hold no code and no data."""
_FAILED = re.compile(r"insert hardware (?:breakpoint|watchpoint) (\d+)")
_WATCHED = re.compile(r"\[(\d+)\]\)\s*(0x[0-9a-f]+)")
_AT = re.compile(r"\*\s*\([^0-9].*\)\s*(0x[0-9a-f]+)")
"""What is watched, as `*(TYPE *) ADDRESS`."""


def insert_breakpoint(
    gdb: GdbLink, address: int, *, enabled: bool = True, **manner: Unpack[Manner]
) -> Breakpoint:
    """Set a breakpoint on a value of the program counter. Raises MiError with GDB's reason."""
    cpu, condition = manner.get("cpu"), manner.get("condition")
    words = ["-break-insert"]
    words += [] if enabled else ["-d"]
    words += ["-t"] if manner.get("temporary") else []
    words += ["-h"] if manner.get("hardware", True) else []
    words += ["-p", str(cpu + 1)] if cpu is not None else []
    words += ["-c", quote(condition)] if condition else []
    payload = gdb.request(" ".join([*words, f"*{address:#x}"]), SECONDS).payload
    fields = payload.get("bkpt")
    found = _breakpoint(fields) if isinstance(fields, Mapping) else None
    if found is None:
        raise MiError("GDB does not tell which breakpoint it has set")
    return found


def insert_watchpoint(
    gdb: GdbLink, address: int, length: int, *, type: str = "", access: str = "access"
) -> int:
    """Watch memory by hardware: `write` for changes of the value, `read`, or `access`; return the number.

    `type`: a pointer to what is there, in GDB's words. Raises MiError with GDB's reason.
    """
    what = quote(f"*({type or f'char(*)[{length}]'}){address:#x}")
    flag, name = {"write": ("", "wpt"), "read": ("-r ", "hw-rwpt"), "access": ("-a ", "hw-awpt")}[access]
    found = gdb.request(f"-break-watch {flag}{what}", SECONDS).payload.get(name)
    if not isinstance(found, dict) or not str(found.get("number", "")).isdecimal():
        raise MiError("GDB would not watch the memory by hardware")
    return int(found["number"])


def alter(
    gdb: GdbLink,
    number: int,
    *,
    enabled: bool | None = None,
    condition: str | None = None,
    ignore: int | None = None,
) -> None:
    """Enable or disable a breakpoint or watchpoint, or give it another condition, an empty one for none.

    `ignore`: how many of its next hits do not stop the guest. Raises MiError with GDB's reason.
    """
    if enabled is not None:
        gdb.request(f"-break-{'enable' if enabled else 'disable'} {number}", SECONDS)
    if condition is not None:  # MI's own command takes quotes in some versions and not in others
        console(gdb, f"condition {number} {condition}".strip(), SECONDS)
    if ignore is not None:
        gdb.request(f"-break-after {number} {ignore}", SECONDS)


def reserve_number(gdb: GdbLink) -> int:
    """Return a number of GDB's that no breakpoint will have."""
    found = insert_breakpoint(gdb, NOWHERE, enabled=False)
    gdb.request(f"-break-delete {found.id}", SECONDS)
    return found.id


def list_breakpoints(gdb: GdbLink, tracker: RunTracker | None = None) -> tuple[Breakpoint, ...]:
    """Return all breakpoints and watchpoints, by number; with a tracker as people know them."""
    found = [b for b in map(_breakpoint, rows(gdb)) if b is not None]
    if tracker is not None:
        numbers, inner = tracker.numbers, tracker.inner
        found = [b for b in found if b.id in numbers or b.id not in inner]
        found = [replace(b, id=numbers.get(b.id, b.id)) for b in found]
    return tuple(sorted(found, key=lambda b: b.id))


def sure_stops(gdb: GdbLink, tracker: RunTracker) -> set[int]:
    """Return where a breakpoint that people know stops every CPU, each time that one comes there."""
    found = set()
    for row in rows(gdb):
        one = _breakpoint(row)
        if one is None or one.address is None or one.kind != "breakpoint":
            continue
        if not one.enabled or one.ignore or one.cpu is not None or one.condition:
            continue
        if one.id in tracker.numbers or one.id not in tracker.inner:
            found.add(one.address)
    return found


@contextmanager
def disabled(gdb: GdbLink) -> Iterator[None]:
    """Disable all breakpoints and watchpoints for a block."""
    numbers = " ".join(str(row["number"]) for row in rows(gdb) if row.get("enabled") == "y")
    if not numbers:
        yield
        return
    gdb.request(f"-break-disable {numbers}", SECONDS)
    try:
        yield
    finally:
        gdb.request(f"-break-enable {numbers}", SECONDS)


def rows(gdb: GdbLink) -> list[Mapping[str, Any]]:
    """Return MI's fields of all breakpoints and watchpoints."""
    table = gdb.request("-break-list", SECONDS).payload.get("BreakpointTable")
    body = table.get("body", []) if isinstance(table, dict) else []
    return [row for row in body if isinstance(row, Mapping)]


def _breakpoint(fields: Mapping[str, Any]) -> Breakpoint | None:
    """Return a row; None for one that is a place of another."""
    if not str(fields.get("number", "")).isdecimal():
        return None
    thread = fields.get("thread", "")
    if isinstance(thread, list):  # GDB 13 gives the field twice
        thread = thread[0] if thread else ""
    kind = str(fields.get("type", "breakpoint"))
    what = str(fields.get("what", fields.get("original-location", "")))
    return Breakpoint(
        int(fields["number"]),
        _address(fields, what),
        hardware=kind.startswith("hw"),
        temporary=fields.get("disp") == "del",
        cpu=int(thread) - 1 if str(thread).isdecimal() else None,
        condition=str(fields.get("cond", "")),
        hits=int(fields.get("times", 0)),
        ignore=int(fields.get("ignore", 0)),
        kind=kind.removeprefix("hw "),
        enabled=fields.get("enabled", "y") == "y",
        what=what,
    )


def _address(fields: Mapping[str, Any], what: str) -> int | None:
    """Return where a breakpoint is, the first of its places, or what a watchpoint watches."""
    found = _AT.fullmatch(what)
    places = fields.get("locations") or [fields]
    first = str(places[0].get("addr", "")) if isinstance(places[0], Mapping) else ""
    text = first if first.startswith("0x") else found[1] if found else ""
    return int(text, 16) if text else None


class HardwareSlots:
    """Slots of one session; where they are not limited nothing is asked and everything fits."""

    def __init__(self, gdb: GdbLink, *, limited: bool, dfr0: Callable[[], int | None]) -> None:
        """`dfr0` reads ID_AA64DFR0_EL1, None if the stub does not offer it."""
        self._gdb = gdb
        self.limited = limited
        """True under KVM."""
        self._dfr0 = dfr0
        self._capacity: Capacity | None = None
        self._purposes: dict[int, Purpose] = {}

    def capacity(self) -> Capacity:
        """Return how many slots there are; the stub is tried if no register tells."""
        if self._capacity is None:
            dfr0 = self._dfr0()
            self._capacity = capacity_of(dfr0) if dfr0 else self._try()
        return self._capacity

    def held(self) -> list[Held]:
        """Return all that holds slots."""
        return [each for row in rows(self._gdb) for each in self._held(row)]

    def usage(self) -> Usage | None:
        """Return how many slots are in use; None where they are not limited."""
        if not self.limited:
            return None
        held = self.held()
        return Usage(self.capacity(), used(held, "breakpoint"), used(held, "watchpoint"))

    def free(self, kind: Kind) -> int | None:
        """Return how many slots are free; None where they are not limited."""
        return max(self.capacity().of(kind) - used(self.held(), kind), 0) if self.limited else None

    def claim(self, addresses: Iterable[int]) -> None:
        """Make sure that breakpoints at these addresses fit. Raises OutOfSlots."""
        if self.limited:
            self._claim("breakpoint", [_place(address) for address in addresses])

    def claim_watch(self, address: int, length: int) -> None:
        """Make sure that a watchpoint of exactly these bytes fits. Raises OutOfSlots."""
        if not self.limited:
            return
        fault = watch_fault(address, length)
        if fault:
            raise OutOfSlots(f"no hardware watchpoint covers {length} bytes at {address:#x}: {fault}")
        self._claim("watchpoint", [_area(address, length)])

    def note(self, number: int, purpose: Purpose) -> None:
        """Remember what a breakpoint or watchpoint of GDB's number is for."""
        self._purposes[number] = purpose

    def purpose(self, number: int) -> Purpose:
        """Return what a breakpoint or watchpoint of GDB's number is for."""
        return self._purposes.get(number, Purpose.USER)

    def refused(self, text: str) -> OutOfSlots:
        """Return the error for a stub that took fewer than there should be, and remember how many it took.

        `text` is what GDB printed: mostly it names each one that it could not insert, and keeps the others.
        """
        failed = {int(number) for number in _FAILED.findall(text)}
        held = self.held()
        kinds: tuple[Kind, ...] = ("breakpoint", "watchpoint")
        took = {kind: used((h for h in held if h.number not in failed), kind) for kind in kinds}
        for kind in kinds:
            lacking = used(held, kind) - took[kind]
            if lacking:
                known = self.capacity()
                counts = {k: took[k] if k == kind else known.of(k) for k in kinds}
                self._capacity = Capacity(counts["breakpoint"], counts["watchpoint"], "the stub took no more")
                return OutOfSlots(*shortage(held, kind, took[kind], lacking))
        for kind in kinds if not failed else ():
            lacking = missing(held, kind, self.capacity().of(kind), ())
            if lacking:
                return OutOfSlots(*shortage(held, kind, self.capacity().of(kind), lacking))
        return OutOfSlots(
            "the stub refuses a breakpoint or watchpoint, so the guest did not run",
            "break lists them; delete the one that cannot be set",
        )

    def _claim(self, kind: Kind, places: list[str]) -> None:
        held, total = self.held(), self.capacity().of(kind)
        lacking = missing(held, kind, total, places)
        if lacking:
            raise OutOfSlots(*shortage(held, kind, total, lacking))

    def _held(self, row: Mapping[str, Any]) -> list[Held]:
        kind = str(row.get("type", ""))
        if row.get("enabled", "y") != "y" or not kind.endswith(("breakpoint", "watchpoint")):
            return []
        try:
            number = int(row["number"])
        except (KeyError, ValueError):
            return []
        purpose = self.purpose(number)
        if kind.endswith("watchpoint"):
            what = str(row.get("what", row.get("original-location", number)))
            found = _WATCHED.search(what)
            place = what if found is None else _area(int(found[2], 16), int(found[1]))
            return [Held(number, "watchpoint", place, purpose)]
        spots = row.get("locations") if row.get("addr") == "<MULTIPLE>" else [row]
        places = [str(spot.get("addr", "")) for spot in spots or [] if isinstance(spot, Mapping)]
        return [
            Held(number, "breakpoint", _place(int(place, 16)), purpose)
            for place in places
            if place.startswith("0x")
        ]

    def _try(self) -> Capacity:
        """Set until the stub refuses, and take all away again; the guest does not run."""
        shown = self._console("show breakpoint always-inserted")
        kept = self.held() if "mode is on" in shown else []
        counts: dict[Kind, int] = {}
        kinds: tuple[tuple[Kind, str], ...] = (("breakpoint", "1,{:x},4"), ("watchpoint", "2,{:x},8"))
        for kind, form in kinds:
            done: list[str] = []
            try:
                for n in range(MOST):
                    body = form.format(NOWHERE + 16 * n)
                    if not self._packet("Z" + body):
                        break
                    done.append(body)
            finally:
                for body in done:
                    self._packet("z" + body)
            counts[kind] = len(done) + used(kept, kind)
        return Capacity(counts["breakpoint"], counts["watchpoint"], "asked of the stub")

    def _packet(self, body: str) -> bool:
        return re.search(r'received: "OK"', self._console(f"maint packet {body}")) is not None

    def _console(self, line: str) -> str:
        try:
            return console(self._gdb, line, SECONDS)
        except MiError as error:
            return error.message


def _place(address: int) -> str:
    return f"{address:#x}"


def _area(address: int, length: int) -> str:
    return f"{length}@{address:#x}"
