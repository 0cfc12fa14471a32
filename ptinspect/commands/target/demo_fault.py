"""`demo --fault`: take the stack's mapping away at the end of the rewrite, and have the guard catch it."""

from __future__ import annotations

import argparse
import shlex
import time
from typing import TYPE_CHECKING, Any

from ptinspect.arch.bits import MASK64
from ptinspect.arch.descriptor import BIT11
from ptinspect.arch.regime import root_pa
from ptinspect.commands.framework.context import Context
from ptinspect.errors import GuestError, TargetError, TargetTimeout
from ptinspect.guest.pokes import poke
from ptinspect.guest.rewrite import Runner
from ptinspect.output.model import Note, Report, hex_address

if TYPE_CHECKING:
    from ptinspect.linux.running.guest_view import GuestView

FAULTS = ("lost", "reverted")
GUARD_SECONDS = 12
DEATH_SECONDS = 20.0
"""Seconds that a guest gets to die in."""
QUIET_SECONDS = 2.0
"""Seconds of silence behind a panic after which nothing more is waited for."""
PANIC = b"Kernel panic - not syncing"
EXPECTED = {"lost": "lost-entry", "reverted": "reverted-entry"}
REVERTED_CPUS = 8
"""The boot's table maps blocks of 2 MiB: the first CPU's stack may lie in the last of them, mapped to
memory that is not the stack's, and never fault; with more CPUs some stacks lie outside."""
ELSEWHERE = "memory of something else"
"""What `why` says of a stack whose addresses lead to other memory (stack/verdict.py)."""
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
    runner = Runner(ctx.guest, args.timeout)
    runner.place_kernel()
    boot = _boot_root(ctx)
    if not runner.enter():
        raise GuestError(runner.reason)
    runner.capture("before")
    stop = runner.run_to([runner.point("after_writes")])
    runner.capture("after")
    sp = ctx.stopped.cpu_state(stop.cpu).sp
    pa, value = _lost(ctx.view(), sp) if args.fault == "lost" else _reverted(ctx.view(), sp, boot)
    old = poke(ctx.guest, pa, value).old
    said = f"pa:{pa:#x}: {old:#x} -> {value:#x}"
    ctx.step(f"poke descriptor pa:{pa:#x} {value:#x} --yes", Report({}, (Note(said, "changed"),)))
    injected = {"descriptor_pa": hex_address(pa), "before": hex_address(old), "after": hex_address(value)}
    if args.no_guard:
        return _death(ctx, args.fault, injected)
    caught = run("stack", "guard", "--timeout", str(GUARD_SECONDS))
    if caught["way"] == "time":
        return _quiet(ctx, args.fault, injected)
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


def _boot_root(ctx: Context) -> bytes:
    """Return the root table in TTBR1 as it is now, before paging_init() makes the kernel's own.

    Its address would not do: up to v5.3 the boot's own root is swapper_pg_dir itself, into which
    paging_init() copies the new one (arch/arm64/mm/mmu.c; head.S puts the boot's lower tables behind it).
    """
    view = ctx.view()
    return view.memory.read(root_pa(view.state, view.regime), view.regime.root_size)


def _lost(view: GuestView, sp: int) -> tuple[int, int]:
    """Return the descriptor that leads to the stack alone, and zero."""
    from ptinspect.tables.walk import walk

    root, image = view.swapper().pa, view.image
    assert image is not None
    text = (image.text_va + image.code_range[0] + view.kaslr_offset) & MASK64
    code = walk(view.memory, text, root, view.regime)
    both = {s.descriptor_pa for s in code.steps}  # with 64K pages a pmd entry maps stacks and code alike
    path = walk(view.memory, sp, root, view.regime)
    lost = next((s for s in path.steps if s.level >= PMD and s.descriptor_pa not in both), None)
    if lost is None:
        raise GuestError(f"no entry maps the stack at {sp:#x} without mapping the kernel's code too")
    return lost.descriptor_pa, 0


def _reverted(view: GuestView, sp: int, boot: bytes) -> tuple[int, int]:
    """Return the root descriptor of the stack, and the value that it had in the boot's root table.

    Raises GuestError if that value makes no difference.
    """
    from ptinspect.tables.walk import walk

    step = walk(view.memory, sp, view.swapper().pa, view.regime).steps[0]
    value = int.from_bytes(boot[8 * step.index : 8 * step.index + 8], "little")
    if not value & 1:
        raise GuestError(f"the boot's own table had no root entry for the stack at {sp:#x}", "--fault lost")
    if step.raw is not None and not (value ^ step.raw) & ~BIT11:
        raise GuestError(
            f"the root entry pa:{step.descriptor_pa:#x} had the same value at boot but for bit 11: "
            "this kernel goes on with the boot's tables, so that nothing would be lost if it reverted",
            "--fault lost, or an older kernel",
        )
    return step.descriptor_pa, value


def _quiet(ctx: Context, fault: str, injected: dict[str, str]) -> Report:
    """Say why the guard saw nothing: the stack's addresses still lead to memory, but not to the stack's."""
    result, body = _judged(ctx, fault, injected)
    ok = result["explained_by"]["why"] and any(ELSEWHERE in line for line in result["why"]["evidence"])
    text = (
        "The guard was quiet because nothing faulted: a block of the boot's table maps the stack's "
        "addresses, to memory of something else. why and check name the reverted entry. With --smp "
        f"{REVERTED_CPUS} some stacks lie outside of such blocks."
        if ok
        else "The guard was quiet, and nothing tells why."
    )
    result |= {"guard": "time", "ok": ok}
    return Report(result, (*body, Note(text, "changed" if ok else "bad")), 0 if ok else 1)


def _judged(ctx: Context, fault: str, injected: dict[str, str]) -> tuple[dict[str, Any], list[Note]]:
    """Ask the stopped guest, its tables, and its console."""
    spoke = _oops(ctx)
    result: dict[str, Any] = {"fault": fault, "injected": injected, "console": spoke}
    live: dict[str, Any] = {}
    if ctx.state == "stopped":
        told = ctx.registry.run(ctx, "why")
        ctx.step("why", told)
        live = dict(told.result)
        checked = ctx.registry.run(ctx, "check --against after --limit 4")
        ctx.step("check --against after --limit 4", checked)
        result["check"] = {"ok": checked.result["ok"], "findings": checked.result["findings"]}
    named = (live.get("descriptor") or {}).get("descriptor_pa") == injected["descriptor_pa"]
    said = [panic["verdict"]["code"] for panic in spoke["panics"]]
    by_live = bool(named and live.get("code") == EXPECTED[fault])
    result |= {"explained_by": {"why": by_live, "oops": EXPECTED[fault] in said}, "why": live}
    how = f"the console tells: {', '.join(said)}" if said else "the console says nothing of it"
    return result, [Note(how, "dim")]


def _death(ctx: Context, fault: str, injected: dict[str, str]) -> Report:
    """Let the guest die its own way, and explain it from the console's log and from the guest itself."""
    ended = _watch(ctx)
    result, body = _judged(ctx, fault, injected)
    ways = {"why": "why, on the guest itself", "oops": "oops, from its console"}
    explained = [ways[name] for name, ok in result["explained_by"].items() if ok]
    text = (
        f"Explained by {' and by '.join(explained)}."
        if explained
        else "It was not explained as it has to be."
    )
    body = [Note(ended, "dim"), *body, Note(text, "good" if explained else "bad")]
    return Report(result | {"end": ended, "ok": bool(explained)}, body, 0 if explained else 1)


def _watch(ctx: Context) -> str:
    """Let the guest run until its console reports a death, and is silent then, or for DEATH_SECONDS."""
    session = ctx.stopped
    ctx.forget_stop()
    session.resume()
    end = time.monotonic() + DEATH_SECONDS
    before = -1
    while time.monotonic() < end:
        try:
            stop = session.wait_stop(QUIET_SECONDS)
        except TargetTimeout:
            size = len(_console(ctx))
            if size == before and PANIC in _console(ctx):
                break
            before = size
        except TargetError as error:
            return f"the guest has gone: {error.message}"
        else:
            ctx.forget_stop()
            return f"the guest stopped at {ctx.place(stop.pc)}"
    session.interrupt()
    ctx.forget_stop()
    return "the guest panicked" if PANIC in _console(ctx) else "the guest did not get on, and did not panic"


def _console(ctx: Context) -> bytes:
    return b"" if ctx.qemu is None else ctx.qemu.console.read_bytes()


def _oops(ctx: Context) -> dict[str, Any]:
    """Have the console's log explained, if there is a death in it."""
    if ctx.qemu is None:
        return {"panics": []}
    line = shlex.join(["oops", str(ctx.qemu.console)])
    told = ctx.registry.run(ctx, line)
    if told.result["panics"]:
        ctx.step(line, told)
    return dict(told.result)
