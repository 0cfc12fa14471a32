"""Go through the rewrite of the kernel's tables, stop at the points that matter, and capture at each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ptinspect.arch.sysregs import translation_register
from ptinspect.commands.capturing import capture_snapshot
from ptinspect.commands.context import Context
from ptinspect.commands.kernel import mismatch
from ptinspect.commands.sources import Source
from ptinspect.errors import GuestError, TargetTimeout, UserError
from ptinspect.target.slots import Purpose

if TYPE_CHECKING:
    from ptinspect.linux.image import KernelImage
    from ptinspect.linux.kpti import KptiCode
    from ptinspect.snapshot.model import Root, Snapshot
    from ptinspect.target.session import Session, StopInfo

C_FUNCTIONS = ("__kpti_install_ng_mappings", "kpti_install_ng_mappings")
"""The C function that calls the identity-mapped one, per CPU.

Source: arch/arm64/kernel/cpufeature.c (mm/mmu.c from 7.x); since 6.12 the per-CPU part has two
underscores and the other name runs once, before it.
"""
ANCHOR = "idmap_cpu_replace_ttbr1"
"""Runs from the identity map in paging_init(), early and with the final vectors installed: the first
place where it can be known, at an address known in advance, where KASLR put the kernel."""
FIRST_VIRTUAL = "start_kernel"
"""The C function that a kernel enters first; without KASLR it runs where it was linked."""
LOOK_SECONDS = 0.05
"""How long the guest runs between two looks for the kernel while a firmware runs: the kernel needs some
hundred milliseconds from its first instruction to the rewrite."""
PAST = ("driver_init", "do_basic_setup", "free_initmem", "mark_rodata_ro")
"""Functions that the init thread reaches only after all CPU features were enabled (init/main.c,
kernel_init_freeable): whoever gets there will not rewrite the tables any more."""


POST_ORDER = "mmu-off-post-order"
"""The algorithm (KptiCode) that stores a descriptor after all those below it, by physical address."""

PHASES = ("before", "during", "after")
"""Names of the captures."""


@dataclass
class Outcome:
    """Say how a run through the rewrite ended."""

    reached: bool
    """True if the rewrite was entered."""
    reason: str
    """What was seen, in one line."""
    algorithm: str = ""
    """The algorithm that the kernel's code shows."""
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    """The captures by phase: before, during, after."""
    stops: list[tuple[str, int]] = field(default_factory=list)
    """The points that were reached, with the program counter."""


class Runner:
    """Drive one guest through the rewrite on its boot CPU."""

    def __init__(self, ctx: Context, timeout: float) -> None:
        """Prepare; `timeout` is the limit in seconds for the whole run."""
        self.ctx = ctx
        self.session: Session = ctx.stopped
        self.deadline = time.monotonic() + timeout
        kernel = ctx.kernel
        if kernel is None:
            raise UserError("the rewrite is found in the kernel file", "--kernel FILE, or kernel FILE")
        wrong = mismatch(ctx)
        if wrong is not None:
            raise wrong
        self.kernel: KernelImage = kernel
        from ptinspect.linux.kpti import recognise

        self.code: KptiCode = recognise(kernel)
        self.outcome = Outcome(False, "", self.code.algorithm)

    # -- places ---------------------------------------------------------------------------------

    def physical(self, link_va: int) -> int:
        """Return where a link-time address lies in guest-physical memory."""
        return self.ctx.view().pa_of_link(link_va)

    def point(self, name: str) -> int:
        """Return the physical address of a point of the identity-mapped function."""
        return self.physical(self.code.entry_va + self.code.points[name])

    def runtime(self, names: Sequence[str]) -> list[int]:
        """Return the run-time addresses of those symbols that the kernel has."""
        view = self.ctx.view()
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
            raise TargetTimeout(
                "the guest did not reach the rewrite in time",
                "a longer --timeout, or look where it stands: interrupt, bt, console",
            )
        return left

    def run_to(self, addresses: Sequence[int], needed: int | None = None) -> StopInfo:
        """Let the guest run until it stands at one of `addresses`, or stops for another reason.

        Under KVM those behind the first `needed` are left out where the CPU has no breakpoint for them.
        """
        self.ctx.forget_stop()
        try:
            stop = self.session.run_until(
                list(addresses), self.left(), purpose=Purpose.REWRITE, needed=needed
            )
        except TargetTimeout as error:
            raise TargetTimeout(
                "the guest did not get there in time: " + error.message,
                "a longer --timeout, or look where it stands: bt, console",
            ) from None
        self.ctx.forget_stop()
        return stop

    def run_for(self, addresses: Sequence[int], seconds: float) -> StopInfo | None:
        """Let the guest run as `run_to` does, but not for longer; None if nothing stopped it."""
        self.ctx.forget_stop()
        try:
            return self.session.run_until(list(addresses), min(seconds, self.left()), purpose=Purpose.REWRITE)
        except TargetTimeout:
            return None
        finally:
            self.ctx.forget_stop()

    def place_kernel(self) -> None:
        """Run until it is known where the kernel runs, if it is not known yet.

        The anchor changes TTBR1. In 5.10 and 6.1 the table before it maps the kernel already; in 6.12
        only the one after it does (arch/arm64/kernel/pi/map_kernel.c), so its return is looked at too.
        A firmware or a boot loader may put the kernel anywhere: while one runs the guest is looked at every
        LOOK_SECONDS, until the registers of a CPU lead into the image.
        """
        more: list[int] = []
        stop: StopInfo | None = None
        while not self.placed():
            anchor = self.anchor()
            if anchor is None:
                wanted = [self.kernel.lookup(FIRST_VIRTUAL)] if self.kernel.linked else []
            else:
                wanted = [anchor, *more]
            self.ctx.progress(f"waiting for {'the kernel' if anchor is None else ANCHOR}", 0, 0)
            stop = self.run_for(wanted, LOOK_SECONDS if anchor is None else 1.0)
            if stop is not None and stop.pc not in wanted:
                raise GuestError(
                    f"the guest stopped at {stop.pc:#x} before the kernel set up its tables",
                    "was the kernel file the one that was booted?",
                )
            if stop is not None:
                more = [self.session.cpu_state(stop.cpu).x[30]] if stop.pc == anchor else []
        if stop is not None:
            self.outcome.stops.append((ANCHOR, stop.pc))

    def placed(self) -> bool:
        """Tell whether it is known where the kernel runs: not before a CPU has tables for its addresses."""
        states = [self.session.cpu_state(cpu) for cpu in range(self.session.cpu_count)]
        begun = any(state.system.get(translation_register(state, "TTBR1")) for state in states)
        return begun and self.ctx.view().placed

    def anchor(self) -> int | None:
        """Return where the anchor lies; None while it is not known where the image will be."""
        try:
            return self.physical(self.kernel.lookup(ANCHOR))
        except GuestError:
            return None

    def enter(self) -> bool:
        """Run to the entry of the identity-mapped function on the boot CPU; False if it is not called."""
        entry = self.point("entry")
        if self.at_entry(entry):
            return True
        functions = self.runtime(C_FUNCTIONS)
        past = self.runtime(PAST[:1]) or self.runtime(PAST)
        returns: set[int] = set()
        while True:
            stop = self.run_to([entry, *past, *functions, *returns], 1 + len(past))
            state = self.session.cpu_state(stop.cpu)
            if stop.pc == entry:
                if self.at_entry(entry):
                    self.outcome.stops.append(("entry", stop.pc))
                    return True
            elif stop.pc in functions:
                if stop.cpu == 0:
                    returns.add(state.x[30])
                    self.outcome.stops.append(("kpti_install_ng_mappings", stop.pc))
            elif stop.pc in returns and stop.cpu == 0:
                self.outcome.reason = "kpti_install_ng_mappings returned without a rewrite"
                return False
            elif stop.pc in past:
                self.outcome.reason = "the kernel went on without a rewrite"
                return False
            elif stop.pc not in returns:
                raise GuestError(f"the guest stopped at {stop.pc:#x} for another reason: {stop.reason}")

    def at_entry(self, entry: int) -> bool:
        """Tell whether the boot CPU stands at the entry (w0, the CPU number, is 0)."""
        state = self.session.cpu_state(self.session.current_cpu)
        return bool(state.pc == entry and state.x[0] & 0xFFFF_FFFF == 0)

    # -- capturing ------------------------------------------------------------------------------

    def capture(self, phase: str, root: Root) -> Snapshot:
        """Capture the tables under swapper and keep them under the name of the phase."""
        from ptinspect.arch.regime import regime_from_registers

        session = self.session
        state = session.cpu_state(session.current_cpu)
        source = Source(session.memory, root, regime_from_registers(state, True), "guest")
        extra = {"kpti.phase": phase, "kpti.algorithm": self.code.algorithm}
        snapshot = capture_snapshot(self.ctx, source, phase, extra=extra)
        self.ctx.snapshots[phase] = snapshot
        self.outcome.snapshots[phase] = snapshot
        return snapshot

    def through(self, percent: int) -> None:
        """Go from the entry to the return, capturing before, during and after."""
        root = self.ctx.view().swapper()
        before = self.capture("before", root)
        self.middle(before, percent)
        self.capture("during", root)
        for name, phase in (("after_writes", "after"), ("return", "")):
            at = self.point(name)
            stop = self.run_to([at])
            if stop.pc != at:
                raise GuestError(f"the guest stopped at {stop.pc:#x} before the end of the rewrite")
            self.outcome.stops.append((name, stop.pc))
            if phase:
                self.capture(phase, root)

    def middle(self, before: Snapshot, percent: int) -> None:
        """Run until about `percent` of the last table level's parents have been written."""
        from ptinspect.analysis.summary import summarize
        from ptinspect.arch.regime import LEVEL_LAST
        from ptinspect.snapshot.index import valid_entry

        valid = next(v.entries_valid for v in summarize(before).levels if v.level == LEVEL_LAST - 1)
        skip = max(min(valid * percent // 100, valid - 1), 0)
        self.ctx.progress(f"waiting for {skip + 1} of {valid} pmd entries", 0, 0)
        site = self.physical(self.code.entry_va + self.code.store_offset(LEVEL_LAST - 1))
        entry = valid_entry(before, LEVEL_LAST - 1, skip)
        if self.code.algorithm == POST_ORDER and entry is not None:
            self.run_to_access(entry)
            stop = self.run_to([site])
        else:
            stop = self.run_to_store(site, skip)
        if stop.pc != site:
            raise GuestError(
                f"the guest stopped at {stop.pc:#x} in the middle of the rewrite",
                "at a breakpoint: break lists them, delete all; snap NAME captures the tables as they are",
            )
        self.outcome.stops.append(("during", stop.pc))

    def run_to_access(self, entry: int) -> None:
        """Run until the rewrite, its MMU off, loads this descriptor: it stores it when all below it is done.

        A breakpoint at the store would stop the guest for each one before it, a few hundred a second.
        """
        number = self.session.watch_access(entry, 8, Purpose.REWRITE)
        self.run_to_stop(number)

    def run_to_store(self, site: int, skip: int) -> StopInfo:
        """Run until the store at `site` is reached for the time number `skip` + 1; GDB counts the others."""
        number = self.session.set_breakpoint(site, purpose=Purpose.REWRITE).id
        self.session.gdb_command(f"ignore {number} {skip}")
        return self.run_to_stop(number)

    def run_to_stop(self, number: int) -> StopInfo:
        """Run until the guest stops, for the breakpoint or watchpoint `number`, which is deleted then."""
        self.ctx.forget_stop()
        try:
            self.session.resume()
            return self.session.wait_stop(self.left())
        finally:
            if self.session.state.name == "STOPPED":
                self.session.delete_breakpoint(number)
            self.ctx.forget_stop()


def run(ctx: Context, *, timeout: float, percent: int = 50) -> Outcome:
    """Run the guest through the rewrite and capture before, during and after it.

    Raises UserError without a kernel file, TargetTimeout after `timeout` seconds, GuestError if the
    guest stops for a reason of its own. If the kernel does not rewrite its tables, the outcome says so.
    """
    runner = Runner(ctx, timeout)
    runner.place_kernel()
    if runner.enter():
        runner.outcome.reached = True
        runner.outcome.reason = f"rewrite seen from entry to return ({runner.code.algorithm})"
        runner.through(percent)
    return runner.outcome
