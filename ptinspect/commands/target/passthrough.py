"""`gdb` and `monitor`: anything else, passed on to GDB and QEMU."""

from __future__ import annotations

import argparse
import re
import shlex

from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import MiError, PtinspectError, UserError
from ptinspect.output.model import Note, Report, escape

_NEEDS_DEBUG_INFO = re.compile(
    r"No (struct |union |enum )?type named|has unknown (return )?type|No symbol table is loaded"
    r"|No line number information|No debugging symbols|No symbol \".*\" in current context"
)
"""What GDB says where it would need the debug information that it was not given (`gdb_file`)."""
_LOADS = re.compile(r"\s*(add-symbol-file|symbol-file|file)\b")
_LOADED = "gdb has debug information"


@command(
    "gdb",
    group="Guest",
    summary="Pass a command on to GDB",
    example="gdb info registers x0",
    needs=Needs.TARGET,
    passthrough=True,
    changes=True,
    not_in_gdb="type it at GDB's own prompt",
)
def gdb(ctx: Context, args: argparse.Namespace) -> Report:
    """Pass a line on to GDB."""
    line = args.line.strip()
    if not line:
        raise UserError("gdb: which command?", "for example: gdb info registers x0")
    try:
        text = ctx.target.gdb_command(line)
    except MiError as error:
        raise MiError(error.message, error.hint or _debug_info_hint(ctx, error.message)) from error
    if _LOADS.match(line):
        ctx.memo[_LOADED] = True
    report = _text(text)
    hint = _debug_info_hint(ctx, text)
    if hint:
        report = Report(report.result, (*report.body, Note(hint, "dim")))
    if ctx.target.state.name != "RUNNING":
        return report
    return Report(report.result, (*report.body, Note("running; interrupt stops it", "changed")))


def _debug_info_hint(ctx: Context, text: str) -> str:
    """Say how GDB gets the debug information of the kernel file, if it was asked for what needs it."""
    if _LOADED in ctx.memo or not _NEEDS_DEBUG_INFO.search(text):
        return ""
    from ptinspect.commands.target.target import elf_file

    kernel = elf_file(ctx.guest.kernel_path)
    if kernel is None:
        return ""
    try:
        offset = ctx.view().kaslr_offset
    except PtinspectError:
        offset = 0
    moved = f"-o {offset:#x} " if offset else ""
    return f"GDB has symbols only; with debug information: gdb symbol-file {moved}{shlex.quote(str(kernel))}"


@command(
    "monitor",
    group="Guest",
    summary="Pass a command on to QEMU's monitor",
    example="monitor info mtree -f",
    needs=Needs.STOPPED,
    passthrough=True,
    changes=True,
)
def monitor(ctx: Context, args: argparse.Namespace) -> Report:
    """Pass a line on to QEMU's monitor."""
    line = args.line.strip()
    if not line:
        raise UserError("monitor: which command?", "for example: monitor info mtree -f")
    return _text(ctx.stopped.monitor(line))


def _text(text: str) -> Report:
    lines = [escape(line) for line in text.expandtabs(8).splitlines()]
    return Report({"lines": lines}, [Note("\n".join(lines))] if lines else [])
