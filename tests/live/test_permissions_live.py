"""Effective permissions against a CPU that is asked: AT for reads and writes, a jump for execution."""

from __future__ import annotations

import itertools
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from bare import DONE, LOAD, assembled, started
from builders import AF, PXN, SH, UXN, TreeBuilder
from session import Live

from ptinspect.arch.regime import Regime

pytestmark = pytest.mark.live
READY = LOAD + 0x600
LISTS, TABLES, RESULTS, DATA = 0x4100_0000, 0x4110_0000, 0x4180_0000, 0x4200_0000
SIZE = 8 << 20
REGIME = Regime(12, 48, 48, True)
DBM, PXN_TABLE = 1 << 51, 1 << 59
PAGES = [
    ap << 6 | pxn * PXN | uxn * UXN | dbm * DBM
    for ap, pxn, uxn, dbm in itertools.product(range(4), (0, 1), (0, 1), (0, 1))
]
CHAINS = [bits * PXN_TABLE for bits in range(16)]
"""PXNTable, UXNTable and APTable, all combinations."""
BASE_TCR = 16 | 16 << 16 | 2 << 30 | 5 << 32
HPD, E0PD1, E0PD0, HA_HD, WXN = 3 << 41, 1 << 56, 1 << 55, 3 << 39, 1 << 19
CONFIGS = {
    "plain": (0, 0),
    "HPD": (HPD, 0),
    "HPD1": (1 << 42, 0),
    "WXN": (0, WXN),
    "E0PD1": (E0PD1, 0),
    "E0PD0, HPD0": (E0PD0 | 1 << 41, 0),
    "WXN, HPD": (HPD, WXN),
    "WXN, HPD1, HA, HD": (HA_HD | 1 << 42, WXN),
}
"""The last one lets the CPU write to the tables."""


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
    return found


def said(live: Live, half: str) -> dict[int, dict[str, str]]:
    """What `map` says of every leaf: address -> permissions."""
    found = {}
    for run in live(f"map --root {half} --limit 100000")["runs"]:
        for i in range(run["count"]):
            found[int(run["va_start"], 16) + i * run["leaf_size"]] = run["permissions"]
    return found


def letters(result: int, first: int, executed: int) -> str:
    """What the CPU allowed at one exception level."""
    bits = (("r", first), ("w", first + 1), ("x", executed))
    return "".join(letter if result >> bit & 1 else "-" for letter, bit in bits)


def test_what_is_said_is_what_the_cpu_allows(tmp_path: Path) -> None:
    upper = TreeBuilder(REGIME, tables_at=TABLES)
    lower = TreeBuilder(replace(REGIME, upper=False), memory=upper.memory, tables_at=TABLES + SIZE // 4)
    vas = fill(upper) + fill(lower)
    lower.map(LOAD & ~0x1F_FFFF, LOAD & ~0x1F_FFFF, level=2, attributes=UXN | SH | AF | 1 << 7)
    lower.map(LISTS, LISTS, size=16 << 20, level=2, attributes=PXN | UXN | SH | AF)
    words = [w for tcr, sctlr in CONFIGS.values() for w in (BASE_TCR | tcr, sctlr)] + [0, 0]
    upper.memory.write(LISTS, struct.pack(f"<{len(words)}Q", *words))
    upper.memory.write(LISTS + 0x1000, struct.pack(f"<{len(vas) + 1}Q", *vas, 0))
    upper.memory.write(DATA, bytes.fromhex("c0035fd6c0035fd6010000d4"))
    kernel = assembled(
        tmp_path, "perms.S", MAIR=0xFF, TTBR0=lower.root, TTBR1=upper.root, CONFIGS=LISTS,
        VAS=LISTS + 0x1000, RESULTS=RESULTS,
    )  # fmt: skip
    files = {LISTS: upper.memory.read(LISTS, SIZE), DATA: upper.memory.read(DATA, 4096)}
    with started(kernel, files, tmp_path) as live:
        session = live.ctx.stopped
        told = []
        for _ in CONFIGS:
            assert session.run_until([READY, LOAD + 0x500], 20).pc == READY
            live.ctx.forget_stop()
            told.append(said(live, "ttbr1") | said(live, "ttbr0"))
            walked = [live(f"walk {va:#x}")["permissions"] for va in vas[7::401]]
            assert walked == [told[-1][va] for va in vas[7::401]]
        assert session.run_until([DONE, LOAD + 0x500], 60).pc == DONE
        results = session.memory.read(RESULTS, len(CONFIGS) * len(vas))
    wrong = []
    for (name, expected), permissions in zip(CONFIGS.items(), told, strict=True):
        for va in vas:
            result, results = results[0], results[1:]
            cpu = letters(result, 0, 4), letters(result, 2, 5)
            if cpu != (permissions[va]["el1"], permissions[va]["el0"]):
                wrong.append((name, hex(va), cpu, permissions[va]))
            if not expected[0] & (E0PD1 | E0PD0):
                assert bool(result & 64) == ("r" not in permissions[va]["el0"]), "PAN"
    assert not wrong, (len(wrong), wrong[:: max(len(wrong) // 12, 1)])
