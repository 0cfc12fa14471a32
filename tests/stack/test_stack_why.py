"""The verdict: every code with its evidence, none without."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ptinspect.arch.esr import decode_esr
from ptinspect.linux.oops_codes import CODES
from ptinspect.linux.stacks import Stack
from ptinspect.paging.walk import Walk
from ptinspect.stack.why import Change, Facts, explain, path_changes

BASE = 0xFFFF_8000_1175_0000
STACK = Stack("task", BASE, BASE + 0x4000)


def path(*raws: int, outcome: str = "fault") -> Walk:
    steps = [
        SimpleNamespace(level=i, name=f"l{i}", raw=raw, descriptor_pa=0x1000 * (i + 1))
        for i, raw in enumerate(raws)
    ]
    found = SimpleNamespace(steps=tuple(steps), outcome=outcome, fault_level=len(raws) - 1, reason="invalid")
    return cast(Walk, found)


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
    return Change(2, "pmd", 0x7FFF_E458, before, after, "after")


def test_lost_entry_is_named_with_its_old_value() -> None:
    told = explain(facts(changes=(change(0),)))
    assert told.code == "lost-entry"
    assert "pa:0x7fffe458: 0x0, which held 0x7fffa803 in snapshot after" in told.text
    assert "800 bytes used" in told.text


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
        ({"far": 8, "sp": BASE + 64, "used_before": 0x3F00, "frames": 30}, "deep-call-chain"),
        ({"far": 8, "sp": BASE + 64, "used_before": 0x3F00, "frames": 1}, "unknown"),
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
    assert path_changes(now, then, "s") == (Change(1, "l1", 0x2000, 0x7FFF_A803, 0x411F_8003, "s"),)
    assert path_changes(path(0x803), path(0x003), "s") == ()
