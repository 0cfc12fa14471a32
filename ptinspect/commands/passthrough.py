"""`gdb` and `monitor`: anything else, passed on to GDB and QEMU."""

from __future__ import annotations

import argparse

from ptinspect.commands.context import Context
from ptinspect.commands.registry import Needs, Registry
from ptinspect.errors import UserError
from ptinspect.output.model import Note, Report, escape


def register(registry: Registry) -> None:
    """Add `gdb` and `monitor`."""
    registry.command(
        "gdb",
        summary="Pass a command on to GDB",
        example="gdb info registers x0",
        needs=Needs.TARGET,
        passthrough=True,
    )(gdb)
    registry.command(
        "monitor",
        summary="Pass a command on to QEMU's monitor",
        example="monitor info mtree -f",
        needs=Needs.STOPPED,
        passthrough=True,
    )(monitor)


def gdb(ctx: Context, args: argparse.Namespace) -> Report:
    """Pass a line on to GDB."""
    line = args.line.strip()
    if not line:
        raise UserError("gdb: which command?", "for example: gdb info registers x0")
    report = _text(ctx.target.gdb_command(line))
    if ctx.target.state.name != "RUNNING":
        return report
    return Report(report.result, (*report.body, Note("running; interrupt stops it", "changed")))


def monitor(ctx: Context, args: argparse.Namespace) -> Report:
    """Pass a line on to QEMU's monitor."""
    line = args.line.strip()
    if not line:
        raise UserError("monitor: which command?", "for example: monitor info mtree -f")
    return _text(ctx.stopped.monitor(line))


def _text(text: str) -> Report:
    lines = [escape(line) for line in text.expandtabs(8).splitlines()]
    return Report({"lines": lines}, [Note("\n".join(lines))] if lines else [])
