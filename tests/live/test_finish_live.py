"""`finish` and `nexti` on guests with many tasks that sleep in the same place, on several CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from session import KASLR_BOOT, NEWER, Live, initrd_with, launched

SLEEPERS = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
exec </dev/console >/dev/console 2>&1
i=0
while [ $i -lt 12 ]; do
  (while :; do sleep 0.0$i; done) &
  i=$((i + 1))
done
while :; do sleep 0.05; done
"""
GUESTS = [
    "5.10-cloud --smp 4",
    "6.1-cloud --smp 2",
    "6.12-cloud --smp 4 --cpu max",
    f"7.3-cloud --smp 2 {NEWER}",
]


@contextmanager
def sleeping(guest: str, tmp_path: Path) -> Iterator[Live]:
    """A guest in which many processes sleep, and which stands where one of them begins to."""
    initrd = initrd_with(guest, tmp_path, {"sleepers": SLEEPERS})
    words = f"{KASLR_BOOT.replace('/init ', '/sleepers ')} nokaslr"
    with launched(guest, f'--memory 256 --initrd {initrd} --append "{words}"') as live:
        live("until do_nanosleep --timeout 300")
        yield live


def whose(live: Live, cpu: int) -> Any:
    return live(f"stack --cpu {cpu}")["task"]


@pytest.mark.parametrize("guest", GUESTS)
def test_finish_and_nexti_stay_in_the_task_that_slept(guest: str, tmp_path: Path) -> None:
    passed = 0
    with sleeping(guest, tmp_path) as live:
        session = live.ctx.guest.stopped
        seen = session.run_until

        def counted(*args: Any, **more: Any) -> Any:
            nonlocal passed
            passed += 1
            return seen(*args, **more)

        session.run_until = counted  # type: ignore[method-assign]
        for _ in range(4):
            before = session.cpu_state(session.current_cpu)
            task = whose(live, before.cpu)
            caller = int(live("bt")["frames"][1]["pc"], 16)
            found = live("finish --timeout 300")
            after = session.cpu_state(found["cpu"])
            assert found["returned"] and after.pc == caller
            assert whose(live, found["cpu"]) == task
            assert (after.sp, after.x[29]) == (before.sp, before.x[29]), "do_nanosleep was at its beginning"
            live("until do_nanosleep --timeout 300")
        task = whose(live, session.current_cpu)
        for _ in range(200):
            state = session.cpu_state(session.current_cpu)
            near = live.ctx.guest.nearest(state.pc)
            name, offset = (near.symbol, near.offset) if near else ("", 0)
            if name != "do_nanosleep":
                break
            found = live(f"nexti --cpu {state.cpu} --timeout 300")
            assert whose(live, found["cpu"]) == task, (name, offset)
        assert passed > 8, "no other task came to the same place: nothing was tested"


@pytest.mark.parametrize("guest", GUESTS[:1])
def test_finish_comes_to_the_frames_of_bt(guest: str, tmp_path: Path) -> None:
    """The frames that bt lists are those that finish comes to, one after the other."""
    with sleeping(guest, tmp_path) as live:
        listed = [int(frame["pc"], 16) for frame in live("bt")["frames"]]
        for expected in listed[1:4]:
            assert int(live("finish --timeout 300")["pc"], 16) == expected
