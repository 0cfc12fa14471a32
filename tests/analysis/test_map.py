"""Runs of equal attributes, and the search by physical address, against a slow expansion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from builders import (
    AF,
    CONTIGUOUS,
    EL0,
    KERNEL_DATA,
    KERNEL_TEXT,
    NG,
    OUTSIDE,
    REGIMES,
    SH,
    TreeBuilder,
    regime_4k,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tangled import every_way, tangled

from ptinspect.analysis import expand
from ptinspect.analysis.find import find_pa
from ptinspect.analysis.map import MapFilter, Run, Runs, runs
from ptinspect.arch.descriptor import Attributes
from ptinspect.arch.levels import levels_of
from ptinspect.arch.permissions import Permissions, effective
from ptinspect.errors import UserError
from ptinspect.snapshot.model import Snapshot


@dataclass(frozen=True)
class Leaf:
    va: int
    pa: int
    size: int
    level: int
    descriptor_pa: int
    raw: int
    attributes: Attributes
    permissions: Permissions
    bits: int
    """What is left of the descriptor without its output address."""

    @property
    def end(self) -> int:
        return self.va + self.size - 1

    def maps(self, first: int, last: int) -> bool:
        return self.pa <= last and self.pa + self.size - 1 >= first


def slow_leaves(snapshot: Snapshot) -> list[Leaf]:
    """Return what every way ends at."""
    regime = snapshot.regime
    low, high = snapshot.va_range or (regime.va_min, regime.va_max)
    address = {
        level: sum(1 << b for b in range(64) if regime.output_address(1 << b, level))
        for level in levels_of(regime)
    }
    found = []
    for va, pa, _, d, above in every_way(snapshot, low, high):
        if d.is_leaf and d.output_address is not None and d.attributes is not None:
            may, bits = effective(d, above, regime), d.raw & ~address[d.level]
            size = regime.entry_size(d.level)
            found.append(Leaf(va, d.output_address, size, d.level, pa, d.raw, d.attributes, may, bits))
    return sorted(found, key=lambda leaf: leaf.va)


def slow_runs(leaves: list[Leaf], merge_pa: bool = False) -> list[tuple[object, ...]]:
    out: list[tuple[object, ...]] = []
    last: Leaf | None = None
    for leaf in leaves:
        same = (
            last is not None
            and last.va + last.size == leaf.va
            and last.size == leaf.size
            and (last.bits, last.permissions) == (leaf.bits, leaf.permissions)
            and (merge_pa or last.pa + last.size == leaf.pa)
        )
        if same:
            va, _, pa, level, count, *rest = out[-1]
            out[-1] = (va, leaf.va + leaf.size - 1, pa, level, count + 1, *rest)  # type: ignore[operator]
        else:
            out.append(
                (leaf.va, leaf.va + leaf.size - 1, leaf.pa, leaf.level, 1, leaf.attributes, leaf.permissions)
            )
        last = leaf
    return out


def plain(found: list[Run]) -> list[tuple[object, ...]]:
    assert all(run.va_end - run.va_start + 1 == run.size == run.count * run.leaf_size for run in found)
    return [(r.va_start, r.va_end, r.pa_start, r.level, r.count, r.attributes, r.permissions) for r in found]


def assert_agrees(snapshot: Snapshot) -> list[Leaf]:
    leaves = slow_leaves(snapshot)
    found = runs(snapshot)
    assert plain(found) == slow_runs(leaves)
    assert all(run.pa_contiguous for run in found)
    loose = runs(snapshot, MapFilter(merge_pa=True))
    assert plain(loose) == slow_runs(leaves, merge_pa=True)
    for run in loose:
        inside = [leaf for leaf in leaves if run.va_start <= leaf.va <= run.va_end]
        steps = {b.pa - a.pa for a, b in pairwise(inside)}
        assert run.pa_contiguous == (steps <= {run.leaf_size})
    return leaves


def mixed(regime_name: str) -> TreeBuilder:
    regime = REGIMES[regime_name]
    tree = TreeBuilder(regime)
    low, unit, page = int(regime.va_min), regime.entry_size(2), regime.granule
    tree.map(low, 0, size=2 * unit)
    tree.map(low + 2 * unit, 2 * unit, size=16 * page, attributes=KERNEL_TEXT)
    tree.map(low + 2 * unit + 16 * page, 0x4000_0000, size=16 * page, attributes=KERNEL_TEXT)
    tree.map(low + 2 * unit + 40 * page, 0x5000_0000, size=8 * page, attributes=KERNEL_DATA | CONTIGUOUS)
    tree.map(low + 2 * unit + 48 * page, 0x5000_0000 + 8 * page, size=page, attributes=KERNEL_DATA | NG)
    if regime.allows_block(2):
        tree.map(low + 5 * unit, 0xC000_0000, size=2 * unit, level=2)
    top = (1 << 48) if regime.wide_oa else (1 << 47)
    tree.map(low + 8 * unit, top - 4 * page, size=8 * page if regime.wide_oa else 4 * page)
    tree.map(int(regime.va_max) + 1 - 3 * page, 0x6000_0000, size=3 * page)
    return tree


@pytest.mark.parametrize("name", REGIMES)
def test_runs_agree_with_the_slow_expansion(name: str) -> None:
    tree = mixed(name)
    assert_agrees(tree.snapshot())
    if tree.regime.wide_oa:
        high = next(r for r in runs(tree.snapshot()) if r.pa_start == (1 << 48) - 4 * tree.regime.granule)
        assert high.count == 8


@pytest.mark.parametrize("name", ["4k-48", "16k-47"])
def test_chunks_smaller_than_a_level_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptinspect.tables import index

    snapshot = mixed(name).snapshot()
    whole, hits = runs(snapshot), find_pa(snapshot, 0x5000_0123)
    assert hits
    monkeypatch.setattr(index, "CHUNK_WORDS", 1)
    assert runs(snapshot) == whole
    assert find_pa(snapshot, 0x5000_0123) == hits


def test_descriptors_that_follow_each_other_by_overflow_are_not_joined() -> None:
    tree = TreeBuilder(regime_4k(48))
    low = int(tree.regime.va_min)
    tree.set(low, 3, 0x0000_FFFF_FFFF_F000 | AF | 3)
    tree.set(low + 0x1000, 3, 0x0001_0000_0000_0000 | AF | 3)
    assert len(runs(tree.snapshot())) == 2
    assert_agrees(tree.snapshot())


def test_a_misaligned_block_keeps_its_odd_bits_as_attributes() -> None:
    tree = TreeBuilder(regime_4k(48))
    low = int(tree.regime.va_min)
    tree.set(low, 2, 0x8000_1000 | AF | 1)
    (run,) = assert_agrees(tree.snapshot())
    assert run.pa == 0x8000_0000


def test_hierarchical_bits_part_runs_and_set_permissions() -> None:
    tree = TreeBuilder(regime_4k(48))
    low = int(tree.regime.va_min)
    tree.map(low, 0x8000_0000, size=4 << 20, attributes=AF | SH | EL0)
    assert len(runs(tree.snapshot())) == 1
    tree.xor(low + (2 << 20), 2, 1 << 62)
    tree.xor(low, 0, 1 << 59)
    first, second = runs(tree.snapshot())
    assert (first.permissions.el1, second.permissions.el1) == ("rw-", "r--")
    assert_agrees(tree.snapshot())
    ignored = TreeBuilder(regime_4k(48, hpd=True), memory=tree.memory, root=tree.root)
    assert len(runs(ignored.snapshot())) == 1


def test_a_shared_table_is_listed_at_each_address() -> None:
    tree = TreeBuilder(regime_4k(48))
    low = int(tree.regime.va_min)
    tree.map(low, 0x8000_0000, size=2 << 20)
    tree.share(low + (2 << 20), 2, low)
    tree.share(low + (1 << 39), 0, low)
    found = runs(tree.snapshot())
    assert [(r.va_start - low, r.pa_start, r.count) for r in found] == [
        (at, 0x8000_0000, 512) for at in (0, 2 << 20, 1 << 39, (1 << 39) + (2 << 20))
    ]
    assert_agrees(tree.snapshot())
    hits = find_pa(tree.snapshot(), 0x8000_1008)
    assert [h.va - low for h in hits if h.kind == "leaf"] == [
        at + 0x1008 for at in (0, 2 << 20, 1 << 39, (1 << 39) + (2 << 20))
    ]
    table = tree.table_at(low, 3)
    hits = find_pa(tree.snapshot(), table + 8 * 5 + 3)
    assert [(h.kind, h.va - low, h.index, h.level) for h in hits] == [
        ("table", at + 0x5000, 5, 3) for at in (0, 2 << 20, 1 << 39, (1 << 39) + (2 << 20))
    ]
    assert {h.descriptor_pa for h in hits} == {table + 40}


FILTERS: dict[str, tuple[MapFilter, object]] = {
    "level 2": (MapFilter(levels=frozenset([2])), lambda leaf: leaf.level == 2),
    "level 3": (MapFilter(levels=frozenset([3])), lambda leaf: leaf.level == 3),
    "no level": (MapFilter(levels=frozenset()), lambda leaf: False),
    "nG": (MapFilter(ng=True), lambda leaf: leaf.attributes.ng),
    "global": (MapFilter(ng=False), lambda leaf: not leaf.attributes.ng),
    "el1 w": (MapFilter(el1="w"), lambda leaf: "w" in leaf.permissions.el1),
    "el1 rx": (MapFilter(el1="rx"), lambda leaf: set("rx") <= set(leaf.permissions.el1)),
    "not el1 w": (MapFilter(el1_not="w"), lambda leaf: "w" not in leaf.permissions.el1),
    "el0 r": (MapFilter(el0="r"), lambda leaf: "r" in leaf.permissions.el0),
    "not el0 x": (MapFilter(el0_not="x"), lambda leaf: "x" not in leaf.permissions.el0),
    "contiguous": (MapFilter(contiguous=True), lambda leaf: leaf.attributes.contiguous),
    "device": (MapFilter(memory_type="DEVICE"), lambda leaf: "device" in leaf.attributes.memory_type.lower()),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_keep_just_the_leaves_that_fit(name: str) -> None:
    chosen, keep = FILTERS[name]
    tree = mixed("4k-48")
    low = int(tree.regime.va_min)
    tree.map(low + (1 << 32), 0x9000_0000, size=0x3000, attributes=AF | EL0 | NG)
    tree.map(low + (1 << 32) + 0x3000, 0x9000_3000, size=0x3000, attributes=AF | 1 << 2)
    snapshot = tree.snapshot()
    leaves = [leaf for leaf in slow_leaves(snapshot) if keep(leaf)]  # type: ignore[operator]
    assert plain(runs(snapshot, chosen)) == slow_runs(leaves)
    if name != "no level":
        assert leaves


@pytest.mark.parametrize("name", ["4k-48", "4k-39"])
def test_ranges_cut_at_leaves(name: str) -> None:
    tree = mixed(name)
    snapshot = tree.snapshot()
    leaves = slow_leaves(snapshot)
    low, page = int(tree.regime.va_min), tree.regime.granule
    for first, last in (
        (low + 5 * page + 1, low + 7 * page),
        (low, low),
        (low + tree.regime.entry_size(2) - 1, low + 6 * tree.regime.entry_size(2)),
        (low + 3 * page, int(tree.regime.va_max) - page - 1),
    ):
        inside = [leaf for leaf in leaves if leaf.va <= last and leaf.end >= first]
        assert plain(runs(snapshot, MapFilter(va_range=(first, last)))) == slow_runs(inside)
        part = tree.snapshot(va_range=(first, last))
        assert plain(runs(part)) == slow_runs(inside)
    for first, last in ((5 * page + 1, 7 * page), (0, 0), (0x4000_0000, 0x5FFF_FFFF)):
        inside = [leaf for leaf in leaves if leaf.maps(first, last)]
        assert inside
        assert plain(runs(snapshot, MapFilter(pa_range=(first, last)))) == slow_runs(inside)
    with pytest.raises(UserError):
        runs(snapshot, MapFilter(va_range=(0, 1)))
    part = tree.snapshot(va_range=(low, low + page))
    assert runs(part, MapFilter(va_range=(low + 5 * page, low + 6 * page))) == []


def test_what_is_missing_is_said() -> None:
    tree = TreeBuilder(regime_4k(48))
    low = int(tree.regime.va_min)
    tree.map(low, 0x8000_0000)
    assert runs(tree.snapshot()).truncated == ""
    tree.point(low + (2 << 20), 2, OUTSIDE)
    assert runs(tree.snapshot()).truncated == "1 table could not be read"
    part = tree.snapshot(max_level=2)
    assert "2 tables are not in the snapshot (levels below 2" in runs(part).truncated and runs(part) == []
    assert runs(part, MapFilter(levels=frozenset([2]))).truncated == ""
    assert "levels below 2" in find_pa(part, 0).truncated


def test_bounds_end_what_would_not_end_and_keep_the_lowest() -> None:
    tree = TreeBuilder(regime_4k(48))
    low = int(tree.regime.va_min)
    entry = tree.root | AF | 3
    words = np.full(512, entry, dtype="<u8")
    words[1::2] = 0  # neighbours that lead to one table are taken as one
    tree.memory.write(tree.root, words.tobytes())
    snapshot = tree.snapshot()
    found = runs(snapshot, MapFilter(max_visits=50, max_runs=1000))
    assert len(found) == 1000
    assert "more than 50 ways" in found.truncated and "the first 1000 runs" in found.truncated
    assert [r.va_start for r in found] == [
        low + (i // 256 * 1024 + i % 256 * 2) * 0x1000 for i in range(1000)
    ]
    hits = find_pa(snapshot, tree.root + 0x18, max_hits=40)
    assert len(hits) == 40 and "more than 40 ways" in hits.truncated
    one = runs(snapshot, MapFilter(merge_pa=True, max_visits=50))
    assert len(one) == 50 * 256 and one[0].count == 1 and one[0].pa_contiguous


def shadowed(name: str) -> tuple[TreeBuilder, int]:
    """Map one page for several entries of the root, as KASAN's early shadow is; with real pages around."""
    tree = mixed(name)
    regime = tree.regime
    unit = regime.entry_size(2)
    low = int(regime.va_min) + 16 * unit
    page = tree.leaf(0x4400_0000, 3, KERNEL_DATA)
    tree.map(low - 2 * regime.granule, 0x4400_0000, size=2 * regime.granule, attributes=KERNEL_DATA)
    for slot in range(regime.entries(3)):
        tree.set(low + slot * regime.granule, 3, page)
    for number in range(1, 5):
        tree.share(low + number * unit, 2, low)
    tree.map(low + 5 * unit, 0x4400_0000, attributes=KERNEL_DATA)
    tree.share(low + 8 * unit, 2, low)
    return tree, low


def one_by_one(found: Sequence[Run]) -> list[tuple[int, int, int, int]]:
    """List the leaves of runs."""
    leaves = []
    for run in found:
        step = 0 if run.repeated else run.leaf_size
        for i in range(run.count):
            leaves.append((run.va_start + i * run.leaf_size, run.pa_start + i * step, run.level, run.bits))
    return leaves


@pytest.mark.parametrize("name", ["4k-48", "4k-39", "16k-47", "64k-42"])
def test_tables_that_repeat_one_page_are_one_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptinspect.tables import index

    tree, low = shadowed(name)
    snapshot, unit, page = tree.snapshot(), tree.regime.entry_size(2), tree.regime.granule
    leaves = [(leaf.va, leaf.pa, leaf.level, leaf.bits) for leaf in slow_leaves(snapshot)]
    found = runs(snapshot)
    assert [(r.va_start - low, r.size) for r in found if r.repeated] == [(0, 5 * unit), (8 * unit, unit)]
    assert all(r.pa_start == 0x4400_0000 and not r.pa_contiguous for r in found if r.repeated)
    for words in (1 << 17, 1):
        monkeypatch.setattr(index, "CHUNK_WORDS", words)
        assert one_by_one(runs(snapshot)) == leaves
        for limit in range(1, len(found) + 1):
            assert runs(snapshot, MapFilter(max_runs=limit)) == found[:limit]
        for first, last in (
            (low + 3 * page, low + 2 * unit + 5),
            (low - 1, low),
            (low + 4 * unit, low + 9 * unit),
        ):
            inside = [leaf for leaf in leaves if leaf[0] <= last and leaf[0] + page > first]
            assert one_by_one(runs(snapshot, MapFilter(va_range=(first, last)))) == inside
            assert one_by_one(runs(tree.snapshot(va_range=(first, last)))) == inside
        for pa in (0x4400_0000, 0x4400_0000 + page):
            inside = [leaf for leaf in leaves if leaf[2] == 3 and leaf[1] <= pa < leaf[1] + page]
            assert one_by_one(runs(snapshot, MapFilter(pa_range=(pa, pa), levels=frozenset([3])))) == inside
    edges = [low + unit + 7 * page]
    cut = runs(snapshot, None, lambda va: "a" if va < edges[0] else "b", edges)
    assert one_by_one(cut) == leaves and edges[0] in {r.va_start for r in cut}


def test_bits_inherited_of_tables_that_repeat_a_page_part_runs() -> None:
    tree, low = shadowed("4k-48")
    unit = tree.regime.entry_size(2)
    tree.xor(low + 2 * unit, 2, 1 << 62)
    found = [(r.va_start - low, r.size, r.permissions.el1) for r in runs(tree.snapshot()) if r.repeated]
    assert found == [
        (0, 2 * unit, "rw-"),
        (2 * unit, unit, "r--"),
        (3 * unit, 2 * unit, "rw-"),
        (8 * unit, unit, "rw-"),
    ]


def test_terabytes_of_one_page_are_one_run() -> None:
    """Tables of each level that lead to one table below, with bits to inherit in the middle."""
    tree = TreeBuilder(regime_4k(48))
    low = int(tree.regime.va_min)
    tree.map(low, 0x4400_0000, attributes=KERNEL_DATA)
    for level, bits in ((3, 0), (2, 1 << 62), (1, 0)):
        table = tree.table_at(low, level)
        word = int.from_bytes(tree.memory.read(table, 8), "little") | bits
        tree.memory.write(table, word.to_bytes(8, "little") * 512)
    for number in range(1, 64):
        tree.share(low + (number << 39), 0, low)
    (run,) = runs(tree.snapshot())
    assert (run.va_start, run.size, run.count) == (low, 1 << 45, 1 << 33)
    assert run.repeated and run.permissions.el1 == "r--"


def written_out(found: Runs) -> list[tuple[int, int, int, int]]:
    """List the leaves of runs, also where they are again."""
    leaves = one_by_one(found)
    for each in sorted(found.repeats, key=lambda each: each.span):  # what lies in others first
        inside = [leaf for leaf in leaves if each.as_at <= leaf[0] < each.va_start]
        assert inside and each.va_start - each.as_at == each.span
        assert each.va_end + 1 - each.va_start == each.times * each.span
        for number in range(1, each.times + 1):
            leaves += [(va + number * each.span, *rest) for va, *rest in inside]
    return sorted(leaves)


def half_done(name: str) -> tuple[TreeBuilder, int]:
    """Return KASAN's shadow with the rewrite in the middle of the page's table, some of it its own."""
    tree, low = shadowed(name)
    unit, page = tree.regime.entry_size(2), tree.regime.granule
    for slot in range(70):
        tree.xor(low + slot * page, 3, NG)
    for number in range(12, 40):
        tree.share(low + number * unit, 2, low)
    tree.xor(low + 30 * unit, 2, 1 << 62)
    return tree, low


@pytest.mark.parametrize("name", ["4k-48", "4k-39"])
def test_what_is_listed_once_is_what_is_mapped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, low = half_done(name)
    unit = tree.regime.entry_size(2)
    leaves = [(leaf.va, leaf.pa, leaf.level, leaf.bits) for leaf in slow_leaves(tree.snapshot())]
    assert not runs(tree.snapshot()).repeats
    for least in (2, 5, 20):
        monkeypatch.setattr(expand, "NEIGHBOURS", least)
        found = runs(tree.snapshot())
        assert written_out(found) == leaves and not found.truncated
        groups = [(0, 4), (12, 17), (31, 8)]
        assert [((r.as_at - low) // unit, r.times) for r in found.repeats] == [
            (at, times) for at, times in groups if times + 1 >= least
        ]
        for first, last in ((low + unit // 2, low + 13 * unit - 1), (low + 14 * unit, low + 38 * unit + 5)):
            inside = [leaf for leaf in leaves if leaf[0] <= last and leaf[0] + tree.regime.granule > first]
            assert written_out(runs(tree.snapshot(), MapFilter(va_range=(first, last)))) == inside
        marked = runs(tree.snapshot(), MapFilter(ng=True, levels=frozenset([3])))
        assert written_out(marked) == [leaf for leaf in leaves if leaf[2] == 3 and leaf[3] & NG]
        assert runs(tree.snapshot(), MapFilter(el0="x")).repeats == []


def test_the_shadow_of_terabytes_is_a_few_lines_while_the_rewrite_is_in_it() -> None:
    tree = TreeBuilder(regime_4k(48))
    low = int(tree.regime.va_min)
    tree.map(low, 0x4400_0000, attributes=KERNEL_DATA)
    for level in (3, 2, 1):
        table = tree.table_at(low, level)
        words = np.full(512, int.from_bytes(tree.memory.read(table, 8), "little"), dtype="<u8")
        words[: 200 if level == 3 else 0] |= np.uint64(NG)
        tree.memory.write(table, words.tobytes())
    for number in range(1, 64):
        tree.share(low + (number << 39), 0, low)
    found = runs(tree.snapshot())
    assert found.truncated == ""
    assert [(r.va_start - low, r.count, r.attributes.ng, r.repeated) for r in found] == [
        (0, 200, True, True),
        (200 << 12, 312, False, True),
    ]
    assert [(r.va_start - low, r.as_at, r.times, r.level) for r in found.repeats] == [
        (1 << 21, low, 511, 3),
        (1 << 30, low, 511, 2),
        (1 << 39, low, 63, 1),
    ]


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("name", ["4k-48", "16k-47", "64k-42"])
def test_a_limit_lists_the_first_runs_whatever_the_chunks(
    name: str, merge: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on in the next table counts once, and ends where it ends without a limit."""
    from ptinspect.tables import index

    tree = mixed(name)
    unit = tree.regime.entry_size(2)
    start = int(tree.regime.va_min) + 16 * unit
    tree.map(start, 0x8000_0000, size=5 * unit, attributes=KERNEL_DATA)
    tree.map(start + 5 * unit, 0x8000_0000 + 5 * unit, size=unit, attributes=KERNEL_TEXT)
    tree.map(start + 8 * unit, 0x1000_0000, size=3 * unit, attributes=KERNEL_DATA)
    snapshot = tree.snapshot()
    edges = [start + unit // 2, start + 2 * unit, start + 9 * unit]
    names = dict(zip([0, *edges], "abcd", strict=True))
    choices = (
        MapFilter(merge_pa=merge),
        MapFilter(merge_pa=merge, el1="w"),
        MapFilter(merge_pa=merge, levels=frozenset([3])),
        MapFilter(merge_pa=merge, va_range=(start + unit // 4, start + 9 * unit)),
        MapFilter(merge_pa=merge, pa_range=(0x8000_0000 + unit // 2, 0x8000_0000 + 4 * unit)),
    )
    for chosen in choices:
        for cuts in ((), edges):

            def namer(va: int, cuts: Sequence[int] = cuts) -> str:
                return names[max(at for at in (0, *cuts) if at <= va)]

            monkeypatch.setattr(index, "CHUNK_WORDS", 1 << 17)
            whole = runs(snapshot, chosen, namer, cuts)
            assert whole and not whole.truncated
            for words in (1 << 17, 1):
                monkeypatch.setattr(index, "CHUNK_WORDS", words)
                for limit in range(1, len(whole) + 2):
                    found = runs(snapshot, replace(chosen, max_runs=limit), namer, cuts)
                    assert found == whole[:limit], (chosen, cuts, limit, words)
                    assert bool(found.truncated) == (limit < len(whole))


@settings(max_examples=60)
@given(st.data())
def test_a_limit_lists_the_first_hits_and_runs_of_tangled_tables(data: st.DataObject) -> None:
    snapshot = data.draw(tangled())
    whole = runs(snapshot)
    limit = data.draw(st.integers(1, max(len(whole), 1)))
    assert runs(snapshot, MapFilter(max_runs=limit)) == whole[:limit]
    pas = sorted({int(run.pa_start) for run in whole} | {int(snapshot.root.pa)})
    pa = data.draw(st.sampled_from(pas))
    hits = find_pa(snapshot, pa, max_hits=100_000)
    limit = data.draw(st.integers(1, max(len(hits), 1)))
    assert find_pa(snapshot, pa, max_hits=limit) == hits[:limit]


def test_regions_are_named_by_whoever_knows() -> None:
    tree = TreeBuilder(regime_4k(48))
    tree.map(int(tree.regime.va_min), 0x8000_0000)
    snapshot = tree.snapshot()
    assert runs(snapshot)[0].region == "kernel"
    assert runs(snapshot, regions=lambda va: f"at {va:#x}")[0].region == f"at {int(tree.regime.va_min):#x}"


@pytest.mark.parametrize("name", REGIMES)
def test_find_agrees_with_the_slow_expansion(name: str) -> None:
    snapshot = mixed(name).snapshot()
    leaves = slow_leaves(snapshot)
    page = snapshot.regime.granule
    top = (1 << 48) if snapshot.regime.wide_oa else (1 << 47)
    for pa in (
        0,
        3 * page + 7,
        0x4000_0000 + page,
        0xC000_0123,
        top - 1,
        0x6000_0000 + 3 * page,
        (1 << 64) - 1,
        -1,
    ):
        hits = find_pa(snapshot, pa)
        expected = [
            (leaf.va + pa - leaf.pa, leaf.level, leaf.descriptor_pa, leaf.raw, leaf.size)
            for leaf in leaves
            if leaf.maps(pa, pa)
        ]
        assert [(h.va, h.level, h.descriptor_pa, h.raw, h.size) for h in hits if h.kind == "leaf"] == expected
        assert not hits.truncated
        tables = snapshot.tables
        inside = [
            int(p)
            for p, level in zip(tables.pa.tolist(), tables.level.tolist(), strict=True)
            if p <= pa < p + snapshot.regime.entries(level) * 8
        ]
        assert sorted(int(h.table_pa) for h in hits if h.kind == "table") == sorted(inside)


def test_many_leaves_on_one_page_are_bounded() -> None:
    tree = TreeBuilder(regime_4k(48))
    low = int(tree.regime.va_min)
    for i in range(1200):
        tree.set(low + i * 0x1000, 3, tree.leaf(0x8000_0000, 3))
    hits = find_pa(tree.snapshot(), 0x8000_0010)
    assert len(hits) == 1000 and "more than 1000" in hits.truncated
    assert len(find_pa(tree.snapshot(), 0x8000_0010, max_hits=1200)) == 1200


@settings(max_examples=200)
@given(tangled())
def test_tangled_tables_agree_with_recursion(snapshot: Snapshot) -> None:
    leaves = assert_agrees(snapshot)
    for pa in {leaf.pa for leaf in leaves} | {int(snapshot.root.pa)}:
        expected = sorted((leaf.va, leaf.descriptor_pa) for leaf in leaves if leaf.maps(pa, pa))
        hits = find_pa(snapshot, pa)
        bases = sorted((h.va - h.va % h.size, h.descriptor_pa) for h in hits if h.kind == "leaf")
        assert bases == expected
