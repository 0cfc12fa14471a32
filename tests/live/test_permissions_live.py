"""Effective permissions against a CPU that is asked: AT for reads, stores, a jump for execution."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bare import DONE, LOAD, assembled, started
from builders import AF, PXN, SH, UXN, TreeBuilder
from session import Live

from ptinspect.arch.regime import Regime
from ptinspect.arch.sysregs import mair_type_name

READY = LOAD + 0x600
LISTS, TABLES, RESULTS, DATA = 0x4100_0000, 0x4110_0000, 0x4180_0000, 0x4200_0000
SIZE = 8 << 20
REGIME = Regime(12, 48, 48, True)
EL2 = Regime(12, 48, 48, False, name="EL2")
DBM, READ_ONLY, PXN_TABLE = 1 << 51, 1 << 7, 1 << 59
PAGES = [
    ap << 6 | pxn * PXN | uxn * UXN | dbm * DBM
    for ap, pxn, uxn, dbm in itertools.product(range(4), (0, 1), (0, 1), (0, 1))
]
"""All combinations; with FEAT_S1PIE, all indices, clean and dirty."""
CHAINS = [bits * PXN_TABLE for bits in range(16)]
"""PXNTable, UXNTable and APTable, all combinations."""
TCR_EL1 = 16 | 16 << 16 | 2 << 30 | 5 << 32
HPD, E0PD1, E0PD0, HA_HD, WXN, EPAN = 3 << 41, 1 << 56, 1 << 55, 3 << 39, 1 << 19, 1 << 57
TCR_EL2 = 16 | 5 << 16 | 1 << 23 | 1 << 31
HPD_EL2, HA_HD_EL2 = 1 << 24, 3 << 21


class Config(NamedTuple):
    """Controls to switch on."""

    tcr: int = 0
    sctlr: int = 0
    tcr2: int = 0
    pir: int = 0
    pire0: int = 0
    mair2: int = 0


def fields(values: Sequence[int], code: int) -> int:
    """Return a PIR value; the guest's own code and data keep what they need: R and X at `code`, RW at 12."""
    wanted = [*values]
    wanted[code], wanted[12] = 0xA, 0xC
    return sum(value << 4 * index for index, value in enumerate(wanted))


def pairs(turn: int) -> Config:
    """Give each index another pair of permissions: over all turns, every pair of the 256."""
    kernel = range(16)
    user = [(index + turn) % 16 for index in range(16)]
    user[8] = user[12] = 0
    return Config(tcr2=2, pir=fields(kernel, 8), pire0=sum(value << 4 * n for n, value in enumerate(user)))


def moved(turn: int) -> Config:
    """Give other indices the pairs that the guest's own pages are in the way of."""
    kernel = [(index + 5) % 16 for index in range(16)]
    user = [(index + 5 + turn) % 16 for index in range(16)]
    user[8] = user[12] = 0
    return Config(tcr2=2, pir=fields(kernel, 8), pire0=sum(value << 4 * n for n, value in enumerate(user)))


DIRECT = {
    "plain": Config(),
    "HPD": Config(HPD),
    "HPD1": Config(1 << 42),
    "WXN": Config(sctlr=WXN),
    "E0PD1": Config(E0PD1),
    "E0PD0, HPD0": Config(E0PD0 | 1 << 41),
    "WXN, HPD": Config(HPD, WXN),
}
DIRTY = {"WXN, HPD1, HA, HD": Config(HA_HD | 1 << 42, WXN)}
"""It lets the CPU write to the tables, so it comes behind the others."""
NEWER = {
    "EPAN": Config(sctlr=EPAN),
    **{f"PIE {turn}": pairs(turn) for turn in range(16)},
    **{f"PIE moved {turn}": moved(turn) for turn in range(16)},
    "PIE, WXN": pairs(3)._replace(sctlr=WXN),
    "PIE, E0PD": pairs(3)._replace(tcr=E0PD1 | E0PD0),
    "AIE": Config(tcr2=1 << 4, mair2=0x40_A0_4F_F4_EE_11_BB_0C),
    "PIE, AIE": pairs(3)._replace(tcr2=2 | 1 << 4, mair2=0x44_04_00_FF_B4_99_55_08),
}
NEWER_DIRTY = {"PIE, HA, HD": pairs(0)._replace(tcr=HA_HD)}
AT_EL2 = {"plain": Config(), "HPD": Config(HPD_EL2), "WXN": Config(sctlr=WXN)}
DIRTY_AT_EL2 = {"HA, HD": Config(HA_HD_EL2)}
MAIR = 0x00_04_08_0C_44_BB_F0_FF
"""Eight memory types, of which the guest's own memory uses the first."""
NEWER_AT_EL2 = {
    "AIE": Config(tcr2=1 << 4, mair2=0x40_A0_4F_F4_EE_11_BB_0C),
    **{
        f"PIE {turn}": Config(tcr2=2, pir=fields([(n + turn) % 16 for n in range(16)], 0))
        for turn in range(16)
    },
}
NEWER_DIRTY_AT_EL2 = {"PIE, HA, HD": Config(HA_HD_EL2, 0, 2, fields([5] * 16, 0))}


def fill(tree: TreeBuilder) -> list[int]:
    """Map pages of every kind under tables of every kind, at every level; return their addresses."""
    base, found = int(tree.regime.va_min), []
    for level, (chain, bits) in itertools.product((0, 1, 2), enumerate(CHAINS)):
        size = tree.regime.entry_size(level)
        va = base + (20 + level << 39 if level else 1 << 39) + chain * size
        for i, attributes in enumerate(PAGES):
            tree.map(va + i * 4096, DATA, attributes=attributes | SH | AF)
            found.append(va + i * 4096)
        tree.xor(va, level, bits)
    for chain, bits in enumerate(CHAINS):
        va = base + (24 << 39) + (chain << 30)
        for i, attributes in enumerate(PAGES):
            tree.map(va + (i << 21), DATA, level=2, attributes=attributes | SH | AF)
            found.append(va + (i << 21))
        tree.xor(va, 1, bits)
    mixed = base + (25 << 39)
    for i, attributes in enumerate(PAGES):
        tree.map(mixed + i * 4096, DATA, attributes=attributes | SH | AF)
        found.append(mixed + i * 4096)
    tree.xor(mixed, 0, 1 << 61)
    tree.xor(mixed, 1, 1 << 62)
    tree.xor(mixed, 2, 1 << 60)
    types = base + (26 << 39)
    for i in range(16):
        index = (i & 7) << 2 | (i >> 3) << 59
        tree.map(types + i * 4096, DATA, attributes=index | PXN | UXN | SH | AF)
        found.append(types + i * 4096)
    return found


def said(live: Live, root: str) -> dict[int, dict[str, Any]]:
    """What `map` says of every leaf: address -> permissions and memory type."""
    found = {}
    for run in live(f"map --root {root} --limit 100000")["runs"]:
        for i in range(run["count"]):
            may = {**run["permissions"], "type": run["attributes"]["memory_type"]}
            found[int(run["va_start"], 16) + i * run["leaf_size"]] = may
    return found


def letters(result: int, first: int, executed: int) -> str:
    """What the CPU allowed at one exception level."""
    bits = (("r", first), ("w", first + 1), ("x", executed))
    return "".join(letter if result >> bit & 1 else "-" for letter, bit in bits)


def pan_keeps_out(may: dict[str, Any], config: Config) -> bool:
    """Tell whether PSTATE.PAN takes a read from EL1, by what EL0 may do (Arm ARM D8.4.1.2, FEAT_PAN3)."""
    if config.tcr2 & 2:
        return may["el0"] != "---" or "EL0" in may["gcs"]
    return "r" in may["el0"] or bool(config.sctlr & EPAN and "x" in may["el0"])


def test_what_is_said_is_what_the_cpu_allows(tmp_path: Path, each_qemu: str) -> None:
    configs = DIRECT | DIRTY if each_qemu == "system" else DIRECT | NEWER | DIRTY | NEWER_DIRTY
    upper = TreeBuilder(REGIME, tables_at=TABLES)
    lower = TreeBuilder(replace(REGIME, upper=False), memory=upper.memory, tables_at=TABLES + SIZE // 4)
    vas = fill(upper) + fill(lower)
    lower.map(LOAD & ~0x1F_FFFF, LOAD & ~0x1F_FFFF, level=2, attributes=UXN | SH | AF | READ_ONLY)
    lower.map(LISTS, LISTS, size=16 << 20, level=2, attributes=PXN | UXN | SH | AF)
    kernel, files = guest(tmp_path, 1, upper, (lower.root, upper.root), (configs, TCR_EL1, vas))
    with started(kernel, files, tmp_path) as live:
        told, results = answers(live, configs, vas, ("ttbr1", "ttbr0"))
    wrong = []
    for (name, config), permissions in zip(configs.items(), told, strict=True):
        for va in vas:
            result = next(results)
            may = permissions[va]
            assert not result & 1 or mair_type_name(result >> 8) == may["type"], (name, hex(va))
            if (letters(result, 0, 4), letters(result, 2, 5)) != (may["el1"], may["el0"]):
                wrong.append((name, hex(va), letters(result, 0, 4), letters(result, 2, 5), may))
            if not config.tcr & (E0PD1 | E0PD0):
                assert bool(result & 64) == ("r" in may["el1"] and not pan_keeps_out(may, config)), "PAN"
    assert not wrong, (len(wrong), wrong[:: max(len(wrong) // 12, 1)])


def test_what_is_said_of_el2_is_what_the_cpu_allows(tmp_path: Path, each_qemu: str) -> None:
    """One level of privilege, with TCR_EL2, MAIR_EL2, SCTLR_EL2; the root by register and by address."""
    configs = AT_EL2 | DIRTY_AT_EL2
    if each_qemu == "newer":
        configs = AT_EL2 | NEWER_AT_EL2 | DIRTY_AT_EL2 | NEWER_DIRTY_AT_EL2
    tree = TreeBuilder(EL2, tables_at=TABLES)
    vas = fill(tree)
    tree.map(LOAD & ~0x1F_FFFF, LOAD & ~0x1F_FFFF, level=2, attributes=SH | AF | READ_ONLY)
    tree.map(LISTS, LISTS, size=16 << 20, level=2, attributes=PXN | UXN | SH | AF)
    kernel, files = guest(tmp_path, 2, tree, (tree.root, 0), (configs, TCR_EL2, vas))
    machine = "virt,gic-version=3,virtualization=on"
    with started(kernel, files, tmp_path, machine=machine) as live:
        told, results = answers(live, configs, vas, ("ttbr0_el2",))
        by_address = live(f"walk {vas[7]:#x} --root pa:{tree.root:#x}")
        assert (by_address["regime"], by_address["region"]) == ("EL2", "EL2")
        assert by_address["permissions"].items() <= told[-1][vas[7]].items()
        assert by_address["root"]["provenance"].endswith("as in TTBR0_EL2 of cpu 0")
        assert live("map --root ttbr0_el2 --el1 w --limit 3")["runs"][0]["permissions"]["privileged"] == "EL2"
        regime = live("regime")
        assert (regime["el2"]["regime"], regime["el2"]["root_pa"]) == ("EL2", hex(tree.root))
        gpa = live(f"walk {vas[0]:#x}")["pa"]
        assert hex(live.ctx.guest.stopped.gva2gpa(vas[0]) or 0) == gpa, "QEMU's own MMU"
    wrong = []
    for (name, _), permissions in zip(configs.items(), told, strict=True):
        for va in vas:
            result = next(results)
            assert not result & 1 or mair_type_name(result >> 8) == permissions[va]["type"], (name, hex(va))
            if (letters(result, 0, 4), "---") != (permissions[va]["el1"], permissions[va]["el0"]):
                wrong.append((name, hex(va), letters(result, 0, 4), permissions[va]))
    assert not wrong, (len(wrong), wrong[:: max(len(wrong) // 12, 1)])


def guest(
    directory: Path,
    level: int,
    tree: TreeBuilder,
    roots: tuple[int, int],
    work: tuple[dict[str, Config], int, list[int]],
) -> tuple[Path, dict[int, bytes]]:
    """Assemble the guest and lay out its memory: tables, lists of configurations and addresses, code."""
    configs, tcr, vas = work
    words = [
        word for c in configs.values() for word in (tcr | c.tcr, c.sctlr, c.tcr2, c.pir, c.pire0, c.mair2)
    ]
    tree.memory.write(LISTS, struct.pack(f"<{len(words) + 6}Q", *words, *[0] * 6))
    tree.memory.write(LISTS + 0x1000, struct.pack(f"<{len(vas) + 1}Q", *vas, 0))
    tree.memory.write(DATA, bytes.fromhex("c0035fd6c0035fd6010000d4"))
    kernel = assembled(
        directory, "perms.S", LEVEL=level, MAIR=MAIR, TTBR0=roots[0], TTBR1=roots[1], CONFIGS=LISTS,
        VAS=LISTS + 0x1000, RESULTS=RESULTS,
    )  # fmt: skip
    return kernel, {LISTS: tree.memory.read(LISTS, SIZE), DATA: tree.memory.read(DATA, 4096)}


def answers(
    live: Live, configs: dict[str, Config], vas: list[int], roots: tuple[str, ...]
) -> tuple[list[dict[int, dict[str, Any]]], Iterator[int]]:
    """Let the guest work; return what is said before each configuration, and what the CPU allowed."""
    session = live.ctx.guest.stopped
    told = []
    for _ in configs:
        assert session.run_until([READY, LOAD + 0x500], 300).pc == READY
        told.append({va: may for root in roots for va, may in said(live, root).items()})
        for va in vas[7::401]:
            walked = live(f"walk {va:#x}")
            found = {**walked["permissions"], "type": walked["steps"][-1]["attributes"]["memory_type"]}
            assert found == told[-1][va], hex(va)
    assert session.run_until([DONE, LOAD + 0x500], 300).pc == DONE
    raw = session.memory.read(RESULTS, 2 * len(configs) * len(vas))
    return told, iter(struct.unpack(f"<{len(raw) // 2}H", raw))
