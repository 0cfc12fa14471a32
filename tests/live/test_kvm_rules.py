"""Real kernels under the rules of KVM: TCG guests behind a proxy that has few slots and takes no BRK."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import missing
from kvm_proxy import KvmProxy
from session import Live, need_guest

from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import build_registry
from ptinspect.errors import OutOfSlots
from ptinspect.link.qemu.machine import LaunchOptions, launch


@contextmanager
def under_kvm(name: str, smp: int, **slots: int) -> Iterator[tuple[Live, KvmProxy]]:
    """Attach to a guest, stopped at reset, as if it ran under KVM; nothing wrong may have been sent."""
    guest = need_guest(name)
    qemu = launch(LaunchOptions(guest.kernel, initrd=guest.initrd, cpu=guest.cpu, smp=smp))
    proxy = KvmProxy(qemu.gdb_socket, **slots)
    ctx = Context(build_registry())
    live = Live(ctx)
    try:
        live(f"attach {proxy.address}")
        live(f"kernel {guest.kernel}")
        yield live, proxy
        ctx.close()
        assert proxy.wrong == [] and proxy.set == {}
    finally:
        ctx.close()
        proxy.close()
        qemu.end()


def test_the_main_job_and_the_guard_fit_into_the_slots_of_a_cpu() -> None:
    with under_kvm("5.10-cloud", 2) as (live, proxy):
        status = live("status")
        assert status["accel"] == "kvm"
        assert (status["slots"]["breakpoints"], status["slots"]["watchpoints_free"]) == (6, 4)
        waits = live("break kpti_install_ng_mappings")  # until the kernel has a place: takes no slot yet
        assert waits["slots"]["breakpoints_used"] == 0
        live("delete all")
        assert live("kpti run")["snapshots"] == ["before", "during", "after"]
        during = live("summary --snap during")
        assert sum(level["table_descriptors_marked"] for level in during["levels"]) > 0
        assert live("stepi")["interrupts_held"] is True
        quiet = live("stack guard --timeout 3")
        # a task that ends takes its stack with it: how many are watched at the end is the boot's affair
        assert quiet["quiet"] and quiet["entry"] == "breakpoint" and 1 <= quiet["stacks_watched"] <= 4, quiet
        assert proxy.most == {"breakpoint": 4, "watchpoint": 4} and proxy.refused == 0


def test_where_slots_run_out_something_is_done_without_or_said() -> None:
    with under_kvm("6.12-cloud", 2, breakpoints=3) as (live, proxy):
        live.ctx.guest.stopped.slots._capacity = live.ctx.guest.stopped.slots._try()  # the register says six
        assert live("status")["slots"]["breakpoints"] == 3
        kpti = live("kpti break")
        assert [b["point"] for b in kpti["breakpoints"]] == ["entry", "before_first_write", "after_writes"]
        assert len(kpti["left_out"]) >= 1
        with pytest.raises(OutOfSlots, match=r"in use: 1 \(kpti\), 2 \(kpti\), 3 \(kpti\)") as error:
            live("break pa:0x40210000")
        assert error.value.hint == "delete 3"
        live("delete all")
        with pytest.raises(OutOfSlots, match="3 hardware breakpoints"):
            live("kpti writes")
        recorded = live("kpti writes --level 0 --level 1")
        assert recorded["whole"] and [v["stores"] > 0 for v in recorded["levels"]] == [True, True]
        assert proxy.most["breakpoint"] == 3 and proxy.refused <= 2


def test_in_the_user_s_own_gdb() -> None:
    """Seven `hbreak` of the user's, at reset: GDB itself would only say that the command is aborted."""
    gdb = shutil.which("gdb-multiarch")
    if gdb is None:
        missing("gdb-multiarch")
    guest = need_guest("5.10-cloud")
    qemu = launch(LaunchOptions(guest.kernel, memory=128))
    proxy = KvmProxy(qemu.gdb_socket)
    breakpoints = [f"hbreak *{0x4020_0000 + 4 * n:#x}" for n in range(7)]
    script = Path(__file__).parents[2] / "gdbscripts" / "ptinspect.py"
    lines = [f"target remote {proxy.address}", f"source {script}", *breakpoints, "pt stepi", "pt status"]
    try:
        run = subprocess.run(
            [gdb, "-nx", "-q", "-batch", *(word for line in lines for word in ("-ex", line))],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "PTINSPECT_PYTHON": sys.executable, "PYTHONPATH": str(script.parents[1])},
        )
        said = "under KVM the CPU has 6 hardware breakpoints, 1 too few; in use: 1 (yours), 2 (yours)"
        assert said in run.stdout + run.stderr, run.stderr
        assert "delete 7" in run.stdout + run.stderr
        assert "7 of 6 hardware breakpoints in use" in run.stdout
        assert proxy.wrong == []
    finally:
        proxy.close()
        qemu.end()
