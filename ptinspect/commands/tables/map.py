"""`map`: what is mapped, as runs of equal attributes, as contiguous groups, or drawn entry by entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.arch.descriptor import Attributes
from ptinspect.arch.levels import level_name, size_text
from ptinspect.arch.regime import Regime
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.tables.bars import BarsResult, bars
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.guest.expression import Range, address_range
from ptinspect.guest.mappings import Listed, mixed_groups_of, runs_of
from ptinspect.guest.names import range_of
from ptinspect.guest.regions import names_of
from ptinspect.guest.table_choice import Tables
from ptinspect.output.descriptor_words import (
    PermissionsResult,
    attributes_json,
    permissions_result,
    regime_notes,
)
from ptinspect.output.encode import filled
from ptinspect.output.model import Cell, Column, Note, Report, Styled, Table, escape, headings, more
from ptinspect.output.table_heads import RootResult, heads, root_note, root_result, source_of

if TYPE_CHECKING:
    from ptinspect.analysis.contiguous import MixedGroup
    from ptinspect.analysis.map import Repeat, Run

SHOWN = 200
"""Runs shown unless --limit is given."""
GROUP_COLUMNS = headings("from", "level", "region", ">AF", ">dirty", "entries")


@dataclass(frozen=True)
class RunResult:
    """Leaves of one size and equal attributes that follow each other."""

    va_start: VirtAddr
    va_end: VirtAddr
    pa_start: PhysAddr
    level: int
    leaf_size: int
    count: int
    attributes: Mapping[str, object]
    permissions: PermissionsResult
    region: str
    pa_contiguous: bool
    repeated: bool


@dataclass(frozen=True)
class RepeatResult:
    """Neighbours that lead to one table, after a first one whose runs are listed."""

    va_start: VirtAddr
    va_end: VirtAddr
    as_at: VirtAddr
    times: int
    span: int
    level: int
    table_pa: PhysAddr
    region: str


@dataclass(frozen=True)
class MapResult:
    """What is mapped."""

    root: RootResult
    runs: Sequence[RunResult]
    repeats: Sequence[RepeatResult]
    truncated: str
    complete: bool
    snapshot: str


@dataclass(frozen=True)
class GroupResult:
    """A contiguous group whose entries differ in AF or dirty."""

    va_start: VirtAddr
    level: int
    leaf_size: int
    descriptor_pa: PhysAddr
    entries: int
    accessed: Sequence[bool]
    dirty: Sequence[bool]
    region: str


@dataclass(frozen=True)
class GroupsResult:
    """The contiguous groups whose entries differ."""

    root: RootResult
    groups: Sequence[GroupResult]
    complete: bool
    unseen: Sequence[str]
    snapshot: str


def letters(text: str) -> str:
    """Read letters of `rwx`. Raises UserError."""
    if set(text.lower()) - set("rwx"):
        raise UserError(f"{text!r}: use letters of rwx")
    return text.lower()


@command(
    "map",
    group="Tables",
    summary="List what is mapped, as runs of equal attributes",
    example="map --level pmd --ng",
    arguments=(
        argument("part", nargs="?", type=address_range, metavar="RANGE", help=arguments.RANGE_HELP),
        arguments.levels_argument("only leaves of this level"),
        arguments.switch("--ng", "only leaves with nG", one_of="ng", default=None),
        argument("--global", one_of="ng", dest="ng", action="store_false", help="only leaves without nG"),
        *(
            argument(
                f"--{who}{no}", type=letters, default="", metavar="RWX", help=f"what {who.upper()} {must}"
            )
            for who in ("el1", "el0")
            for no, must in (("", "must be allowed"), ("-not", "must not be allowed"))
        ),
        *arguments.LEAVES,
        arguments.switch("--bar", "draw the tables entry by entry; RANGE: those on its way"),
        arguments.switch("--mixed", "contiguous groups whose entries differ in AF or dirty"),
        arguments.snapshot_argument("--against", "with --bar: what changed since SNAP"),
        arguments.switch("--merge", "join leaves whose physical addresses do not follow each other"),
        arguments.number_argument(
            "--limit", 1, 1 << 24, f"list at most N runs (default {SHOWN} on the screen, 100000 in JSON)"
        ),
        *arguments.TABLES,
    ),
    expectable=True,
    result=MapResult | BarsResult | GroupsResult,
    needs=Needs.STOPPED_UNLESS_SNAP,
    details="Only the tables of RANGE and of the chosen levels are read. --bar draws them in characters, "
    "one for each entry; --against shows what changed. `all` after a physical address: every leaf leads "
    "there; `…`: the others lead elsewhere. A table that many neighbours lead to is listed for the first; "
    "one line has the others. --mixed lists contiguous groups whose entries "
    "differ in AF, or in whether they are dirty: the CPU may set these one by one.",
)
def show_map(
    ctx: Context,
    *,
    part: Range | None,
    levels: list[int | str],
    ng: bool | None,
    el1: str,
    el1_not: str,
    el0: str,
    el0_not: str,
    memory_type: str,
    cont: bool | None,
    pa: Range | None,
    bar: bool,
    mixed: bool,
    against: str | None,
    merge: bool,
    limit: int | None,
    tables: Tables,
) -> Report:
    """List runs of leaves."""
    from ptinspect.analysis.map import MAX_RUNS, MapFilter

    guest = ctx.guest
    va_range = range_of(guest, part, tables.cpu, tables.snap)
    if against is not None and not bar:
        raise UserError("--against goes with --bar", "diff SNAP lists what changed since")
    if bar:
        return bars(guest, tables, None if va_range is None else va_range[0], against)
    wanted = MapFilter(
        ng=ng,
        el1=el1,
        el1_not=el1_not,
        el0=el0,
        el0_not=el0_not,
        memory_type=memory_type,
        contiguous=cont,
        va_range=va_range,
        pa_range=range_of(guest, pa, tables.cpu, tables.snap),
        merge_pa=merge,
        max_runs=limit or MAX_RUNS,
    )
    shown = limit or ctx.rows(SHOWN)
    if mixed:
        return _groups_report(mixed_groups_of(guest, tables, wanted, levels), shown)
    return _runs_report(runs_of(guest, tables, wanted, levels), shown)


def _runs_report(found: Listed[Run], shown: int) -> Report:
    """List runs; `shown` limits the rows, not the result."""
    from ptinspect.analysis.map import Run

    snapshot, runs, regime = found.snapshot, found.items, found.snapshot.regime
    result = MapResult(
        root=root_result(snapshot.root),
        runs=[_run(run, regime) for run in runs],
        repeats=[RepeatResult(**vars(each)) for each in found.repeats],
        truncated=found.truncated,
        complete=not found.truncated,
        snapshot=snapshot.name,
    )
    listed: list[Run | Repeat] = sorted([*runs, *found.repeats], key=lambda each: each.va_start)
    regions = len({each.region for each in listed}) > 1
    body: list[Note | Table] = [
        root_note(snapshot.root, source_of(snapshot), regime),
        *regime_notes(regime),
        Table(
            run_columns(regime, regions),
            [
                run_row(each, regions, regime) if isinstance(each, Run) else _repeat(each, regions, regime)
                for each in listed[:shown]
            ],
            empty="nothing is mapped there that passes the filters",
        ),
        *more(len(listed) - shown, "runs"),
    ]
    if found.truncated:
        body.append(Note(f"incomplete: {found.truncated}", "bad"))
    return Report(result, body)


def _run(run: Run, regime: Regime) -> RunResult:
    attributes, may = attributes_json(run.attributes), permissions_result(run.permissions, regime)
    return filled(RunResult, run, attributes=attributes, permissions=may)


def run_columns(regime: Regime, regions: bool) -> tuple[Column, ...]:
    """Return the heads of a list of runs, with the region of each or without."""
    levels = (regime.privileged, *(() if regime.name == "EL2" else ("EL0",)))
    last = (Column("region", heading=True),) if regions else ()
    return headings("from", ">leads to pa", ">size", ">leaves", *levels, "nG", "attributes", *last)


def run_row(run: Run, regions: bool, regime: Regime) -> list[Cell]:
    """Return the row of one run."""
    may = run.permissions
    return [
        Styled(f"{run.va_start:#018x}", "address"),
        f"{run.pa_start:#x}" + ("" if run.pa_contiguous else " all" if run.repeated else "…"),
        size_text(run.size),
        f"{run.count}x{size_text(run.leaf_size)}",
        may.el1 + (" GCS" if may.el1_gcs else ""),
        *([] if regime.name == "EL2" else [may.el0 + (" GCS" if may.el0_gcs else "")]),
        Styled("nG", "changed") if run.attributes.ng else "",
        _unusual(run.attributes),
        *([escape(run.region)] if regions else []),
    ]


def _repeat(each: Repeat, regions: bool, regime: Regime) -> list[Cell]:
    """Return the row of the table's other addresses."""
    return [
        Styled(f"{each.va_start:#018x}", "address"),
        f"table {each.table_pa:#x}",
        size_text(each.times * each.span),
        f"{each.times}x{size_text(each.span)}",
        *[""] * (2 if regime.name == "EL2" else 3),
        f"as at {each.as_at:#x}",
        *([escape(each.region)] if regions else []),
    ]


def _unusual(attributes: Attributes) -> str:
    """Return what other columns do not have: memory type, and what is unusual."""
    a = attributes
    flags: tuple[tuple[str, object], ...] = (
        (a.memory_type or "", True),
        ("AF-clear", not a.af),
        ("Cont", a.contiguous),
        ("GP", a.gp),
        *((name, True) for name in a.software),
    )
    return " ".join(word for word, shown in flags if shown)


def _groups_report(found: Listed[MixedGroup], shown: int) -> Report:
    """List contiguous groups whose entries differ; `shown` limits the rows, not the result."""
    from ptinspect.snapshot.coverage import unseen

    snapshot, missing = found.snapshot, unseen(found.snapshot)
    region = names_of(snapshot)[0]
    groups = [
        filled(
            GroupResult,
            group,
            va_start=group.va,
            leaf_size=group.size,
            entries=len(group.accessed),
            region=region(group.va),
        )
        for group in found.items
    ]
    rows = [
        (
            Styled(f"{group.va_start:#018x}", "address"),
            Styled(f"{level_name(group.level, snapshot.regime)} {group.level}", "level"),
            escape(group.region),
            f"{sum(group.accessed)} of {group.entries}",
            f"{sum(group.dirty)} of {group.entries}",
            entry_letters(group.accessed, group.dirty),
        )
        for group in groups[:shown]
    ]
    result = GroupsResult(root_result(snapshot.root), groups, not missing, missing, snapshot.name)
    body: list[Note | Table] = [
        *heads(snapshot),
        Table(GROUP_COLUMNS, rows, empty="no contiguous group whose entries differ in AF or dirty"),
        *([Note("entries: a accessed, d dirty, D both, . neither", "dim")] if rows else []),
        *more(len(groups) - shown, "groups"),
    ]
    return Report(result, body)


def entry_letters(accessed: Sequence[bool], dirty: Sequence[bool]) -> str:
    """Return a letter for each entry of a group."""
    return "".join(".adD"[a + 2 * d] for a, d in zip(accessed, dirty, strict=True))
