"""The stack at the border of user mode, and stacks whose addresses lead elsewhere, on real kernels."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from session import BOOT_SECONDS, KASLR_BOOT, Live, initrd_with, launched

from ptinspect.errors import TargetTimeout
from ptinspect.linux.image.entry import EL0, SLOT
from ptinspect.linux.running.stack_pages import _pages
from ptinspect.linux.running.stacks import Stacks

BUSY = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
exec </dev/console >/dev/console 2>&1
echo "ptinspect guest ready"
for i in 1 2 3 4; do (while :; do :; done) & done
while :; do cat /proc/uptime >/dev/null; done
"""


def busy(live: Live) -> int:
    """Let the guest run until a CPU stands in user mode; return it."""
    deadline = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < deadline:
        live("continue --background")
        with contextlib.suppress(TargetTimeout):
            live.ctx.guest.target.wait_stop(1.0)
        if live.ctx.guest.state == "running":
            live("interrupt")
        session = live.ctx.guest.stopped
        for cpu in range(session.cpu_count):
            if session.cpu_state(cpu).el == 0:
                return cpu
    raise AssertionError("no CPU came to user mode")


@pytest.mark.parametrize(
    "guest", ["5.10-cloud --smp 2", "6.1-cloud --smp 2 --cpu cortex-a76", "6.12-cloud --cpu max", "7.3-cloud"]
)
def test_the_trampoline_is_on_the_stack_of_the_task_that_ran(guest: str, tmp_path: Path) -> None:
    initrd = initrd_with(guest, tmp_path, {"busy": BUSY})
    words = f"{KASLR_BOOT.replace('/init ', '/busy ')} nokaslr kpti=on"
    with launched(guest, f'--memory 256 --initrd {initrd} --append "{words}"') as live:
        cpu = busy(live)
        session = live.ctx.guest.stopped
        table = session.cpu_state(cpu).system["VBAR_EL1"]
        stop = session.run_until([table + EL0 + SLOT * i for i in range(4)], 300)
        first = live(f"stack --cpu {stop.cpu}")
        assert (first["kind"], first["used"]) == ("task", 0), first
        assert "border of user mode" in first["note"]
        assert live(f"bt --cpu {stop.cpu}")["ended"] == "the stack is empty"
        seen = set()
        for _ in range(400):  # through the entry, to where SP_EL0 is the task
            now = live(f"stack --cpu {stop.cpu}")
            assert now["task"] == first["task"], session.cpu_state(stop.cpu)
            assert now["kind"] == "task" and now["frames_complete"], now
            seen.add(now["note"][:2])
            if not now["note"]:
                break
            live(f"stepi --cpu {stop.cpu}")
        assert seen == {"at", ""}, "SP_EL0 did not become the task"
        state = session.cpu_state(stop.cpu)
        assert state.system["SP_EL0"] == int(first["task"]["address"], 16)


@pytest.mark.parametrize("guest", ["5.10-cloud", "6.12-cloud", "6.12-16k", "7.3-cloud"])
def test_a_stack_that_leads_elsewhere_is_told_from_a_destroyed_mark(guest: str) -> None:
    with launched(guest, "--memory 512") as live:
        live("until free_initmem --timeout 300")
        stacks = Stacks(live.ctx.guest.view)
        known = 0
        for task in stacks.tasks.all().tasks:
            stack = stacks.of_task(task)
            known += bool(_pages(stacks.view, task.address, stack.base, stack.size))
            assert stacks.misled(stack) is None, task
        assert known > 10
        task = next(t for t in stacks.tasks.all().tasks if t.pid > 1 and t.cpu is None)
        step = live(f"walk {task.stack:#x}")["steps"][-1]
        raw = int(step["raw"], 16)
        wrong = (raw & ~0xFFFF_FFFF_F000) | int(live("walk $pc")["pa"], 16) & ~0x3FFF
        live(f"poke descriptor pa:{step['descriptor_pa']} {wrong:#x} --yes")
        found = live(f"stack --task {task.pid}")
        assert found["end_magic_intact"] is None
        assert found["elsewhere"].startswith(f"{task.stack:#x} leads to pa:"), found["elsewhere"]
        live(f"poke descriptor pa:{step['descriptor_pa']} {raw:#x} --yes")
        assert live(f"stack --task {task.pid}")["end_magic_intact"] is True
