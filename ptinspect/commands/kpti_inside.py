"""Stand inside the rewrite: reach it, and run to one of its stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptinspect.commands.capturing import capture_snapshot
from ptinspect.commands.kpti_run import Runner
from ptinspect.commands.sources import Source
from ptinspect.errors import GuestError, TargetTimeout, UserError
from ptinspect.target.slots import Purpose

if TYPE_CHECKING:
    from ptinspect.arch.sysregs import CpuState
    from ptinspect.linux.kpti import Position
    from ptinspect.snapshot.model import Snapshot


def boot_state(runner: Runner) -> CpuState | None:
    """Return the registers of the CPU that does the rewrite; None if none is in it."""
    from ptinspect.linux.kpti import boot_cpu

    return boot_cpu(runner.ctx.view(), runner.code)


def standing(runner: Runner, state: CpuState) -> Position:
    """Say where the boot CPU, which is inside, stands."""
    from ptinspect.linux.kpti import position

    view = runner.ctx.view()
    return position(state, runner.code, view.regime, view.memory)


def reach(runner: Runner) -> bool:
    """Have the boot CPU inside the rewrite, before its last store; False if the kernel does none.

    Nothing runs if it is there already. Raises UserError if the rewrite is over.
    """
    from ptinspect.linux.kpti import flag_value
    from ptinspect.linux.kpti.judge import past_boot

    view = runner.ctx.view()
    state = boot_state(runner)
    if state is not None:
        if standing(runner, state).phase == "done":
            raise UserError("all descriptors are written already", "kpti progress; a fresh guest: launch")
        runner.session.current_cpu = state.cpu
        return True
    if view.placed:
        if flag_value(view, runner.code) == 0:
            raise UserError("the rewrite has finished (its flag is 0)", "a fresh guest: launch")
        if past := past_boot(view):
            runner.outcome.reason = f"{past}: the kernel is past the place where it would rewrite its tables"
            return False
    runner.place_kernel()
    return runner.enter()


def tables_now(runner: Runner, name: str) -> Snapshot:
    """Capture the tables under swapper as they are."""
    view = runner.ctx.view()
    source = Source(runner.session.memory, view.swapper(), view.regime, "guest")
    return capture_snapshot(runner.ctx, source, name, extra={"kpti.algorithm": runner.code.algorithm})


def site_of(runner: Runner, level: int) -> int:
    """Return the address of the store of a level. Raises UserError if the level is never written."""
    for store in runner.code.stores:
        if store.level == level:
            return runner.physical(runner.code.entry_va + store.offset)
    raise UserError(f"the kernel's code never writes descriptors of level {level}")


def run_to_store(runner: Runner, level: int, skip: int) -> None:
    """Run until the store of a level is reached for the time number `skip` + 1. Raises GuestError."""
    site, session = site_of(runner, level), runner.session
    state = boot_state(runner)
    if state is not None and state.pc == site:  # GDB steps over a breakpoint where the CPU stands
        if not skip:
            return
        skip -= 1
    found = session.set_breakpoint(site, purpose=Purpose.REWRITE)
    try:
        if skip:
            session.gdb_command(f"ignore {found.id} {skip}")
        runner.ctx.forget_stop()
        stop = session.run_until([runner.point("after_writes")], runner.left())
    except TargetTimeout as error:
        raise TargetTimeout(f"level {level}: the store was not reached in time", error.hint) from error
    finally:
        runner.ctx.forget_stop()
        if session.state.name == "STOPPED":
            session.delete_breakpoint(found.id)
    if stop.pc != site:
        raise GuestError(f"the guest stopped at {stop.pc:#x}, before that store of the rewrite")
