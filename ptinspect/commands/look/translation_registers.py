"""`regime`: the translation registers of a CPU, decoded."""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.arch.bits import PhysAddr, VirtAddr, bit, bits
from ptinspect.arch.levels import size_text
from ptinspect.arch.regime import root_pa
from ptinspect.arch.sysregs import (
    CpuState,
    decode_mair,
    decode_pstate,
    decode_sctlr,
    decode_tcr,
    decode_tcr2,
    mmu_on,
    translation_register,
)
from ptinspect.commands.framework.arguments import CPU, SNAP
from ptinspect.commands.framework.command import Needs, command
from ptinspect.dataclass import dataclass
from ptinspect.errors import RegimeError
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import state_of
from ptinspect.guest.roots import Half, Halves, halves_of
from ptinspect.output.descriptor_words import regime_notes
from ptinspect.output.encode import Hex, filled
from ptinspect.output.model import Cell, Note, Report, Styled, Table, escape, headings

SHOWN = ("TTBR0", "TTBR1", "TCR", "SCTLR", "MAIR")
"""Registers that every CPU has, without the level."""
INDIRECT = ("TCR2", "PIR", "PIRE0", "POR", "MAIR2")
"""Registers of permissions and memory types that not every CPU has, without the level."""


@dataclass(frozen=True)
class _Register:
    register: str
    raw: Hex


@dataclass(frozen=True)
class _Unwritten:
    register: str
    raw: None


@dataclass(frozen=True)
class _Root(_Register):
    root_pa: PhysAddr
    asid: int
    cnp: bool


@dataclass(frozen=True)
class _Geometry:
    granule: int
    va_bits: int
    pa_bits: int
    start_level: int
    levels: int
    first: VirtAddr
    last: VirtAddr
    walks_disabled: bool
    tbi: bool
    hpd: bool
    e0pd: bool
    ds: bool
    regime: str
    mmu_on: bool
    holds: str
    holds_reason: str
    indirect: bool
    doubt: str


@dataclass(frozen=True)
class HalfResult(_Geometry, _Root):
    """A TTBR and the half of the address space that it translates."""


@dataclass(frozen=True)
class UnwrittenHalf(_Geometry, _Unwritten):
    """The same where nothing has been written to the TTBR."""


@dataclass(frozen=True)
class NoHalf:
    """A TTBR whose controls make no sense."""

    register: str
    raw: Hex | None
    error: str


AnyHalf = HalfResult | UnwrittenHalf | NoHalf


@dataclass(frozen=True)
class MairResult:
    """The memory types by index."""

    raw: Hex | None
    types: list[str]


@dataclass(frozen=True)
class RegimeResult:
    """The translation registers of a CPU."""

    cpu: int
    el: int
    mmu_on: bool | None
    ttbr0: AnyHalf
    ttbr1: AnyHalf
    el2: AnyHalf | None
    asid_from: str
    tcr: Hex | None
    sctlr: Hex | None
    tcr2: Hex | None
    pir: Hex | None
    pire0: Hex | None
    por: Hex | None
    mair2: Hex | None
    por_el0: Hex | None
    mair: MairResult
    source: str


@command(
    "regime",
    group="Look",
    summary="Decode TTBR0/1, TCR, MAIR and SCTLR of a CPU",
    example="regime --cpu 0",
    arguments=(CPU, SNAP),
    result=RegimeResult,
    needs=Needs.STOPPED_UNLESS_SNAP,
    details="Says the granule, address sizes, start level, ASID and CnP of each half, what its table is, "
    "and whether the MMU is on; EL2's own table where there is one, and where permissions come from.",
    expectable=True,
)
def regime(guest: Guest, *, cpu: int | None = None, snap: str | None = None) -> Report:
    """Decode the translation registers."""
    state, label = state_of(guest, cpu, snap)
    halves = halves_of(state, None if snap else guest)
    tcr, mair, mair2 = (_register(state, stem) for stem in ("TCR", "MAIR", "MAIR2"))
    result = RegimeResult(
        cpu=state.cpu,
        el=state.el,
        mmu_on=mmu_on(state),
        ttbr0=_half(state, halves.lower),
        ttbr1=_half(state, halves.upper),
        el2=None if halves.el2 is None else _half(state, halves.el2),
        asid_from="" if tcr is None else "ttbr1" if decode_tcr(tcr).a1 else "ttbr0",
        tcr=tcr,
        sctlr=_register(state, "SCTLR"),
        **{stem.lower(): _register(state, stem) for stem in INDIRECT},
        por_el0=_hex(state.system.get("POR_EL0")),
        mair=MairResult(mair, [] if mair is None else list(decode_mair(mair))),
        source=label,
    )
    on = result.mmu_on
    never = [name for name in state.unwritten if name.partition("_")[0] in (*SHOWN, *INDIRECT)]
    body: list[Note | Table] = [
        Note(f"cpu {state.cpu} ({escape(label)}): {decode_pstate(state.pstate).text}", "title"),
        Note(
            f"MMU {'unknown (no SCTLR)' if on is None else 'on' if on else 'off'}",
            "good" if on else "changed",
        ),
        _columns([half for half in (result.ttbr0, result.ttbr1, result.el2) if half], result.asid_from),
        *_holds(halves),
        *_controls(state),
        *_permissions(halves),
        *([] if mair is None else [_types(mair, "MAIR")]),
        *([Note(f"never written: {', '.join(never)}", "changed")] if never else []),
        *([] if mair2 is None or not _has_aie(halves) else [_types(mair2, "MAIR2", 8)]),
    ]
    return Report(result, body)


def _half(state: CpuState, half: Half) -> AnyHalf:
    regime, raw = half.regime, _hex(state.system.get(half.register))
    if isinstance(regime, RegimeError):
        return NoHalf(half.register, raw, regime.message)
    geometry = filled(
        _Geometry,
        regime,
        first=regime.va_min,
        last=regime.va_max,
        walks_disabled=regime.epd,
        regime=regime.name,
        holds=half.holds,
        holds_reason=half.reason,
        indirect=regime.pie,
    )
    if raw is None:
        return UnwrittenHalf(half.register, None, **vars(geometry))
    asid, cnp = bits(raw, 63, 48), bit(raw, 0)  # CnP: FEAT_TTCNP
    return HalfResult(half.register, raw, root_pa(state, regime), asid, cnp, **vars(geometry))


def _types(mair: int, name: str, first: int = 0) -> Table:
    """List all attribute bytes: 0x00 is a memory type as good as any, which Linux uses."""
    rows = [
        (str(first + index), f"{mair >> 8 * index & 0xFF:#04x}", kind)
        for index, kind in enumerate(decode_mair(mair))
    ]
    what = "" if mair else ": nothing is set up, all is Device-nGnRnE"
    return Table(headings(">AttrIndx", "byte", "memory type"), rows, f"{name} {mair:#018x}{what}")


def _has_aie(halves: Halves) -> bool:
    return any(
        not isinstance(half.regime, RegimeError) and half.regime.aie for half in (halves.lower, halves.upper)
    )


def _holds(halves: Halves) -> list[Note]:
    """Say what shows that a register holds what its column names."""
    return [
        Note(f"{half.register} holds {half.holds}: {escape(half.reason)}", "dim")
        for half in (halves.lower, halves.upper)
        if half.holds and half.reason
    ]


def _permissions(halves: Halves) -> list[Note]:
    """Say once by which rules each regime gives permissions, and which registers those come from."""
    found: dict[str, Note] = {}
    for half in (halves.upper, halves.lower, *halves.all[2:]):
        if not isinstance(half.regime, RegimeError):
            for note in regime_notes(half.regime):
                found.setdefault(note.text, note)
    return list(found.values())


def _register(state: CpuState, stem: str) -> Hex | None:
    return _hex(state.system.get(translation_register(state, stem)))


def _columns(halves: Sequence[AnyHalf], asid_from: str) -> Table:
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
        cells = [_word(key, getattr(half, key, None)) for half in halves]
        if not any(cells):
            continue
        if key == "asid":
            in_use = int(asid_from == "ttbr1")
            cells = [f"{c} (in use)" if asid_from and c and n == in_use else c for n, c in enumerate(cells)]
        rows.append((Styled(label, "level"), *cells))
    return Table(headings("", *(half.register for half in halves)), rows)


def _word(key: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "granule" and isinstance(value, int):
        return size_text(value)
    if isinstance(value, int) and key in ("raw", "root_pa", "first", "last"):
        return f"pa:{value:#x}" if key == "root_pa" else f"{value:#x}"
    return str(value)


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


def _hex(value: int | None) -> Hex | None:
    return None if value is None else Hex(value)
