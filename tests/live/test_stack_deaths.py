"""Ways down a kernel stack on real guests, and what `stack guard`, `why` and `oops` say of each."""

from __future__ import annotations

from pathlib import Path

import pytest
from session import NEWER, Live, fresh, guarded_to_shell, launched, need_guest

from ptinspect.errors import GuestError, UserError
from ptinspect.guest.guest import Guest
from ptinspect.guest.injection import losing_kernel
from ptinspect.guest.opening import Machine

MARGIN = 2048
GUESTS = ["5.10-cloud", "6.1-cloud --smp 4", f"7.3-cloud --cpu max {NEWER}"]
VHE = "5.10-cloud --cpu max --machine virt,gic-version=3,virtualization=on"
CALL = 0x94000000
"""`bl` to itself, without its displacement (Arm ARM C6.2.34)."""


def in_do_idle(live: Live) -> int:
    """Boot until the idle task is at the entry of do_idle; return the base of its stack.

    That whole boots are quiet under guard is shown in test_guard_clean_boots.py and test_stack_guard.py.
    """
    live("until free_initmem --timeout 300")
    live("until do_idle --timeout 300")
    return int(live("stack")["base"], 16)


def recurse(live: Live, name: str) -> int:
    """Make a function call itself where it makes its first call; return its address."""
    view = live.ctx.guest.view
    start = view.symbol(name)
    words = view.read_virt(start, 0x400)
    at = next(i for i in range(0, len(words), 4) if words[i + 3] & 0xFC == CALL >> 24)
    call = CALL | (-at // 4) & 0x3FFFFFF
    live.ctx.guest.stopped.write_physical(
        (int(view.pa_of_link(start + at - view.kaslr_offset)), call.to_bytes(4, "little"))
    )
    return start


@pytest.mark.parametrize("guest", [*GUESTS, VHE])
def test_a_recursion_is_stopped_in_the_margin_and_told(guest: str) -> None:
    with launched(guest) as live:
        base = in_do_idle(live)
        recurse(live, "do_idle")
        found = live(f"stack guard --margin {MARGIN} --timeout 300")
        assert found["way"] == "margin", found
        # of several CPUs, which are all idle, another one may come there first
        assert int(found["stack"]["base"], 16) == base or "--smp" in guest
        assert found["stack"]["task"]["comm"].startswith("swapper/")
        assert MARGIN - 512 <= found["stack"]["free"] < MARGIN
        why = found["why"]
        assert why["code"] == "deep-call-chain", why
        assert why["frames"] > 50
        assert "do_idle" in why["text"] and not why["unknown"]
        names = [frame["symbol"].split("+")[0] for frame in found["stack"]["frames"]]
        assert names.count("do_idle") > 50
        assert live.ctx.guest.qemu is not None
        assert b"Kernel panic" not in live.ctx.guest.qemu.console.read_bytes()


@pytest.mark.parametrize("guest", [*GUESTS, VHE])
def test_an_overflow_past_the_watch_stops_at_the_bad_stack_path(guest: str) -> None:
    with launched(guest) as live:
        base = in_do_idle(live)
        live(f"gdb set $sp={base:#x}")
        found = live("stack guard --task 1 --timeout 300")  # the idle task's stack is not watched
        assert found["way"] == "bad-stack", found
        assert "bad_stack" in found["place"]
        why = found["why"]
        # an interrupt may come before the first store: no address faults then
        assert why["code"] in ("guard-page-hit", "deep-call-chain"), why
        if why["code"] == "guard-page-hit":
            below = base - 0x200 < int(why["far"], 16) < base
            assert below or any("does not fit above the base" in line for line in why["evidence"]), why
            assert base - 0x200 < int(why["sp"], 16) <= base
        # where the interrupt left no chain of calls, that is what is not known
        assert any("SP was changed" in text or "call trace" in text for text in why["unknown"]), why
        assert live.ctx.guest.qemu is not None
        assert b"Insufficient stack" not in live.ctx.guest.qemu.console.read_bytes()


@pytest.mark.parametrize("guest", GUESTS[:1])
def test_a_recursion_past_the_watch_is_told_as_such(guest: str) -> None:
    with launched(guest) as live:
        in_do_idle(live)
        recurse(live, "do_idle")
        found = live("stack guard --task 1 --timeout 300")
        assert found["way"] == "bad-stack", found
        assert found["why"]["code"] == "deep-call-chain", found["why"]
        assert found["why"]["frames"] > 50


@pytest.mark.parametrize("guest", GUESTS[1:])
def test_why_after_the_panic_of_a_recursion(guest: str) -> None:
    with launched(guest) as live:
        in_do_idle(live)
        recurse(live, "do_idle")
        assert live.ctx.guest.kernel is not None
        last = "vpanic" if "vpanic" in live.ctx.guest.kernel.symbols else "panic"
        live(f"until {last} --timeout 300")
        told = live("why")
        if "--smp" in guest and "the kernel's own table maps FAR" in told["evidence"]:
            # FAR is not of the overflow: what is left of that may be the end mark alone
            assert told["code"] in ("deep-call-chain", "stack-corruption"), told
        else:
            assert told["code"] == "deep-call-chain", told
        assert told["dying"]


@pytest.mark.parametrize("fault", ["lost", "reverted"])
def test_a_guest_left_to_die_is_explained(fault: str) -> None:
    need_guest("5.10-cloud")
    with fresh() as live:
        found = live(f"demo --guest 5.10-cloud --fault {fault} --no-guard")
        assert live.ctx.guest.session is None
    assert found["ok"], found
    assert found["explained_by"]["why"]
    assert found["why"]["code"] == f"{fault}-entry"
    assert found["why"]["descriptor"]["before"] == found["injected"]["before"]
    rules = {finding["rule"] for finding in found["check"]["findings"]}
    assert f"entry-{fault}" in rules


def test_a_store_that_loses_an_entry_through_a_window_is_found(tmp_path: Path) -> None:
    """The kernel of README's first screen loses it with the MMU off; this one with the MMU on."""
    need_guest("6.1-cloud")
    made = losing_kernel(Guest(), Machine(guest="6.1-cloud"), tmp_path / "losing")
    with fresh() as live:
        live(f"launch {made.file} --timeline {tmp_path / 'boot'} --memory 256")
        live("until panic_bad_stack --timeout 1000")
        live("detach")
        live(f"timeline open {tmp_path / 'boot'}")
        live("timeline goto end")
        told = live("why")
        store = live.ctx.guest.view.pa_of_link(made.store)
    assert told["code"] == "lost-entry" and told["recursion"]["count"] > 40, told
    last = told["written"]
    assert (last["pc"], last["how"], last["after"], last["mmu_on"]) == (hex(store), "store", "0x0", True)
    assert last["task"].startswith("migration/") and int(last["before"], 16) & 0x803 == 0x803
    assert any("kpti_install_ng_mappings" in call for call in last["calls"])
    lost = told["descriptor"]
    assert (lost["before"], lost["after"], lost["snapshot"]) == (last["before"], "0x0", "")


def test_a_reverted_entry_that_does_not_fault_is_named() -> None:
    """One CPU's stack lies in a block of the boot's table: no fault; the demo has to say so."""
    need_guest("5.10-cloud")
    with fresh() as live:
        found = live("demo --guest 5.10-cloud --fault reverted --smp 1")
    assert found["ok"] and found["guard"] == "time", found
    assert found["why"]["code"] == "reverted-entry"
    assert found["why"]["descriptor"]["descriptor_pa"] == found["injected"]["descriptor_pa"]
    assert any("memory of something else" in line for line in found["why"]["evidence"])
    assert "entry-reverted" in {finding["rule"] for finding in found["check"]["findings"]}


def test_a_panic_without_a_fault_is_no_stack_problem() -> None:
    with launched("6.1-cloud", '--append-more "rdinit=/nothing root=/dev/none"') as live:
        live("until panic --timeout 300")
        told = live("why")
        assert told["code"] == "not-a-stack-problem", told
        assert told["dying"][0] == "panic"


def test_a_poke_is_asked_for_and_undone() -> None:
    with launched("5.10-cloud") as live:
        guarded_to_shell(live)
        sp = live("stack --task 1")["sp"]
        step = live(f"walk {sp}")["steps"][2]
        at = f"pa:{step['descriptor_pa']}"
        with pytest.raises(UserError, match="nothing was changed"):
            live(f"poke descriptor {at} 0")
        assert live(f"walk {sp}")["steps"][2] == step
        assert live(f"poke descriptor {at} 0 --yes")["after"] == "0x0"
        assert live(f"walk {sp}")["outcome"] == "fault"
        live("poke undo")
        assert live(f"walk {sp}")["steps"][2] == step
        with pytest.raises(UserError, match="nothing was poked"):
            live("poke undo")
        live(f"poke descriptor {at} 0 --yes")
        pa = int(step["descriptor_pa"], 16)
        live.ctx.guest.stopped.write_physical((pa, (0x1234).to_bytes(8, "little")))
        with pytest.raises(UserError, match="changed it since"):
            live("poke undo")
        assert live.ctx.guest.stopped.memory.read(pa, 8) == (0x1234).to_bytes(8, "little")


def test_a_root_entry_that_cannot_revert_is_refused() -> None:
    """6.12 keeps the boot's tables under its root: set back, the entry differs in bit 11 alone."""
    need_guest("6.12-cloud")
    with fresh() as live, pytest.raises(GuestError, match="goes on with the boot's tables"):
        live("demo --guest 6.12-cloud --cpu max --fault reverted")
