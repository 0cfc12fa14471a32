"""`break`, `delete`, `continue`, `interrupt`, `stepi`, `until`: make the guest run and stop."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.arguments import add_cpu_option
from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import GuestError, TargetTimeout, UserError
from ptinspect.guest import expression
from ptinspect.guest.names import GuestNames, cpu_state
from ptinspect.output.model import Note, Report, hex_address
from ptinspect.output.views import run as views

if TYPE_CHECKING:
    from ptinspect.link.session import StopInfo

SCRIPT_SECONDS = 300.0
"""Limit of `continue`, `finish` and `until` where nobody can press Ctrl-C, unless --timeout is given."""
FOREVER = 10 * 365 * 86400.0
"""The same in the REPL: until Ctrl-C."""
STEPS_AT_ONCE = 256
"""Steps that GDB gets at once: it takes no interrupt in the middle of them."""


def _configure_break(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address",
        nargs="?",
        type=argtypes.location,
        metavar="ADDR",
        help=f"{expression.ADDRESS_HELP}; none: list the breakpoints",
    )
    parser.add_argument("--temporary", "-t", action="store_true", help="delete it when it is hit")
    parser.add_argument(
        "--software", action="store_true", help="write an instruction instead of a comparison"
    )
    parser.add_argument("--if", dest="condition", metavar="CONDITION", help="a condition in GDB's language")
    add_cpu_option(parser)


def _configure_delete(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("numbers", nargs="*", metavar="N", help="numbers of breakpoints, or: all")


def configure_wait(parser: argparse.ArgumentParser) -> None:
    """Add `--timeout`."""
    parser.add_argument(
        "--timeout",
        type=argtypes.seconds,
        metavar="SECONDS",
        help=f"give up after that time (scripts: {SCRIPT_SECONDS:.0f})",
    )


def _configure_continue(parser: argparse.ArgumentParser) -> None:
    configure_wait(parser)
    parser.add_argument("--background", "-b", action="store_true", help="do not wait until it stops")


def _configure_stepi(parser: argparse.ArgumentParser) -> None:
    count = argtypes.whole(1, 1_000_000)
    parser.add_argument("count", nargs="?", type=count, default=1, metavar="N", help="instructions (1)")
    configure_wait(parser)
    add_cpu_option(parser)


def _configure_until(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "addresses", nargs="+", type=argtypes.location, metavar="ADDR", help=expression.ADDRESS_HELP
    )
    configure_wait(parser)


def limit(ctx: Context, timeout: float | None) -> float:
    """Return how many seconds to wait for a stop."""
    if timeout is None:
        timeout = ctx.options.number("timeout") or (FOREVER if ctx.interactive else SCRIPT_SECONDS)
    return timeout


@command(
    "break",
    aliases=("b",),
    group="Run and stop",
    summary="Set a breakpoint, or list them",
    example="break pa:0x40289510",
    needs=Needs.TARGET,
    configure=_configure_break,
    details="A breakpoint compares the program counter: code that runs with the MMU off or under the "
    "identity map stands at its physical address, pa:0x… Under KVM it is always one of the CPU's own, "
    "of which there are few (status), --software or not.",
)
def set_breakpoint(ctx: Context, args: argparse.Namespace) -> Report:
    """Set a breakpoint, or list all."""
    session = ctx.target
    if args.address is None:
        return _with_slots(ctx, views.breakpoints(session.breakpoints, ctx.place))
    ctx.guest.require("break", stopped=True)
    found = session.set_breakpoint(
        args.address.value(GuestNames(ctx.guest, args.cpu)),
        hardware=not args.software,
        temporary=args.temporary,
        cpu=args.cpu,
        condition=args.condition,
    )
    report = _with_slots(ctx, views.breakpoint_set(found, ctx.place))
    if ctx.kernel is None or not uses_symbol(args.address) or ctx.view().placed:
        return report
    early = "it is not known yet where the kernel will run: with KASLR (no 'nokaslr') it is elsewhere"
    return Report({**report.result, "as_linked": True}, (*report.body, Note(early, "changed")))


def _with_slots(ctx: Context, report: Report) -> Report:
    """Say how many of the CPU's breakpoints are in use where they are few."""
    if ctx.state != "stopped" or (used := ctx.stopped.slots_used()) is None:
        return report
    return Report({**report.result, "slots": used.as_json()}, (*report.body, Note(str(used), "dim")))


def uses_symbol(address: expression.Address) -> bool:
    """Tell whether an address names a symbol."""
    return any(term.value is None and not term.text.startswith("$") for term in address.terms)


@command(
    "delete",
    aliases=("d",),
    group="Run and stop",
    summary="Delete breakpoints",
    example="delete 1",
    needs=Needs.STOPPED,
    configure=_configure_delete,
)
def delete(ctx: Context, args: argparse.Namespace) -> Report:
    """Delete breakpoints by number."""
    session = ctx.stopped
    known = [b.id for b in session.breakpoints]
    if not args.numbers and not (known and ctx.confirm(f"delete all {len(known)} breakpoint(s)?")):
        raise UserError("delete: which breakpoints?", "delete 1, or delete all; break lists them")
    wanted = known if args.numbers in ([], ["all"]) else [argtypes.whole(0, 1 << 31)(n) for n in args.numbers]
    for number in wanted:
        if number not in known:
            raise UserError(f"no breakpoint {number}", "break lists them")
    for number in dict.fromkeys(wanted):
        session.delete_breakpoint(number)
    return Report({"deleted": wanted}, (Note(f"deleted {len(wanted)} breakpoint(s)"),))


@command(
    "continue",
    aliases=("c",),
    group="Run and stop",
    summary="Let the guest run until it stops",
    example="continue --timeout 30",
    needs=Needs.TARGET,
    configure=_configure_continue,
    details="Ctrl-C stops it. --background returns at once; interrupt stops it then, and continue waits "
    "for it as if it had been started here.",
    repeats=True,
    runs=True,
)
def resume(ctx: Context, args: argparse.Namespace) -> Report:
    """Let the guest run, and wait until it stops unless told otherwise."""
    session = ctx.target
    ctx.forget_stop()
    if ctx.state != "running":
        session.resume()
    if args.background:
        return Report({"state": "running"}, (Note("running; interrupt stops it", "changed"),))
    return stopped(ctx, session.wait_stop(limit(ctx, args.timeout)))


@command(
    "interrupt",
    group="Run and stop",
    summary="Stop the running guest",
    example="interrupt",
    needs=Needs.TARGET,
    runs=True,
    not_in_gdb="Ctrl-C stops the guest",
)
def interrupt(ctx: Context, args: argparse.Namespace) -> Report:
    """Stop the guest."""
    session = ctx.target
    if session.state.name == "STOPPED":
        raise UserError("the guest is stopped already")
    return stopped(ctx, session.interrupt(5.0))


@command(
    "stepi",
    aliases=("si", "s"),
    group="Run and stop",
    summary="Step one instruction, or N",
    example="stepi 4",
    needs=Needs.STOPPED,
    configure=_configure_stepi,
    details="There are no source lines here: s is the same.",
    repeats=True,
)
def stepi(ctx: Context, args: argparse.Namespace) -> Report:
    """Step instructions on one CPU."""
    session = ctx.stopped
    cpu = cpu_state(ctx.guest, args.cpu).cpu
    ctx.forget_stop()
    left = args.count
    seconds = limit(ctx, args.timeout)
    deadline = time.monotonic() + seconds
    while True:
        stop = session.step_instructions(min(left, STEPS_AT_ONCE), cpu)
        left -= STEPS_AT_ONCE
        if left <= 0 or stop.reason != "end-stepping-range":
            return _stepped(ctx, stop)
        if time.monotonic() >= deadline:
            done = f"{args.count - left} of {args.count} steps in {seconds:g} s"
            raise TargetTimeout(f"{done}; {ctx.place(stop.pc)}", "a longer --timeout")
        ctx.progress("stepping", args.count - left, args.count)


def _stepped(ctx: Context, stop: StopInfo) -> Report:
    """Say where a step has led, and where an interrupt may have come between."""
    held = ctx.stopped.holds_interrupts
    report = stopped(ctx, stop)
    note = () if held else (Note("under KVM interrupts are taken while stepping", "dim"),)
    return Report({**report.result, "interrupts_held": held}, (*report.body, *note))


@command(
    "until",
    aliases=("u", "advance"),
    group="Run and stop",
    summary="Run until an address is reached",
    example="until kpti_install_ng_mappings",
    needs=Needs.STOPPED,
    configure=_configure_until,
    runs=True,
)
def until(ctx: Context, args: argparse.Namespace) -> Report:
    """Run until one of the addresses is reached."""
    session, seconds = ctx.stopped, limit(ctx, args.timeout)
    try:
        addresses = [address.value(GuestNames(ctx.guest)) for address in args.addresses]
    except GuestError:
        if ctx.kernel is None or ctx.kernel.linked:
            raise
        from ptinspect.guest.rewrite import Runner

        begun = time.monotonic()
        Runner(ctx.guest, seconds).place_kernel()  # until then nobody can say where its symbols will be
        seconds = max(seconds - (time.monotonic() - begun), 1.0)
        addresses = [address.value(GuestNames(ctx.guest)) for address in args.addresses]
    ctx.forget_stop()
    stop = session.run_until(addresses, seconds)
    report = stopped(ctx, stop)
    if stop.pc in addresses:
        return report
    missed = Note(f"stopped before {', '.join(hex_address(a) for a in addresses)}", "changed")
    return Report({**report.result, "reached": False}, (*report.body, missed))


def stopped(ctx: Context, stop: StopInfo) -> Report:
    """Say where and why the guest stopped."""
    from ptinspect.commands.stack.stack_highwater import watched

    ctx.forget_stop()
    report = views.stopped(stop, ctx.place)
    line = watched(ctx)
    return Report({**report.result, "stack": line}, (*report.body, Note(line, "dim"))) if line else report
