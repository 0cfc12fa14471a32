"""The Python API on a real guest."""

from __future__ import annotations

from pathlib import Path

import pytest
from session import need_guest

from ptinspect.api import Guest, diff, load, runs, save, summarize, walk_in
from ptinspect.errors import ConnectError, TargetTimeout, UserError


def test_the_main_job_from_python(tmp_path: Path) -> None:
    need_guest("5.10-cloud")
    with Guest.launch(guest="5.10-cloud", machine="virt,gic-version=2", memory=256, smp=2) as guest:
        guest.command("kpti run")
        before, after = guest.snapshots["before"], guest.snapshots["after"]
        found = diff(before, after)
        assert found.only_bit11 and found.changed > 60_000
        back = guest.session.cpu_state(guest.session.current_cpu).x[30]
        stop = guest.until("multi_cpu_stop", back, timeout=300)
        stack = guest.stack(stop.cpu).position
        assert stack.task is not None and stack.task.comm.startswith("migration/")
        walked = guest.walk(stack.sp)
        assert walked.outcome == "mapped"
        assert walked.pa == guest.session.gva2gpa(stack.sp, stop.cpu)
        now = guest.snap("now")
        assert walk_in(now, stack.sp).pa == walked.pa
        assert sum(run.count for run in runs(now)) == summarize(now).leaves
        save(now, tmp_path / "now.npz")
        with pytest.raises(TargetTimeout):
            guest.until(guest.symbol("_stext") + 2, timeout=0.3)
        process = guest.context.guest.qemu
    assert process is not None and not process.alive
    assert diff(load(tmp_path / "now.npz"), now).changed == 0


def test_what_cannot_be_opened_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        Guest.launch(tmp_path / "none")
    with pytest.raises(ConnectError):
        Guest.attach(str(tmp_path / "no.sock"), timeout=1)
