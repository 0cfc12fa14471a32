"""A stub that is far away: how often it is waited for, and that what comes in one go is right."""

from __future__ import annotations

from contextlib import closing

import numpy as np
from session import Live, fresh, need_guest, of_somebody_else, to_shell
from slow_stub import SlowStub

from ptinspect.link.gdb.registers import RegisterReader
from ptinspect.link.live import LiveSession

DELAY = 0.02
"""Seconds each way, while the stub is far away."""
TURNS = {
    "attach": 75,
    "kpti run": 800,
    "walk $sp": 75,
    "snap first": 30,
    "snap second": 2,
    "map --limit 5": 2,
    "stack tasks": 20,
    "bt": 5,
    "stack": 5,
    "kpti progress": 8,
    "x/4i $pc": 4,
    "stepi": 28,
    "status": 2,
}
"""How often a command may wait for the stub, in this order: what is read at a stop is kept for it."""


def test_a_command_waits_for_a_slow_stub_a_few_times() -> None:
    with (
        of_somebody_else("5.10-cloud", smp=2) as qemu,
        closing(SlowStub(qemu.gdb_socket)) as stub,
        fresh(f"kernel {need_guest('5.10-cloud').kernel}") as live,
    ):
        stub.delay = DELAY
        stub.take()
        live(f"attach {stub.address}")
        counts = {"attach": stub.take()}
        assert live("status")["memory"] == "gdbstub"  # without being told: QEMU's monitor is as far away
        stub.take()
        assert live("kpti run")["snapshots"] == ["before", "during", "after"]
        counts["kpti run"] = stub.take()
        assert not same(live, "before", "after")  # nothing is kept when the guest has run
        stub.delay = 0.0
        to_shell(live, qemu)
        for line in TURNS:
            if line not in counts:
                stub.take()
                live(line)
                counts[line] = stub.take()
        waited = {line: found.turns for line, found in counts.items()}
        assert {line: n for line, n in waited.items() if n > TURNS[line]} == {}, waited
        assert counts["snap first"].requests > 900 and counts["snap second"].requests < 8
        check_registers(live)
        check_memory(live)


def same(live: Live, one: str, other: str) -> bool:
    """Tell whether two captures hold the same descriptors."""
    return np.array_equal(*(live.ctx.guest.snapshots[name].tables.raw for name in (one, other)))


def check_registers(live: Live) -> None:
    """Compare what comes in one go with what GDB reads one by one, before and after another CPU is chosen."""
    session = live.ctx.guest.stopped
    assert isinstance(session, LiveSession)
    by_gdb = RegisterReader(session._gdb)
    for chosen in (0, session.cpu_count - 1):
        session.current_cpu = chosen
        session._tracker.touch()
        cpus = list(range(session.cpu_count))
        ours = [session.cpu_state(cpu) for cpu in cpus]
        assert ours == by_gdb.states(cpus)
        assert int(session.gdb_command("output/x (unsigned long)$pc"), 16) == ours[chosen].pc


def check_memory(live: Live) -> None:
    """Compare captures over two lanes at one stop."""
    live("lane gdbstub")
    live("snap over --replace")
    live("lane pmemsave")
    live("snap other --replace")
    assert same(live, "over", "other")
