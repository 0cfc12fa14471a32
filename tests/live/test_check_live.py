"""The rules of `check` on real kernels: each fault is named. Healthy boots: test_check_boots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from session import KASLR_BOOT, NEWER, Live, launched, to_shell

pytestmark = pytest.mark.live

GUESTS = (
    ("5.10-cloud", ""),
    ("6.1-cloud", ""),
    ("6.12-cloud", "--cpu max"),
    ("6.12-16k", ""),
    ("7.3-cloud", f"--cpu max {NEWER}"),
)


def clean(live: Live, line: str) -> None:
    answer = live(line)
    assert answer["totals"] == {}, answer["findings"][:10]


def broken(answer: dict[str, Any]) -> set[str]:
    return set(answer["totals"])


def test_a_reverted_root_entry_is_named_and_the_stacks_that_it_took() -> None:
    with launched("5.10-cloud", "--smp 2") as live:
        live("kpti run")
        walk = live("walk $sp")
        entry = int(walk["steps"][0]["descriptor_pa"], 16)
        raw = int(walk["steps"][0]["raw"], 16)
        session = live.ctx.stopped
        session.write_physical(entry, ((raw & ~0x800) + 0x1000).to_bytes(8, "little"))
        live.ctx.guest.forget_stop()
        answer = live("check --against before --rewrite-done")
        assert "entry-reverted" in broken(answer)
        session.write_physical(entry, bytes(8))
        live.ctx.guest.forget_stop()
        assert {"entry-lost", "stack-lost"} <= broken(live("check --against before"))
        session.write_physical(entry, (raw & ~0x800).to_bytes(8, "little"))
        live.ctx.guest.forget_stop()
        assert broken(live("check --against after")) == {"mark-lost"}
        assert broken(live("check --against before --rewrite-done")) == {"not-marked"}


DEVICE, NON_CACHEABLE = 0x04, 0x44
"""Bytes of MAIR_EL1: Device-nGnRE and Normal Non-cacheable memory."""


def changed(live: Live, line: str, change: Callable[[int], int]) -> set[str]:
    """Return the rules that are broken while the leaf of an address, as `walk` finds it, is another."""
    session = live.ctx.stopped
    leaf = live(line)["steps"][-1]
    at, raw = int(leaf["descriptor_pa"], 16), int(leaf["raw"], 16)
    session.write_physical(at, change(raw).to_bytes(8, "little"))
    live.ctx.guest.forget_stop()
    answer = live("check")
    rules = broken(answer) - {"contiguous"}
    el0 = live(line)["permissions"]["el0"]
    assert el0 == "---" or "user-access" in rules
    session.write_physical(at, raw.to_bytes(8, "little"))
    live.ctx.guest.forget_stop()
    for finding in answer["findings"]:
        if finding["rule"].startswith(("alias", "writable-alias")):
            assert len({m["va"] for m in finding["mappings"]}) == 2
            assert all(m["region"] for m in finding["mappings"])
    return rules


@pytest.mark.parametrize(("guest", "options"), [*GUESTS, ("5.10-cloud", f"--append '{KASLR_BOOT}'")])
def test_aliases_and_permissions_that_no_kernel_makes_are_named(guest: str, options: str) -> None:
    with launched(guest, options) as live:
        to_shell(live)
        assert live("check")["skipped"] == {}
        hits = live("find _stext")["hits"]
        alias = next(int(h["va"], 16) for h in hits if h["kind"] == "leaf" and h["region"] == "linear map")
        mair = live.ctx.stopped.cpu_state(0).system["MAIR_EL1"]
        kinds = {mair >> 8 * i & 0xFF: i << 2 for i in range(8)}
        to_alias = f"walk {alias:#x}"
        # bit 51 is DBM: with indirect permissions it is what makes a page writable
        assert changed(live, to_alias, lambda raw: (raw | 1 << 51) & ~(1 << 7)) == {"writable-alias"}
        for memory in (DEVICE, NON_CACHEABLE):
            told = changed(live, to_alias, lambda raw, b=kinds[memory]: raw & ~(7 << 2) | b)
            assert told == {"alias-attributes"}
        assert changed(live, to_alias, lambda raw: raw | 1 << 6) == {"user-access"}
        changed(live, "walk _stext", lambda raw: raw & ~(1 << 54))  # tables above may keep EL0 out
        clean(live, "check")


@pytest.mark.parametrize(
    ("guest", "options"), [("5.10-cloud", "--smp 2"), ("7.3-cloud", "--cpu max --smp 2")]
)
def test_a_lost_range_is_named_by_the_stacks_that_lay_in_it(guest: str, options: str) -> None:
    with launched(guest, options) as live:
        to_shell(live)
        live("snap before")
        tasks = live("stack tasks")["tasks"]
        stack = int(tasks[len(tasks) // 2]["base"], 16)
        entry = live(f"walk {stack:#x}")["steps"][-2]
        at, raw = int(entry["descriptor_pa"], 16), int(entry["raw"], 16)
        size = 1 << live.ctx.view().regime.shift(entry["level"])
        live.ctx.stopped.write_physical(at, bytes(8))
        live.ctx.guest.forget_stop()
        live("snap after")
        live.ctx.stopped.write_physical(at, raw.to_bytes(8, "little"))
        (change,) = live("diff before after")["changes"]
        first = stack & -size
        lay = {
            f"task stack ({task['pid']} {task['comm']})"
            for task in tasks
            if first <= int(task["base"], 16) < first + size
        }
        held = {part["name"] for part in change["held"]}
        assert change["kinds"] == ["lost"] and int(change["va_start"], 16) == first
        assert lay and lay <= held and change["held_total"] == len(change["held"])
        findings = live("check --snap after --against before")["findings"]
        assert [f["held"] for f in findings if f["rule"] == "entry-lost"] == [change["held"]]
