"""`gdb` and `monitor`: anything else, passed on to GDB and QEMU."""

from __future__ import annotations

import re
import shlex

from ptinspect.arch.sysregs import UNWRITTEN
from ptinspect.commands.framework.command import Needs, command
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import MiError, PtinspectError, UserError
from ptinspect.guest.guest import Guest
from ptinspect.guest.opening import elf_file
from ptinspect.output.model import Note, Report, escape

_NEEDS_DEBUG_INFO = re.compile(
    r"No (struct |union |enum )?type named|has unknown (return )?type|No symbol table is loaded"
    r"|No line number information|No debugging symbols|No symbol \".*\" in current context"
)
"""What GDB prints where it would need the debug information that it was not given (`gdb_file`)."""
_LOADS = re.compile(r"\s*(add-symbol-file|symbol-file|file)\b")
_UNWRITTEN = re.compile(rf"^(\S+)[ =].*\b(?:{UNWRITTEN:#x}|{UNWRITTEN})\b", re.MULTILINE)
"""Registers, or values, that GDB prints as KVM marks those that the guest has never written."""
_LOADED = "gdb has debug information"


@dataclass(frozen=True)
class AnswerResult:
    """What another program answered."""

    lines: list[str]


@command(
    "gdb",
    group="Guest",
    summary="Pass a command on to GDB",
    example="gdb info registers x0",
    result=AnswerResult,
    needs=Needs.TARGET,
    passthrough=True,
    changes=True,
    not_in_gdb="type it at GDB's own prompt",
)
def gdb(guest: Guest, *, line: str) -> Report:
    """Pass a line on to GDB."""
    line = line.strip()
    if not line:
        raise UserError("gdb: which command?", "for example: gdb info registers x0")
    try:
        text = guest.target.gdb_command(line)
    except MiError as error:
        raise MiError(error.message, error.hint or _debug_info_hint(guest, error.message)) from error
    if _LOADS.match(line):
        guest.kept[_LOADED] = True
    report = _answer(text)
    if never := _UNWRITTEN.findall(text):
        report = replace(report, body=(*report.body, Note(f"{', '.join(never)}: never written", "dim")))
    if hint := _debug_info_hint(guest, text):
        report = replace(report, body=(*report.body, Note(hint, "dim")))
    if guest.target.state.name != "RUNNING":
        return report
    return replace(report, body=(*report.body, Note("running; interrupt stops it", "changed")))


def _debug_info_hint(guest: Guest, text: str) -> str:
    """Say how GDB gets the debug information of the kernel file, if it was asked for what needs it."""
    if _LOADED in guest.kept or not _NEEDS_DEBUG_INFO.search(text):
        return ""
    kernel = elf_file(guest.kernel_path)
    if kernel is None:
        return ""
    try:
        offset = guest.view.kaslr_offset
    except PtinspectError:
        offset = 0
    moved = f"-o {offset:#x} " if offset else ""
    return f"GDB has symbols only; with debug information: gdb symbol-file {moved}{shlex.quote(str(kernel))}"


@command(
    "monitor",
    group="Guest",
    summary="Pass a command on to QEMU's monitor",
    example="monitor info mtree -f",
    result=AnswerResult,
    needs=Needs.STOPPED,
    passthrough=True,
    changes=True,
)
def monitor(guest: Guest, *, line: str) -> Report:
    """Pass a line on to QEMU's monitor."""
    line = line.strip()
    if not line:
        raise UserError("monitor: which command?", "for example: monitor info mtree -f")
    return _answer(guest.stopped.monitor(line))


def _answer(text: str) -> Report:
    lines = [escape(line) for line in text.expandtabs(8).splitlines()]
    return Report(AnswerResult(lines), [Note("\n".join(lines))] if lines else [])
