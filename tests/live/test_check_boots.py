"""Healthy boots over guests, CPU models, numbers of CPUs and sizes of memory: `check` must find nothing.

PTINSPECT_CHECK_BOOTS says how many; 50 before a release. They go round over all that is in BOOTS below.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass

import pytest
from session import KASLR_BOOT, NEWER, Live, launched, to_shell

pytestmark = pytest.mark.live

NUMBER = int(os.environ.get("PTINSPECT_CHECK_BOOTS", "7"))
GUESTS = ("5.10-cloud", "6.1-cloud", "6.12-cloud", "5.10", "6.12-16k", "6.18-cloud", "7.3-cloud")
MODELS = ("cortex-a57", "max", "cortex-a72", "neoverse-n1", "cortex-a76")
MEMORY = (512, 1024, 2048)
QEMUS = (NEWER, "", "")
LINES = ("", "", "", KASLR_BOOT, "rdinit=/init console=ttyAMA0 kpti=off nokaslr")
"""Command lines: as the guest has it (nokaslr kpti=1) three times of five."""


@dataclass(frozen=True)
class Boot:
    """One boot."""

    guest: str
    cpu: str
    smp: int
    memory: int
    line: str
    qemu: str

    def options(self) -> str:
        append = f" --append '{self.line}'" if self.line else ""
        return f"--cpu {self.cpu} --smp {self.smp} --memory {self.memory} {self.qemu}{append}"


def boots(number: int) -> list[Boot]:
    """Return the boots: each round goes over all guests, the rest moves on from round to round."""
    found = []
    for i in itertools.islice(itertools.count(), number):
        guest, round_ = GUESTS[i % len(GUESTS)], i // len(GUESTS)
        cpu = "max" if guest == "6.12-16k" else MODELS[(i + round_) % 5]
        found.append(
            Boot(
                guest,
                cpu,
                (1, 4)[(i + round_) % 2],
                MEMORY[(i + round_) % 3],
                LINES[(i + 2 * round_) % 5],
                QEMUS[(i + 2 * round_) % 3],
            )
        )
    return found


def clean(live: Live, line: str) -> None:
    answer = live(line)
    assert answer["totals"] == {}, (line, answer["findings"][:10])


@pytest.mark.parametrize(
    "boot", boots(NUMBER), ids=lambda b: f"{b.guest}-{b.cpu}-{b.smp}-{b.memory}-{b.line[-12:]}-{b.qemu[-5:]}"
)
def test_a_healthy_boot_has_no_finding(boot: Boot) -> None:
    with launched(boot.guest, boot.options()) as live:
        reached = live("kpti run")["reached"]
        assert reached is not bool(boot.line)
        if reached:
            clean(live, "check --snap before")
            clean(live, "check --snap during --against before")
            clean(live, "check --snap after")
            clean(live, "check --snap after --against before --rewrite-done")
            assert live("kpti verdict")["code"] == "normal"
        to_shell(live)
        clean(live, "check")
        assert live("check")["skipped"] == {}, "every rule was asked"
        if reached:
            found = live("check --against after --rewrite-done")
            assert found["ok"], found["findings"][:10]
