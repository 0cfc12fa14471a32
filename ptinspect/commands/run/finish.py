"""`finish` and `nexti`: run until a call has returned, in the same task and in the same frame."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from ptinspect.arch.bits import bit, bits
from ptinspect.arch.sysregs import CpuState, translation_register
from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.arguments import add_cpu_option
from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.run.run import configure_wait, limit, stopped
from ptinspect.errors import PtinspectError, TargetTimeout, UserError
from ptinspect.guest.names import cpu_state
from ptinspect.output.model import Note, Report

if TYPE_CHECKING:
    from ptinspect.link.session import StopInfo
    from ptinspect.stack.unwind import Caller


def _configure_finish(parser: argparse.ArgumentParser) -> None:
    configure_wait(parser)
    add_cpu_option(parser, "whose function (default: the CPU that stopped)")


def _configure_nexti(parser: argparse.ArgumentParser) -> None:
    count = argtypes.whole(1, 10_000)
    parser.add_argument("count", nargs="?", type=count, default=1, metavar="N", help="instructions (1)")
    _configure_finish(parser)


@command(
    "finish",
    aliases=("fin",),
    group="Session",
    summary="Run until the current function has returned",
    example="finish",
    details="In the same task and frame, on whatever CPU: other tasks and deeper calls of the same "
    "function that return to the same place go on.",
    needs=Needs.STOPPED,
    configure=_configure_finish,
    repeats=True,
    runs=True,
)
def finish(ctx: Context, args: argparse.Namespace) -> Report:
    """Run until the function at the program counter has returned to its caller."""
    from ptinspect.stack.depth import start_of_cpu

    state = cpu_state(ctx.guest, args.cpu)
    deadline = time.monotonic() + limit(ctx, args.timeout)
    caller = start_of_cpu(ctx.view(), state).caller()
    if caller is None or caller.pc == 0:
        raise UserError("finish: there is no caller", "bt shows the chain")
    return _came_back(ctx, *_return_to(ctx, caller, state, deadline))


@command(
    "nexti",
    aliases=("ni", "n", "next"),
    group="Session",
    summary="Step one instruction, or N, over calls",
    example="nexti",
    needs=Needs.STOPPED,
    configure=_configure_nexti,
    details="A bl or blr runs until it has returned to this task and frame, whatever else comes there "
    "meanwhile: a breakpoint stops first. There are no source lines here: n is the same.",
    repeats=True,
)
def nexti(ctx: Context, args: argparse.Namespace) -> Report:
    """Step instructions of one CPU; calls run until they have returned."""
    from ptinspect.stack.unwind import Caller

    session = ctx.stopped
    cpu = cpu_state(ctx.guest, args.cpu).cpu
    deadline = time.monotonic() + limit(ctx, args.timeout)
    for left in range(args.count - 1, -1, -1):
        before = session.cpu_state(cpu)
        if is_call(ctx.guest.code_at(before.pc, 4)):
            caller = Caller(before.pc + 4, before.sp, before.sp, before.x[29])
            stop, back = _return_to(ctx, caller, before, deadline)
            if not left or not back:
                return _came_back(ctx, stop, back)
            cpu = stop.cpu
            continue
        ctx.forget_stop()
        stop = session.step_instructions(1, cpu)
        if not left or stop.reason != "end-stepping-range":
            break
    return stopped(ctx, stop)


def is_call(code: bytes) -> bool:
    """Tell whether an instruction is BL, BLR, or BLRA with a key. Source: Arm ARM, C4.1 (branches)."""
    word = int.from_bytes(code, "little")
    return word >> 26 == 0b100101 or word & 0xFFFF_FC1F == 0xD63F_0000 or word & 0xFEFF_F800 == 0xD63F_0800


def _return_to(ctx: Context, caller: Caller, before: CpuState, deadline: float) -> tuple[StopInfo, bool]:
    """Run until the call has returned, in the same task and frame, on whatever CPU; False if it has not.

    Other tasks and deeper calls that come to the same place go on; a breakpoint of the user's stops there.
    """
    session = ctx.stopped
    mine = {found.id for found in session.breakpoints}
    whose = _thread(ctx, before)
    passed = 0
    while True:
        ctx.forget_stop()
        try:
            stop = session.run_until([caller.pc], max(deadline - time.monotonic(), 0.1))
        except TargetTimeout as error:
            text = f"the function did not return in time{_passed(passed)}"
            raise TargetTimeout(text, error.hint) from error
        ctx.forget_stop()
        after = session.cpu_state(stop.cpu)
        if after.pc != caller.pc:
            return stop, False
        if _same(ctx, caller, before, after, whose):
            return stop, True
        if stop.breakpoint in mine:
            return stop, False
        passed += 1
        if time.monotonic() >= deadline:
            raise TargetTimeout(
                f"the function did not return in time{_passed(passed)}", "the guest is stopped where it is"
            )


def _passed(count: int) -> str:
    return f"; {count} time(s) another task or call came there" if count else ""


def _same(ctx: Context, caller: Caller, before: CpuState, after: CpuState, whose: object) -> bool:
    """Tell whether `after` is where the call of `before` has returned to.

    Code at physical addresses, of the boot or the identity map, is run by no task, and some of it comes
    back from a call at another exception level, with that level's SP (init_kernel_el, head.S): there
    the CPU and the frame count, or the CPU alone.
    """
    if after.el and not bit(after.pc, 55):
        return after.cpu == before.cpu and (after.el != before.el or caller.reached(after))
    return caller.reached(after) and _thread(ctx, after) == whose


def _thread(ctx: Context, state: CpuState) -> object:
    """Return what tells the thread that a CPU runs from all others: its task, else what the registers hold.

    In the kernel SP_EL0 is the current task (asm/current.h); processes differ in TTBR0 (without ASID and
    CnP), their threads in TPIDR_EL0.
    """
    from ptinspect.linux.running.tasks import Tasks

    try:
        task = Tasks(ctx.view()).current(state)
    except PtinspectError:
        task = None
    if task is not None:
        return state.el == 0, task.address, task.pid
    if state.el == 0:
        ttbr0 = state.system.get(translation_register(state, "TTBR0"), 0)
        return True, bits(ttbr0, 47, 1), state.system.get("TPIDR_EL0", 0)
    return False, state.system.get("SP_EL0", 0) if state.pstate & 1 else state.cpu, None


def _came_back(ctx: Context, stop: StopInfo, returned: bool) -> Report:
    """Say where a call has returned to, or what stopped the guest before."""
    report = stopped(ctx, stop)
    note = () if returned else (Note("stopped before it returned", "changed"),)
    return Report({**report.result, "returned": returned}, (*report.body, *note))
