"""Without a kernel file, in the middle of the rewrite: what registers and tables tell, and what not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from session import Live, fresh, need_guest, of_somebody_else

from ptinspect.errors import KernelFileError, UserError
from ptinspect.link.qemu.machine import Qemu

SHARED = ("levels", "table_descriptors", "table_descriptors_marked", "leaves", "leaves_ng")


@contextmanager
def attached(qemu: Qemu) -> Iterator[Live]:
    """Attach, without a kernel file, and leave the guest stopped."""
    with fresh(f"attach {qemu.gdb_socket}") as live:
        yield live
        live("detach --stop")


@pytest.mark.parametrize(("guest", "other"), [("5.10-cloud", "6.12-cloud"), ("6.12-cloud", "5.10-cloud")])
def test_the_tables_are_read_and_what_is_missing_is_said(guest: str, other: str) -> None:
    ours, wrong = need_guest(guest), need_guest(other).kernel
    with of_somebody_else(guest, smp=2, memory=256) as qemu:
        with attached(qemu) as live:
            live(f"kernel {ours.kernel}")
            live("kpti until 40%")
            known = {line: live(line) for line in ("summary", "map", "kpti status", "walk vectors")}
            vectors = live("print vectors")["value"]
            place = live("status")["pc"]
        with attached(qemu) as live:
            look(live, known, vectors)
            with pytest.raises(KernelFileError, match="is not the kernel in this guest"):
                live(f"kernel {wrong}")
            assert live("kernel")["file"] is None, "the one before stays: none"
            live(f"kernel {wrong} --force")
            assert live("kernel")["file"] == str(wrong)
            live.ctx.guest.use_kernel(wrong)  # as --kernel does before attaching
            status = live("kpti status")
            assert (status["state"], status["algorithm"], status["decision"]) == (
                "in-progress",
                None,
                "unknown",
            )
            assert "is not the kernel in this guest" in status["missing"]
            assert "(" not in live("cpus")["cpus"][0]["place"], "no symbol of another kernel's"
            for line in (
                "walk vectors",
                "until start_kernel",
                "stack",
                "break start_kernel",
                "kpti progress",
            ):
                with pytest.raises(KernelFileError, match="is not the kernel in this guest"):
                    live(line)
            assert live("summary")["levels"] == known["summary"]["levels"]
            assert live("status")["pc"] == place, "the guest has not moved"
            live.ctx.guest.use_kernel(None)
            live("snap middle")
            back = live("bt")["frames"][1]["pc"]
            assert live(f"until {back} --timeout 300")["pc"] == back
            live("snap later")
            levels = live("diff middle later")["levels"]
            assert sum(level["ng_set"] for level in levels) > 10_000
            assert sum(level["lost"] + level["retargeted"] for level in levels) == 0
            assert live("kpti status")["state"] == "after"


def edges(mapped: dict[str, Any]) -> set[tuple[str, str]]:
    """Return where runs of mappings begin, and what they lead to."""
    assert len(mapped["runs"]) > 10
    return {(run["va_start"], run["pa_start"]) for run in mapped["runs"]}


def look(live: Live, known: dict[str, dict[str, Any]], vectors: str) -> None:
    """Look at everything that works from the registers, and at what says that it does not."""
    assert live("summary")["levels"] == known["summary"]["levels"]
    assert edges(live("map")) <= edges(known["map"]), "names part more runs, nothing else"
    walked = live(f"walk {vectors}")
    assert (walked["pa"], walked["root"]) == (known["walk vectors"]["pa"], walked["root"])
    status, before = live("kpti status"), known["kpti status"]
    assert status["state"] == before["state"] == "in-progress"
    assert all(status[name] == before[name] for name in SHARED[1:])
    assert status["frontier"]["source"] == "tables"
    assert status["missing"].startswith("no kernel file is named")
    assert (status["algorithm"], status["decision"]) == (None, "unknown")
    assert [cpu["role"] for cpu in status["cpus"]] == ["unknown", "unknown"]
    listed = live("cpus")
    assert listed["missing"] and listed["cpus"][1]["ttbr1_is"] == "reserved"
    assert all(cpu["stack"] is None and cpu["task"] == "" for cpu in listed["cpus"])
    for line in ("stack", "why", "kpti progress", "kpti run", "walk start_kernel"):
        with pytest.raises(UserError, match="kernel file"):
            live(line)
    waits = live("break start_kernel")
    assert waits["pending"]
    live(f"delete {waits['id']}")
