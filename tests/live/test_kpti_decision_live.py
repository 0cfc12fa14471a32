"""`kpti status` between the kernel's decision and the end of its boot, and what the other CPUs do."""

from __future__ import annotations

import pytest
from session import launched

from ptinspect.guest.rewrite.rewrite import Runner
from ptinspect.linux.kpti.decision import applied_variable

STOPS = ("smp_init", "driver_init", "free_initmem")


@pytest.mark.parametrize("guest", ["5.10-cloud", "6.1-cloud", "6.12-cloud"])
def test_a_kernel_that_does_not_need_it_says_so_before_its_boot_is_over(guest: str) -> None:
    with launched(guest, "--memory 256 --smp 2 --append-more kpti=off") as live:
        kernel = live.ctx.guest.kernel
        assert kernel is not None
        for named in kernel.symbols.get("all_alternatives_applied", []):
            assert applied_variable(kernel) == named, "where the file names it"
        Runner(live.ctx.guest, 300).place_kernel()
        found = [live(f"until {place} --timeout 300") and live("kpti status") for place in STOPS]
        assert [f["decision"] for f in found] == ["open", "off", "off"]
        assert [f["state"] for f in found] == ["before", "not-needed", "not-needed"]
        assert "has not decided yet" in found[0]["reason"]
        assert "has decided against KPTI" in found[1]["reason"]


@pytest.mark.parametrize(("guest", "middle"), [("5.10-cloud", "open"), ("6.12-cloud", "on")])
def test_a_kernel_that_needs_it_and_where_its_cpus_wait(guest: str, middle: str) -> None:
    function = "kpti_install_ng_mappings" if guest == "5.10-cloud" else "__kpti_install_ng_mappings"
    with launched(guest, "--memory 256 --smp 3") as live:
        Runner(live.ctx.guest, 300).place_kernel()
        live(f"until {function} --timeout 300")
        status = live("kpti status")
        assert (status["state"], status["decision"]) == ("before", middle)
        assert status["cpus"][0]["role"] in ("elsewhere", "held by stop_machine")
        live("kpti until 50%")
        status = live("kpti status")
        assert (status["state"], status["decision"]) == ("in-progress", "on")
        assert [cpu["role"] for cpu in status["cpus"]] == ["rewrites", *["waits for the flag"] * 2]
        assert [cpu["ttbr1"] for cpu in status["cpus"][1:]] == ["reserved"] * 2
        assert status["cpus"][0]["mmu_on"] is (guest == "6.12-cloud")
        assert all(cpu["mmu_on"] for cpu in status["cpus"][1:])
        roles = ["temporary" if guest == "6.12-cloud" else "swapper", "reserved", "reserved"]
        listed = live("cpus")["cpus"]
        assert [cpu["ttbr1_is"] for cpu in listed] == roles
        assert [cpu["task"] for cpu in listed] == ["migration/0", "migration/1", "migration/2"]
        assert [cpu["cpu"] for cpu in live("kpti progress --cpu 2")["cpus"]] == [2]
        stop = live("until driver_init --timeout 300")
        assert stop["cpu"] in range(3)
        status = live("kpti status")
        assert (status["state"], status["decision"]) == ("after", "on")
        for cpu in live("cpus")["cpus"]:
            own = live(f"stack --cpu {cpu['cpu']}")
            assert cpu["stack"] == {"kind": own["kind"], "used": own["used"], "size": own["size"]}
            assert (cpu["task"], cpu["ttbr1_is"], cpu["mmu_on"]) == (own["task"]["comm"], "swapper", True)
