"""Status, progress and verdict give one answer at every stop, also where nothing is rewritten."""

from __future__ import annotations

import pytest
from session import KASLR_BOOT, Live, launched, to_shell

KERNELS = ["5.10-cloud", "6.1-cloud", "6.12-cloud", "6.18-cloud", "7.3-cloud"]
"""Both algorithms; from 6.18 on the flag is 0 before the rewrite as well as after it."""
NOT_RUN = [
    ("--cpu cortex-a57", f"{KASLR_BOOT} kpti=on"),
    ("--cpu cortex-a57", f"{KASLR_BOOT} nokaslr kpti=off"),
    ("--cpu cortex-a72", f"{KASLR_BOOT} nokaslr"),
]
"""KASLR, switched off, a CPU that does not need it."""


def not_run(live: Live, states: tuple[str, ...]) -> None:
    """Nothing was rewritten yet, or never will be."""
    status = live("kpti status")
    assert status["state"] in states, status
    assert status["frontier"] is None
    verdict = live("kpti verdict --live")
    assert verdict["code"] == "not-run", verdict
    assert live.exit_code("kpti verdict --live") == 0


@pytest.mark.parametrize("guest", KERNELS)
@pytest.mark.parametrize(("cpu", "line"), NOT_RUN, ids=["KASLR", "off", "safe"])
def test_a_boot_that_rewrites_nothing(guest: str, cpu: str, line: str) -> None:
    """To the shell with KASLR; with the other lines to where the kernel's boot is over."""
    with launched(guest, f"--memory 512 --smp 2 {cpu} --append '{line}'") as live:
        not_run(live, ("before",))
        ran = live("kpti run")
        assert ran["reached"] is False and ran["snapshots"] == []
        not_run(live, ("not-needed", "before"))
        live("snap now")
        assert live("kpti verdict --after now")["code"] == "not-run"
        assert live("kpti progress")["phase"] == "outside"
        if "nokaslr" in line:
            live("until free_initmem --timeout 300")
        else:
            to_shell(live)
        not_run(live, ("not-needed", "before"))


@pytest.mark.parametrize("guest", KERNELS)
def test_a_rewrite_from_its_beginning_to_the_end_of_the_boot(guest: str) -> None:
    line = f"{KASLR_BOOT} nokaslr kpti=on"
    with launched(guest, f"--memory 256 --cpu cortex-a57 --append '{line}'") as live:
        live("kpti until 0%")
        begun = live("kpti progress")
        assert begun["seen_to_begin"] and begun["to_rewrite"] - begun["left"] < 5, "tables of the first leaf"
        live("kpti until 30%")
        status, progress = live("kpti status"), live("kpti progress")
        assert status["frontier"] == progress["frontier"]["registers"]
        assert {k: v for k, v in status["frontier"].items() if k != "source"} == {
            k: v for k, v in progress["frontier"]["tables"].items() if k != "source"
        }
        assert abs(progress["percent"] - 30) < 0.5 and progress["seen_to_begin"]
        live("snap middle")
        middle = live("kpti status --snap middle")
        assert (middle["state"], middle["frontier"]) == ("in-progress", progress["frontier"]["tables"])
        assert live("kpti verdict --live")["code"] == "unknown"

        ran = live("kpti run")
        assert ran["reached"] and not ran["whole"]
        assert ran["snapshots"] == ["during", "after"] and "middle of the rewrite" in ran["reason"]
        done = live("kpti progress")
        assert (done["phase"], done["percent"], done["left"]) == ("done", 100.0, 0)
        assert done["cpus"][0]["role"] == "has rewritten"
        assert live("kpti verdict")["code"] == "normal"
        to_shell(live)
        later = live("kpti status")
        assert later["state"] == "after", later
        for before in ("", "--before during"):
            assert live(f"kpti verdict --live {before}")["code"] == "unknown", "the kernel went on"


@pytest.mark.parametrize("guest", ["5.10-cloud", "6.12-cloud"])
def test_a_capture_that_is_cut_is_never_normal(guest: str) -> None:
    with launched(guest, "--memory 256 --cpu cortex-a57") as live:
        live("kpti run")
        assert live("kpti verdict")["code"] == "normal"
        live("snap few --max-tables 40")
        first = live("map")["runs"][0]["va_start"]
        live(f"snap part --range {first}..0xffffffffffff0000")
        for name in ("few", "part"):
            for before in ("", "--before before"):
                found = live(f"kpti verdict --after {name} {before}")
                assert found["code"] == "unknown" and found["unknown"], found
                assert live.exit_code(f"kpti verdict --after {name} {before}") == 1
            assert live(f"kpti status --snap {name}")["state"] == "unknown"
