"""Every granule and size of address on a CPU that runs through the tables: guests of a few instructions."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from bare import BAD, DONE, LOAD, assembled, started
from builders import AF, CONTIGUOUS, KERNEL_DATA, SH, UXN, TreeBuilder
from session import Live

from ptinspect.arch.bits import align_down
from ptinspect.arch.regime import LEVEL_LAST, Regime

pytestmark = pytest.mark.usefixtures("each_qemu")
PROBES, TABLES, DATA = 0x4100_0000, 0x4101_0000, 0x4200_0000
SIZE = 2 << 20
FAR = 0x000B_5678_9ABC_0000
"""An output address of 52 bits, where there is no RAM: walked to, never read."""
TG0 = {12: 0, 14: 2, 16: 1}
TG1 = {12: 2, 14: 1, 16: 3}
GROUP = {12: 16, 14: 128, 16: 32}
"""Pages of a contiguous group (Arm ARM D8.6.1)."""

REGIMES = {
    "4k-36": Regime(12, 36, 48, True),
    "4k-39": Regime(12, 39, 48, True),
    "4k-42": Regime(12, 42, 48, True),
    "4k-48": Regime(12, 48, 48, True),
    "4k-52-lpa2": Regime(12, 52, 52, True, ds=True),
    "16k-36": Regime(14, 36, 48, True),
    "16k-47": Regime(14, 47, 48, True),
    "16k-48": Regime(14, 48, 48, True),
    "16k-52-lpa2": Regime(14, 52, 52, True, ds=True),
    "64k-42": Regime(16, 42, 48, True),
    "64k-48": Regime(16, 48, 48, True),
    "64k-52-lpa": Regime(16, 52, 52, True),
}
START = {
    "4k-36": 1, "4k-39": 1, "4k-42": 0, "4k-48": 0, "4k-52-lpa2": -1, "16k-36": 2, "16k-47": 1, "16k-48": 0,
    "16k-52-lpa2": 0, "64k-42": 2, "64k-48": 1, "64k-52-lpa": 1,
}  # fmt: skip
"""Level of the root (Arm ARM D8.2.7 to D8.2.9, tables of the initial lookup level)."""
BLOCKS = {
    "4k": (1, 2), "4k-52-lpa2": (0, 1, 2), "16k": (2,), "16k-52-lpa2": (1, 2), "64k": (2,),
    "64k-52-lpa": (1, 2),
}  # fmt: skip
"""Levels that may have blocks; with FEAT_LPA and 52-bit addresses 64K has them at level 1."""


@dataclass(frozen=True)
class Leaf:
    """What was put into a table."""

    va: int
    pa: int
    level: int
    count: int = 1
    contiguous: bool = False


def fill(name: str, tree: TreeBuilder) -> list[Leaf]:
    """Map pages, a contiguous group, a block of every level that has them, and an address beyond RAM."""
    regime = tree.regime
    base, page, top = int(regime.va_min), regime.granule, int(regime.va_max) + 1
    group = GROUP[regime.granule_bits]
    leaves = [
        Leaf(base + 8 * regime.entry_size(2), DATA, LEVEL_LAST),
        Leaf(base + 9 * regime.entry_size(2), DATA, LEVEL_LAST, group, contiguous=True),
        Leaf(top - page, DATA + 0x1_0000, LEVEL_LAST),
    ]
    if regime.pa_bits == 52:
        leaves.append(Leaf(base + 8 * regime.entry_size(2) + 5 * page, FAR, LEVEL_LAST))
    for level in BLOCKS.get(name, BLOCKS[name.split("-", maxsplit=1)[0]]):
        if level > regime.start_level or (level == regime.start_level and regime.entries(level) > 4):
            size = regime.entry_size(level)
            leaves.append(Leaf(top - 3 * size, align_down(DATA, size), level))
    for leaf in leaves:
        size = leaf.count * regime.entry_size(leaf.level)
        more = CONTIGUOUS if leaf.contiguous else 0
        tree.map(leaf.va, leaf.pa, size=size, level=leaf.level, attributes=KERNEL_DATA | more)
    return leaves


def probes(leaves: list[Leaf], regime: Regime) -> list[tuple[int, int]]:
    """Where the guest reads what: the word at DATA+64K*i is 0xC0DE0000+i."""
    found = []
    for leaf in leaves:
        if leaf.pa == FAR:
            continue
        begin, end = leaf.pa, leaf.pa + leaf.count * regime.entry_size(leaf.level)
        for i in range(16):
            if begin <= DATA + 0x1_0000 * i < end:
                found.append((leaf.va + DATA + 0x1_0000 * i - begin, 0xC0DE_0000 + i))
    return found


@contextmanager
def running(name: str, directory: Path) -> Iterator[tuple[Live, list[Leaf], list[Leaf], int]]:
    """Start the guest of one regime; yields it with the leaves of both halves and the number of probes."""
    regime = REGIMES[name]
    upper = TreeBuilder(regime, tables_at=TABLES)
    lower = TreeBuilder(replace(regime, upper=False), memory=upper.memory, tables_at=TABLES + SIZE // 2)
    high, low = fill(name, upper), fill(name, lower)
    unit = max(regime.entry_size(2), SIZE)
    begin = align_down(LOAD, unit)
    code = Leaf(begin, begin, 2, max((0x200_0000) // regime.entry_size(2), 1))
    lower.map(begin, begin, size=code.count * regime.entry_size(2), level=2, attributes=UXN | SH | AF)
    wanted = probes(high, regime) + probes(low, regime)
    words = [word for pair in wanted for word in pair] + [0]
    upper.memory.write(PROBES, struct.pack(f"<{len(words)}Q", *words))
    data = bytearray(SIZE)
    for i in range(16):
        struct.pack_into("<Q", data, 0x1_0000 * i, 0xC0DE_0000 + i)
    txsz, bits = 64 - regime.va_bits, regime.granule_bits
    tcr = txsz | txsz << 16 | TG0[bits] << 14 | TG1[bits] << 30 | regime.ds << 59
    tcr |= (6 if regime.pa_bits == 52 else 5) << 32
    kernel = assembled(
        directory, "granule.S", MAIR=0xFF, TCR=tcr, TTBR0=lower.root, TTBR1=upper.root, PROBES=PROBES
    )
    files = {PROBES: upper.memory.read(PROBES, SIZE), DATA: bytes(data)}
    with started(kernel, files, directory) as live:
        yield live, high, [*low, code], len(wanted)


def same(live: Live, half: str, leaves: list[Leaf], name: str) -> None:
    """What ptinspect says of one half is what was put there, and what QEMU's walk says."""
    session, regime = live.ctx.guest.stopped, REGIMES[name]
    listed = []
    for run in live(f"map --root {half}")["runs"]:
        va, pa = int(run["va_start"], 16), int(run["pa_start"], 16)
        for i in range(run["count"]):
            offset = i * run["leaf_size"]
            listed.append((va + offset, pa + offset, run["level"], run["attributes"]["contiguous"]))
    expected = []
    for leaf in leaves:
        size = regime.entry_size(leaf.level)
        for i in range(leaf.count):
            expected.append((leaf.va + i * size, leaf.pa + i * size, leaf.level, leaf.contiguous))
    assert sorted(listed) == sorted(expected)
    for leaf in leaves:
        size = leaf.count * regime.entry_size(leaf.level)
        for offset in (0, 8, size // 2 + 16, size - 8):
            walked = live(f"walk {leaf.va + offset:#x} --root {half}")
            assert walked["outcome"] == "mapped"
            assert int(walked["pa"], 16) == leaf.pa + offset == session.gva2gpa(leaf.va + offset)
            assert walked["steps"][-1]["level"] == leaf.level
            assert walked["steps"][0]["level"] == START[name]
    hole = leaves[0].va - regime.granule
    assert live(f"walk {hole:#x} --root {half}")["outcome"] == "fault"
    assert session.gva2gpa(hole) is None


def group_of(live: Live, leaf: Leaf) -> None:
    """`check` has nothing against a contiguous group until one entry of it differs."""
    before = live("check --root ttbr1")["totals"]
    assert "contiguous" not in before
    descriptor = live(f"walk {leaf.va + live.ctx.guest.view.regime.granule:#x} --root ttbr1")["steps"][-1]
    raw = int(descriptor["raw"], 16)
    for wrong in (raw ^ UXN, raw & ~CONTIGUOUS, raw ^ 1 << 21, 0):
        live(f"poke descriptor pa:{descriptor['descriptor_pa']} {wrong:#x} --yes")
        assert live("check --root ttbr1")["totals"].get("contiguous") == 1, hex(wrong)
        live("poke undo")
    assert live("check --root ttbr1")["totals"] == before


@pytest.mark.usefixtures("each_qemu")
@pytest.mark.parametrize("name", REGIMES)
def test_tables_that_a_cpu_runs_through(name: str, tmp_path: Path) -> None:
    with running(name, tmp_path) as (live, high, low, count):
        session = live.ctx.guest.stopped
        stop = session.run_until([DONE, BAD], 300)
        assert (stop.pc, session.cpu_state(0).x[20]) == (DONE, count)
        same(live, "ttbr1", high, name)
        same(live, "ttbr0", low, name)
        group_of(live, next(leaf for leaf in high if leaf.contiguous))
        levels = live("summary --root ttbr1")["levels"]
        assert [level["level"] for level in levels] == list(range(START[name], 4))
        blocks = {leaf.level for leaf in high if leaf.level != LEVEL_LAST}
        assert {level["level"] for level in levels if level["leaves"]} == {*blocks, LEVEL_LAST}
        live("snap t")
        found = live(f"find {DATA:#x}")["hits"]
        assert {int(hit["va"], 16) for hit in found if hit["kind"] == "leaf"} >= {high[0].va, high[1].va}
        assert {hit["region"] for hit in found} == {"kernel"}, "this is no Linux: nothing is guessed"
