"""The states by which a picture colours descriptors."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from builders import KERNEL_DATA, NG, REGIMES, TreeBuilder

from ptinspect.analysis import atlas as module
from ptinspect.analysis.atlas import FIRST_PATTERN, LOUD, QUIET, STATES, atlas, changes, delta_planes
from ptinspect.analysis.summary import summarize
from ptinspect.arch.descriptor import decode
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.kinds import KIND_NAMES


def tree(name: str = "4k-48", attributes: int = KERNEL_DATA) -> TreeBuilder:
    made = TreeBuilder(REGIMES[name])
    base = int(made.regime.va_min)
    made.map(
        base, 0x4020_0000 & -made.regime.granule, size=8 * made.regime.granule, level=3, attributes=attributes
    )
    return made


def states_of(snapshot: Snapshot) -> dict[str, int]:
    shown = atlas(snapshot)
    found = {STATES[code]: int((shown.states == code).sum()) for code in np.unique(shown.states).tolist()}
    assert {k: n for k, n in found.items() if k != "invalid"} == sum(
        map(Counter, shown.counts.values()), Counter()
    )
    return found


@pytest.mark.parametrize("name", REGIMES)
def test_states_count_what_the_summary_counts(name: str) -> None:
    made = tree(name)
    snapshot = made.snapshot()
    counts = states_of(snapshot)
    summary = summarize(snapshot)
    assert counts["leaf, global"] == summary.leaves == 8
    assert counts.get("table, no mark", 0) == sum(level.table_descriptors for level in summary.levels)
    assert sum(counts.values()) == snapshot.tables.raw.size


def test_every_kind_of_change_has_its_state() -> None:
    made = tree()
    base = int(made.regime.va_min)
    before = made.snapshot("before")
    slots = [made.slot(base + page * 4096, 3) for page in range(8)]
    words = [made.word(slot) for slot in slots]
    made.set_word(slots[0], words[0] | NG)
    made.set_word(slots[1], 0)
    made.set_word(slots[2], words[2] ^ 0x1000)
    made.set_word(slots[3], words[3] ^ (1 << 54))
    made.set_word(slots[7] + 8, words[7] + 0x1000)
    above = made.slot(base, 2)
    made.set_word(above, made.word(above) | NG)
    after = made.snapshot("after")
    found = changes(before, after).states
    told = {STATES[code] for code in np.unique(found).tolist()}
    assert {"became nG", "lost", "points elsewhere", "other attributes", "new", "marked"} <= told
    row = int(np.nonzero(after.tables.level == 3)[0][0])
    assert [STATES[code] for code in found[row, :5].tolist()] == [
        "became nG",
        "lost",
        "points elsewhere",
        "other attributes",
        "leaf, global",
    ]
    assert [STATES[code] for code in changes(after, before).states[row, :2].tolist()] == ["nG lost", "new"]
    assert (changes(before, before).states == atlas(before).states).all()


def test_an_unreadable_table_is_shown_as_such_and_compared_with_nothing() -> None:
    snapshot = tree().snapshot()
    readable = snapshot.tables.readable.copy()
    readable[-1] = False
    blind = dataclasses.replace(snapshot, tables=dataclasses.replace(snapshot.tables, readable=readable))
    assert set(atlas(blind).states[-1].tolist()) == {module.S_UNREADABLE}
    assert set(changes(snapshot, blind).states[-1].tolist()) == {module.S_UNREADABLE}
    assert (changes(blind, snapshot).states[-1] == atlas(snapshot).states[-1]).all()


def test_patterns_explain_every_valid_descriptor() -> None:
    shown = atlas(tree().snapshot())
    leaf = next(p for p in shown.patterns if p.kind == "page")
    assert leaf.bits & ~0xFFF == KERNEL_DATA & ~0xFFF
    names = [name for name, _, _ in leaf.fields]
    assert "nG" in names and "output address" not in names


@pytest.mark.parametrize("name", REGIMES)
def test_what_each_descriptor_is_and_where_it_leads(name: str) -> None:
    """The page decodes nothing: kind, address and next table are those of `arch.descriptor`."""
    snapshot = tree(name).snapshot()
    shown = atlas(snapshot)
    for (row, index), word in np.ndenumerate(shown.raw):
        d = decode(int(word), int(shown.level[row]), snapshot.regime)
        number, link = int(shown.decoded[row, index]), int(shown.links[row, index])
        if d.output_address is None:
            assert (KIND_NAMES[number], link) == (d.kind, -1)
            continue
        pattern = shown.patterns[number - FIRST_PATTERN]
        assert (pattern.kind, pattern.level) == (d.kind, d.level)
        assert (int(word) + pattern.distance) % (1 << 64) == d.output_address
        assert link == -1 if d.is_leaf else shown.pa[link] == d.output_address


def test_a_table_in_two_places_is_entered_at_the_address_that_was_asked_for() -> None:
    made = tree()
    base, size = int(made.regime.va_min), made.regime.entry_size(2)
    made.map(base + size, 0x4400_0000, size=4096, level=3)
    before = made.snapshot("before")
    made.set(base + size, 2, made.get(base, 2))
    after = made.snapshot("after")
    for shown, places in ((atlas(after), [base, base]), (changes(before, after), [base, base + size])):
        below = shown.links[shown.level == 2][0, :2]
        assert len(set(shown.pa[below].tolist())) == 1
        assert shown.va[below].tolist() == places


def test_sets_of_attributes_that_are_too_many_have_their_kind_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tree()
    made.xor(int(made.regime.va_min), 3, NG)
    monkeypatch.setattr(module, "MAX_PATTERNS", 1)
    shown = atlas(made.snapshot())
    kinds = [KIND_NAMES[n] if n < FIRST_PATTERN else "explained" for n in shown.decoded[-1, :9].tolist()]
    assert kinds == ["page", *["explained"] * 7, "invalid"], "the most frequent ones are explained"


def test_too_many_tables_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TABLES", 2)
    snapshot = tree().snapshot()
    shown = atlas(snapshot)
    assert (len(shown.level), shown.left_out) == (2, len(snapshot.tables) - 2)
    assert changes(snapshot, snapshot).states.shape[0] == 2
    whole = dict(shown.counts)
    monkeypatch.setattr(module, "MAX_TABLES", 1 << 20)
    assert atlas(snapshot).counts == whole


def test_tables_with_unexpected_changes_have_room_and_others_are_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = TreeBuilder(REGIMES["4k-48"])
    base, size = int(made.regime.va_min), made.regime.entry_size(2)
    for number in range(4):
        made.map(base + number * size, 0x4400_0000, size=0x4000, level=3)
    before = made.snapshot("before")
    made.xor(base + 2 * size, 3, NG)
    made.set(base + 3 * size, 3, 0)
    monkeypatch.setattr(module, "MAX_TABLES", 4)
    shown = changes(before, made.snapshot("after"))
    assert shown.va.tolist() == [base] * 4 + [base + 3 * size]
    assert shown.hidden.tolist() == [base + 2 * size | 4 << 2 | QUIET]
    assert shown.left_out == 2
    monkeypatch.setattr(module, "MORE_TABLES", 0)
    assert changes(before, made.snapshot("after")).hidden.tolist()[-1] == base + 3 * size | 4 << 2 | LOUD


def test_packed_words_are_sums() -> None:
    words = np.array([[5, 3, 1 << 63, 0], [7, 7, 7, (1 << 64) - 1]], dtype=np.uint64)
    planes = np.frombuffer(delta_planes(words), dtype=np.uint8).reshape(8, -1)
    delta = np.ascontiguousarray(planes.T).view("<u8").reshape(-1)
    assert np.cumsum(delta, dtype=np.uint64).tolist() == words.reshape(-1).tolist()
