"""The rules of `check` on real kernels: what was lost is named. Healthy boots, and more: test_check_boots."""

from __future__ import annotations

from typing import Any

import pytest
from session import launched, to_shell


def broken(answer: dict[str, Any]) -> set[str]:
    return set(answer["totals"])


def test_a_reverted_root_entry_is_named_and_the_stacks_that_it_took() -> None:
    with launched("5.10-cloud", "--smp 2") as live:
        live("kpti run")
        walk = live("walk $sp")
        entry = int(walk["steps"][0]["descriptor_pa"], 16)
        raw = int(walk["steps"][0]["raw"], 16)
        session = live.ctx.guest.stopped
        session.write_physical((entry, ((raw & ~0x800) + 0x1000).to_bytes(8, "little")))
        answer = live("check --against before --rewrite-done")
        assert "entry-reverted" in broken(answer)
        session.write_physical((entry, bytes(8)))
        assert {"entry-lost", "stack-lost"} <= broken(live("check --against before"))
        session.write_physical((entry, (raw & ~0x800).to_bytes(8, "little")))
        assert broken(live("check --against after")) == {"mark-lost"}
        assert broken(live("check --against before --rewrite-done")) == {"not-marked"}


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
        size = 1 << live.ctx.guest.view.regime.shift(entry["level"])
        live.ctx.guest.stopped.write_physical((at, bytes(8)))
        live("snap after")
        live.ctx.guest.stopped.write_physical((at, raw.to_bytes(8, "little")))
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
