"""Contiguous groups whose entries differ in AF or dirty."""

from __future__ import annotations

import dataclasses

import pytest
from builders import AF, CONTIGUOUS, KERNEL_DATA, READ_ONLY, REGIMES, TreeBuilder
from fakes import KERNEL, context, kernel_tree, run, text

from ptinspect.analysis.check import check
from ptinspect.analysis.contiguous import MixedGroup, mixed_groups

DBM, DIRTY = 1 << 51, 1 << 55
CLEAN = KERNEL_DATA | CONTIGUOUS | DBM | READ_ONLY
GEOMETRIES = [("4k-48", 3, 16), ("4k-48", 2, 16), ("16k-47", 3, 128), ("16k-47", 2, 32), ("64k-48", 3, 32)]


@pytest.mark.parametrize(("name", "level", "entries"), GEOMETRIES)
def test_each_group_that_differs_is_listed_once_with_its_entries(name: str, level: int, entries: int) -> None:
    regime = dataclasses.replace(REGIMES[name], ha=True, hd=True)
    made = TreeBuilder(regime)
    size = regime.entry_size(level)
    base, pa = int(regime.va_min) + 4 * entries * size, 4 * entries * size
    made.map(base, pa, size=4 * entries * size, level=level, attributes=CLEAN)

    def found() -> list[MixedGroup]:
        return list(mixed_groups(made.snapshot()))

    assert found() == []
    made.xor(base + 3 * size, level, AF)
    made.xor(base + (entries + 2) * size, level, READ_ONLY)
    made.xor(base + (2 * entries + 1) * size, level, DIRTY)
    for i in range(entries):
        made.xor(base + (3 * entries + i) * size, level, DIRTY | AF)
    groups = found()
    assert [group.va for group in groups] == [base + i * entries * size for i in range(3)]
    assert [group.descriptor_pa for group in groups] == [made.slot(group.va, level) for group in groups]
    assert [(sum(group.accessed), sum(group.dirty)) for group in groups] == [
        (entries - 1, 0), (entries, 1), (entries, 1),
    ]  # fmt: skip
    assert not groups[0].accessed[3] and groups[1].dirty[2] and groups[2].dirty[1]
    kept = list(mixed_groups(made.snapshot(), (groups[1].va, groups[1].va + size - 1), frozenset({level})))
    assert kept == groups[1:2]
    assert list(mixed_groups(made.snapshot(), None, frozenset({level - 1}))) == []


def test_a_group_that_is_not_whole_is_the_business_of_check() -> None:
    made = TreeBuilder(REGIMES["4k-48"])
    base = int(made.regime.va_min)
    made.map(base, 0x4400_0000, size=0x10000, attributes=CLEAN)
    made.set(base + 0x3000, 3, 0)
    made.xor(base, 3, AF)
    assert list(mixed_groups(made.snapshot())) == []
    assert check(made.snapshot()).totals["contiguous"] == 1


def test_map_shows_them() -> None:
    tree = kernel_tree()
    at = KERNEL + (8 << 30)
    tree.map(at, 0x4420_0000, size=0x20000, attributes=KERNEL_DATA | CONTIGUOUS)
    ctx = context(tree)
    assert "no contiguous group whose entries differ" in text(run(ctx, "map --mixed"))
    tree.xor(at + 0x12000, 3, AF)
    tree.xor(at + 0x13000, 3, DIRTY)
    ctx.guest.session.stop_token += 1  # type: ignore[union-attr,misc]
    report = run(ctx, "map --mixed")
    (group,) = report.result["groups"]
    assert (group["va_start"], group["entries"], group["level"]) == (hex(at + 0x10000), 16, 3)
    assert group["accessed"].count(False) == 1 and group["dirty"].count(True) == 1
    assert report.result["complete"] is True
    assert "aa.D" + "a" * 12 in text(report)
    assert run(ctx, f"map {at:#x}+64K --mixed").result["groups"] == []
    assert len(run(ctx, "map --mixed --level pte --limit 1").result["groups"]) == 1
