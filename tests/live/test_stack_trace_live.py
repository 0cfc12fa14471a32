"""Traces and high water on real guests, held against each other and against the guest's own stack tracer."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from session import BOOT_SECONDS, Live, initrd_with, launched

from ptinspect.errors import UserError
from ptinspect.linux.running.stacks import Stacks


@pytest.mark.parametrize("guest", ["5.10-cloud", "6.1-cloud", "6.12-cloud", "7.3-cloud", "5.10-cloud-dbg"])
def test_steps_end_where_the_guest_is_and_sum_up(guest: str, tmp_path: Path) -> None:
    with launched(guest, "--memory 256 --smp 2") as live:
        live("until driver_init --timeout 300")
        cpu = live.ctx.guest.stopped.current_cpu
        file = tmp_path / "a.trace"
        before = live("stack")["cpus"][0]
        trace = live(f"stack trace --steps 400 -o {file}")
        deepest = next(d for d in trace["deepest"] if trace["stacks"][d["stack"]]["base"] == before["base"])
        assert deepest["used"] >= before["used"]
        assert sum(size for _, size in deepest["chain"]) == deepest["used"]
        assert trace["steps"] == 400
        state = live.ctx.guest.stopped.cpu_state(cpu)
        assert int(trace["points"][-1][2], 16) == state.sp
        assert live(f"stack diff {file} {file}")["deepest_grown"] == 0
        assert live.exit_code(f"stack diff {file} {file} --at-most 0") == 0


def test_stepping_records_what_gdb_would_have_seen() -> None:
    with launched("5.10-cloud", "--memory 256") as live:
        live("until kpti_install_ng_mappings --timeout 300")
        first = live.ctx.guest.stopped.cpu_state(0)
        session = live.ctx.guest.stopped
        trace = live("stack trace --steps 30")
        seen = {at: (int(sp, 16), int(pc, 16)) for at, _, sp, pc in trace["points"]}
        assert seen[0] == (first.sp, first.pc)
        after = session.step_instructions(1, 0)
        assert after.pc == session.cpu_state(0).pc
        again = live("stack trace --steps 2000 cpu_do_switch_mm")
        assert again["ended"].startswith("reached") and 0 < again["steps"] < 2000
        assert "(cpu_do_switch_mm+0x0)" in again["ended"]


@pytest.mark.parametrize(("guest", "smp"), [("5.10-cloud", 1), ("6.1-cloud", 1), ("7.3-cloud", 2)])
def test_a_ladder_and_the_high_water_mark_agree(guest: str, smp: int) -> None:
    """Two ways that share nothing: watchpoints in the stub, and the words that are not zero any more."""
    with launched(guest, f"--memory 256 --smp {smp}") as live:
        live("until driver_init --timeout 300")
        pid = live("stack")["cpus"][0]["task"]["pid"]
        assert pid == 1
        trace = live("stack trace --timeout 1500 --task 1 free_initmem")
        assert trace["ended"].startswith("reached")
        (deepest,) = [d for d in trace["deepest"] if trace["stacks"][d["stack"]]["owner"].endswith("(1)")]
        assert deepest["used"] > 2000
        assert sum(size for _, size in deepest["chain"]) == deepest["used"]
        assert deepest["chain"][-1][0].startswith("ret_from_fork")
        row = next(row for row in live("stack tasks --all")["tasks"] if row["pid"] == 1)
        assert row["deepest"] <= deepest["used"], "no word below the lowest SP was written"
        assert deepest["used"] - row["deepest"] <= 64, "the last frame stored something"
        assert live("status")["state"] == "stopped"
        assert live("break")["breakpoints"] == []


def test_highwater_paints_and_leaves_no_paint_behind() -> None:
    with launched("5.10-cloud", "--memory 256 --smp 2") as live:
        live("until driver_init --timeout 300")
        with pytest.raises(UserError, match="nothing was painted"):
            live("stack highwater --paint")
        plain = live("stack highwater --timeout 300 free_initmem")
        grown = {row["owner"]: row for row in plain["stacks"]}
        assert grown["swapper/0 (1)"]["grown"] > 500 and not grown["swapper/0 (1)"]["painted"]
        painted = live("stack highwater --paint --yes --timeout 300 do_exit")  # of a first program
        irq = next(row for row in painted["stacks"] if row["owner"] == "cpu 0")
        assert irq["painted"] and irq["before"] < 2048 and 500 < irq["after"] < 8192
        left = {row["base"] for row in live("stack tasks --all")["tasks"]}
        for stack in painted["stacks"]:
            if stack["kind"] == "task" and stack["base"] not in left:
                continue  # its task has ended and taken it along
            base = int(stack["base"], 16)
            words = live.ctx.guest.view.read_virt(base, int(stack["top"], 16) - base)
            assert b"\xa5\x5a" * 2 not in words and bytes.fromhex("5aa5c3c35aa5c3c3") not in words
            assert bytes.fromhex("c3c3a55ac3c3a55a") not in words
        live("stack guard --timeout 1")
        assert all(row["end_magic_intact"] for row in live("stack tasks --all")["tasks"])


def test_watch_adds_the_depth_to_each_stop() -> None:
    with launched("5.10-cloud", "--memory 256") as live:
        live("stack watch on")
        stop = live("until kpti_install_ng_mappings --timeout 300")
        used = live("stack")["cpus"][0]["used"]
        assert re.search(rf"task stack of migration/0: {used} of 16384 used", stop["stack"])
        live("stack watch off")
        assert "stack" not in live("stepi")


TRACER = """#!/bin/sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tracefs tracefs /sys/kernel/tracing
exec </dev/console >/dev/console 2>&1
echo 0 > /proc/sys/kernel/stack_tracer_enabled
cat /sys/kernel/tracing/stack_trace
echo STACK-END
while :; do sleep 1; done
"""
"""A first process that prints what the kernel's stack tracer has found."""


def test_a_ladder_agrees_with_the_guests_own_stack_tracer(tmp_path: Path) -> None:
    """The tracer calls a function of its own at each function entry and keeps the deepest; the ladder sees
    that function on top of the very chain that the tracer prints, and both count the same bytes below it."""
    initrd = initrd_with("5.10", tmp_path, {"tracer": TRACER})
    words = "rdinit=/tracer console=ttyAMA0 earlycon=pl011,0x9000000 nokaslr kpti=on stacktrace"
    with launched("5.10", f'--memory 256 --initrd {initrd} --append "{words}"') as live:
        live("until stack_trace_init --timeout 300")
        trace = live("stack trace --task 1 --timeout 1500 free_initmem")
        assert trace["ended"].startswith("reached")
        (deepest,) = [d for d in trace["deepest"] if trace["stacks"][d["stack"]]["owner"].endswith("(1)")]
        names = [name for name, _ in deepest["chain"]]
        last = len(names) - 1 - names[::-1].index("ftrace_call")
        below = deepest["chain"][last + 1 :]
        depth, rows = _tracers_own(live)
    assert abs(sum(size for _, size in below) - depth) <= 16, (below, rows)
    assert below[0][0] == rows[0][1]
    found = iter(name for name, _ in below)
    assert all(name in found for _, name in rows), "the tracer's functions are on our chain, in order"
    sizes = dict(below)
    equal = [name for size, name in rows if sizes.get(name) == size]
    assert len(equal) > len(rows) // 2


def _tracers_own(live: Live) -> tuple[int, list[tuple[int, str]]]:
    """Return the depth that the kernel's stack tracer kept, and (size, function) of each of its frames."""
    deadline = time.monotonic() + BOOT_SECONDS
    text = ""
    while time.monotonic() < deadline and "STACK-END" not in text:
        live("continue --background")
        time.sleep(1.0)
        live("interrupt")
        text = "\n".join(live("console -n 400")["lines"])
    rows = re.findall(r"^\s*\d+\)\s+(\d+)\s+(\d+)\s+([\w.]+)\+", text, re.M)
    assert rows, text[-3000:]
    return int(rows[0][0]), [(int(size), name) for _, size, name in rows]


@pytest.mark.parametrize("guest", ["5.10-cloud-dbg", "6.12-cloud"])
def test_the_bounds_of_all_stacks_are_those_of_the_symbols(guest: str) -> None:
    """By __per_cpu_offset and symbols of data, which the tool does not use where code tells."""
    with launched(guest, "--memory 256 --smp 4") as live:
        live("until driver_init --timeout 300")
        view = live.ctx.guest.view
        stacks = Stacks(view)
        for state in view.states:
            offset = view.read_u64(view.symbol("__per_cpu_offset") + 8 * state.cpu)
            found = {stack.kind: stack for stack in stacks.of_cpu(state)}
            overflow = (view.symbol("overflow_stack") + offset) & (1 << 64) - 1
            assert (found["overflow"].base, found["overflow"].size) == (overflow, 4096)
            pointer = view.read_u64((view.symbol("irq_stack_ptr") + offset) & (1 << 64) - 1)
            assert (found["irq"].base, found["irq"].size) == (pointer, 16384)
        rows = live("stack tasks --all")["tasks"]
        (idle,) = [r for r in rows if (r["comm"], r["pid"]) == ("swapper/0", 0)]
        base = view.symbol("init_stack")
        assert (int(idle["base"], 16), int(idle["top"], 16)) == (base, base + 16384)
        assert int.from_bytes(view.read_virt(base, 8), "little") == 0x57AC6E9D
