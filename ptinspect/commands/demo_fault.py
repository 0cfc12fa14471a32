"""`demo --fault`: take the stack's mapping away at the end of the rewrite, and have the guard catch it."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from ptinspect.commands.context import Context
from ptinspect.commands.kpti_run import Runner
from ptinspect.commands.poke import write
from ptinspect.errors import GuestError, TargetError, TargetTimeout
from ptinspect.output.model import Note, Report, hex_address

FAULTS = ("lost", "reverted")
GUARD_SECONDS = 30
DEATH_SECONDS = 10.0
EXPECTED = {"lost": "lost-entry", "reverted": "reverted-entry"}
REVERTED_CPUS = 8
"""The boot's table maps blocks of 2 MiB: the first CPU's stack may lie in the last of them, mapped to
memory that is not the stack's, and never fault; with more CPUs some stacks lie outside."""
PMD = 2
"""Level of the tables whose entry is cleared."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of a demo with a fault."""
    add = parser.add_argument
    add("--fault", choices=FAULTS, help="lose the stack's mapping at the end of the rewrite instead")
    add("--no-guard", action="store_true", help="with --fault: let the guest die its own way")


def demo_fault(ctx: Context, args: argparse.Namespace, launch: list[str]) -> Report:
    """Boot, inject the fault where the report had it, and explain what happens."""

    def run(*words: str) -> dict[str, Any]:
        line = shlex.join(words)
        report = ctx.registry.run(ctx, line)
        ctx.step(line, report)
        return dict(report.result)

    if args.fault == "reverted" and args.smp is None:
        launch = [*launch, "--smp", str(REVERTED_CPUS)]
    run("launch", *launch)
    runner = Runner(ctx, args.timeout)
    runner.place_kernel()
    early = ctx.stopped.cpu_state(ctx.stopped.current_cpu).system.get("TTBR1_EL1", 0)
    if not runner.enter():
        raise GuestError(runner.outcome.reason)
    root = ctx.view().swapper()
    runner.capture("before", root)
    stop = runner.run_to([runner.point("after_writes")])
    runner.capture("after", root)
    pa, value = _target(ctx, ctx.stopped.cpu_state(stop.cpu).sp, args.fault, early)
    old = write(ctx, pa, value)
    said = f"pa:{pa:#x}: {old:#x} -> {value:#x}"
    ctx.step(f"poke descriptor pa:{pa:#x} {value:#x} --yes", Report({}, (Note(said, "changed"),)))
    injected = {"descriptor_pa": hex_address(pa), "before": hex_address(old), "after": hex_address(value)}
    if args.no_guard:
        return _death(ctx, args.fault, injected)
    caught = run("stack", "guard", "--timeout", str(GUARD_SECONDS))
    why = caught.get("why") or {}
    named = (why.get("descriptor") or {}).get("descriptor_pa") == injected["descriptor_pa"]
    early_enough = caught["way"] == "recursive-fault"
    ok = bool(named and early_enough and why.get("code") == EXPECTED[args.fault])
    result = {"ok": ok, "fault": args.fault, "injected": injected, "guard": caught["way"], "why": why}
    text = (
        "The guard caught it, and why names the descriptor."
        if ok
        else "It was not explained as it has to be."
    )
    return Report(result, (Note(text, "good" if ok else "bad"),), 0 if ok else 1)


def _target(ctx: Context, sp: int, fault: str, early: int) -> tuple[int, int]:
    """Return the descriptor to change on the path of the running stack, and its new value.

    `early` is TTBR1_EL1 when paging_init() began: the boot's own table (init_pg_dir), which is still
    intact. Raises GuestError if that value makes no difference.
    """
    from ptinspect.arch.bits import bits
    from ptinspect.paging.walk import walk

    view = ctx.view()
    root = view.swapper().pa
    path = walk(view.memory, sp, root, view.regime)
    if fault == "lost":
        step = next((s for s in path.steps if s.level == PMD), None)
        if step is None:
            raise GuestError(f"the stack at {sp:#x} is mapped by no pmd entry")
        return step.descriptor_pa, 0
    step = path.steps[0]
    boot = bits(early, 47, 1) << 1
    value = int.from_bytes(view.memory.read(boot + 8 * step.index, 8), "little")
    if boot == root or not value & 1 or value == step.raw:
        raise GuestError("the root entry's value at boot is not known for this kernel", "--fault lost")
    return step.descriptor_pa, value


def _death(ctx: Context, fault: str, injected: dict[str, str]) -> Report:
    """Let the guest run on its own for a while, and explain where it is then."""
    session = ctx.stopped
    ctx.forget_stop()
    session.resume()
    try:
        session.wait_stop(DEATH_SECONDS)
    except TargetTimeout:
        session.interrupt()
    except TargetError as error:
        gone = f"the guest has gone: {error.message}"
        return Report({"ok": True, "fault": fault, "injected": injected, "end": gone}, (Note(gone, "bad"),))
    ctx.forget_stop()
    told = ctx.registry.run(ctx, "why")
    ctx.step("why", told)
    result = {"ok": True, "fault": fault, "injected": injected, "end": "stopped", "why": dict(told.result)}
    return Report(result, (Note("The guest was left to itself; the console holds its last words.", "dim"),))
