"""`stack guard`: stop the guest before a kernel stack overflows, whatever the way down."""

from __future__ import annotations

import argparse
import contextlib
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ptinspect.commands import argtypes
from ptinspect.commands.context import Context
from ptinspect.commands.registry import Needs, Registry
from ptinspect.commands.stack import open_stacks, task_of
from ptinspect.errors import PtinspectError, TargetError, TargetTimeout, UserError
from ptinspect.output.model import Note, Report, hex_address

if TYPE_CHECKING:
    from ptinspect.linux.stacks import Stack, Stacks

MARGIN = 2048
SECONDS = 60.0
FIRST_LOOK = 2.0
"""Seconds after which tasks that came later are looked for; the time doubles with every look."""
END_MARK = 16
"""Lowest bytes that are left out: the kernel itself reads and writes its end mark there."""
BAD_STACK = ("panic_bad_stack", "handle_bad_stack")


def register(registry: Registry) -> None:
    """Add `stack guard`."""
    registry.command(
        "stack guard",
        summary="Let the guest run, and stop it before a kernel stack overflows",
        example="stack guard --margin 2048 --timeout 30",
        needs=Needs.STOPPED,
        configure=_configure,
        details="Three wires: stores into the lowest part of the tasks' stacks, a fault of the exception "
        "entry itself (no store succeeds: the stack's mapping has gone), and the kernel's own bad-stack "
        "path. Exit code 1 if one was tripped.",
    )(guard)


def _configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--margin", default=str(MARGIN), metavar="BYTES|%", help=f"room that must be left ({MARGIN})")
    add("--task", default="any", metavar="current|PID|any", help="whose stack (default any)")
    add("--timeout", type=argtypes.seconds, default=SECONDS, metavar="SECONDS", help=f"({SECONDS:.0f})")


@dataclass
class Wires:
    """The breakpoints that are armed, and what they mean."""

    ways: dict[int, str] = field(default_factory=dict)
    """GDB's number -> `recursive-fault`, `bad-stack` or `margin`."""
    stacks: dict[int, Stack] = field(default_factory=dict)
    """Stacks under watch by base."""


def margin_bytes(text: str, size: int) -> int:
    """Read a margin in bytes, or in percent of a stack. Raises UserError if it leaves no room."""
    matched = re.fullmatch(r"(\d+)(%?)", text)
    value = 0 if matched is None else int(matched[1]) * (size if matched[2] else 100) // 100
    if not END_MARK < value < size:
        raise UserError(f"--margin {text}: not between {END_MARK} bytes and the stack's {size}")
    return value


def arm_entry(ctx: Context, found: Stacks, wires: Wires) -> None:
    """Guard the exception entry and the path of a bad stack."""
    from ptinspect.stack.facts import entry_ranges

    session = ctx.stopped
    label = found.entry.vectors[0].label + found.view.kaslr_offset
    tests = [f"($ELR_EL1 >= {low:#x} && $ELR_EL1 < {high:#x})" for low, high in entry_ranges(found)]
    wires.ways[session.set_breakpoint(label, condition=" || ".join(tests)).id] = "recursive-fault"
    image = found.tasks.image
    name = next((name for name in BAD_STACK if name in image.symbols), None)
    bad = found.view.symbol(name) if name else None
    if bad is None and found.entry.bad_stack is not None:
        bad = found.entry.bad_stack + found.view.kaslr_offset
    if bad is not None:
        wires.ways[session.set_breakpoint(bad).id] = "bad-stack"


def arm_margins(ctx: Context, found: Stacks, wires: Wires, margin: int, whose: str) -> None:
    """Watch stores to the lowest part of stacks that are not watched yet."""
    session = ctx.stopped
    if whose == "any":
        tasks = list(found.tasks.all().tasks)
    elif whose == "current":
        task = found.tasks.current(session.cpu_state(session.current_cpu))
        tasks = [] if task is None else [task]
    else:
        tasks = [task_of(found, argtypes.whole(0, 1 << 22)(whose))]
    for stack in map(found.of_task, tasks):
        if stack.base in wires.stacks:
            continue
        low, high = stack.base + END_MARK, stack.base + margin
        condition = f"(unsigned long)$sp >= {stack.base - stack.size:#x} && (unsigned long)$sp < {high:#x}"
        answer = session.gdb_command(f"watch *(char(*)[{high - low}]){low:#x} if {condition}")
        number = re.search(r"^Hardware watchpoint (\d+)", answer, re.MULTILINE)
        if number is None:
            _drop_software(ctx, answer)
            raise TargetError("GDB would not watch the stack by hardware", answer.strip()[:200])
        wires.ways[int(number[1])] = "margin"
        wires.stacks[stack.base] = stack


def _drop_software(ctx: Context, answer: str) -> None:
    number = re.search(r"Watchpoint (\d+)", answer)
    if number is not None:
        ctx.stopped.gdb_command(f"delete {number[1]}")


def disarm(ctx: Context, wires: Wires) -> None:
    """Take every wire away, as far as the guest is there."""
    if ctx.state == "running":
        with contextlib.suppress(TargetError):
            ctx.target.interrupt(5.0)
    if ctx.state == "stopped" and wires.ways:
        with contextlib.suppress(TargetError):
            ctx.stopped.gdb_command(f"delete {' '.join(map(str, wires.ways))}")
    ctx.forget_stop()


def guard(ctx: Context, args: argparse.Namespace) -> Report:
    """Arm, run, and say what happened."""
    if not ctx.view().placed:
        from ptinspect.commands.kpti_run import Runner

        Runner(ctx, args.timeout).place_kernel()
    found = open_stacks(ctx)
    margin = margin_bytes(args.margin, found.thread_size)
    wires = Wires()
    started = time.monotonic()
    try:
        arm_entry(ctx, found, wires)
        _margins(ctx, found, wires, margin, args.task)
        way = _wait(ctx, wires, margin, args)
    finally:
        disarm(ctx, wires)
    result: dict[str, Any] = {
        "way": way,
        "quiet": way in ("time", "other"),
        "margin": margin,
        "stacks_watched": len(wires.stacks),
        "seconds": round(time.monotonic() - started, 2),
    }
    if result["quiet"]:
        why = "the time is over" if way == "time" else "the guest stopped for another reason"
        text = f"quiet: {why}; {len(wires.stacks)} stacks were watched"
        return Report(result, (Note(text, "good"),))
    return _tripped(ctx, result)


def _margins(ctx: Context, found: Stacks, wires: Wires, margin: int, whose: str) -> None:
    """Watch what can be watched now; early in the boot there may be no tasks yet."""
    try:
        arm_margins(ctx, found, wires, margin, whose)
    except UserError:
        raise
    except PtinspectError:
        if whose != "any":
            raise


def _wait(ctx: Context, wires: Wires, margin: int, args: argparse.Namespace) -> str:
    """Run until a wire is tripped; return its way, `other`, or `time`."""
    session = ctx.stopped
    deadline = time.monotonic() + args.timeout
    slice_ = FIRST_LOOK
    while True:
        ctx.forget_stop()
        session.resume()
        try:
            stop = session.wait_stop(max(min(slice_, deadline - time.monotonic()), 0.1))
        except TargetTimeout:
            stop = session.interrupt(5.0)
        except KeyboardInterrupt:
            session.interrupt(5.0)
            raise
        ctx.forget_stop()
        if stop.breakpoint in wires.ways:
            return wires.ways[stop.breakpoint]
        sp = session.cpu_state(stop.cpu).sp
        near = any(s.base - s.size <= sp < s.base + margin for s in wires.stacks.values())
        if "watchpoint" in stop.reason and near:  # GDB names a watchpoint by `wpt`, not by `bkptno`
            return "margin"
        if stop.signal != "SIGINT":
            return "other"
        if time.monotonic() >= deadline:
            return "time"
        slice_ *= 2
        if args.task == "any":
            _margins(ctx, open_stacks(ctx), wires, margin, "any")


def _tripped(ctx: Context, result: dict[str, Any]) -> Report:
    from ptinspect.commands.why import verdict

    session = ctx.stopped
    cpu = session.current_cpu
    below = ctx.registry.run(ctx, f"stack --cpu {cpu}")
    told = verdict(ctx, cpu)
    result |= {"cpu": cpu, "pc": hex_address(session.cpu_state(cpu).pc), "why": dict(told.result)}
    result |= {"stack": dict(below.result)}
    text = f"stopped, way {result['way']}, cpu {cpu} at {ctx.place(session.cpu_state(cpu).pc)}"
    return Report(result, (Note(text, "bad"), *below.body, *told.body), 1)
