"""The translation registers of a CPU, decoded, as a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ptinspect.arch.sysregs import (
    decode_mair,
    decode_sctlr,
    decode_tcr,
    decode_ttbr,
    describe_pstate,
    translation_register,
)
from ptinspect.errors import RegimeError
from ptinspect.output.model import Cell, Column, Note, Report, Styled, Table, hex_address

if TYPE_CHECKING:
    from ptinspect.arch.regime import Regime
    from ptinspect.arch.sysregs import CpuState


@dataclass(frozen=True)
class RegimeFacts:
    """What `regime` shows."""

    state: CpuState
    """The CPU's registers."""
    lower: Regime | RegimeError
    """The half of TTBR0, or why it makes no sense."""
    upper: Regime | RegimeError
    """The half of TTBR1, or why it makes no sense."""
    label: str
    """`guest` or `snapshot NAME`."""


def regime_report(facts: RegimeFacts) -> Report:
    """Show the halves side by side, then MAIR and the controls."""
    state = facts.state
    on = mmu_on(state)
    halves = {"ttbr0": _half(state, facts.lower, False), "ttbr1": _half(state, facts.upper, True)}
    tcr = _register(state, "TCR")
    asid_from = "" if tcr is None else "ttbr1" if decode_tcr(tcr).a1 else "ttbr0"
    mair = _register(state, "MAIR")
    names = [] if mair is None else list(decode_mair(mair))
    result: dict[str, Any] = {
        "cpu": state.cpu,
        "el": state.el,
        "mmu_on": on,
        **halves,
        "asid_from": asid_from,
        "tcr": None if tcr is None else hex_address(tcr),
        "sctlr": _hex(_register(state, "SCTLR")),
        "mair": {"raw": _hex(mair), "types": names},
        "source": facts.label,
    }
    head = Note(f"cpu {state.cpu} ({facts.label}): {describe_pstate(state.pstate)}", "title")
    state_word = "unknown (no SCTLR)" if on is None else "on" if on else "off"
    note = Note(f"MMU {state_word}", "good" if on else "changed")
    body: list[Note | Table] = [head, note, _halves(halves, asid_from), *_controls(state)]
    if mair is not None:
        rows = [
            (str(index), f"{mair >> 8 * index & 0xFF:#04x}", name)
            for index, name in enumerate(names)
            if mair >> 8 * index & 0xFF or index == 0
        ]
        columns = (Column("AttrIndx", "right"), Column("byte"), Column("memory type"))
        body.append(Table(columns, rows, f"MAIR {mair:#018x}"))
    return Report(result, body)


def mmu_on(state: CpuState) -> bool | None:
    """Tell whether the MMU is on for EL1&0; None where the stub does not offer SCTLR."""
    value = _register(state, "SCTLR")
    return None if value is None else decode_sctlr(value).m


def _register(state: CpuState, stem: str) -> int | None:
    try:
        return state.system[translation_register(state, stem)]
    except KeyError:
        return None


def _half(state: CpuState, regime: Regime | RegimeError, upper: bool) -> dict[str, Any]:
    raw = _register(state, "TTBR1" if upper else "TTBR0")
    found: dict[str, Any] = {"raw": _hex(raw)}
    if isinstance(regime, RegimeError):
        return {**found, "error": regime.message}
    if raw is not None:
        ttbr = decode_ttbr(raw, pa52=regime.wide_oa)
        found |= {"root_pa": hex_address(ttbr.base), "asid": ttbr.asid, "cnp": ttbr.cnp}
    return found | {
        "granule": regime.granule,
        "va_bits": regime.va_bits,
        "pa_bits": regime.pa_bits,
        "start_level": regime.start_level,
        "levels": regime.levels,
        "first": hex_address(regime.va_min),
        "last": hex_address(regime.va_max),
        "walks_disabled": regime.epd,
        "tbi": regime.tbi,
        "hpd": regime.hpd,
        "e0pd": regime.e0pd,
        "ds": regime.ds,
    }


def _halves(halves: dict[str, dict[str, Any]], asid_from: str) -> Table:
    lower, upper = halves["ttbr0"], halves["ttbr1"]
    rows: list[tuple[Cell, Cell, Cell]] = []
    for label, key in (
        ("raw", "raw"),
        ("root", "root_pa"),
        ("ASID", "asid"),
        ("CnP", "cnp"),
        ("granule", "granule"),
        ("VA bits", "va_bits"),
        ("PA bits", "pa_bits"),
        ("start level", "start_level"),
        ("levels", "levels"),
        ("first VA", "first"),
        ("last VA", "last"),
        ("walks disabled", "walks_disabled"),
        ("TBI", "tbi"),
        ("HPD", "hpd"),
        ("E0PD", "e0pd"),
        ("DS (LPA2)", "ds"),
        ("problem", "error"),
    ):
        if key not in lower and key not in upper:
            continue
        cells = [_word(key, half.get(key)) for half in (lower, upper)]
        if key == "asid":
            cells = [
                f"{c} (in use)" if n == asid_from and c else c for c, n in zip(cells, halves, strict=True)
            ]
        rows.append((Styled(label, "level"), cells[0], cells[1]))
    return Table((Column(""), Column("TTBR0 (user)"), Column("TTBR1 (kernel)")), rows)


def _word(key: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "granule" and isinstance(value, int):
        return f"{value >> 10}K"
    return f"pa:{value}" if key == "root_pa" else str(value)


def _controls(state: CpuState) -> list[Note]:
    notes = []
    sctlr, tcr = _register(state, "SCTLR"), _register(state, "TCR")
    if sctlr is not None:
        fields = decode_sctlr(sctlr)
        flags = {
            "M": fields.m,
            "C": fields.c,
            "I": fields.i,
            "A": fields.a,
            "WXN": fields.wxn,
            "EE": fields.ee,
        }
        notes.append(Note(f"SCTLR {sctlr:#018x}  " + " ".join(f"{n}={int(v)}" for n, v in flags.items())))
    if tcr is not None:
        found = decode_tcr(tcr)
        flags = {"A1": found.a1, "AS": found.asid16, "HA": found.ha, "HD": found.hd, "DS": found.ds}
        words = " ".join(f"{n}={int(v)}" for n, v in flags.items())
        notes.append(Note(f"TCR   {tcr:#018x}  T0SZ={found.t0sz} T1SZ={found.t1sz} IPS={found.ips} {words}"))
    return notes


def _hex(value: int | None) -> str | None:
    return None if value is None else hex_address(value)
