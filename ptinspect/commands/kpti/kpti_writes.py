"""`kpti writes`: record the stores that the rewrite of the tables makes."""

from __future__ import annotations

import argparse
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptinspect.arch.levels import level_name
from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import UserError
from ptinspect.guest.rewrite_state import standing
from ptinspect.output.files import form_of, write
from ptinspect.output.model import Column, Note, Report, Table, hex_address

if TYPE_CHECKING:
    from ptinspect.guest.rewrite import Runner
    from ptinspect.link.gdb.recorder import Store
    from ptinspect.linux.kpti.stores import Recording, Write

SECONDS = 120.0
"""Limit without the last level."""
RATE = 500
"""Stores per second that a slow machine records; measured: 600 to 800 on two shared cores."""
SHOWN = 40
RESULT = 4096
"""Stores that are listed in the answer; a file gets them all."""

RECORDINGS: weakref.WeakKeyDictionary[object, Recording] = weakref.WeakKeyDictionary()
"""Session -> what was recorded last, for `kpti verdict`."""


def _configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--level", type=argtypes.level, action="append", metavar="LEVEL", help="this level; may be repeated")
    add("-o", "--output", type=Path, metavar="FILE", help="write all stores to FILE (.csv, .json, .txt, .md)")
    add("--timeout", type=argtypes.seconds, metavar="SECONDS", help=f"limit ({SECONDS:.0f}; more with pte)")


@command(
    "kpti writes",
    group="KPTI",
    summary="Record every store that the rewrite makes to the tables, but those to pages",
    example="kpti writes --level pmd -o writes.csv",
    needs=Needs.STOPPED,
    configure=_configure,
    details="Runs to the rewrite if need be, and to its end, before the TLB is flushed. The guest stops "
    "at each store, some 500 a second: the default leaves out the last level (pte), which has a quarter "
    "of a million stores per gigabyte; --level pte asks for them. kpti verdict judges what was recorded.",
)
def writes(ctx: Context, args: argparse.Namespace) -> Report:
    """Record, and report."""
    from ptinspect.guest.rewrite import Runner

    if args.output is not None:
        form_of(args.output)
    runner = Runner(ctx.guest, args.timeout or SECONDS)
    if not runner.reach():
        return Report(
            {"reached": False, "reason": runner.outcome.reason}, [Note(runner.outcome.reason, "changed")], 1
        )
    found = record(runner, args.level or [], args.timeout)
    if args.output is not None:
        write(Report({"writes": [row(w) for w in found]}, [_table(list(found))]), args.output)
    return _report(found, args.output)


def record(runner: Runner, levels: list[int | str], timeout: float | None = None) -> Recording:
    """Record from here, inside the rewrite, to behind its last store. Raises GuestError, TargetError."""
    from ptinspect.link.gdb.recorder import StoreRecorder
    from ptinspect.linux.kpti.progress import left_of
    from ptinspect.linux.kpti.stores import recording

    found_before = standing(runner.guest, "(before kpti writes)")
    before, where = found_before.tables, found_before.state.position
    whole = where is not None and where.phase == "before"
    stores = _stores(runner, _levels(levels, before.regime.start_level))
    places = {store.pc: place for store, place in stores}
    if any(level == LEVEL_LAST for _, level in places.values()):
        count = left_of(before, found_before.state, LEVEL_LAST)
        text = f"recording up to {count} stores to pages: about {count // RATE + 1} seconds"
        runner.guest.progress(text, 0, 0)
        if timeout is None:
            runner.deadline += 2 * count / RATE
    end = runner.point("after_writes")
    runner.session.slots.claim([*places, end])
    recorder = StoreRecorder(runner.session)
    recorder.start([store for store, _ in stores])
    begun = time.monotonic()
    try:
        stop = runner.run_to([end])
    finally:
        if runner.session.state.name == "STOPPED":
            recorder.stop()
            seconds = time.monotonic() - begun
            found = recording(
                before,
                runner.code.algorithm,
                places,
                recorder.take(),
                whole=whole and runner.session.stop.pc == end,
                seconds=seconds,
            )
            RECORDINGS[runner.session] = found
    if stop.pc != end:
        raise UserError(
            f"the guest stopped at {stop.pc:#x} in the middle of the rewrite: {len(found)} stores recorded",
            "kpti verdict judges them; delete the breakpoint, and kpti writes records the others",
        )
    return found


def _levels(wanted: list[int | str], start: int) -> set[int]:
    if not wanted:
        return set(range(start, LEVEL_LAST))
    levels = {argtypes.level_number(value, start) for value in wanted}
    for level in levels:
        if not start <= level <= LEVEL_LAST:
            raise UserError(f"there is no level {level} here", f"levels: {start} to {LEVEL_LAST}")
    return levels


def _stores(runner: Runner, levels: set[int]) -> list[tuple[Store, tuple[int, int]]]:
    """Return the stores of these levels, each with its offset and level."""
    from ptinspect.link.gdb.recorder import Store

    windowed = runner.code.algorithm == "temp-pgd-pre-order"
    bits = runner.guest.view.regime.granule_bits
    found = []
    for site in runner.code.stores:
        if site.level in levels:
            pc = runner.physical(runner.code.entry_va + site.offset)
            window = (0, bits) if windowed else (None, 0)
            store = Store(pc, site.register, site.base, site.displacement, *window)
            found.append((store, (site.offset, site.level)))
    if not found:
        raise UserError("the kernel's code has no store for these levels")
    return found


def row(write: Write) -> dict[str, Any]:
    """Return a store as JSON has it."""
    return {
        "site": f"+{write.site:#x}",
        "level": write.level,
        "descriptor_pa": None if write.descriptor_pa is None else hex_address(write.descriptor_pa),
        "va": None if write.va is None else hex_address(write.va),
        "before": hex_address(write.before),
        "stored": hex_address(write.stored),
        "changed": write.before != write.stored,
    }


def _table(found: list[Write], title: str = "") -> Table:
    columns = tuple(
        Column(name) for name in ("site", "level", "va", "descriptor", "before", "stored", "changed")
    )
    rows = []
    for one in found:
        r = row(one)
        rows.append(
            (
                r["site"],
                str(r["level"]),
                r["va"] or "?",
                r["descriptor_pa"] or "?",
                r["before"],
                r["stored"],
                "yes" if r["changed"] else "no",
            )
        )
    return Table(columns, rows, title)


def _report(found: Recording, output: Path | None) -> Report:
    from itertools import islice

    rate = len(found) / found.seconds if found.seconds else 0.0
    levels = [
        {
            "level": v.level,
            "name": level_name(v.level, found.before.regime),
            "stores": v.stores,
            "changed": v.changed,
            "unchanged": v.stores - v.changed,
            "tables": v.tables,
            "tables_changed": v.tables_changed,
            "bit11_only": v.bit11_only,
        }
        for v in found.by_level()
    ]
    listed = list(islice(found, RESULT))
    result = {
        "reached": True,
        "algorithm": found.algorithm,
        "whole": found.whole,
        "stores": len(found),
        "seconds": round(found.seconds, 3),
        "per_second": round(rate),
        "unread": found.unread,
        "levels": levels,
        "writes": [row(w) for w in listed],
        "writes_left_out": len(found) - len(listed),
    }
    names = ("level", "stores", "changed", "unchanged", "tables", "tables_changed", "bit11_only")
    heads = ("level", "stores", "changed", "unchanged", "of tables", "changed", "bit 11 only")
    rows = [(f"{v['level']} {v['name']}", *(str(v[n]) for n in names[1:])) for v in levels]
    text = f"{len(found)} stores in {found.seconds:.1f} s ({rate:.0f} a second), {found.algorithm}"
    body: list[Note | Table] = [Note(text, "title")]
    if not found.whole:
        body.append(Note("the recording began in the middle of the rewrite", "changed"))
    if found.unread:
        body.append(Note(f"{found.unread} stores could not be read", "changed"))
    body.append(Table(tuple(Column(h, "right") for h in heads), rows))
    body.append(_table(listed[:SHOWN], "Stores"))
    if len(found) > SHOWN:
        more = f"… and {len(found) - SHOWN} more"
        body.append(Note(f"{more} in {output}" if output else f"{more}; -o FILE writes them all", "dim"))
    return Report(result, body)
