"""The rules of `check` on real kernels: silent while they are healthy, and each injected fault named."""

from __future__ import annotations

import time
from typing import Any

import pytest
from session import KASLR_BOOT, Live, launched

pytestmark = pytest.mark.live

GUESTS = (
    ("5.10-cloud", ""),
    ("6.1-cloud", ""),
    ("6.12-cloud", "--cpu cortex-a72"),
    ("6.12-cloud", "--cpu max"),
    ("6.12-16k", ""),
)


def boot(live: Live) -> None:
    """Let the guest run to its shell, and stop it."""
    live("continue --background")
    for _ in range(240):
        time.sleep(0.5)
        if any("ptinspect guest ready" in line for line in live("console -n 30")["lines"]):
            break
    else:
        pytest.fail("the guest did not reach its shell")
    live("interrupt")


def clean(live: Live, line: str) -> None:
    answer = live(line)
    assert answer["totals"] == {}, answer["findings"][:10]


@pytest.mark.parametrize(("guest", "options"), GUESTS)
def test_a_healthy_guest_breaks_no_rule(guest: str, options: str) -> None:
    with launched(guest, f"--smp 2 {options}") as live:
        live("kpti run")
        clean(live, "check --snap before")
        clean(live, "check --snap during --against before")
        clean(live, "check --snap after")
        clean(live, "check --snap after --against before")
        boot(live)
        clean(live, "check")
        found = live("check --against after --rewrite-done")
        assert found["ok"], found["findings"][:10]


def test_a_kaslr_boot_breaks_no_rule() -> None:
    with launched("5.10-cloud", f"--append '{KASLR_BOOT}'") as live:
        boot(live)
        clean(live, "check")


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
        live.ctx.latest = None
        answer = live("check --against before --rewrite-done")
        assert "entry-reverted" in broken(answer)
        session.write_physical(entry, bytes(8))
        live.ctx.latest = None
        assert {"entry-lost", "stack-lost"} <= broken(live("check --against before"))
        session.write_physical(entry, (raw & ~0x800).to_bytes(8, "little"))
        live.ctx.latest = None
        assert broken(live("check --against after")) == {"mark-lost"}
        assert broken(live("check --against before --rewrite-done")) == {"not-marked"}
