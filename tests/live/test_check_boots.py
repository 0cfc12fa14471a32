"""Healthy boots over guests, CPU models, numbers of CPUs and sizes of memory: `check` must find nothing.

Then each is given aliases and permissions that no kernel makes: they are named.

PTINSPECT_CHECK_BOOTS says how many; 50 before a release. They go round over all that is in BOOTS below.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from session import KASLR_BOOT, NEWER, Live, launched, to_shell

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
        aliases_and_permissions_that_no_kernel_makes_are_named(live)


DEVICE, NON_CACHEABLE = 0x04, 0x44
"""Bytes of MAIR_EL1: Device-nGnRE and Normal Non-cacheable memory."""


def changed(live: Live, line: str, change: Callable[[int], int]) -> set[str]:
    """Return the rules that are broken while the leaf of an address, as `walk` finds it, is another."""
    session = live.ctx.guest.stopped
    leaf = live(line)["steps"][-1]
    at, raw = int(leaf["descriptor_pa"], 16), int(leaf["raw"], 16)
    session.write_physical((at, change(raw).to_bytes(8, "little")))
    answer = live("check")
    rules = set(answer["totals"]) - {"contiguous"}
    el0 = live(line)["permissions"]["el0"]
    assert el0 == "---" or "user-access" in rules
    session.write_physical((at, raw.to_bytes(8, "little")))
    for finding in answer["findings"]:
        if finding["rule"].startswith(("alias", "writable-alias")):
            assert len({m["va"] for m in finding["mappings"]}) == 2
            assert all(m["region"] for m in finding["mappings"])
    return rules


def aliases_and_permissions_that_no_kernel_makes_are_named(live: Live) -> None:
    hits = live("find _stext")["hits"]
    alias = next(int(h["va"], 16) for h in hits if h["kind"] == "leaf" and h["region"] == "linear map")
    mair = live.ctx.guest.stopped.cpu_state(0).system["MAIR_EL1"]
    kinds = {mair >> 8 * i & 0xFF: i << 2 for i in range(8)}
    to_alias = f"walk {alias:#x}"
    # bit 51 is DBM: with indirect permissions it is what makes a page writable
    assert changed(live, to_alias, lambda raw: (raw | 1 << 51) & ~(1 << 7)) == {"writable-alias"}
    for memory in (DEVICE, NON_CACHEABLE):
        told = changed(live, to_alias, lambda raw, b=kinds[memory]: raw & ~(7 << 2) | b)
        assert told == {"alias-attributes"}
    assert changed(live, to_alias, lambda raw: raw | 1 << 6) == {"user-access"}
    changed(live, "walk _stext", lambda raw: raw & ~(1 << 54))  # tables above may keep EL0 out
    clean(live, "check")
