"""Real kernels under the rules of KVM: TCG guests behind a proxy that has few slots and takes no BRK."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from kvm_proxy import KvmProxy
from session import Live, fresh, need_guest, of_somebody_else
from users_gdb import SOURCE, need_gdb, typed

from ptinspect.errors import OutOfSlots


@contextmanager
def under_kvm(name: str, **slots: int) -> Iterator[tuple[Live, KvmProxy]]:
    """Attach to a guest, stopped at reset, as if it ran under KVM; nothing wrong may have been sent."""
    with of_somebody_else(name, smp=2) as qemu, closing(KvmProxy(qemu.gdb_socket, **slots)) as proxy:
        with fresh(f"attach {proxy.address}", f"kernel {need_guest(name).kernel}") as live:
            yield live, proxy
        assert proxy.wrong == [] and proxy.set == {}


def test_the_main_job_and_the_guard_fit_into_the_slots_of_a_cpu() -> None:
    with under_kvm("5.10-cloud") as (live, proxy):
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
    with under_kvm("6.12-cloud", breakpoints=3) as (live, proxy):
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
    gdb, breakpoints = need_gdb(), [f"hbreak *{0x4020_0000 + 4 * n:#x}" for n in range(7)]
    with of_somebody_else("5.10-cloud", memory=128) as qemu, closing(KvmProxy(qemu.gdb_socket)) as proxy:
        run = typed(gdb, f"target remote {proxy.address}", SOURCE, *breakpoints, "pt stepi", "pt status")
        said = "under KVM the CPU has 6 hardware breakpoints, 1 too few; in use: 1 (yours), 2 (yours)"
        assert said in run.stdout + run.stderr, run.stderr
        assert "delete 7" in run.stdout + run.stderr
        assert "7 of 6 hardware breakpoints in use" in run.stdout
        assert proxy.wrong == []
