"""The translation registers of a CPU, decoded, as a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ptinspect.arch.regime import Regime, root_pa
from ptinspect.arch.sysregs import (
    CpuState,
    decode_mair,
    decode_sctlr,
    decode_tcr,
    decode_tcr2,
    decode_ttbr,
    describe_pstate,
    mmu_on,
    translation_register,
)
from ptinspect.errors import RegimeError
from ptinspect.output.model import Cell, Column, Note, Report, Styled, Table, escape, hex_address
from ptinspect.output.views.descriptor import regime_notes


@dataclass(frozen=True)
class Half:
    """A TTBR, what it means, and what it holds."""

    register: str
    """Its name: `TTBR0_EL1`."""
    regime: Regime | RegimeError
    """The half that it translates, or why it makes no sense."""
    holds: str = ""
    """What the table is, as far as something shows it; else empty."""
    reason: str = ""
    """What shows it."""


@dataclass(frozen=True)
class RegimeFacts:
    """What `regime` shows."""

    state: CpuState
    """The CPU's registers."""
    lower: Half
    """TTBR0 of the kernel's regime."""
    upper: Half
    """TTBR1 of the kernel's regime."""
    el2: Half | None
    """TTBR0_EL2 where EL2 has a regime of its own, and tables; else None."""
    label: str
    """`guest` or `snapshot NAME`."""


def regime_report(facts: RegimeFacts) -> Report:
    """Show the halves side by side, then MAIR, the controls and indirect permissions."""
    state = facts.state
    on = mmu_on(state)
    halves = {"ttbr0": _half(state, facts.lower), "ttbr1": _half(state, facts.upper)}
    tcr = _register(state, "TCR")
    asid_from = "" if tcr is None else "ttbr1" if decode_tcr(tcr).a1 else "ttbr0"
    mair, mair2 = _register(state, "MAIR"), _register(state, "MAIR2")
    names = [] if mair is None else list(decode_mair(mair))
    result: dict[str, Any] = {
        "cpu": state.cpu,
        "el": state.el,
        "mmu_on": on,
        **halves,
        "el2": None if facts.el2 is None else _half(state, facts.el2),
        "asid_from": asid_from,
        "tcr": None if tcr is None else hex_address(tcr),
        "sctlr": _hex(_register(state, "SCTLR")),
        **{stem.lower(): _hex(_register(state, stem)) for stem in INDIRECT},
        "por_el0": _hex(state.system.get("POR_EL0")),
        "mair": {"raw": _hex(mair), "types": names},
        "source": facts.label,
    }
    head = Note(f"cpu {state.cpu} ({escape(facts.label)}): {describe_pstate(state.pstate)}", "title")
    state_word = "unknown (no SCTLR)" if on is None else "on" if on else "off"
    note = Note(f"MMU {state_word}", "good" if on else "changed")
    body: list[Note | Table] = [head, note, _halves(facts, asid_from), *_holds(facts), *_controls(state)]
    body += _permissions(facts)
    body += [] if mair is None else [_types(mair, "MAIR")]
    never = [name for name in state.unwritten if name.partition("_")[0] in (*SHOWN, *INDIRECT)]
    body += [Note(f"never written: {', '.join(never)}", "changed")] if never else []
    body += [] if mair2 is None or not _has_aie(facts) else [_types(mair2, "MAIR2", 8)]
    return Report(result, body)


SHOWN = ("TTBR0", "TTBR1", "TCR", "SCTLR", "MAIR")
"""Registers that every CPU has, without the level."""
INDIRECT = ("TCR2", "PIR", "PIRE0", "POR", "MAIR2")
"""Registers of permissions and memory types that not every CPU has, without the level."""


def _types(mair: int, name: str, first: int = 0) -> Table:
    """List all attribute bytes: 0x00 is a memory type as good as any, which Linux uses."""
    rows = [
        (str(first + index), f"{mair >> 8 * index & 0xFF:#04x}", kind)
        for index, kind in enumerate(decode_mair(mair))
    ]
    what = "" if mair else ": nothing is set up, all is Device-nGnRnE"
    columns = (Column("AttrIndx", "right"), Column("byte"), Column("memory type"))
    return Table(columns, rows, f"{name} {mair:#018x}{what}")


def _has_aie(facts: RegimeFacts) -> bool:
    return any(
        not isinstance(half.regime, RegimeError) and half.regime.aie for half in (facts.lower, facts.upper)
    )


def _holds(facts: RegimeFacts) -> list[Note]:
    """Say what shows that a register holds what its column says."""
    return [
        Note(f"{half.register} holds {half.holds}: {escape(half.reason)}", "dim")
        for half in (facts.lower, facts.upper)
        if half.holds and half.reason
    ]


def _permissions(facts: RegimeFacts) -> list[Note]:
    """Say once by which rules each regime gives permissions, and which registers stand behind them."""
    halves = (facts.upper, facts.lower, *([facts.el2] if facts.el2 else []))
    found: dict[str, Note] = {}
    for half in halves:
        if not isinstance(half.regime, RegimeError):
            for note in regime_notes(half.regime):
                found.setdefault(note.text, note)
    return list(found.values())


def _register(state: CpuState, stem: str) -> int | None:
    return state.system.get(translation_register(state, stem))


def _half(state: CpuState, half: Half) -> dict[str, Any]:
    regime, raw = half.regime, state.system.get(half.register)
    found: dict[str, Any] = {"register": half.register, "raw": _hex(raw)}
    if isinstance(regime, RegimeError):
        return {**found, "error": regime.message}
    if raw is not None:
        ttbr = decode_ttbr(raw, pa52=regime.wide_oa)
        found |= {"root_pa": hex_address(root_pa(state, regime)), "asid": ttbr.asid, "cnp": ttbr.cnp}
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
        "regime": regime.name,
        "mmu_on": regime.mmu_on,
        "holds": half.holds,
        "holds_reason": half.reason,
        "indirect": regime.pie,
        "doubt": regime.doubt,
    }


def _halves(facts: RegimeFacts, asid_from: str) -> Table:
    shown = [facts.lower, facts.upper, *([facts.el2] if facts.el2 else [])]
    halves = [_half(facts.state, half) for half in shown]
    rows: list[tuple[Cell, ...]] = []
    for label, key in (
        ("holds", "holds"),
        ("raw", "raw"),
        ("root", "root_pa"),
        ("ASID", "asid"),
        ("CnP", "cnp"),
        ("regime", "regime"),
        ("MMU on", "mmu_on"),
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
        ("PIE", "indirect"),
        ("problem", "error"),
    ):
        cells = [_word(key, half.get(key)) for half in halves]
        if not any(cells):
            continue
        if key == "asid":
            in_use = int(asid_from == "ttbr1")
            cells = [f"{c} (in use)" if asid_from and c and n == in_use else c for n, c in enumerate(cells)]
        rows.append((Styled(label, "level"), *cells))
    return Table((Column(""), *(Column(half.register) for half in shown)), rows)


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
    tcr2 = _register(state, "TCR2")
    if tcr2 is not None:
        more = decode_tcr2(tcr2)
        flags = {"PIE": more.pie, "POE": more.poe, "E0POE": more.e0poe, "AIE": more.aie, "PnCH": more.pnch}
        notes.append(Note(f"TCR2  {tcr2:#018x}  " + " ".join(f"{n}={int(v)}" for n, v in flags.items())))
    return notes


def _hex(value: int | None) -> str | None:
    return None if value is None else hex_address(value)
