"""The guard on real kernels: the report's failure, mappings lost. Clean boots: another file."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from session import fresh, guarded_to_shell, launched, need_guest, to_shell

from ptinspect.commands.stack.guard import guard
from ptinspect.commands.target import demo

MARGIN = 2048


@pytest.mark.parametrize("entry", ["probe", "breakpoint"])
@pytest.mark.parametrize("fault", ["lost", "reverted"])
def test_the_injected_fault_is_caught_and_explained(
    fault: str, entry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_guest("5.10-cloud")
    monkeypatch.setattr(demo, "guard", partial(guard, entry=entry))
    with fresh() as live:
        found = live(f"demo --guest 5.10-cloud --fault {fault}")
        assert live.ctx.guest.session is None
    assert found["ok"], found
    assert found["why"]["code"] == f"{fault}-entry"
    if entry == "probe" or found["guard"] != "bad-stack":  # user accesses that fault may have used it up
        assert found["guard"] == "recursive-fault"
        assert found["why"]["free"] > MARGIN


def test_where_no_breakpoint_is_left_the_net_catches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults of user accesses use up the stops that the entry may cost: here all count as such."""
    need_guest("5.10-cloud")
    monkeypatch.setattr("ptinspect.stack.guard._recursive", lambda *_: False)
    monkeypatch.setattr("ptinspect.stack.guard.BURST", 1.0)
    monkeypatch.setattr(demo, "guard", partial(guard, entry="breakpoint"))
    with fresh() as live:
        found = live("demo --guest 5.10-cloud --fault lost")
    assert (found["ok"], found["guard"], found["why"]["code"]) == (True, "bad-stack", "lost-entry"), found
    assert found["why"]["recursion"]["count"] > 40


def test_a_task_that_began_under_guard_is_guarded() -> None:
    with launched("5.10-cloud") as live:
        first = live("stack guard --timeout 0.2")
        later = guarded_to_shell(live)
        assert later["stacks_watched"] > first["stacks_watched"]


def test_a_stack_that_loses_its_mapping_later_on() -> None:
    """Whose mapping is lost: a task's stack, by the entry of its 2 MiB.

    An interrupt of the idle task may need other data there first: its handlers fault over and over on a stack
    that is mapped, and the guard rightly stops them at the margin. Then it is tried on another boot.
    """
    ways = []
    for _ in range(5):
        with launched("5.10-cloud") as live:
            guarded_to_shell(live)  # all that boots is done: a test of the kernel's could be the first victim
            live("snap healthy")
            sp = live("stack --task 1")["sp"]
            steps = live(f"walk {sp}")["steps"]
            live(f"poke descriptor pa:{steps[2]['descriptor_pa']} 0 --yes")
            found = live("stack guard --timeout 300")
            ways.append(found["way"])
            if found["way"] == "recursive-fault":
                assert found["why"]["code"] == "lost-entry"
                assert found["why"]["descriptor"]["descriptor_pa"] == steps[2]["descriptor_pa"]
                assert found["stack"]["free"] > MARGIN
                return
    raise AssertionError(ways)


def test_a_stack_whose_first_access_after_its_loss_is_at_sp() -> None:
    """That fault looks to the probe like one of the entry's own store, which comes next."""
    with launched("5.10-cloud") as live:
        to_shell(live)
        code = live("disassemble tick_do_update_jiffies64 --all")["instructions"]
        end = next(one["address"] for one in code if one["text"].startswith("ldp x29, x30, [sp], #"))
        live(f"until {end} --timeout 300")
        steps = live("walk $sp")["steps"]
        live(f"poke descriptor pa:{steps[2]['descriptor_pa']} 0 --yes")
        found = live("stack guard --timeout 300")
        assert (found["way"], found["false_hits"]) == ("recursive-fault", 1), found
