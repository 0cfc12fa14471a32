"""Whose rules a root has, on kernels: EL2's own table (nVHE), VHE, and indirect permissions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from session import NEWER, Live, launched, to_shell

USER = {4: "--x", 5: "r-x", 7: "rwx", 9: "r--", 11: "r--", 13: "r--", 15: "rw-"}
"""PIIndex of a user page -> what EL0 may do."""
AT_EL2 = "--machine virt,gic-version=3,virtualization=on"


def runs(live: Live, line: str) -> list[dict[str, Any]]:
    found = live(f"map {line} --limit 100000")
    assert not found["truncated"]
    return list(found["runs"])


def at(live: Live, symbol: str) -> int:
    """Where a symbol of the kernel lies."""
    return int(live.ctx.guest.view.pa_of(live.ctx.guest.view.symbol(symbol)))


def banner(live: Live) -> int:
    """Return the address of the kernel's banner, which is read-only data."""
    view = live.ctx.guest.view
    assert view.image is not None
    return view.image.banner_va + view.kaslr_offset


def seen_by_el2(live: Live, pa: int) -> dict[str, Any]:
    """What EL2 may do with a physical address, by the one leaf of its table that leads there."""
    hits = [hit for hit in live(f"find pa:{pa:#x} --root ttbr0_el2")["hits"] if hit["kind"] == "leaf"]
    assert hits, hex(pa)
    return live(f"walk {hits[0]['va']} --root ttbr0_el2")


def test_the_tables_of_a_kernels_hypervisor_have_the_rules_of_el2() -> None:
    """KVM without VHE maps its code executable, and the kernel's read-only data read-only, for EL2 alone."""
    with launched("6.1-cloud", f"{AT_EL2} --cpu cortex-a57") as live:
        live("until start_kernel")
        assert live("regime")["ttbr0"]["holds"] == "identity map"
        to_shell(live)
        live("until cpu_do_idle")  # in user mode it is the trampoline that TTBR1 holds
        regime = live("regime")
        assert regime["ttbr0"]["holds"] in ("nothing", "user tables"), "of an idle CPU"
        assert regime["ttbr1"]["holds"] == "swapper"
        assert (regime["el2"]["regime"], regime["ttbr1"]["regime"]) == ("EL2", "EL1&0")
        root = regime["el2"]["root_pa"]
        code, data = (seen_by_el2(live, at(live, "__hyp_text_start")), seen_by_el2(live, at(live, "_etext")))
        assert (code["permissions"]["el1"], data["permissions"]["el1"]) == ("r-x", "r--")
        for found in (code, data):
            assert (found["permissions"]["el0"], found["permissions"]["privileged"]) == ("---", "EL2")
            assert (found["regime"], found["region"]) == ("EL2", "EL2")
            by_address = live(f"walk {found['va']} --root pa:{root}")
            assert by_address["permissions"] == found["permissions"] and by_address["regime"] == "EL2"
        assert runs(live, "--root ttbr0_el2 --el1 wx") == []
        assert {run["permissions"]["el0"] for run in runs(live, f"--root pa:{root}")} == {"---"}
        assert live(f"walk {banner(live):#x}")["permissions"]["privileged"] == "EL1"


def test_a_kernel_with_vhe_uses_el2_and_el0() -> None:
    with launched("6.1-cloud", f"{AT_EL2} --cpu cortex-a76") as live:
        to_shell(live)
        regime = live("regime")
        assert (regime["el2"], regime["ttbr1"]["regime"]) == (None, "EL2&0")
        assert regime["ttbr1"]["register"] == "TTBR1_EL2"
        found = live(f"walk {banner(live):#x}")
        assert (found["regime"], found["permissions"]["el1"]) == ("EL2&0", "r--")
        assert found["permissions"] == live(f"walk {found['va']} --root ttbr1_el2")["permissions"]
        assert runs(live, "--el1 wx") == [] and runs(live, "--el0 rw") == []


def test_a_kernel_that_uses_indirect_permissions(tmp_path: Path) -> None:
    """TCR2_EL1.PIE on: the kernel finds no page that is writable and executable, and so does the map.

    What EL0 may do is compared with the index that Linux gives each kind of user page (PIE_E0 in
    arch/arm64/include/asm/pgtable-prot.h).
    """
    with launched("6.12-cloud", f"{NEWER} --cpu max,pauth-impdef=on") as live:
        to_shell(live)
        found = live("regs TCR2_EL1 PIR_EL1 PIRE0_EL1")["registers"]
        assert int(found["TCR2_EL1"], 16) & 2
        assert live(f"walk {banner(live):#x}")["permissions"]["el1"] == "r--"
        assert live("walk $vbar_el1")["permissions"]["el1"] == "r-x"
        assert live("walk jiffies_64")["permissions"]["el1"] == "rw-"
        assert runs(live, "--el1 wx") == [] and runs(live, "--el0 r") == []
        user = runs(live, "--root user")
        assert {run["permissions"]["el0"] for run in user} >= {"r-x", "rw-"}
        for run in user:
            may, index = run["permissions"]["el0"], run["attributes"]["pi_index"]
            assert may == USER[index] or (run["attributes"]["ndirty"] and may == "r--"), run
            assert "x" not in run["permissions"]["el1"]
        live("snap now")
        live(f"save now {tmp_path}/now.npz")
        live(f"load {tmp_path}/now.npz --as again")
        assert runs(live, "--snap again") == runs(live, "")
