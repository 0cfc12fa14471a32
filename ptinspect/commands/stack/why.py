"""`why`: one verdict, with its evidence, on the fault that the guest stands at."""

from __future__ import annotations

import argparse

from ptinspect.commands.framework.arguments import add_cpu_option
from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.framework.context import Context
from ptinspect.guest.kernel_stacks import open_stacks
from ptinspect.guest.names import cpu_state, need_registers
from ptinspect.output.model import Note, Report, Table, hex_address

TELLING = ("reverted-entry", "lost-entry", "stack-mapping-lost", "deep-call-chain", "guard-page-hit")
"""Verdicts on a stack itself: of several CPUs, the first one with such a verdict is reported."""


@command(
    "why",
    group="Stack",
    summary="Explain the fault that the guest stands at",
    example="why",
    needs=Needs.STOPPED,
    configure=add_cpu_option,
    details="Joins ESR and FAR, the stacks, the recursion, the walk of the faulting address, and what "
    "snapshots in memory hold on that path. Without --cpu: the chosen CPU, or the first one with a "
    "verdict on its stack if nothing is proved there. The codes are those of oops.",
    expectable=True,
)
def why(ctx: Context, args: argparse.Namespace) -> Report:
    """Explain."""
    need_registers(ctx.guest)
    if args.cpu is not None:
        return verdict(ctx, cpu_state(ctx.guest, args.cpu).cpu)
    return best(ctx)


def best(ctx: Context) -> Report:
    """Explain the chosen CPU; if nothing is proved there, the CPU that tells most."""
    session = ctx.stopped
    told = verdict(ctx, session.current_cpu)
    for cpu in range(session.cpu_count):
        if told.result["code"] in TELLING:
            break
        if cpu != session.current_cpu:
            other = verdict(ctx, cpu)
            if _rank(other) < _rank(told):
                told = other
    return told


def _rank(report: Report) -> int:
    code = report.result["code"]
    return 0 if code in TELLING else 1 if code != "unknown" else 2


def verdict(ctx: Context, cpu: int) -> Report:
    """Judge what one CPU stands at."""
    from ptinspect.stack.depth import depth_of_cpu
    from ptinspect.stack.verdict import explain
    from ptinspect.stack.verdict_facts import collect

    found = open_stacks(ctx.guest)
    state = ctx.stopped.cpu_state(cpu)
    newest = sorted(ctx.snapshots.values(), key=lambda s: s.meta.created, reverse=True)
    facts = collect(found, state, depth_of_cpu(found, state), newest)
    told = explain(facts)
    change = told.change
    result = {
        "cpu": cpu,
        "code": told.code,
        "text": told.text,
        "evidence": list(told.evidence),
        "unknown": list(told.unknown),
        "esr": {"raw": hex_address(facts.esr.raw), "fault": facts.esr.fault, "level": facts.esr.level},
        "far": hex_address(facts.far),
        "sp": hex_address(facts.sp),
        "free": None
        if facts.stack is None or not facts.stack.holds_sp(facts.sp)
        else facts.sp - facts.stack.base,
        "used_before_fault": facts.used_before,
        "frames": facts.frames,
        "dying": list(facts.dying),
        "recursion": {"count": facts.repeated, "frame_size": facts.frame_size},
        "descriptor": None
        if change is None
        else {
            "level": change.level,
            "name": change.name,
            "descriptor_pa": hex_address(change.descriptor_pa),
            "before": hex_address(change.before),
            "after": hex_address(change.after),
            "snapshot": change.snapshot,
        },
    }
    body: list[Note | Table] = [Note(f"cpu {cpu}: {told.code}: {told.text}", "title")]
    body += [Note(f"  - {line}") for line in told.evidence]
    body += [Note(f"  ? {line}", "dim") for line in told.unknown]
    return Report(result, body)
