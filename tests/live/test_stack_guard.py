"""The report's failure, injected into a real kernel: the guard stops it, and `why` names the descriptor."""

from __future__ import annotations

import pytest
from session import Live, launched, need_guest

from ptinspect.commands.catalogue import build_registry
from ptinspect.commands.context import Context

MARGIN = 2048


@pytest.mark.parametrize("fault", ["lost", "reverted"])
def test_the_injected_fault_is_caught_and_explained(fault: str) -> None:
    need_guest("5.10-cloud")
    ctx = Context(build_registry())
    found = Live(ctx)(f"demo --guest 5.10-cloud --fault {fault}")
    assert found["ok"], found
    assert found["why"]["code"] == f"{fault}-entry"
    assert found["why"]["free"] > MARGIN
    assert ctx.session is None


def test_clean_boot_is_quiet() -> None:
    with launched("5.10-cloud") as live:
        quiet = live("stack guard --timeout 8")
        assert quiet["quiet"], quiet
        assert quiet["stacks_watched"] > 10


def test_a_store_into_the_margin_stops_the_guest() -> None:
    with launched("5.10-cloud") as live:
        assert live("stack guard --timeout 4")["quiet"]
        live("until do_idle --timeout 10")
        base = int(live("stack")["base"], 16)
        live(f"gdb set $sp={base + MARGIN + 64:#x}")
        found = live("stack guard --timeout 10")
        assert found["way"] == "margin"
        assert 0 < found["stack"]["free"] < MARGIN
