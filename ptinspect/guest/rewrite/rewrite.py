"""Go through the rewrite of the kernel's tables, stop at the points that matter, and capture at each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.arch.sysregs import CpuState
from ptinspect.dataclass import dataclass
from ptinspect.errors import GuestError, TargetTimeout, UserError
from ptinspect.guest.breakpoints.breakpoints import symbol_breakpoints
from ptinspect.guest.breakpoints.followed_addresses import link_address
from ptinspect.guest.breakpoints.kernel_place import SLICE_SECONDS
from ptinspect.guest.expression import address
from ptinspect.guest.guest import Guest
from ptinspect.guest.rewrite.state import Standing, standing
from ptinspect.link.gdb.slots import Purpose
from ptinspect.link.session import Session, StopInfo
from ptinspect.snapshot.fact_names import PHASE

if TYPE_CHECKING:
    from ptinspect.linux.image.image import KernelImage
    from ptinspect.linux.kpti.code import KptiCode
    from ptinspect.linux.kpti.position import Cursor, Phase
    from ptinspect.linux.kpti.progress import Target
    from ptinspect.snapshot.model import Snapshot

C_FUNCTIONS = ("__kpti_install_ng_mappings", "kpti_install_ng_mappings")
"""The C function that calls the identity-mapped one, per CPU.

Source: arch/arm64/kernel/cpufeature.c (mm/mmu.c from 7.x); since 6.12 the per-CPU part has two
underscores and the other name runs once, before it.
"""
PAST = ("driver_init", "do_basic_setup", "free_initmem", "mark_rodata_ro")
"""Functions that the init thread reaches only after all CPU features were enabled (init/main.c,
kernel_init_freeable): whoever gets there will not rewrite the tables any more."""

PHASES = ("before", "during", "after")
"""Names of the captures."""
POINTS = ("entry", "before_first_write", "after_writes", "return")
"""Points of the identity-mapped function, in the order in which they are reached (`linux.kpti.code`)."""
IMPORTANT = ("entry", "after_writes", "before_first_write", "return")
"""The order in which they get breakpoints where the CPU has few; the C function comes last."""
BOOT_CPU = "$w0 == 0"
"""True at the entry on the boot CPU: the number of the CPU is the function's first argument. The others
come there too, and wait."""


@dataclass(frozen=True)
class Outcome:
    """How a run through the rewrite ended."""

    reached: bool
    reason: str
    """What happened, in one line."""
    algorithm: str
    whole: bool
    """True if the run began before the first store."""
    snapshots: Mapping[str, Snapshot]
    """The captures by phase: before, during, after."""
    stops: Sequence[tuple[str, int]]
    """The points that were reached, with the program counter."""


@dataclass(frozen=True)
class NotReached:
    """A rewrite that the kernel does not make."""

    reached: Literal[False]
    reason: str


@dataclass(frozen=True)
class RewriteBreakpoints:
    """The breakpoints that were set around the rewrite."""

    algorithm: str
    points: Sequence[tuple[int, str, int, bool]]
    """Number, point, address, and whether it is pending, of each: the C function, then POINTS.

    While it is not known where the C function runs it comes last.

    The address of one that is pending is a preliminary one, or the kernel file's."""
    left_out: Sequence[int]
    """Addresses for which the CPU has no breakpoint left."""
    placed: bool
    """False while it is not known where the kernel runs: they follow it."""


class Runner:
    """Drive one guest through the rewrite on its boot CPU."""

    def __init__(self, guest: Guest, timeout: float) -> None:
        """Prepare; `timeout` is the limit in seconds for the whole run."""
        self.guest = guest
        self.session: Session = guest.stopped
        self.deadline = time.monotonic() + timeout
        kernel = guest.kernel
        if kernel is None:
            raise UserError("the rewrite is found in the kernel file", "--kernel FILE, or kernel FILE")
        if (wrong := guest.kernel_refused) is not None:
            raise wrong
        self.kernel: KernelImage = kernel
        from ptinspect.linux.kpti.code import recognise

        self.code: KptiCode = recognise(kernel)
        self.reason = ""
        """Why the rewrite was not entered."""
        self.snapshots: dict[str, Snapshot] = {}
        """The captures by phase."""
        self.stops: list[tuple[str, int]] = []
        """The points that were reached, with the program counter."""

    # -- places ---------------------------------------------------------------------------------

    def physical(self, link_va: int) -> int:
        """Return where a link-time address lies in guest-physical memory."""
        return self.guest.view.pa_of_link(link_va)

    def point(self, name: str) -> int:
        """Return the physical address of a point of the identity-mapped function."""
        return self.physical(self.code.entry_va + self.code.points[name])

    def runtime(self, names: Sequence[str]) -> list[int]:
        """Return the run-time addresses of those symbols that the kernel has."""
        view = self.guest.view
        found = []
        for name in names:
            if name in self.kernel.symbols:
                found.append(view.symbol(name))
        return found

    # -- running --------------------------------------------------------------------------------

    def left(self) -> float:
        """Return the seconds that are left; raises TargetTimeout when there are none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            where = ""
            if self.guest.state == "stopped":
                state = self.session.cpu_state(self.session.current_cpu)
                where = f": cpu {state.cpu} is at {self.guest.place(state.pc, state=state)}"
            raise TargetTimeout(
                f"the guest did not reach the rewrite in time{where}",
                "a longer --timeout, or look where it stands: interrupt, bt, console",
            )
        return left

    def run_to(self, addresses: Sequence[int]) -> StopInfo:
        """Let the guest run until it stands at one of `addresses`, or stops for another reason."""
        try:
            return self.session.run_until(addresses, self.left(), purpose=Purpose.REWRITE)
        except TargetTimeout as error:
            raise TargetTimeout(
                "the guest did not get there in time: " + error.message,
                "a longer --timeout, or look where it stands: bt, console",
            ) from None

    def place_kernel(self) -> None:
        """Run until it is known where the kernel runs, if it is not known yet.

        Raises GuestError if the guest stops before, for a reason of its own.
        """
        self.guest.progress("waiting for the kernel", 0, 0)
        breakpoints = symbol_breakpoints(self.guest)
        try:
            stop = breakpoints.await_place(self.left())
        except TargetTimeout:
            self.deadline = 0.0
            self.left()
            raise
        if not breakpoints.place.known:
            when = "before the kernel set up its tables"
            if stop is not None and stop.breakpoint is not None:
                raise stopped_early(self.guest, stop, when)
            where = "" if stop is None else f" at {stop.pc:#x}"
            hint = "was the kernel file the one that was booted?"
            raise GuestError(f"the guest stopped{where} {when}", hint)
        if stop is not None and breakpoints.place.reached:
            self.stops.append((breakpoints.place.reached, stop.pc))

    def enter(self) -> bool:
        """Run to the entry of the identity-mapped function on the boot CPU; False if it is not called."""
        from ptinspect.linux.kpti.decision import past_boot

        entry = self.point("entry")
        if self.at_entry(entry):
            return True
        functions = self.runtime(C_FUNCTIONS)
        past = self.runtime(PAST[:1]) or self.runtime(PAST)
        returns: set[int] = set()
        while True:
            places, seconds = [entry, *past, *functions, *returns], min(SLICE_SECONDS, self.left())
            try:  # where the CPU has few breakpoints, the last of the places do without
                few = 1 + len(past)
                stop = self.session.run_until(places, seconds, purpose=Purpose.REWRITE, needed=few)
            except TargetTimeout:
                if past_by := past_boot(self.guest.view):
                    self.reason = f"{past_by}: the kernel went on without a rewrite"
                    return False
                continue
            state = self.session.cpu_state(stop.cpu)
            if stop.pc == entry:
                if self.at_entry(entry):
                    self.stops.append(("entry", stop.pc))
                    return True
            elif stop.pc in functions:
                if stop.cpu == 0:
                    returns.add(state.x[30])
                    self.stops.append(("kpti_install_ng_mappings", stop.pc))
            elif stop.pc in returns and stop.cpu == 0:
                self.reason = "kpti_install_ng_mappings returned without a rewrite"
                return False
            elif stop.pc in past:
                self.reason = "the kernel went on without a rewrite"
                return False
            elif stop.pc not in returns:
                raise stopped_early(self.guest, stop, "before the rewrite")

    def at_entry(self, entry: int) -> bool:
        """Tell whether the boot CPU stands at the entry (w0, the CPU number, is 0)."""
        state = self.session.cpu_state(self.session.current_cpu)
        return bool(state.pc == entry and state.x[0] & 0xFFFF_FFFF == 0)

    # -- where it stands ------------------------------------------------------------------------

    def boot(self) -> CpuState | None:
        """Return the registers of the CPU that does the rewrite; None if none is in it."""
        from ptinspect.linux.kpti.running_code import boot_cpu

        return boot_cpu(self.guest.view, self.code)

    def phase(self) -> Phase | None:
        """Return where the CPU that does the rewrite stands in it; None if none is in it."""
        from ptinspect.linux.kpti.position import position

        state, view = self.boot(), self.guest.view
        return None if state is None else position(state, self.code, view.regime, view.memory).phase

    def reach(self, *, written: bool = False) -> bool:
        """Have the boot CPU inside the rewrite, before its last store; False if the kernel does none.

        Nothing runs if it is there already, where all is written only if that is `written`. If the rewrite is
        over, a replay goes back to it, past all breakpoints; of any other guest UserError is raised.
        """
        state = self.boot()
        if state is not None and (written or self.phase() != "done"):
            self.session.current_cpu = state.cpu
            return True
        over = self._over(state)
        if over is None:
            self.place_kernel()
            return self.enter()
        replay = self.guest.replay
        if replay is not None:
            with symbol_breakpoints(self.guest).aside(), replay.without_breakpoints():
                replay.go_to(0, self.left())
                self.place_kernel()
                return self.enter()
        if isinstance(over, UserError):
            raise over
        self.reason = over
        return False

    def _over(self, state: CpuState | None) -> UserError | str | None:
        """Return what keeps a guest from the stores, a text if there are none; None if nothing does."""
        from ptinspect.linux.kpti.decision import past_boot
        from ptinspect.linux.kpti.running_code import flag_of

        if state is not None:
            return UserError("all descriptors are written already", "kpti progress; a fresh guest: launch")
        if (view := self.guest.view).placed:
            flag = flag_of(view, self.code)
            if flag.finished or (flag.value == 0 and standing(self.guest, "(kpti)").state.state == "after"):
                return UserError("the rewrite has finished (its flag is 0)", "a fresh guest: launch")
            if past := past_boot(view):
                return f"{past}: the kernel is past the place where it would rewrite its tables"
        return None

    # -- capturing ------------------------------------------------------------------------------

    def capture(self, phase: str) -> Standing:
        """Capture the tables under swapper and keep them under the name of the phase."""
        found = standing(self.guest, phase, {PHASE: phase})
        self.guest.snapshots[phase] = self.snapshots[phase] = found.tables
        return found

    def through(self, percent: int) -> None:
        """Go from where the boot CPU stands to the return, capturing what is still to be had."""
        begun = self.phase()
        if begun == "before":
            self.middle(self.capture("before"), percent)
            self.capture("during")
        elif begun == "walking":
            self.capture("during")
        left = [(name, self.point(name)) for name in ("after_writes", "return")]
        if begun == "done":
            self.capture("after")
            left = left[1:]
        for name, at in left:
            if self.session.cpu_state(self.session.current_cpu).pc != at:
                stop = self.run_to([at])
                if stop.pc != at:
                    raise stopped_early(self.guest, stop, "before the end of the rewrite")
            self.stops.append((name, at))
            if name == "after_writes":
                self.capture("after")

    def middle(self, before: Standing, percent: int) -> None:
        """Run until about `percent` of the last table level's parents that are to be stored have been."""
        from ptinspect.linux.kpti.progress import by_number, left_of

        level, left = LEVEL_LAST - 1, left_of(before.tables, before.state, LEVEL_LAST - 1)
        if not left:
            level, left = LEVEL_LAST, left_of(before.tables, before.state, LEVEL_LAST)
        skip = max(min(left * percent // 100, left - 1), 0)
        self.guest.progress(f"waiting for {skip + 1} of {left} entries of level {level}", 0, 0)
        if left:
            self.run_to_load(by_number(before.tables, before.state, level, skip + 1))
        self.run_to_store(level)
        self.stops.append(("during", self.site_of(level)))

    def site_of(self, level: int) -> int:
        """Return the address of the store of a level. Raises UserError if the level is never written."""
        for store in self.code.stores:
            if store.level == level:
                return self.physical(self.code.entry_va + store.offset)
        raise UserError(f"the kernel's code never writes descriptors of level {level}")

    def run_to_load(self, target: Target) -> None:
        """Run until the rewrite loads a descriptor, unless it is past that and has not stored it.

        The way goes down with the walk: in the table of each level the descriptor that leads on is watched.
        The walk sees all tables of a level at one address, in the window of the temporary pgd (since 6.0);
        it is in the right one when it goes on from the descriptor above. Breakpoints at the stores would
        stop the guest for each one before, a few hundred a second.
        """
        from ptinspect.linux.kpti.code import POST_ORDER

        regime = self.guest.view.regime
        if self.code.algorithm == POST_ORDER and target.level == LEVEL_LAST:
            self.run_to_access(target.descriptor_pa)
            return
        for level in self.code.levels_of(regime):
            if level.level not in self._open():
                first = self.physical(self.code.entry_va + level.load)
                stop = self.run_to([first, self.point("after_writes")])
                if stop.pc != first:
                    raise stopped_early(self.guest, stop, IN_THE_MIDDLE)
            cursors = self._open()
            for above in range(regime.start_level, level.level):
                if cursors[above].index != regime.index(target.va, above):
                    raise GuestError(
                        f"the table of level {above + 1} for {target.va:#x} is not gone into",
                        f"its descriptor was marked before: walk {target.va:#x}",
                    )
            cursor, index = cursors[level.level], regime.index(target.va, level.level)
            if cursor.index != index:
                self.run_to_access(cursor.table + 8 * index)
            if level.level == target.level:
                return

    def _open(self) -> Mapping[int, Cursor]:
        """Return where the walk stands in the tables that are open, by level."""
        from ptinspect.linux.kpti.position import cursors

        state = self.boot()
        found = () if state is None else cursors(state, self.code, self.guest.view.regime)
        return {cursor.level: cursor for cursor in found}

    def run_to_access(self, entry: int) -> None:
        """Run until the rewrite loads the descriptor at this address, as its CPU sees it."""
        number = self.session.watch_access(entry, 8, Purpose.REWRITE)
        try:
            stop = self.session.run_until([self.point("after_writes")], self.left())
        finally:
            if self.session.state.name == "STOPPED":
                self.session.delete_breakpoint(number)
        if stop.breakpoint != number:
            raise stopped_early(self.guest, stop, IN_THE_MIDDLE)

    def run_to_store(self, level: int) -> None:
        """Run until the store of a level is reached.

        Raises GuestError if the guest stops elsewhere, TargetTimeout.
        """
        site, state = self.site_of(level), self.boot()
        if state is not None and state.pc == site:
            return
        stop = self.run_to([site, self.point("after_writes")])
        if stop.pc != site:
            raise stopped_early(self.guest, stop, IN_THE_MIDDLE)


IN_THE_MIDDLE = "in the middle of the rewrite, before that store"


def stopped_at(guest: Guest, stop: StopInfo, when: str) -> str:
    """Say where something else stopped the guest than what it ran for: at which breakpoint of the user's."""
    place = guest.place(stop.pc)
    if stop.breakpoint is None:
        return f"the guest stopped at {place} {when}: {stop.words}"
    return f"stopped at {stop.words}, {place}, {when}"


def stopped_early(guest: Guest, stop: StopInfo, when: str) -> GuestError:
    """Return the error for such a stop."""
    number = stop.breakpoint
    hint = "snap NAME captures the tables as they are; the same again goes on"
    return GuestError(
        stopped_at(guest, stop, when), hint if number is None else f"delete {number}, or disable it; {hint}"
    )


def run_through(guest: Guest, *, timeout: float, percent: int = 50) -> Outcome:
    """Run the guest through the rewrite and capture before, during and after it.

    Where it is in the rewrite already, what has passed is left out, and the reason tells that; snapshots of
    the names that are left out are dropped, for they are of another run. Raises UserError without a kernel
    file or after the rewrite, TargetTimeout after `timeout` seconds, GuestError if the guest stops for a
    reason of its own. The outcome tells if the kernel rewrites nothing.
    """
    runner = Runner(guest, timeout)
    algorithm = runner.code.algorithm
    if not runner.reach(written=True):
        state = standing(guest, "(kpti run)").state
        off = "this CPU does not need KPTI, or it is switched off (kpti=, mitigations=)"
        why = f"{off}; {state.counts.marks}" if state.state == "before" else state.reason
        return Outcome(False, f"{runner.reason}; {why}", algorithm, False, {}, runner.stops)
    phase = runner.phase()
    reason = f"the rewrite was followed from entry to return ({algorithm})"
    if phase != "before":
        where = "the guest stood in the middle of the rewrite" if phase == "walking" else "all was written"
        lacks = "before" if phase == "walking" else "before and during"
        during = "; during is where it stood" if phase == "walking" else ""
        reason = f"{where} when this began: no capture from {lacks}{during} ({algorithm})"
        for name in lacks.split(" and "):
            guest.snapshots.pop(name, None)
    runner.through(percent)
    return Outcome(True, reason, algorithm, phase == "before", runner.snapshots, runner.stops)


def set_breakpoints(guest: Guest, timeout: float) -> RewriteBreakpoints:
    """Set breakpoints at the points of the rewrite, and at the C function; they follow the kernel."""
    runner = Runner(guest, timeout)
    from ptinspect.linux.kpti.code import ENTRY

    points = {name: f"{ENTRY}+{runner.code.points[name]:#x}" for name in POINTS}
    functions = [name for name in C_FUNCTIONS if name in runner.kernel.symbols]
    slots, breakpoints = runner.session.slots, symbol_breakpoints(guest)
    breakpoints.look()
    if not (breakpoints.place.known or runner.session.escort.everywhere):
        functions = []  # nobody would set them later on
    wanted = [address(text) for text in (*(points[name] for name in IMPORTANT), *functions)]
    slots.claim([link_address(runner.kernel, wanted[0])])
    free = slots.free("breakpoint")
    chosen = wanted if free is None else wanted[:free]
    found = []
    called = [(C_FUNCTIONS[1], text) for text in functions]
    known = breakpoints.place.known  # else they are those that come later
    for name, text in [*called, *points.items()] if known else [*points.items(), *called]:
        if address(text) in chosen:
            condition = BOOT_CPU if name == "entry" else None
            made = breakpoints.add(address(text), purpose=Purpose.REWRITE, condition=condition)
            found.append((made, name))
    left = [breakpoints.shown_at(one) for one in wanted if one not in chosen]
    return RewriteBreakpoints(
        runner.code.algorithm,
        [
            (one.id, name, breakpoints.shown_at(one.address), bool(breakpoints.waits_until(one.address)))
            for one, name in found
        ],
        left,
        breakpoints.place.known,
    )
