"""Guests of a real KVM, in an arm64 host that is emulated: see emulated_host.py."""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from conftest import LIVE
from emulated_host import Host, KvmGuest, emulated_host
from session import Live, fresh, need_guest
from users_gdb import SOURCE, need_gdb, typed

from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import OutOfSlots, TargetTimeout
from ptinspect.guest.injection import inject
from ptinspect.guest.writer import instruction_at
from ptinspect.link.session import StopInfo

pytestmark = pytest.mark.skipif(
    os.environ.get("PTINSPECT_KVM", "1" if LIVE else "0") != "1", reason="PTINSPECT_KVM=1 runs it"
)
GUESTS = ["5.10-cloud", "6.12-cloud"]
SECONDS = 400.0
FORKS = "i=0; while [ $i -lt 5 ]; do (:); i=$((i+1)); done"
COUNT = 'n() { while read a b; do [ $a = processes ] && echo "n=$b;"; done < /proc/stat; }'
"""What the kernel itself counts, read by a shell that forks nothing for it (proc(5), /proc/stat)."""


def test_guests_of_one_host(tmp_path: Path) -> None:
    with emulated_host(GUESTS, tmp_path) as host:
        with_52_bits(host)
        on_two_cpus(host)


def attached(guest: KvmGuest, name: str) -> AbstractContextManager[Live]:
    return fresh(f"attach {guest.stub}", f"kernel {need_guest(name).kernel}")


def at_shell(live: Live, guest: KvmGuest) -> None:
    """Let the guest boot to its shell, and go on running."""
    live("continue --background")
    guest.console.expect("guest# ")
    guest.console.send(COUNT)
    guest.console.expect("guest# ")


def forked(guest: KvmGuest) -> int:
    """Return how many processes the kernel has made."""
    guest.console.send("n")
    guest.console.expect("n=")
    return int(guest.console.expect(";"))


def stops_until(live: Live, guest: KvmGuest, text: str) -> list[StopInfo]:
    """Continue from each stop until this is on the console; the guest runs then."""
    found: list[StopInfo] = []
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and len(found) < 40:
        try:
            found.append(live.ctx.guest.target.wait_stop(0.5))
        except TargetTimeout:
            if guest.console.has(text):
                guest.console.expect(text)
                return found
            continue
        live("continue --background")
    pytest.fail(f"{text!r} did not come, after {len(found)} stops")


def on_two_cpus(host: Host) -> None:
    guest = host.start("5.10-cloud", smp=2)
    try:
        with attached(guest, "5.10-cloud") as live:
            status = live("status")
            assert status["accel"] == "kvm" and status["cpus"] == 2
            slots = status["slots"]
            assert (slots["breakpoints"], slots["watchpoints"]) == (6, 4), slots
            lanes = {lane["name"]: lane for lane in live("lane")["lanes"]}
            assert [name for name, lane in lanes.items() if lane["chosen"]] == ["gdbstub"], lanes
            stood = live("regs pc")["registers"]["pc"]
            for n in range(3):
                live(f"break pa:{0x4800_0000 + 4 * n:#x}")
            with pytest.raises(OutOfSlots, match="under KVM the CPU has 6 hardware breakpoints"):
                live("kpti writes --level pte --level pmd --level pud --level pgd")
            assert live("regs pc")["registers"]["pc"] == stood
            live("delete all")
            the_main_job(live)
            at_shell(live, guest)
            five_forks_are_five_stops(live, guest)
            the_writer_is_named(live, guest)
            no_step_leads_into_a_vector(live, guest)
            live("detach --resume")
        guest.console.send("echo runs''on")
        guest.console.expect("runson")
        in_the_user_s_own_gdb(guest)
    finally:
        guest.end()


def the_main_job(live: Live) -> None:
    ran = live(f"kpti run --timeout {SECONDS:.0f}")
    assert ran["reached"] and ran["snapshots"] == ["before", "during", "after"], ran
    diff = live("diff before after --expect-only-bit11")
    assert diff["only_bit11"] is True and diff["changes"] == []
    assert live("kpti verdict")["code"] == "normal"


def five_forks_are_five_stops(live: Live, guest: KvmGuest) -> None:
    """Interrupts are enabled at this function, and on this machine one is pending at each stop."""
    before = forked(guest)
    live("interrupt")
    live("break kernel_clone")
    number = live.ctx.guest.stopped.breakpoints[-1].id
    live("continue --background")
    guest.console.send(f"{FORKS}; echo fin''ished")
    found = stops_until(live, guest, "finished")
    live("interrupt")
    live(f"gdb condition {number} $sp == 0")  # never: GDB itself goes on each time
    live("continue --background")
    after = forked(guest)
    assert 5 <= len(found) <= after - before  # the kernel may make a thread before the break
    guest.console.send(f"{FORKS}; echo ag''ain")
    assert stops_until(live, guest, "again") == []
    assert forked(guest) - after >= 5
    live("interrupt")
    live("delete all")
    live("continue --background")


def fork_at(live: Live, guest: KvmGuest) -> CpuState:
    """Have the shell fork, and stop where the kernel begins with it; the guest runs before."""
    live("interrupt")
    live("break kernel_clone")
    live("continue --background")
    guest.console.send("(:)")
    stop = live.ctx.guest.target.wait_stop(SECONDS)
    live("delete all")
    return live.ctx.guest.stopped.cpu_state(stop.cpu)


def the_writer_is_named(live: Live, guest: KvmGuest) -> None:
    """Who accesses the frame record that the function has just made: its end, or a later call."""
    session = live.ctx.guest.target
    before = fork_at(live, guest)
    for _ in range(12):
        live(f"stepi --cpu {before.cpu}")
        state = session.cpu_state(before.cpu)
        if state.sp < before.sp:
            break
    assert state.sp < before.sp and state.pstate & 0xC0 == 0
    number = session.watch_access(state.sp, 8)
    live("continue --background")
    stop = session.wait_stop(SECONDS)
    assert stop.breakpoint == number
    vectors = session.cpu_state(stop.cpu).system["VBAR_EL1"]
    assert not vectors <= stop.pc < vectors + 0x800, hex(stop.pc)
    word = instruction_at(live.ctx.guest, session.cpu_state(stop.cpu), stop.pc - 4)
    assert word is not None and word >> 27 & 1 and not word >> 25 & 1, word  # a load or store (Arm ARM C4.1)
    live("delete all")
    live("continue --background")


def no_step_leads_into_a_vector(live: Live, guest: KvmGuest) -> None:
    state = fork_at(live, guest)
    trace = live(f"stack trace --steps 30 --cpu {state.cpu}")
    vectors = state.system["VBAR_EL1"]
    assert trace["steps"] == 30
    assert not any(vectors <= int(point[3], 16) < vectors + 0x800 for point in trace["points"])
    live("continue --background")


def in_the_user_s_own_gdb(guest: KvmGuest) -> None:
    kernel = need_guest("5.10-cloud").kernel
    begin = (f"target remote {guest.stub}", SOURCE, f"pt kernel {kernel}", "pt status", "pt --json stepi")
    run = typed(
        need_gdb(), *begin, "pt until arch_cpu_idle --timeout 60", "pt continue --timeout 1", "pt status"
    )
    said = run.stdout + run.stderr
    (stepped,) = (json.loads(line) for line in run.stdout.splitlines() if line.startswith("{"))
    assert stepped["ok"] and stepped["result"]["interrupts_held"] is True, said
    assert re.search(r"runs by +KVM", said), said


def with_52_bits(host: Host) -> None:
    guest = host.start("6.12-cloud")
    try:
        with attached(guest, "6.12-cloud") as live:
            change = inject(live.ctx.guest, "lost", SECONDS)
            assert live("regime")["ttbr1"]["va_bits"] == 52
            diff = live("diff before after --expect-only-bit11")
            assert diff["only_bit11"] is True
            caught = live(f"stack guard --timeout {SECONDS:.0f}")
            assert caught["entry"] == "breakpoint"
            assert caught["way"] in ("recursive-fault", "bad-stack"), caught
            assert caught["why"]["code"] == "lost-entry"
            assert int(caught["why"]["descriptor"]["descriptor_pa"], 16) == change.pa
    finally:
        guest.end()
