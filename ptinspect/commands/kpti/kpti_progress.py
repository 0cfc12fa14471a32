"""`kpti progress`, `kpti until`: how far the rewrite is, and running to a chosen point of it."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.arguments import add_cpu_option
from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.kpti.kpti import frontier_json, frontier_text
from ptinspect.commands.kpti.kpti_cpus import cpu_table, cpus_in
from ptinspect.errors import UserError
from ptinspect.guest import expression
from ptinspect.guest.names import GuestNames
from ptinspect.guest.rewrite import Runner
from ptinspect.guest.rewrite_state import Standing, standing
from ptinspect.output.model import Column, Note, Report, Styled, Table, hex_address

if TYPE_CHECKING:
    from ptinspect.linux.kpti.progress import Target, Work
    from ptinspect.linux.kpti.state import KptiState

SECONDS = 180.0
_LEVEL = re.compile(r"([a-z0-9-]+):([0-9]+)$", re.IGNORECASE)


def _configure_progress(parser: argparse.ArgumentParser) -> None:
    add_cpu_option(parser, "say what this CPU does (default: what each does)")


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("where", type=place, metavar="PERCENT%|VA|LEVEL:N", help="where to stop")
    parser.add_argument("--timeout", type=argtypes.seconds, default=SECONDS, metavar="SECONDS", help="limit")


def place(text: str) -> str:
    """Read a point of the rewrite; `until` says what it may be."""
    return text


argtypes.completes("address", place)


@command(
    "kpti progress",
    group="KPTI",
    summary="Say how far the rewrite is, level by level, and where it stands",
    example="kpti progress",
    needs=Needs.STOPPED,
    configure=_configure_progress,
    details="The frontier from the registers of the walk and from the marks in the tables, and whether "
    "the two agree; what every CPU does; the flag. Exit code 1 if registers and tables contradict.",
)
def progress(ctx: Context, args: argparse.Namespace) -> Report:
    """Say how far the rewrite is."""
    Runner(ctx.guest, SECONDS)  # there is a kernel file, it is this kernel's, and its rewrite is a known one
    found = standing(ctx.guest, "(kpti progress)")
    cpus = cpus_in(ctx, ctx.view(), found.state.code, getattr(args, "cpu", None))
    return _report(found, cpus, flag_text(found.state, ctx.stopped.cpu_count))


def _report(found: Standing, cpus: list[dict[str, Any]], flag: str) -> Report:
    from ptinspect.linux.kpti.marks import algorithm_of, reached

    state, work, snapshot = found.state, found.work, found.tables
    where = state.position
    levels = [
        {
            "level": level.level,
            "name": level.name,
            "valid": level.entries_valid,
            "marked": level.table_descriptors_marked + level.leaves_ng,
        }
        for level in state.counts.levels
        if level.tables
    ]
    phase = "outside" if where is None else where.phase
    walking = state.state == "in-progress"
    marks = reached(snapshot, algorithm_of(snapshot), tables=state.marks_tables)
    by_tables = marks.frontier if walking or state.doubts else None
    by_registers = None if where is None else where.frontier
    asked = phase == "walking" and (state.marks_tables or state.doubts)
    agree = not state.doubts if asked else None
    result = {
        "phase": phase,
        "state": state.state,
        "algorithm": state.algorithm,
        "marks_tables": state.marks_tables,
        "percent": round(work.percent, 3),
        "to_rewrite": work.total,
        "left": work.left,
        "seen_to_begin": work.exact,
        "levels": levels,
        "frontier": {"registers": frontier_json(by_registers), "tables": frontier_json(by_tables)},
        "agree": agree,
        "doubts": list(state.doubts),
        "gaps": marks.gaps if state.marks_tables else None,
        "unseen": list(state.unseen),
        "flag": state.flag.value,
        "cpus": cpus,
    }
    body: list[Note | Table] = [
        Note(f"{_said(phase, state.state)}; {_share(work, state)}", "title"),
        Table(
            (Column("level"), Column("valid", "right"), Column("bit 11", "right"), Column("", "right")),
            [_level_row(level) for level in levels],
        ),
        *(Note(f"not seen: {part}", "changed") for part in state.unseen),
    ]
    for title, frontier in (("by the registers", by_registers), ("by the tables", by_tables)):
        if frontier is not None:
            body.append(Note(f"frontier {title}: {frontier_text(frontier)}", "address"))
    if state.doubts:
        body.append(Note("; ".join(state.doubts), "bad"))
    elif agree:
        body.append(Note("registers and tables agree", "good"))
    elif phase == "walking":
        body.append(Note("the code does not mark tables: registers and tables cannot be compared", "changed"))
    body.append(cpu_table(cpus))
    body.append(Note(f"flag: {flag}; algorithm {state.algorithm}", "dim"))
    return Report(result, body, 1 if state.doubts else 0)


def _said(phase: str, state: str) -> str:
    if phase != "outside":
        return {
            "before": "the boot CPU is in it; nothing is written yet",
            "walking": "the boot CPU is in the middle of the walk",
            "done": "the walk is over",
        }[phase]
    words = {
        "before": "the rewrite has not begun",
        "in-progress": "no CPU was seen in the rewrite, which is not over by the tables",
        "after": "the rewrite has finished",
        "not-needed": "nothing is rewritten here",
    }
    return words.get(state, "no CPU is in the rewrite")


def _share(work: Work, state: KptiState) -> str:
    """Say how much of the work is done."""
    if state.state == "not-needed":
        return state.counts.marks
    if state.state == "after" and state.position is None:
        c = state.counts
        tables = c.table_descriptors - c.table_descriptors_marked
        return f"{c.leaves - c.leaves_ng} leaves are global, {tables} tables have no mark"
    done, most = work.total - work.left, "" if work.exact else "at most "
    text = f"{done} of {work.total} descriptors are rewritten ({most}{work.percent:.1f} %)"
    if not work.exact:
        text += "; the walk was not seen to begin, and what was nG before it is counted as done"
    return text


def flag_text(state: KptiState, cpu_count: int) -> str:
    """Say what the flag says, which depends on where the rewrite is."""
    value, position = state.flag.value, state.position
    if value is None:
        return "unknown"
    if not value:
        return "0, the rewrite has finished" if state.state == "after" else "0, it is not in use"
    if position is None:
        return f"{value}, as before the rewrite" if value == 1 else f"{value} CPUs are ready"
    if position.phase == "before" and cpu_count > 1:
        return "1, no other CPU is ready yet" if value == 1 else f"{value} CPUs are ready"
    return "1, no other CPU takes part" if value == 1 else f"all {value} CPUs that take part are ready"


def _level_row(level: dict[str, Any]) -> tuple[str | Styled, ...]:
    share = 100 * level["marked"] / level["valid"] if level["valid"] else 100.0
    style = "good" if level["marked"] == level["valid"] else "changed"
    return (
        Styled(f"{level['name']} {level['level']}", "level"),
        str(level["valid"]),
        str(level["marked"]),
        Styled(f"{share:.1f} %", style),  # type: ignore[arg-type]
    )


@command(
    "kpti until",
    group="KPTI",
    summary="Run to a chosen point of the rewrite",
    example="kpti until 50%",
    needs=Needs.STOPPED,
    configure=_configure,
    details="PERCENT%: so many of the descriptors that the walk has to rewrite are done. VA: the leaf "
    "that maps it is next. LEVEL:N: the descriptor number N, from 1, of those of that level that are "
    "left (pmd:10). The guest stands where the descriptor is about to be loaded or stored.",
)
def until(ctx: Context, args: argparse.Namespace) -> Report:
    """Run to a point of the rewrite, and say how far it is there."""
    _check(args.where)
    runner = Runner(ctx.guest, args.timeout)
    if not runner.reach():
        reason = runner.outcome.reason
        return Report({"reached": False, "reason": reason}, [Note(reason, "changed")], 1)
    found = standing(ctx.guest, "(kpti until)")
    target = _choose(ctx, found, args.where)
    _go(runner, found.state, target)
    said = progress(ctx, args)
    frontier = {"va": hex_address(target.va), "level": target.level}
    result = {"reached": True, "target": {**frontier, "descriptor_pa": hex_address(target.descriptor_pa)}}
    return Report({**said.result, **result}, said.body, said.exit_code)


def _check(where: str) -> None:
    """Refuse at once what is no place."""
    if not (where.endswith("%") or _LEVEL.match(where) or re.match(r"[0-9$A-Za-z_]", where)):
        raise UserError(f"{where!r}: PERCENT%, an address, or LEVEL:N", "kpti until 50%, kpti until pmd:10")


def _choose(ctx: Context, found: Standing, where: str) -> Target:
    from ptinspect.linux.kpti.progress import by_address, by_number, by_percent

    snapshot, state = found.tables, found.state
    if where.endswith("%"):
        try:
            percent = float(where[:-1])
        except ValueError:
            percent = -1.0
        if not 0 <= percent <= 100:
            raise UserError(f"{where!r}: 0% to 100%")
        return by_percent(snapshot, state, percent, found.total)
    match = _LEVEL.match(where)
    if match is not None and not where.startswith("pa:"):
        level = argtypes.level_number(argtypes.level(match[1]), snapshot.regime.start_level)
        return by_number(snapshot, state, level, int(match[2]))
    return by_address(snapshot, state, expression.address(where).value(GuestNames(ctx.guest)))


def _go(runner: Runner, state: KptiState, target: Target) -> None:
    """Run until the boot CPU is about to deal with a descriptor.

    With the MMU off descriptors are reached by their physical address, which can be watched. Otherwise the
    stores are counted: those of the level above up to the table, then those of the table.
    """
    from ptinspect.linux.kpti.code import POST_ORDER

    if state.algorithm == POST_ORDER and target.level == LEVEL_LAST:
        runner.run_to_access(target.descriptor_pa)
        return
    if state.code is not None and state.code.tables == "never-written":
        raise UserError(
            "this kernel's code never writes tables, so that its stores do not tell where it is",
            "kpti writes records them",
        )
    if target.level == LEVEL_LAST and target.parent is not None:
        runner.run_to_store(target.level - 1, target.parent)
        runner.run_to_store(target.level, target.within)
        return
    runner.run_to_store(target.level, target.ordinal)
