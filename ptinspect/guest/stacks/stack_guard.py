"""Guard kernel stacks: let the guest run, and stop it before one overflows, whatever the way down."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

from ptinspect.arch import a64
from ptinspect.arch.bits import MASK64, align_down, bit
from ptinspect.arch.endless import faults_at_its_vector
from ptinspect.dataclass import dataclass, field
from ptinspect.errors import KernelFileError, PtinspectError, TargetError, UserError
from ptinspect.guest.guest import Guest
from ptinspect.guest.rewrite.rewrite import Runner
from ptinspect.guest.run_control import run_for
from ptinspect.guest.stacks.kernel_stacks import open_stacks, task_of
from ptinspect.link.gdb.slots import Purpose, largest_area
from ptinspect.link.journal import GUARD, Change, Detour
from ptinspect.link.session import Capability
from ptinspect.linux.image.entry import EL1H, SLOT
from ptinspect.stack.guard import ALARMS, MAX_STACKS, Budget, Way, Wires, few, judge, margin_bytes, watched
from ptinspect.stack.vector_probe import TRAP, Probe, plan, traps_at

if TYPE_CHECKING:
    from ptinspect.linux.running.stacks import Stack, Stacks
    from ptinspect.linux.running.tasks import Task

Entry = Literal["probe", "breakpoint"]
"""How the exception entry is guarded: by code in the vector's padding, or by a breakpoint on it."""
IRQ = 1
"""The vector, of those of the kernel's own mode, in whose padding the probes' ends stand."""
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
    traps: tuple[int, int] | None = None
    """Addresses that the probes branch to: at a recursive fault, and where the stack is used up."""
    past: int = 0
    """Where a CPU goes on that stands at the first of them without such a fault."""
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
        assert armed.traps is not None
        ways: tuple[Way, Way] = ("recursive-fault", "bad-stack")
        armed.wires.ways |= zip(session.watch_areas([(at, 4) for at in armed.traps]), ways, strict=True)
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
    if session.accel == "kvm":
        return "the guest runs under KVM"
    if Capability.WRITE not in session.capabilities:
        return "a recorded guest is not written to"
    if KEPT not in session.registers(session.current_cpu, [KEPT]):
        return f"the stub does not offer {KEPT}"
    if stacks.entry.bad_stack is None:
        return "the kernel does not test for overflow"

    def read(va: int) -> tuple[int, ...]:
        return a64.words(session.memory.read(int(view.pa_of_link(va)), SLOT))

    host = stacks.vector_tables[0] + EL1H + SLOT * IRQ
    fault, net = (host + at for at in traps_at(read(host)))
    planned = []
    for table in stacks.vector_tables:
        for kind in range(4):
            va = table + EL1H + SLOT * kind
            probe = plan(read(va), va, None if kind else fault, net, 2 * TRAP if va == host else ())
            if probe is None:
                return f"the vector at {va + view.kaslr_offset:#x} is not as expected"
            planned.append(Patched((va + view.kaslr_offset) & MASK64, int(view.pa_of_link(va)), probe))
    armed.traps = (fault + view.kaslr_offset) & MASK64, (net + view.kaslr_offset) & MASK64
    armed.past = planned[0].va + planned[0].probe.past
    armed.changes = tuple(
        Change(patched.pa + at, old, new, 4, what=GUARD)
        for patched in planned
        for at, old, new in patched.probe.patches
    )
    bad_stack = (stacks.entry.bad_stack + view.kaslr_offset) & MASK64
    session.changes.make(armed.changes, _detours(planned, armed.traps, bad_stack))
    return ""


def _detours(planned: list[Patched], traps: tuple[int, int], bad_stack: int) -> Iterator[Detour]:
    """Give, for every place in the probes, where the vector itself goes on from there."""
    first = planned[0]
    for at in range(0, 4 * len(TRAP), 4):
        yield Detour(traps[0] + at, first.va + first.probe.branch, KEPT)
        yield Detour(traps[1] + at, bad_stack)
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
    later = list({stack.base: stack for stack in wanted if stack.base not in known}.values())
    new = later[: max(MAX_STACKS - len(known), 0)]
    wires.skipped = max(wires.skipped, len(later) - len(new))
    areas = [(low, high - low) for low, high in (watched(stack, margin) for stack in new)]
    wires.stacks |= zip(session.watch_areas(areas), new, strict=True)


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


@contextlib.contextmanager
def always_inserted(guest: Guest) -> Iterator[None]:
    """Have GDB leave breakpoints in the stub while the guest stands: with many that saves much time."""
    setting = "breakpoint always-inserted"
    on = "mode is on" in guest.stopped.gdb_command(f"show {setting}")
    if not on:
        guest.stopped.gdb_command(f"set {setting} on")
    try:
        yield
    finally:
        if not on and guest.state == "stopped":
            with contextlib.suppress(PtinspectError):
                guest.stopped.gdb_command(f"set {setting} off")


def disarm(guest: Guest, armed: Armed) -> None:
    """Take everything away, as far as the guest is there; each step is tried."""
    if guest.state == "running":
        with contextlib.suppress(PtinspectError):  # of somebody else's too, who looked on the way
            guest.target.interrupt()
    if guest.state != "stopped":
        return
    with contextlib.suppress(PtinspectError):
        guest.stopped.unwatch_areas()
    for number in (*armed.wires.ways, *armed.wires.stacks):
        if number > 0:
            with contextlib.suppress(PtinspectError):
                guest.stopped.delete_breakpoint(number)
    guest.stopped.changes.undo(armed.changes)
    armed.changes = ()


Whose = int | str
"""Whose stack is guarded: that of a PID or a name, of `any`, or of the one that runs now: `current`."""
MOMENT = 0.002
"""Between two looks whether the guest runs, seconds."""
PLACING = 60.0
"""Seconds that it may take until it is known where the kernel runs."""
FIRST_LOOK, LOOK = 0.4, 1.0
"""Seconds after which tasks that came later are looked for: the first time, and from then on."""
LOOKING = 0.2
"""Share of the time that looking may take: over a slow link a look at many tasks takes seconds."""
PROBATION = 0.35
"""Seconds that the first tasks of a boot, most of which stay, have to live until their stacks are watched;
later ones until the next look. The stack of one that ends is soon another's, who clears it; a stop for that
takes up to a third of a second, since GDB steps over the instruction, and QEMU then translates the kernel
anew (gdbstub.c, gdb_vm_state_change: tb_flush)."""
FULL_LOOKS = 8
"""Looks after which the whole list is walked: the short look does not see new threads of a process."""


@dataclass(frozen=True)
class Guarded:
    """How a run under guard went."""

    way: Way
    """The wire that was tripped, or why the run ended without that."""
    margin: int
    """Bytes that had to be left."""
    entry: Entry
    """How the exception entry was guarded."""
    no_probe: str
    """Why not by a probe."""
    watched: int
    """Stacks under watch at the end."""
    skipped: int
    """Stacks that were too many to watch."""
    false_hits: int
    """Stops that were no alarm."""
    blind: str
    """Why the last look found no tasks; empty if it found some."""
    near: Stack | None
    """The stack whose margin was reached."""
    seconds: float
    """How long it took."""

    @property
    def quiet(self) -> bool:
        """Whether no wire was tripped."""
        return self.way not in ALARMS


def guard(
    guest: Guest,
    *,
    margin: int | str,
    seconds: float,
    whose: Whose = "any",
    entry: Entry | None = None,
) -> Guarded:
    """Let the guest run until a wire is tripped, something else stops it, or the time is over.

    `margin`: bytes, or a part of a stack: `12%`. The time counts from when all is armed. Nothing is left
    behind. Raises UserError, GuestError, and TargetError if a probe is wanted and cannot be had.
    """
    begins = not guest.view.placed
    if begins:
        Runner(guest, PLACING).place_kernel()
    stacks = open_stacks(guest)
    run = _Run(guest, margin_bytes(f"{margin}", stacks.thread_size), whose)
    started = time.monotonic()
    way: Way = "interrupted"
    with always_inserted(guest):
        try:
            arm_entry(guest, stacks, run.armed, entry)
            if begins and whose == "any":
                run.begin(stacks)
            else:
                run.look_in_time(FIRST_LOOK)
            run.deadline = time.monotonic() + seconds
            with contextlib.suppress(KeyboardInterrupt), _read_ahead(guest):
                way = run.run(stacks)
        finally:
            disarm(guest, run.armed)
    armed, wires = run.armed, run.armed.wires
    return Guarded(
        way=way,
        margin=run.margin,
        entry=armed.entry,
        no_probe=armed.why,
        watched=len(wires.stacks),
        skipped=wires.skipped,
        false_hits=wires.false_hits,
        blind=run.blind,
        near=run.near,
        seconds=time.monotonic() - started,
    )


@contextlib.contextmanager
def _read_ahead(guest: Guest) -> Iterator[None]:
    """Do while the guest runs what takes none: find in the kernel file's types what a look needs."""
    from ptinspect.linux.running.tasks import look_up

    over = threading.Event()

    def read() -> None:
        while guest.state != "running" and not over.wait(MOMENT):
            pass
        with contextlib.suppress(PtinspectError):
            if guest.kernel is not None:
                look_up(guest.kernel)

    reading = threading.Thread(target=read, name="types", daemon=True)
    reading.start()
    try:
        yield
    finally:
        over.set()
        reading.join()


@dataclass
class _Run:
    """One run under guard."""

    guest: Guest
    margin: int
    whose: Whose
    deadline: float = 0.0
    armed: Armed = field(default_factory=Armed)
    looks: int = 0
    blind: str = ""
    near: Stack | None = None
    due: float = 0.0
    """When to look again."""
    newcomers: set[tuple[int, int]] = field(default_factory=set)
    """Tasks that the last look found and left unwatched: address and PID."""
    hurried: bool = False
    """Whether the first of them were looked for again soon."""

    def look_in_time(self, least: float) -> None:
        """Look, and leave the guest at least so many seconds after that, more if the look was long."""
        began = time.monotonic()
        self.look()
        now, soon = time.monotonic(), bool(self.newcomers) and not self.hurried
        self.hurried |= soon
        self.due = now + max(PROBATION if soon else least, (now - began) * (1 / LOOKING - 1))

    def begin(self, stacks: Stacks) -> None:
        """Watch the stack that a boot begins on, which its SP tells; tasks are looked for later."""
        from ptinspect.linux.running.stacks import Stack

        state = stacks.view.state
        base = align_down(state.sp - 1, stacks.thread_size)
        if bit(state.sp, 55):
            own = Stack("task", base, base + stacks.thread_size, state.cpu, None, "SP at the kernel's start")
            watch_stacks(self.guest, self.armed, [own], self.margin)
        self.looks, self.due = 1, time.monotonic() + FIRST_LOOK

    def tasks(self, stacks: Stacks) -> list[Task]:
        """Return the tasks to guard that are there now."""
        session = self.guest.stopped
        if self.whose == "current":
            task = stacks.tasks.current(session.cpu_state(session.current_cpu))
            return [] if task is None else [task]
        if self.whose != "any":
            return [task_of(stacks, self.whose)]
        known = {stack.task.address for stack in self.armed.wires.stacks.values() if stack.task is not None}
        if self.looks % FULL_LOOKS and known and not session.slots.limited:
            return stacks.tasks.newest(known)
        return list(stacks.tasks.all().tasks)

    def of_cpus(self, stacks: Stacks) -> list[Stack]:
        """Return the stacks that the CPUs take interrupts on, where all stacks are guarded."""
        session = self.guest.stopped
        cpus = range(session.cpu_count) if self.whose == "any" else ()
        found = (stack for cpu in cpus for stack in stacks.of_cpu(session.cpu_state(cpu)))
        return [stack for stack in found if stack.kind != "overflow"]

    def look(self) -> None:
        """Watch the stacks that are not watched yet; early in the boot there may be none.

        The first time those of all tasks, later of those that were there at the look before.
        """
        if self.looks and self.whose != "any":
            return
        try:
            stacks = open_stacks(self.guest)
            tasks = {(task.address, task.pid): task for task in self.tasks(stacks)}
            found = {task.stack: stacks.of_task(task) for task in tasks.values()}
            begun = {n: found[s.base] for n, s in self.armed.wires.stacks.items() if s.base in found}
            self.armed.wires.stacks |= begun  # that on which the boot began has an owner now
            at_once = not self.looks or self.guest.stopped.slots.limited
            stay = tasks if at_once else tasks.keys() & self.newcomers
            wanted = [found[tasks[key].stack] for key in stay]
            watch_stacks(self.guest, self.armed, [*wanted, *self.of_cpus(stacks)], self.margin)
            bases = self.armed.wires.bases
            self.newcomers = {key for key, task in tasks.items() if task.stack not in bases}
            self.blind = ""
        except PtinspectError as error:
            later = not isinstance(error, UserError) or isinstance(error, KernelFileError)
            if self.whose != "any" or not later:
                raise
            self.blind = error.message
        self.looks += 1

    def dead(self) -> bool:
        """Choose the CPU that faults at its own vector for ever, if one does: it stores nothing."""
        session = self.guest.stopped
        states = (session.cpu_state(cpu) for cpu in range(session.cpu_count))
        dead = [state.cpu for state in states if faults_at_its_vector(state) is not None]
        session.current_cpu = dead[0] if dead else session.current_cpu
        return bool(dead)

    def run(self, stacks: Stacks) -> Way:
        """Run until a wire is tripped, something else stops the guest, or the time is over."""
        guest, wires = self.guest, self.armed.wires
        budget = Budget()
        budget.refill()
        while True:
            stop = run_for(guest, max(min(self.due, self.deadline) - time.monotonic(), 0.05))
            if stop is None:
                if self.dead():
                    return "recursive-fault"
                if time.monotonic() >= self.deadline:
                    return "time"
                self.look_in_time(LOOK)
                if self.armed.entry == "breakpoint" and budget.refill() >= budget.left >= 2:
                    arm_label(guest, stacks, self.armed)
                continue
            state = guest.stopped.cpu_state(stop.cpu)
            way = judge(wires, stop.breakpoint, state, self.margin, stacks.entry_ranges)
            if way is not None:
                self.near = wires.stacks.get(stop.breakpoint) if stop.breakpoint is not None else None
                return way
            wires.false_hits += 1
            if stop.breakpoint in wires.stacks:
                give_up(guest, self.armed, stop.breakpoint)
            elif self.armed.traps is not None:
                guest.stopped.gdb_command(f"set $pc = {self.armed.past:#x}")
            elif stop.breakpoint in wires.entries and not budget.spend():
                rest_label(guest, self.armed)
