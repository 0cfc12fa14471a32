"""The verdict: every code with its evidence, none without."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from builders import REGIMES

from ptinspect.analysis.classify import kinds_of
from ptinspect.arch.esr import decode_esr
from ptinspect.linux.death import CODES
from ptinspect.linux.running.stacks import Stack
from ptinspect.stack.verdict import Change, Facts, Gone, explain, faulting, path_changes, with_change
from ptinspect.tables.walk import Walk

REGIME = REGIMES["4k-48"]
BASE = 0xFFFF_8000_1175_0000
STACK = Stack("task", BASE, BASE + 0x4000)


def path(*raws: int, outcome: str = "fault") -> Walk:
    steps = [
        SimpleNamespace(level=i, name=f"l{i}", raw=raw, descriptor_pa=0x1000 * (i + 1))
        for i, raw in enumerate(raws)
    ]
    found = SimpleNamespace(steps=tuple(steps), outcome=outcome, fault_level=len(raws) - 1, reason="invalid")
    return cast(Walk, found)


FULL = {"far": 8, "sp": BASE + 64, "used_before": 0x3F00, "frames": 30, "in_entry": False}


def facts(**changed: Any) -> Facts:
    lost = Facts(
        decode_esr(0x96000046),
        BASE + 0x3B70,
        True,
        True,
        STACK,
        BASE + 0x3A20,
        0x150,
        800,
        1,
        0,
        path(0x803, 0x803, 0),
    )
    return replace(lost, **changed)


def change(after: int, before: int = 0x7FFF_A803) -> Change:
    return Change(2, "pmd", 0x7FFF_E458, before, after, "after", kinds_of(before, after, 2, REGIME))


def test_lost_entry_is_named_with_its_old_value() -> None:
    told = explain(facts(changes=(change(0),)))
    assert told.code == "lost-entry"
    assert "pa:0x7fffe458: 0x0, which held 0x7fffa803 in snapshot after" in told.text
    assert "800 bytes used" in told.text


def test_a_recording_shows_what_the_entry_held_without_a_snapshot() -> None:
    written = replace(change(0), descriptor_pa=0x3000, snapshot="", position=144_942_338)
    told = explain(with_change(facts(), written))
    assert told.code == "lost-entry" and told.change == written and told.unknown == ()
    assert "which held 0x7fffa803 until position 144,942,338" in told.text
    assert "pa:0x3000 (pmd): 0x7fffa803 until position 144,942,338, 0x0 now" in told.evidence
    gone = facts(walk=None, gone=Gone(BASE, path(0x803, 0x803, 0)))
    assert explain(with_change(gone, written)).change == written
    elsewhere = replace(written, descriptor_pa=0x9000)
    assert with_change(gone, elsewhere) == gone and with_change(facts(), elsewhere) == facts()


def test_garbage_is_lost_and_no_older_value() -> None:
    """An entry that leads out of RAM, or is too wide: the CPU reports an external abort on its walk."""
    led = path(0x803, 0xDEAD_B003, outcome="unreadable")
    led.steps += (SimpleNamespace(level=3, name="pte", raw=None, descriptor_pa=0xDEAD_BA98),)  # type: ignore[misc]
    garbage = replace(change(0xDEAD_B003), descriptor_pa=0x2000)
    told = explain(facts(esr=decode_esr(0x96000057), walk=led, changes=(garbage,)))
    assert told.code == "lost-entry" and "0xdeadb003, which held 0x7fffa803" in told.text
    assert "the walk of FAR ends at level 3: invalid" in told.evidence
    assert explain(facts(walk=led)).code == "stack-mapping-lost" and faulting(facts(walk=led)) is led
    assert explain(facts(walk=led)).text.endswith("lost at level 1 (l1), pa:0x2000"), "what leads there"
    wide = replace(change(0x5678_90AB_C003), descriptor_pa=0x2000)
    assert explain(facts(walk=path(0x803, wide.after), changes=(wide,))).code == "lost-entry"
    reused = path(0x803, 0x411F_8003, 0x5, outcome="unreadable")
    assert explain(facts(walk=reused, changes=(change(0x411F_8003),))).code == "reverted-entry"
    assert explain(facts(changes=(change(0x411F_8803),))).code == "lost-entry", "with bit 11"


def test_the_stack_comes_before_the_faulting_address() -> None:
    own = path(0x803, 0)
    assert faulting(facts(gone=Gone(BASE, own))) is own and faulting(facts()) == facts().walk
    for mapped in (facts(walk=None), facts(walk=path(1, outcome="mapped"))):
        assert faulting(mapped) is None


def test_valid_but_other_entry_has_reverted() -> None:
    assert explain(facts(changes=(change(0x411F_8003),))).code == "reverted-entry"
    assert explain(facts(changes=(change(0x411F_8003, 0),))).code == "stack-mapping-lost"


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({}, "stack-mapping-lost"),
        ({"far": BASE - 16, "walk": None}, "guard-page-hit"),
        ({"far": 8, "walk": None, "in_entry": False}, "not-a-stack-problem"),
        ({"handling": False, "in_entry": False}, "unknown"),
        ({**FULL, "chain": [(f"f{n}", 0x200) for n in range(30)]}, "deep-call-chain"),
        ({**FULL, "chain": [("f", 0x3F00)]}, "guard-page-hit"),
        ({**FULL, "chain": [("f", 0x300)] * 3}, "guard-page-hit"),
        ({**FULL, "chain": [("f", 0x40)] * 4}, "deep-call-chain"),
        ({"walk": path(1, 1, outcome="mapped")}, "unknown"),
    ],
)
def test_each_code_needs_its_evidence(changed: dict[str, Any], code: str) -> None:
    told = explain(facts(**changed))
    assert told.code == code
    assert told.code in CODES
    assert told.evidence


def test_paths_are_compared_up_to_the_first_other_entry() -> None:
    now, then = path(0x803, 0x411F_8003, 5), path(0x003, 0x7FFF_A803, 6)
    elsewhere = Change(1, "l1", 0x2000, 0x7FFF_A803, 0x411F_8003, "s", ("unmarked", "retargeted"))
    assert path_changes(now, then, "s", REGIME) == (elsewhere,)
    assert path_changes(path(0x803), path(0x003), "s", REGIME) == ()
    assert path_changes(path(0x800), path(0x000), "s", REGIME)[0].kinds == ("invalid",)
    assert path_changes(path(0x8801), path(0x8003), "s", REGIME)[0].kinds == ("lost",)


def dead(**changed: Any) -> Facts:
    """A kernel that died with room on its stack."""
    room = {
        "far": 8,
        "walk": None,
        "in_entry": False,
        "repeated": 0,
        "dying": ("panic", "die"),
        "magic": True,
    }
    return facts(**{**room, **changed})


def elsewhere(now: int, then: int) -> Walk:
    found = SimpleNamespace(steps=(), outcome="mapped", pa=now, fault_level=None, reason="")
    assert now != then
    return cast(Walk, found)


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({}, "not-a-stack-problem"),
        ({"handling": False}, "not-a-stack-problem"),
        ({"handling": False, "dying": ()}, "unknown"),
        ({"handling": False, "sp": BASE + 0x40, "used_before": None}, "unknown"),
        ({"magic": False}, "stack-corruption"),
        ({"magic": False, "dying": (), "handling": False}, "unknown"),
        ({"dying": ("panic", "__stack_chk_fail")}, "stack-corruption"),
        ({"far": BASE - 8, "dying": ("panic", "die")}, "guard-page-hit"),
        ({"gone": Gone(BASE, path(0x803, 0), (change(0),))}, "lost-entry"),
        ({"gone": Gone(BASE, path(0x803, 0))}, "stack-mapping-lost"),
        ({"gone": Gone(BASE, elsewhere(1, 2), (change(0x411F_8003),), 2)}, "reverted-entry"),
        ({"gone": Gone(BASE, path(0), (change(0),)), "handling": False, "dying": ()}, "lost-entry"),
    ],
)
def test_a_death_is_judged_by_the_stack_as_it_is_now(changed: dict[str, Any], code: str) -> None:
    told = explain(dead(**changed))
    assert told.code == code, told
    assert told.evidence


def test_one_step_down_to_the_guard_is_no_chain_of_calls() -> None:
    full = {"far": BASE - 16, "sp": BASE, "used_before": 0x4000, "frames": 5, "walk": None, "in_entry": False}
    even = [("f", 0x300)] * 5
    assert explain(facts(**full, chain=even)).code == "deep-call-chain"
    told = explain(facts(**full, chain=[*even, ("g", 0x3000)]))
    assert told.code == "guard-page-hit"
    assert any("g's frame takes 12288 bytes" in line for line in told.evidence)
    assert "SP was changed" in told.unknown[0]


def test_an_sp_in_none_of_the_stacks_is_the_problem_itself() -> None:
    other = Stack("irq", BASE - 0x10_0000, BASE - 0xF_C000)
    far = {"far": BASE + 0x20_0000, "sp": BASE + 0x20_0000, "walk": None}
    assert explain(facts(**far, stacks=(STACK, other))).code == "sp-corrupted"
    assert explain(facts(**far)).code == "unknown"
    assert explain(facts(**far, stacks=(STACK, other), handling=False)).code == "unknown"


def test_registers_are_named_after_the_level_of_the_kernel() -> None:
    assert any("ESR_EL2" in line for line in explain(facts(level="EL2")).evidence)


def test_registers_that_nobody_wrote_are_no_evidence() -> None:
    """Under KVM: nothing was ever stored in ESR_EL1, so that what stands for it is not a syndrome."""
    told = explain(facts(unwritten=("ESR_EL1", "FAR_EL1")))
    assert told.evidence[0] == "ESR_EL1 and FAR_EL1 never written: this CPU has taken no such exception yet"
    assert not any("ESR_EL1 0x" in line or "FAR_EL1 0x" in line for line in told.evidence)


def test_a_chain_of_handlers_names_the_entry_that_they_need() -> None:
    chain = [("el1_abort", 0x150)] * 48
    deep = {**FULL, "chain": chain, "in_entry": False, "far": BASE + (1 << 30)}
    told = explain(facts(**deep, changes=(change(0),)))
    assert told.code == "deep-call-chain" and told.change == change(0)
    assert f"el1_abort 48 times: its handlers need {BASE + (1 << 30):#x}" in told.text
    assert "pa:0x7fffe458: 0x0, which held 0x7fffa803" in told.text
    assert explain(facts(**deep)).change is None
    assert "need" not in explain(facts(**{**deep, "walk": path(1, 1, outcome="mapped")})).text
