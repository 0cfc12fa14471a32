"""`kpti progress`, `kpti until`: how far the rewrite is, and running to a chosen point of it."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from ptinspect.commands import argtypes
from ptinspect.commands.context import Context
from ptinspect.commands.kpti_cpus import cpu_table, cpus_in
from ptinspect.commands.registry import Needs, Registry
from ptinspect.commands.sources import GuestNames, add_cpu_option
from ptinspect.errors import GuestError, UserError
from ptinspect.output.model import Column, Note, Report, Styled, Table, hex_address

if TYPE_CHECKING:
    from ptinspect.commands.kpti_run import Runner
    from ptinspect.linux.kpti import KptiCode, Position
    from ptinspect.linux.kpti.position import Frontier, Progress
    from ptinspect.linux.kpti.target import Target
    from ptinspect.snapshot.model import Snapshot

SECONDS = 180.0
_LEVEL = re.compile(r"([a-z0-9-]+):([0-9]+)$", re.IGNORECASE)


def register(registry: Registry) -> None:
    """Add `kpti progress` and `kpti until`."""
    registry.command(
        "kpti progress",
        summary="Say how far the rewrite is, level by level, and where it stands",
        example="kpti progress",
        needs=Needs.STOPPED,
        configure=_configure_progress,
        details="The frontier from the registers of the walk and from the marks in the tables, and whether "
        "the two agree; what every CPU does; the flag. Exit code 1 if registers and tables contradict.",
    )(progress)
    registry.command(
        "kpti until",
        summary="Run to a chosen point of the rewrite",
        example="kpti until 50%",
        needs=Needs.STOPPED,
        configure=_configure,
        details="PERCENT%: so many of all descriptors are done. VA: the leaf that maps it is next. LEVEL:N: "
        "the descriptor number N, from 1, of those of that level that are left (pmd:10). The guest stands "
        "where the descriptor is about to be loaded or stored.",
    )(until)


def _configure_progress(parser: argparse.ArgumentParser) -> None:
    add_cpu_option(parser, "say what this CPU does (default: what each does)")


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("where", type=place, metavar="PERCENT%|VA|LEVEL:N", help="where to stop")
    parser.add_argument("--timeout", type=argtypes.seconds, default=SECONDS, metavar="SECONDS", help="limit")


def place(text: str) -> str:
    """Read a point of the rewrite; `until` says what it may be."""
    return text


argtypes.completes("address", place)


def progress(ctx: Context, args: argparse.Namespace) -> Report:
    """Say how far the rewrite is."""
    from ptinspect.commands.kpti_inside import tables_now
    from ptinspect.commands.kpti_run import Runner
    from ptinspect.linux.kpti import agrees, boot_cpu, flag_value, position, running_code
    from ptinspect.linux.kpti.position import leaves_marks
    from ptinspect.linux.kpti.position import progress as marks

    runner = Runner(ctx, SECONDS)
    view = ctx.view()
    runner.code = running_code(view) or runner.code
    try:
        snapshot = tables_now(runner, "(kpti progress)")
    except GuestError as error:
        raise GuestError(
            f"the kernel has no tables yet: {error.message}", "kpti until, or kpti run"
        ) from error
    boot = boot_cpu(view, runner.code)
    where = None if boot is None else position(boot, runner.code, view.regime, view.memory)
    found = marks(snapshot, runner.code.algorithm)
    marked = leaves_marks(runner.code)
    doubts = agrees(snapshot, runner.code.algorithm, where) if where and marked else []
    cpus = cpus_in(ctx, view, runner.code, getattr(args, "cpu", None))
    flag = flag_value(view, runner.code)
    return _report(runner.code, snapshot, where, found, doubts=doubts, cpus=cpus, flag=flag)


def _frontier(found: Frontier | None) -> dict[str, Any] | None:
    if found is None:
        return None
    pa = None if found.descriptor_pa is None else hex_address(found.descriptor_pa)
    return {"va": hex_address(found.va), "level": found.level, "descriptor_pa": pa, "source": found.source}


def _report(
    code: KptiCode,
    snapshot: Snapshot,
    where: Position | None,
    found: Progress,
    *,
    doubts: list[str],
    cpus: list[dict[str, Any]],
    flag: int | None,
) -> Report:
    from ptinspect.linux.kpti.position import leaves_marks
    from ptinspect.paging.regions import level_name

    levels = [
        {"level": v.level, "name": level_name(v.level, snapshot.regime), "valid": v.valid, "marked": v.marked}
        for v in found.levels
    ]
    phase = "outside" if where is None else where.phase
    percent = 100 * found.marked / found.valid if found.valid else 0.0
    walking = where is not None and where.phase == "walking"
    marks_tables = leaves_marks(code)
    agree = not doubts if walking and marks_tables else None
    by_registers = None if where is None else where.frontier
    result = {
        "phase": phase,
        "algorithm": code.algorithm,
        "marks_tables": marks_tables,
        "percent": round(percent, 3),
        "levels": levels,
        "frontier": {"registers": _frontier(by_registers), "tables": _frontier(found.frontier)},
        "agree": agree,
        "doubts": doubts,
        "gaps": found.gaps if marks_tables else None,
        "flag": flag,
        "cpus": cpus,
    }
    said = {
        "outside": "no CPU is in the rewrite",
        "before": "the boot CPU is in it; nothing is written yet",
        "walking": "the boot CPU is in the middle of the walk",
        "done": "the walk is over",
    }[phase]
    body: list[Note | Table] = [
        Note(f"{said}; {found.marked} of {found.valid} descriptors have bit 11 ({percent:.1f} %)", "title"),
        Table(
            (Column("level"), Column("valid", "right"), Column("bit 11", "right"), Column("", "right")),
            [_level_row(level) for level in levels],
        ),
    ]
    for title, frontier in (("by the registers", by_registers), ("by the tables", found.frontier)):
        if frontier is not None:
            body.append(Note(f"frontier {title}: {_where(frontier)}", "address"))
    if agree is not None:
        body.append(
            Note("registers and tables agree" if agree else "; ".join(doubts), "good" if agree else "bad")
        )
    elif walking:
        body.append(Note("the code does not mark tables: registers and tables cannot be compared", "changed"))
    body.append(cpu_table(cpus))
    body.append(Note(f"flag: {_flag(flag)}; algorithm {code.algorithm}", "dim"))
    return Report(result, body, 1 if doubts else 0)


def _flag(flag: int | None) -> str:
    if flag is None:
        return "unknown"
    return {0: "0, the rewrite has finished", 1: "1, no other CPU is ready yet"}.get(
        flag, f"{flag} CPUs are ready"
    )


def _level_row(level: dict[str, Any]) -> tuple[str | Styled, ...]:
    share = 100 * level["marked"] / level["valid"] if level["valid"] else 100.0
    style = "good" if level["marked"] == level["valid"] else "changed"
    return (
        Styled(f"{level['name']} {level['level']}", "level"),
        str(level["valid"]),
        str(level["marked"]),
        Styled(f"{share:.1f} %", style),  # type: ignore[arg-type]
    )


def _where(found: Frontier) -> str:
    at = "" if found.descriptor_pa is None else f", descriptor at pa:{found.descriptor_pa:#x}"
    return f"{found.va:#x}, level {found.level}{at}"


def until(ctx: Context, args: argparse.Namespace) -> Report:
    """Run to a point of the rewrite, and say how far it is there."""
    from ptinspect.commands.kpti_inside import reach, tables_now
    from ptinspect.commands.kpti_run import Runner

    _check(args.where)
    runner = Runner(ctx, args.timeout)
    if not reach(runner):
        reason = runner.outcome.reason
        return Report({"reached": False, "reason": reason}, [Note(reason, "changed")], 1)
    snapshot = tables_now(runner, "(kpti until)")
    target = _choose(ctx, runner, snapshot, args.where)
    _go(runner, target)
    said = progress(ctx, args)
    frontier = {"va": hex_address(target.va), "level": target.level}
    result = {"reached": True, "target": {**frontier, "descriptor_pa": hex_address(target.descriptor_pa)}}
    return Report({**said.result, **result}, said.body, said.exit_code)


def _check(where: str) -> None:
    """Refuse at once what is no place."""
    if not (where.endswith("%") or _LEVEL.match(where) or re.match(r"[0-9$A-Za-z_]", where)):
        raise UserError(f"{where!r}: PERCENT%, an address, or LEVEL:N", "kpti until 50%, kpti until pmd:10")


def _choose(ctx: Context, runner: Runner, snapshot: Snapshot, where: str) -> Target:
    from ptinspect.linux.kpti.target import by_address, by_number, by_percent

    algorithm = runner.code.algorithm
    if where.endswith("%"):
        try:
            percent = float(where[:-1])
        except ValueError:
            percent = -1.0
        if not 0 <= percent <= 100:
            raise UserError(f"{where!r}: 0% to 100%")
        return by_percent(snapshot, algorithm, percent)
    found = _LEVEL.match(where)
    if found is not None and not where.startswith("pa:"):
        level = argtypes.level_number(argtypes.level(found[1]), snapshot.regime.start_level)
        return by_number(snapshot, algorithm, level, int(found[2]))
    return by_address(snapshot, algorithm, argtypes.address(where).value(GuestNames(ctx)))


def _go(runner: Runner, target: Target) -> None:
    """Run until the boot CPU is about to deal with a descriptor.

    With the MMU off descriptors are reached by their physical address, which can be watched. Otherwise the
    stores are counted: those of the level above up to the table, then those of the table.
    """
    from ptinspect.arch.regime import LEVEL_LAST
    from ptinspect.commands.kpti_inside import run_to_store
    from ptinspect.commands.kpti_run import POST_ORDER
    from ptinspect.linux.kpti import running_code

    if runner.code.algorithm == POST_ORDER and target.level == LEVEL_LAST:
        runner.run_to_access(target.descriptor_pa)
        return
    if not (running_code(runner.ctx.view()) or runner.code).marks_tables:
        raise UserError(
            "this kernel's code never writes tables, so that its stores do not tell where it is",
            "kpti writes records them",
        )
    if target.level == LEVEL_LAST and target.parent is not None:
        run_to_store(runner, target.level - 1, target.parent)
        run_to_store(runner, target.level, target.within)
        return
    run_to_store(runner, target.level, target.ordinal)
