"""Arm and disarm the guard of kernel stacks: breakpoints, watchpoints, and the probe in the vectors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from ptinspect.arch import a64
from ptinspect.arch.bits import MASK64
from ptinspect.errors import MiError, PtinspectError, TargetError
from ptinspect.guest.guest import Guest
from ptinspect.link.gdb.slots import Purpose, largest_area
from ptinspect.link.journal import GUARD, Change, Detour
from ptinspect.linux.image.entry import EL1H, SLOT
from ptinspect.linux.running.stacks import Stack, Stacks
from ptinspect.stack.guard import MAX_STACKS, Way, Wires, few, watched
from ptinspect.stack.vector_probe import Probe, plan

Entry = Literal["probe", "breakpoint"]
"""How the exception entry is guarded: by code in the vector's padding, or by a breakpoint on it."""
PARKING = "__hyp_stub_vectors"
"""A page that the kernel executes at EL2 only, and there by another address (hyp-stub.S)."""
BAD_STACK = ("panic_bad_stack", "handle_bad_stack")
KEPT = "PAR_EL1"
"""The register in which the probe keeps x0."""


@dataclass
class Patched:
    """A probe for one vector."""

    va: int
    """Run-time address of the vector."""
    pa: int
    """Its physical address."""
    probe: Probe
    """What is written."""


@dataclass
class Armed:
    """All that has to be taken away again."""

    wires: Wires = field(default_factory=Wires)
    """Breakpoints and watchpoints."""
    changes: tuple[Change, ...] = ()
    """The words of the probes."""
    parking: tuple[int, int] | None = None
    """Addresses that the probes branch to: at a recursive fault, and where the stack is used up."""
    entry: Entry = "breakpoint"
    """How the entry is guarded."""
    why: str = ""
    """Why it is not a probe."""


def arm_entry(guest: Guest, stacks: Stacks, armed: Armed, wanted: Entry | None) -> None:
    """Guard the exception entry, and the path that it takes when the stack is used up.

    `wanted` None: a probe where it can be had, else a breakpoint. Raises TargetError if a probe is
    wanted and cannot be had.
    """
    session = guest.stopped
    armed.why = "" if wanted == "breakpoint" else _put_probes(guest, stacks, armed)
    if armed.why and wanted == "probe":
        raise TargetError(f"no probe: {armed.why}", "--entry breakpoint")
    armed.entry = "probe" if armed.changes else "breakpoint"
    if armed.entry == "probe":
        assert armed.parking is not None
        ways: tuple[Way, Way] = ("recursive-fault", "bad-stack")
        for address, way in zip(armed.parking, ways, strict=True):
            armed.wires.ways[session.set_breakpoint(address, purpose=Purpose.GUARD).id] = way
        return
    arm_label(guest, stacks, armed)
    bad = _bad_stack(stacks)
    if bad is not None:
        armed.wires.ways[session.set_breakpoint(bad, purpose=Purpose.GUARD).id] = "bad-stack"


def _bad_stack(stacks: Stacks) -> int | None:
    """Return where the kernel reports a bad stack: a function, whose page is seldom used, or the label."""
    image = stacks.tasks.image
    name = next((name for name in BAD_STACK if name in image.symbols), None)
    found = stacks.entry.bad_stack if name is None else image.lookup(name)
    return None if found is None else (found + stacks.view.kaslr_offset) & MASK64


def arm_label(guest: Guest, stacks: Stacks, armed: Armed) -> None:
    """Set the breakpoint that every fault in the kernel hits, where all vectors come together."""
    if armed.wires.entries:
        return
    label = (stacks.entry.sync.label + stacks.view.kaslr_offset) & MASK64
    number = guest.stopped.set_breakpoint(label, purpose=Purpose.GUARD).id
    armed.wires.ways[number] = "recursive-fault"
    armed.wires.entries.add(number)


def rest_label(guest: Guest, armed: Armed) -> None:
    """Take that breakpoint away for a while."""
    for number in armed.wires.entries:
        guest.stopped.delete_breakpoint(number)
        del armed.wires.ways[number]
    armed.wires.entries.clear()


def _put_probes(guest: Guest, stacks: Stacks, armed: Armed) -> str:
    """Write the probes; return why none was written."""
    session, view = guest.stopped, stacks.view
    image = stacks.tasks.image
    if session.accel == "kvm":
        return "the guest runs under KVM"
    if KEPT not in session.registers(session.current_cpu):
        return f"the stub does not offer {KEPT}"
    if PARKING not in image.symbols or stacks.entry.bad_stack is None:
        return f"the kernel has no {PARKING}, or does not test for overflow"
    park = image.lookup(PARKING)
    planned = []
    for table in stacks.vector_tables:
        for kind in range(4):
            va = table + EL1H + SLOT * kind
            pa = int(view.pa_of_link(va))
            words = a64.words(session.memory.read(pa, SLOT))
            probe = plan(words, va, None if kind else park, park + SLOT)
            if probe is None:
                return f"the vector at {va + view.kaslr_offset:#x} is not as expected"
            planned.append(Patched((va + view.kaslr_offset) & MASK64, pa, probe))
    parking = (park + view.kaslr_offset) & MASK64
    armed.parking = (parking, parking + SLOT)
    bad_stack = (stacks.entry.bad_stack + view.kaslr_offset) & MASK64
    armed.changes = tuple(
        Change(patched.pa + at, old, new, 4, what=GUARD)
        for patched in planned
        for at, old, new in patched.probe.patches
    )
    session.changes.make(armed.changes, _detours(planned, armed.parking, bad_stack))
    return ""


def _detours(planned: list[Patched], parking: tuple[int, int], bad_stack: int) -> Iterator[Detour]:
    """Give, for every place in the probes, where the vector itself goes on from there."""
    first = planned[0]
    yield Detour(parking[0], first.va + first.probe.branch, KEPT)
    yield Detour(parking[1], bad_stack)
    for patched in planned:
        probe = patched.probe
        for at in range(probe.first, probe.end - 4, 4):
            yield Detour(patched.va + at, patched.va + probe.branch, KEPT if at >= probe.first + 8 else "")
        yield Detour(patched.va + probe.end - 4, bad_stack)


def watch_stacks(guest: Guest, armed: Armed, wanted: Iterable[Stack], margin: int) -> None:
    """Watch accesses to the lowest part of stacks that are not watched yet. Raises TargetError.

    Not only stores: GDB keeps to itself those that change nothing, at the full price of a stop each.
    """
    session, wires = guest.stopped, armed.wires
    if session.slots.limited:
        _watch_few(guest, armed, list(wanted), margin)
        return
    known = wires.bases
    for stack in wanted:
        if stack.base in known:
            continue
        if len(known) >= MAX_STACKS:
            wires.skipped += 1
            continue
        known.add(stack.base)
        low, high = watched(stack, margin)
        answer = session.gdb_command(f"awatch *(char(*)[{high - low}]){low:#x}")
        number = re.search(r"^Hardware access \(read/write\) watchpoint (\d+)", answer, re.MULTILINE)
        if number is None:
            software = re.search(r"[Ww]atchpoint (\d+)", answer)
            if software is not None:
                session.gdb_command(f"delete {software[1]}")
            raise TargetError("GDB would not watch the stack by hardware", answer.strip()[:200])
        wires.stacks[int(number[1])] = stack


def _watch_few(guest: Guest, armed: Armed, wanted: list[Stack], margin: int) -> None:
    """Watch as many stacks as the CPU has watchpoints, those of the running tasks first.

    Of each the largest part of the guarded one that a single watchpoint covers.
    """
    session, wires = guest.stopped, armed.wires
    chosen = few(wanted, (session.slots.free("watchpoint") or 0) + len(wires.stacks))
    bases = {stack.base for stack in chosen}
    for number, stack in list(wires.stacks.items()):
        if stack.base not in bases:
            session.delete_breakpoint(number)
            del wires.stacks[number]
    for stack in chosen:
        area = largest_area(*watched(stack, margin))
        if area is not None and stack.base not in wires.bases:
            wires.stacks[session.watch_access(*area, purpose=Purpose.GUARD)] = stack
    wires.skipped = max(wires.skipped, len(wanted) - len(wires.stacks))


def give_up(guest: Guest, armed: Armed, number: int) -> None:
    """Watch a stack no more: somebody else wrote to its memory, so that it is nobody's now."""
    del armed.wires.stacks[number]
    guest.stopped.delete_breakpoint(number)


def always_inserted(guest: Guest, on: bool) -> None:
    """Have GDB leave breakpoints in the stub while the guest stands: with many that saves much time."""
    with contextlib.suppress(MiError):
        guest.stopped.gdb_command(f"set breakpoint always-inserted {'on' if on else 'off'}")


def disarm(guest: Guest, armed: Armed) -> None:
    """Take everything away, as far as the guest is there; each step is tried."""
    if guest.state == "running":
        with contextlib.suppress(TargetError):
            guest.target.interrupt(5.0)
    if guest.state != "stopped":
        return
    numbers = [*armed.wires.ways, *armed.wires.stacks]
    with contextlib.suppress(PtinspectError):
        if numbers:
            guest.stopped.gdb_command(f"delete {' '.join(map(str, numbers))}")
    with contextlib.suppress(PtinspectError):
        always_inserted(guest, False)
    guest.stopped.changes.undo(armed.changes)
    armed.changes = ()
