"""Run control: go on, run to an address, for a time, some instructions, or until a function has returned."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptinspect.arch.a64 import is_call
from ptinspect.arch.bits import bit, bits
from ptinspect.arch.sysregs import CpuState, translation_register
from ptinspect.dataclass import dataclass
from ptinspect.errors import PtinspectError, TargetTimeout, UserError
from ptinspect.guest.breakpoints.breakpoints import symbol_breakpoints, timed_out
from ptinspect.guest.breakpoints.reachable import Doubt, checked
from ptinspect.guest.expression import Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import cpu_state
from ptinspect.link.session import StopInfo
from ptinspect.text import counted

if TYPE_CHECKING:
    from ptinspect.stack.unwind import Caller


STEPS_AT_ONCE = 256
"""Steps that GDB gets at once: it takes no interrupt in the middle of them."""


@dataclass(frozen=True)
class Arrival:
    """Where the guest stopped on its way to some addresses."""

    stop: StopInfo
    addresses: Sequence[int]

    @property
    def reached(self) -> bool:
        """Whether it stopped at one of them, and not for another reason."""
        return self.stop.pc in self.addresses


def go_on(guest: Guest, seconds: float | None = None) -> StopInfo | None:
    """Let the guest run, and return where it stops; None without `seconds`, for then nobody waits.

    One that runs already is only waited for. Raises TargetTimeout: it runs on.
    """
    session = guest.target
    if guest.state != "running":
        session.resume()
    return None if seconds is None else session.wait_stop(seconds)


def run_for(guest: Guest, seconds: float) -> StopInfo | None:
    """Let the guest run for a while; return its stop, None if nothing but the time stopped it.

    It is stopped after Ctrl-C too.
    """
    session = guest.stopped
    try:
        session.resume()
        try:
            return session.wait_stop(seconds)
        except TargetTimeout:
            stop = session.interrupt()
            return None if stop.signal == "SIGINT" and stop.breakpoint is None else stop
    except KeyboardInterrupt:
        session.interrupt()
        raise


def step(guest: Guest, count: int, cpu: int, seconds: float) -> StopInfo:
    """Step instructions of one CPU. Raises TargetTimeout."""
    session = guest.stopped
    deadline = time.monotonic() + seconds
    left, before = count, session.cpu_state(cpu)
    while True:
        try:
            stop = session.step_instructions(min(left, STEPS_AT_ONCE), cpu)
        except TargetTimeout:
            if guest.state != "stopped" or session.cpu_state(cpu).pc != before.pc:
                raise
            what = f"cpu {cpu} executes nothing: it is off, or waits for an interrupt"
            raise TargetTimeout(what, "cpu lists the others") from None
        left -= STEPS_AT_ONCE
        if left <= 0 or stop.reason != "end-stepping-range":
            return stop
        if time.monotonic() >= deadline:
            done = f"{count - left} of {count} steps in {seconds:g} s"
            raise TargetTimeout(f"{done}; {guest.place(stop.pc)}", "a longer --timeout")
        guest.progress("stepping", count - left, count)


def until(guest: Guest, places: Sequence[Address | int], seconds: float) -> Arrival:
    """Run until one of the places is reached; those of the kernel's symbols are followed to where it runs.

    Raises UserError for a name that is not known, TargetTimeout; the guest is stopped then.
    """
    followed, others, doubts = list[Address](), list[int](), list[Doubt]()
    for place in places:
        value, found = (place, ()) if isinstance(place, int) else checked(guest, place, now=True)
        doubts += found
        if value is not None:
            others.append(value)
        elif isinstance(place, Address):
            followed.append(place)
    against = "; ".join(f"{doubt.text}; {doubt.hint}" for doubt in doubts)
    if against:
        guest.progress(against)
    with symbol_breakpoints(guest).passing(followed) as waiting:
        try:
            stop = guest.stopped.run_until(others, seconds)
        except TargetTimeout as error:
            told = timed_out(error, waiting)
            raise TargetTimeout(told.message, against or told.hint) from None
        return Arrival(stop, [*others, *(at for one in waiting for at in one.places)])


@dataclass(frozen=True)
class Return:
    """Where the guest stopped after a call."""

    stop: StopInfo
    returned: bool | None
    """Whether the call has returned; None where none was made."""


def finish(guest: Guest, cpu: int | None, seconds: float) -> Return:
    """Run until the function at the program counter has returned to its caller.

    Raises UserError if the caller is not known, TargetTimeout.
    """
    deadline = time.monotonic() + seconds
    state, caller = calling(guest, cpu)
    return _return_to(guest, caller, state, deadline)


def calling(guest: Guest, cpu: int | None) -> tuple[CpuState, Caller]:
    """Return the registers of a CPU, and where its function returns to. Raises UserError if nobody knows."""
    from ptinspect.stack.depth import start_of_cpu

    state = cpu_state(guest, cpu)
    caller = start_of_cpu(guest.view, state).caller()
    if caller is None or caller.pc == 0:
        raise UserError("finish: there is no caller", "bt shows the chain")
    return state, caller


def same_call(guest: Guest, caller: Caller, before: CpuState, after: CpuState) -> bool:
    """Tell whether a CPU stands where `before` was called, in the same task and frame."""
    return _same(guest, caller, before, after, _thread(guest, before))


def step_over(guest: Guest, count: int, cpu: int | None, seconds: float) -> Return:
    """Step instructions of one CPU; calls run until they have returned. Raises TargetTimeout."""
    from ptinspect.guest.writer import instruction_at
    from ptinspect.stack.unwind import Caller

    session = guest.stopped
    number = cpu_state(guest, cpu).cpu
    deadline = time.monotonic() + seconds
    for left in range(count - 1, -1, -1):
        before = session.cpu_state(number)
        word = instruction_at(guest, before, before.pc)
        if word is not None and is_call(word):
            caller = Caller(before.pc + 4, before.sp, before.sp, before.x[29])
            found = _return_to(guest, caller, before, deadline)
            if not left or not found.returned:
                return found
            number = found.stop.cpu
            continue
        stop = step(guest, 1, number, seconds)
        if not left or stop.reason != "end-stepping-range":
            break
    return Return(stop, None)


def _return_to(guest: Guest, caller: Caller, before: CpuState, deadline: float) -> Return:
    """Run until the call has returned, in the same task and frame, on whatever CPU.

    Other tasks and deeper calls that come to the same place go on; a breakpoint of the user's stops there.
    """
    session = guest.stopped
    mine = {found.id for found in session.breakpoints}
    whose = _thread(guest, before)
    passed = 0
    while True:
        try:
            stop = session.run_until([caller.pc], max(deadline - time.monotonic(), 0.1))
        except TargetTimeout as error:
            raise _late(passed, error.hint) from error
        after = session.cpu_state(stop.cpu)
        if after.pc == caller.pc and _same(guest, caller, before, after, whose):
            return Return(stop, True)
        if after.pc != caller.pc or stop.breakpoint in mine:
            return Return(stop, False)
        passed += 1
        if time.monotonic() >= deadline:
            raise _late(passed, "the guest is stopped where it is")


def _late(passed: int, hint: str) -> TargetTimeout:
    others = f"; {counted(passed, 'time')} another task or call came there" if passed else ""
    return TargetTimeout(f"the function did not return in time{others}", hint)


def _same(guest: Guest, caller: Caller, before: CpuState, after: CpuState, whose: object) -> bool:
    """Tell whether `after` is where the call of `before` has returned to.

    Code at physical addresses, of the boot or the identity map, is run by no task, and some of it comes
    back from a call at another exception level, with that level's SP (init_kernel_el, head.S): there
    the CPU and the frame count, or the CPU alone.
    """
    if after.el and not bit(after.pc, 55):
        return after.cpu == before.cpu and (after.el != before.el or caller.reached(after))
    return caller.reached(after) and _thread(guest, after) == whose


def _thread(guest: Guest, state: CpuState) -> object:
    """Return what distinguishes the thread that a CPU runs: its task, else what the registers hold.

    In the kernel SP_EL0 is the current task (asm/current.h); processes differ in TTBR0 (without ASID and
    CnP), their threads in TPIDR_EL0.
    """
    from ptinspect.linux.running.tasks import Tasks

    try:
        task = Tasks(guest.view).current(state)
    except PtinspectError:
        task = None
    if task is not None:
        return state.el == 0, task.address, task.pid
    if state.el == 0:
        ttbr0 = state.system.get(translation_register(state, "TTBR0"), 0)
        return True, bits(ttbr0, 47, 1), state.system.get("TPIDR_EL0", 0)
    return False, state.system.get("SP_EL0", 0) if state.pstate & 1 else state.cpu, None
