"""The deaths in a console log, as a report."""

from __future__ import annotations

from typing import Any

from ptinspect.arch.descriptor import Descriptor
from ptinspect.linux.death import CODES
from ptinspect.linux.oops.analysis import Analysis, Panic, RegisterNote
from ptinspect.linux.oops.incident import Fault
from ptinspect.linux.oops.kpti_registers import KptiRegisters, describe
from ptinspect.linux.oops.printed_walk import PathStep
from ptinspect.output.model import Column, Note, Report, Style, Styled, Table, escape, hex_address

STYLES: dict[str, Style] = {"unknown": "changed", "not-a-stack-problem": "plain"}
INNER, OUTER = 16, 8
"""Frames of a call trace that people are shown: the innermost and the outermost ones; JSON has all."""


def explained(analysis: Analysis, name: str) -> Report:
    """Show every death: what happened, its verdict, what supports it, and what the log cannot tell."""
    result: dict[str, Any] = {
        "file": escape(name),
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
    return Report(result, body)


def _panic(panic: Panic) -> dict[str, Any]:
    facts, incident = panic.facts, panic.incident
    first = incident.first
    return {
        "message": escape(incident.message),
        "headline": escape(first.headline),
        "panic": escape(incident.panic) or None,
        "kind": first.kind,
        "line": first.line,
        "time": first.time or None,
        "architecture": incident.architecture,
        "cpu": first.cpu,
        "pid": first.pid,
        "comm": escape(first.comm) or None,
        "release": escape(first.release) or None,
        "esr": _esr(panic),
        "far": _hex(first.far),
        "stack": _stack(panic),
        "sp": _hex(first.sp),
        "pc": escape(first.pc) or None,
        "lr": escape(first.lr) or None,
        "used_before_fault": facts.used,
        "recursion": None
        if facts.recursion is None
        else {
            "count": facts.recursion.count,
            "frame_size": facts.recursion.frame_size,
            "evidence": list(facts.recursion.reasons),
        },
        "walk_address": _hex(facts.path.address) if facts.path is not None else None,
        "walk": [_step(step) for step in facts.path.steps] if facts.path is not None else [],
        "registers": {note.name: _register(note, facts.kpti) for note in panic.registers},
        "kpti": _kpti(facts.kpti) if facts.kpti is not None else None,
        "trace": [escape(frame) for frame in first.trace],
        "trace_cut": first.elided,
        "interleaved": first.mixed,
        "notes": [escape(note) for note in first.notes],
        "later": [
            {
                "message": escape(fault.headline),
                "line": fault.line,
                "esr": _hex(fault.esr),
                "far": _hex(fault.far),
            }
            for fault in incident.later
        ],
        "later_count": incident.later_count,
        "verdict": {
            "code": panic.verdict.code,
            "summary": CODES[panic.verdict.code],
            "evidence": [escape(text) for text in panic.verdict.evidence],
            "unknown": [escape(text) for text in panic.verdict.unknown],
        },
    }


def _hex(value: int | None) -> str | None:
    return None if value is None else hex_address(value)


def _esr(panic: Panic) -> dict[str, Any] | None:
    esr = panic.facts.esr
    if esr is None:
        return None
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


def _stack(panic: Panic) -> dict[str, Any] | None:
    stack = panic.facts.stack
    if stack is None:
        return None
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
        "evidence": [escape(text) for text in walk.reasons],
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
    first, code = panic.incident.first, panic.verdict.code
    which = f"{number} of {total}: " if total > 1 else ""
    body: list[Note | Table] = [
        Note(f"{which}{escape(panic.incident.message)}", "title"),
        Table((Column("what"), Column("value")), _facts(panic)),
        Note(f"verdict: {code}: {CODES[code]}", STYLES.get(code, "bad")),
        Table((Column("what supports it"),), [(escape(text),) for text in panic.verdict.evidence]),
    ]
    if panic.verdict.unknown:
        rows = [(escape(text),) for text in panic.verdict.unknown]
        body.append(Table((Column("what the log cannot tell"),), rows))
    if panic.facts.path is not None:
        rows2 = [_walk_row(step, user=panic.facts.path.user) for step in panic.facts.path.steps]
        title = f"walk of {panic.facts.path.address:#x}, as printed"
        body.append(
            Table((Column("level"), Column("raw", "right"), Column("kind"), Column("meaning")), rows2, title)
        )
    known = [note for note in panic.registers if note.role]
    if known:
        rows3 = [(note.name, hex_address(note.value), note.role, escape(note.meaning)) for note in known]
        columns = (Column("register"), Column("value", "right"), Column("role"), Column("meaning"))
        body.append(Table(columns, rows3, "registers of idmap_kpti_install_ng_mappings"))
    if first.trace:
        body.append(Table((Column("call trace"),), [(text,) for text in _frames(first)]))
    return body


def _frames(first: Fault) -> list[str]:
    """Return the frames of a trace that are shown, what is left out counted."""
    frames = [escape(frame) for frame in first.trace]
    left = len(frames) - INNER - OUTER
    shown = frames if left <= 1 else [*frames[:INNER], f"… {left} more", *frames[-OUTER:]]
    return [*shown, "… the trace is cut in the log"] if first.elided else shown


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
    rows = [("at", f"line {first.line}" + (f", {escape(first.time)} s" if first.time else ""))]
    if first.comm or first.cpu is not None:
        who = [
            f"CPU {first.cpu}" if first.cpu is not None else "",
            f"PID {first.pid}" if first.pid is not None else "",
        ]
        rows.append(("on", escape(" ".join([*filter(None, who), first.comm]))))
    if first.release:
        rows.append(("kernel", escape(first.release)))
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
        rows.append(("pc", escape(first.pc) + (f", lr {escape(first.lr)}" if first.lr else "")))
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
