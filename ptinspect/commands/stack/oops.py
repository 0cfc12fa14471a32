"""`oops`: explain a console log, with no guest."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from ptinspect.commands.framework.arguments import output_argument
from ptinspect.commands.framework.command import argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.stack.oops_result import OopsResult, oops_result
from ptinspect.dataclass import replace
from ptinspect.errors import UserError
from ptinspect.files import open_input
from ptinspect.output.files import form_of, write
from ptinspect.output.model import Note, Report, Style, Styled, Table, escape, headings, hex_address
from ptinspect.text import counted
from ptinspect.typed import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

    from ptinspect.linux.oops.incident import Fault
    from ptinspect.linux.oops.printed_walk import PathStep
    from ptinspect.linux.oops.verdict import Analysis, Panic

STYLES: dict[str, Style] = {"unknown": "changed", "not-a-stack-problem": "plain"}
INNER, OUTER = 16, 8
"""Frames of a call trace that people are shown: the innermost and the outermost ones; JSON has all."""


def explained(analysis: Analysis, name: str) -> Report:
    """Show every death: what happened, its verdict, what supports it, and what the log cannot tell."""
    body: list[Note | Table] = []
    if not analysis.panics:
        body.append(Note(f"{escape(name)}: no panic, oops or stall in this log", "good"))
    for number, panic in enumerate(analysis.panics, 1):
        body.extend(_section(panic, number, analysis.total))
    left = analysis.total - len(analysis.panics)
    if left > 0:
        body.append(Note(f"{left} more are left out", "dim"))
    if not analysis.complete:
        body.append(Note("the log was not read to its end: the compressed file ends too early", "bad"))
    return Report(lambda: oops_result(analysis, name), body)


def _section(panic: Panic, number: int, total: int) -> list[Note | Table]:
    """Show one death to people."""
    from ptinspect.linux.death import CODES

    first, code, path = panic.incident.first, panic.verdict.code, panic.facts.path
    which = f"{number} of {total}: " if total > 1 else ""
    body: list[Note | Table] = [
        Note(f"{which}{escape(panic.incident.message)}", "title"),
        Table(headings("what", "value"), _facts(panic)),
        Note(f"verdict: {code}: {CODES[code]}", STYLES.get(code, "bad")),
        _list("what supports it", panic.verdict.evidence),
    ]
    if panic.verdict.unknown:
        body.append(_list("what the log cannot tell", panic.verdict.unknown))
    if path is not None:
        steps = [_walk_row(step, user=path.user) for step in path.steps]
        title = f"walk of {path.address:#x}, as printed"
        body.append(Table(headings("level", ">raw", "kind", "meaning"), steps, title))
    known = [(n.name, hex_address(n.value), n.role, n.meaning) for n in panic.registers if n.role]
    if known:
        title = "registers of idmap_kpti_install_ng_mappings"
        body.append(Table(headings("register", ">value", "role", "meaning"), known, title))
    if first.trace:
        body.append(_list("call trace", _frames(first)))
    return body


def _list(title: str, texts: Sequence[str]) -> Table:
    return Table(headings(title), [(text,) for text in texts])


def _frames(first: Fault) -> list[str]:
    """Return the frames of a trace that are shown, what is left out counted."""
    left, frames = len(first.trace) - INNER - OUTER, first.trace
    shown = frames if left <= 1 else (*frames[:INNER], f"… {left} more", *frames[-OUTER:])
    return [*shown, "… the trace is cut in the log"] if first.elided else list(shown)


def _walk_row(step: PathStep, *, user: bool) -> tuple[Styled | str, ...]:
    from ptinspect.linux.oops.kpti_registers import describe

    found = step.descriptor
    return (
        Styled(f"{step.name} {step.level}", "level"),
        hex_address(found.raw),
        str(found.kind),
        describe(found, user=user),
    )


def _facts(panic: Panic) -> list[tuple[str, str]]:
    """Return the rows of what was printed and worked out."""
    facts, first = panic.facts, panic.incident.first
    rows = [("at", f"line {first.line}" + (f", {first.time} s" if first.time else ""))]
    if first.comm or first.cpu is not None:
        who = [
            f"{name} {number}"
            for name, number in (("CPU", first.cpu), ("PID", first.pid))
            if number is not None
        ]
        rows.append(("on", " ".join([*who, first.comm])))
    if first.release:
        rows.append(("kernel", first.release))
    esr = facts.esr
    if esr is not None:
        access = {True: "write", False: "read", None: ""}[esr.wnr]
        fault = f"{esr.fault}, level {esr.level}" if esr.fault and esr.level is not None else esr.fault
        words = [f"{esr.raw:#x}: {esr.class_text}", access, fault or ""]
        rows.append(("ESR", ", ".join(word for word in words if word)))
    if first.far is not None:
        rows.append(("FAR", hex_address(first.far)))
    if first.sp is not None:
        rows.append(("SP", hex_address(first.sp)))
    if first.pc:
        rows.append(("pc", first.pc + (f", lr {first.lr}" if first.lr else "")))
    if facts.stack is not None:
        stack = facts.stack
        rows.append((f"{stack.kind} stack", f"{stack.base:#x} to {stack.top:#x}, {stack.size} bytes"))
    if facts.used is not None:
        rows.append(("used before the fault", f"{facts.used} bytes"))
    if facts.recursion is not None:
        rows.append(
            ("recursion", f"{facts.recursion.count} nested exceptions of {facts.recursion.frame_size} bytes")
        )
    if panic.incident.later_count:
        rows.append(("while dying", counted(panic.incident.later_count, "more fault")))
    return rows


VERDICTS = (
    "reverted-entry, lost-entry, stack-mapping-lost, deep-call-chain, guard-page-hit, sp-corrupted, "
    "stack-corruption, not-a-stack-problem, unknown"
)
"""The codes of ptinspect.linux.death, named here so that help needs no import of it."""


@command(
    "oops",
    group="Stack",
    summary="Explain the panics and oopses in a console log",
    example="oops console.log",
    arguments=(
        argument("file", metavar="FILE", help="the log; - for standard input"),
        output_argument("write it to a file too: .md, .txt, .json or .csv", "--output", "-o"),
    ),
    result=OopsResult,
    details="Reads logs of arm64 kernels from 4.x on, of any size: from a console, dmesg, journalctl, "
    "pstore, a mail, a web page or a phone, with their prefixes, quotes and wrapped lines, also as .gz, .xz, "
    ".bz2 or .zst. Each death gets one verdict, with what in the log supports it and what the log "
    f"cannot tell: {VERDICTS}.",
)
def oops(ctx: Context, *, file: str, output: Path | None = None) -> Report:
    """Explain a console log."""
    from ptinspect.linux.oops.verdict import analyse

    if output is not None:
        form_of(output)
    with _opened(ctx, file) as log:
        try:
            found = analyse(log)
        except OSError as error:
            raise _unreadable(file, error) from error
    report = explained(found, "standard input" if file == "-" else file)
    if output is None:
        return report
    write(report, output)
    written = Note(f"written to {escape(str(output))}", "dim")
    return replace(report, value={**report.result, "written": str(output)}, body=[*report.body, written])


def _opened(ctx: Context, name: str) -> AbstractContextManager[BinaryIO]:
    """Open a log. Raises UserError."""
    if name == "-":
        if ctx.interactive:
            raise UserError("oops -: standard input is the prompt's", "name a file")
        if sys.stdin is None:
            raise UserError("oops -: there is no standard input", "name a file")
        return nullcontext(sys.stdin.buffer)
    try:
        return open_input(os.path.expanduser(name))  # noqa: PTH111 (pathlib takes longer than the log)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: OSError | ValueError) -> UserError:
    return UserError(f"cannot read {escape(name)}: {getattr(error, 'strerror', None) or error}")
