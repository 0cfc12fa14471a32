"""The deaths in a console log, as a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ptinspect.arch.descriptor import Descriptor
from ptinspect.arch.esr import Esr
from ptinspect.linux.death import CODES
from ptinspect.linux.oops.analysis import Analysis, Panic, RegisterNote
from ptinspect.linux.oops.depth import Recursion
from ptinspect.linux.oops.incident import Fault
from ptinspect.linux.oops.kpti_registers import KptiRegisters, describe
from ptinspect.linux.oops.printed_walk import PathStep
from ptinspect.linux.stack_range import StackRange
from ptinspect.output.model import Column, Note, Report, Style, Styled, Table, escape, hex_address

STYLES: dict[str, Style] = {"unknown": "changed", "not-a-stack-problem": "plain"}
INNER, OUTER = 16, 8
"""Frames of a call trace that people are shown: the innermost and the outermost ones; JSON has all."""


def explained(analysis: Analysis, name: str) -> Report:
    """Show every death: what happened, its verdict, what supports it, and what the log cannot tell."""
    result = {
        "file": name,
        "total": analysis.total,
        "complete": analysis.complete,
        "panics": [_panic(panic) for panic in analysis.panics],
    }
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
    return Report(_escaped(result), body)


def _escaped(value: Any) -> Any:
    """Escape every string in a result: what the log holds is anybody's."""
    if isinstance(value, dict):
        return {name: _escaped(held) for name, held in value.items()}
    if isinstance(value, list):
        return [_escaped(held) for held in value]
    return escape(value) if isinstance(value, str) else value


def _panic(panic: Panic) -> dict[str, Any]:
    facts, incident = panic.facts, panic.incident
    first, nested, path = incident.first, facts.recursion, facts.path
    return {
        "message": incident.message,
        "headline": first.headline,
        "panic": incident.panic or None,
        "kind": first.kind,
        "line": first.line,
        "time": first.time or None,
        "architecture": incident.architecture,
        "cpu": first.cpu,
        "pid": first.pid,
        "comm": first.comm or None,
        "release": first.release or None,
        "esr": None if facts.esr is None else _esr(facts.esr),
        "far": _hex(first.far),
        "stack": None if facts.stack is None else _stack(facts.stack),
        "sp": _hex(first.sp),
        "pc": first.pc or None,
        "lr": first.lr or None,
        "used_before_fault": facts.used,
        "recursion": None if nested is None else _recursion(nested),
        "walk_address": None if path is None else hex_address(path.address),
        "walk": [] if path is None else [_step(step) for step in path.steps],
        "registers": {note.name: _register(note, facts.kpti) for note in panic.registers},
        "kpti": None if facts.kpti is None else _kpti(facts.kpti),
        "trace": list(first.trace),
        "trace_cut": first.elided,
        "interleaved": first.mixed,
        "notes": list(first.notes),
        "later": [
            {"message": later.headline, "line": later.line, "esr": _hex(later.esr), "far": _hex(later.far)}
            for later in incident.later
        ],
        "later_count": incident.later_count,
        "verdict": {
            "code": panic.verdict.code,
            "summary": CODES[panic.verdict.code],
            "evidence": list(panic.verdict.evidence),
            "unknown": list(panic.verdict.unknown),
        },
    }


def _hex(value: int | None) -> str | None:
    return None if value is None else hex_address(value)


def _esr(esr: Esr) -> dict[str, Any]:
    return {
        "raw": hex_address(esr.raw),
        "ec": hex_address(esr.ec),
        "class": esr.class_name,
        "text": esr.class_text,
        "wnr": esr.wnr,
        "fault": esr.fault or None,
        "level": esr.level,
        "s1ptw": esr.s1ptw,
    }


def _recursion(nested: Recursion) -> dict[str, Any]:
    return {"count": nested.count, "frame_size": nested.frame_size, "evidence": list(nested.reasons)}


def _stack(stack: StackRange) -> dict[str, Any]:
    return {
        "kind": stack.kind,
        "base": hex_address(stack.base),
        "top": hex_address(stack.top),
        "size": stack.size,
    }


def _step(step: PathStep) -> dict[str, Any]:
    found = step.descriptor
    return {"level": step.level, "name": step.name, "raw": hex_address(found.raw), **_described(found)}


def _described(found: Descriptor) -> dict[str, Any]:
    a = found.attributes
    return {
        "kind": str(found.kind),
        "output_address": _hex(found.output_address),
        "bit11": bool(found.raw >> 11 & 1),
        "ng": a.ng if a is not None else None,
    }


def _register(note: RegisterNote, kpti: KptiRegisters | None) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "value": hex_address(note.value),
        "role": note.role or None,
        "meaning": note.meaning or None,
    }
    for step in kpti.levels if kpti is not None else ():
        if note.name == f"x{step.first + 2}":
            entry["descriptor"] = {"level": step.level, "name": step.name, **_described(step.last)}
    return entry


def _kpti(walk: KptiRegisters) -> dict[str, Any]:
    return {
        "algorithm": walk.algorithm,
        "complete": walk.complete,
        "swapper_pa": _hex(walk.swapper_pa),
        "evidence": list(walk.reasons),
        "levels": [
            {
                "level": step.level,
                "name": step.name,
                "current": hex_address(step.current),
                "end": hex_address(step.end),
                "complete": step.complete,
                "last": hex_address(step.last.raw),
            }
            for step in walk.levels
        ],
    }


def _section(panic: Panic, number: int, total: int) -> list[Note | Table]:
    """Show one death to people."""
    first, code, path = panic.incident.first, panic.verdict.code, panic.facts.path
    which = f"{number} of {total}: " if total > 1 else ""
    body: list[Note | Table] = [
        Note(f"{which}{escape(panic.incident.message)}", "title"),
        Table((Column("what"), Column("value")), _facts(panic)),
        Note(f"verdict: {code}: {CODES[code]}", STYLES.get(code, "bad")),
        _list("what supports it", panic.verdict.evidence),
    ]
    if panic.verdict.unknown:
        body.append(_list("what the log cannot tell", panic.verdict.unknown))
    if path is not None:
        columns = (Column("level"), Column("raw", "right"), Column("kind"), Column("meaning"))
        steps = [_walk_row(step, user=path.user) for step in path.steps]
        body.append(Table(columns, steps, f"walk of {path.address:#x}, as printed"))
    known = [(n.name, hex_address(n.value), n.role, n.meaning) for n in panic.registers if n.role]
    if known:
        columns = (Column("register"), Column("value", "right"), Column("role"), Column("meaning"))
        body.append(Table(columns, known, "registers of idmap_kpti_install_ng_mappings"))
    if first.trace:
        body.append(_list("call trace", _frames(first)))
    return body


def _list(title: str, texts: Sequence[str]) -> Table:
    return Table((Column(title),), [(text,) for text in texts])


def _frames(first: Fault) -> list[str]:
    """Return the frames of a trace that are shown, what is left out counted."""
    left, frames = len(first.trace) - INNER - OUTER, first.trace
    shown = frames if left <= 1 else (*frames[:INNER], f"… {left} more", *frames[-OUTER:])
    return [*shown, "… the trace is cut in the log"] if first.elided else list(shown)


def _walk_row(step: PathStep, *, user: bool) -> tuple[Styled | str, ...]:
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
        rows.append(("while dying", f"{panic.incident.later_count} more fault(s)"))
    return rows
