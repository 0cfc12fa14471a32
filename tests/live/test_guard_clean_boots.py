"""Boots with nothing wrong, from reset to the shell with the guard armed: no alarm, and no trace of it.

Then a chain of calls runs into the margin of a stack.

PTINSPECT_CLEAN_BOOTS says how many; they go round over kernels, CPU models and numbers of CPUs.
"""

from __future__ import annotations

import itertools
import os

import pytest
from session import NEWER, Live, guarded_to_shell, launched

from ptinspect.linux.image.entry import EL1H

MARGIN = 2048
BOOTS = int(os.environ.get("PTINSPECT_CLEAN_BOOTS", "4"))
"""Boots that must give no alarm; 50 before a release."""
KERNELS = (
    ("5.10-cloud", ("cortex-a57", "cortex-a72", "max")),
    ("6.1-cloud", ("cortex-a72", "max", "cortex-a57")),
    ("6.12-cloud", ("max", "cortex-a57", "cortex-a72")),
    ("7.3-cloud", ("cortex-a72", "max", "cortex-a57")),
    ("6.12-16k", ("max",)),
    ("5.10", ("cortex-a72", "cortex-a57", "max")),
)
"""Guests, and the CPU models that they run on; with pages of 16 KiB QEMU has only `max`."""


def boots(number: int) -> list[tuple[str, str, int, str]]:
    """Return guest, CPU model, number of CPUs and QEMU of each boot: neighbours differ in the first three."""
    found = []
    for i in itertools.islice(itertools.count(), number):
        name, models = KERNELS[i % len(KERNELS)]
        round_ = i // len(KERNELS)
        found.append((name, models[round_ % len(models)], (1, 4)[i % 2], ("", NEWER)[(i + round_) // 2 % 2]))
    return found


@pytest.mark.parametrize(
    ("guest", "cpu", "smp", "qemu"),
    boots(BOOTS),
    ids=[f"{i}-{'-'.join(map(str, boot))}" for i, boot in enumerate(boots(BOOTS))],
)
def test_a_clean_boot_is_no_alarm_and_leaves_no_trace(guest: str, cpu: str, smp: int, qemu: str) -> None:
    with launched(guest, f"--cpu {cpu} --smp {smp} {qemu}") as live:
        quiet = guarded_to_shell(live)
        assert quiet["entry"] == "probe" and quiet["stacks_watched"] > 10
        assert live("stack tasks")["tasks"][0]["free"] > 2048
        image, view = live.ctx.guest.kernel, live.ctx.guest.view
        assert image is not None
        at = view.symbol("vectors") + EL1H
        vectors = image.text_at((at - view.kaslr_offset) & (1 << 64) - 1, 0x200)
        assert view.read_virt(at, 0x200) == vectors, "the probe has gone"
        assert live("break")["breakpoints"] == []
        a_chain_of_calls_into_the_margin_stops_the_guest(live)


def a_chain_of_calls_into_the_margin_stops_the_guest(live: Live) -> None:
    live("until do_idle --timeout 300")
    before = live("stack")
    base = int(before["base"], 16)
    live(f"gdb set $sp={base + MARGIN + 128:#x}")
    found = live("stack guard --timeout 300")
    assert found["way"] == "margin"
    assert found["stack"]["base"] == before["base"]
    assert MARGIN - 512 <= found["stack"]["free"] < MARGIN, "not before the margin, and soon after"
    assert found["alarm"].startswith(f"{found['stack']['free']} bytes are left on the stack of swapper/")
    assert found["why"]["text"] == f"no fault of the stack has happened: {found['alarm']}"
    assert live("stack")["free"] == found["stack"]["free"]
