"""The cases of the thread on real guests: the kernel's own code, patched, and injected faults."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from session import Live, launched

from ptinspect.commands.kpti_run import Runner
from ptinspect.linux.kpti import running_code
from ptinspect.linux.kpti_frontier import restores_tables

pytestmark = pytest.mark.live

KERNELS = [
    ("5.10-cloud", ""),
    ("5.10-cloud-dbg", ""),
    ("6.1-cloud", ""),
    ("6.12-cloud", "--cpu cortex-a72"),
    ("6.12-cloud", "--cpu max"),
]


def patch_returns(live: Live, place: Callable[[object], int]) -> None:
    """Make the walk, where it returns from a subtree, go on at `place` of the level above."""
    runner = Runner(live.ctx, 60)
    runner.place_kernel()
    code = runner.code
    session = live.ctx.stopped
    for above, below in zip(code.levels, code.levels[1:], strict=False):
        at = below.closing + 4
        pa = runner.physical(code.entry_va + at)
        word = int.from_bytes(session.memory.read(pa, 4), "little")
        assert word >> 26 == 0b000101, "an unconditional branch"
        session.write_physical(pa, (0x14000000 | (place(above) - at) >> 2 & 0x3FF_FFFF).to_bytes(4, "little"))
    live.ctx.forget_stop()


@pytest.mark.parametrize(("guest", "options"), KERNELS)
def test_the_normal_rewrite(guest: str, options: str) -> None:
    with launched(guest, f"--memory 256 --smp 2 {options}") as live:
        live("kpti writes")
        found = live("kpti verdict")
        assert found["code"] == "normal", found
        assert found["recorded_stores"] > 100
        live.ctx.close()
    with launched(guest, f"--memory 256 {options}") as live:
        live("kpti run")
        assert live("kpti verdict")["code"] == "normal"


def test_tables_that_are_not_tracked() -> None:
    """The first debug patch: `b next_X` becomes `b skip_X`."""
    with launched("5.10-cloud", "--memory 256 --smp 2") as live:
        patch_returns(live, lambda level: level.skip)  # type: ignore[attr-defined]
        code = running_code(live.ctx.view())
        assert code is not None and not code.marks_tables
        middle = live("kpti until 40%")
        assert middle["agree"] is None and not middle["marks_tables"]
        live("kpti writes")
        levels = live("summary")["levels"]
        assert sum(level["table_descriptors_marked"] for level in levels) == 0
        assert live("kpti verdict")["code"] == "no-table-marks"


def test_tables_that_are_not_tracked_told_by_stores_alone() -> None:
    with launched("5.10-cloud", "--memory 256") as live:
        patch_returns(live, lambda level: level.skip)  # type: ignore[attr-defined]
        found = live("kpti writes")
        assert all(level["tables"] == 0 for level in found["levels"])
        verdict = live("kpti verdict")
        assert verdict["code"] == "no-table-marks"
        assert any("0 to table descriptors" in text for text in verdict["evidence"])


def test_tables_that_are_written_back_unchanged() -> None:
    """What the second debug patch does: each table is stored with the value that it had."""
    with launched("5.10-cloud", "--memory 256") as live:
        patch_returns(live, lambda level: level.mark + 4)  # type: ignore[attr-defined]
        code = running_code(live.ctx.view())
        assert code is not None and restores_tables(code)
        found = live("kpti writes")
        assert sum(level["tables"] for level in found["levels"]) > 100
        assert sum(level["tables_changed"] for level in found["levels"]) == 0
        verdict = live("kpti verdict")
        assert verdict["code"] == "toggle-write-back"


def test_before_and_after_alone_cannot_tell_the_two_apart() -> None:
    with launched("5.10-cloud", "--memory 256") as live:
        patch_returns(live, lambda level: level.mark + 4)  # type: ignore[attr-defined]
        live("kpti run")
        live.ctx.drop_session()
        live.ctx.use_kernel(None)
        found = live("kpti verdict")
        assert found["code"] == "unknown"
        assert "no-table-marks or toggle-write-back" in found["unknown"][0]


@pytest.mark.parametrize(("guest", "options"), [KERNELS[0], KERNELS[2], KERNELS[3]])
@pytest.mark.parametrize("way", ["stores", "snapshots"])
def test_an_entry_that_is_lost_is_named(guest: str, options: str, way: str) -> None:
    with launched(guest, f"--memory 256 {options}") as live:
        live("kpti run" if way == "snapshots" else "kpti writes")
        sp = live.ctx.stopped.cpu_state(live.ctx.stopped.current_cpu).sp
        step = next(s for s in live(f"walk {sp:#x}")["steps"] if s["name"] == "pmd")
        live(f"poke descriptor pa:{step['descriptor_pa']} 0 --yes")
        found = live("kpti verdict --live")
        assert found["code"] == "lost-write"
        old = int(step["raw"], 16) & ~0x800
        assert step["descriptor_pa"] in found["evidence"][0]
        assert f"{old:#x}" in found["evidence"][0] or step["raw"] in found["evidence"][0]
        live("poke undo")
        assert live("kpti verdict --live")["code"] in (
            "normal",
            "unknown" if way == "snapshots" else "normal",
        )


def test_a_root_entry_that_reverts_is_named() -> None:
    with launched("5.10-cloud", "--memory 256") as live:
        live("kpti writes")
        steps = live("walk $sp")["steps"]
        older = int(steps[0]["raw"], 16) + 0x1000 & ~0x800
        live(f"poke descriptor pa:{steps[0]['descriptor_pa']} {older:#x} --yes")
        found = live("kpti verdict")
        assert found["code"] == "reverted-entry"
        assert steps[0]["descriptor_pa"] in found["evidence"][0]
        assert live.exit_code("kpti verdict") == 1


def test_a_boot_without_a_rewrite() -> None:
    with launched(
        "5.10-cloud", '--memory 256 --append "rdinit=/init console=ttyAMA0 kpti=off nokaslr"'
    ) as live:
        live("until driver_init --timeout 60")
        live("snap before")
        assert live("kpti verdict")["code"] == "not-run"
        assert live("kpti progress")["phase"] == "outside"


@pytest.mark.parametrize(("guest", "options"), KERNELS)
def test_until_stands_where_registers_and_tables_agree(guest: str, options: str) -> None:
    with launched(guest, f"--memory 256 --smp 2 {options}") as live:
        live("kpti until 0%")
        last = -1.0
        sp = live.ctx.stopped.cpu_state(1).sp
        for where in ("25%", "pmd:3", "40%", f"{sp:#x}"):
            found = live(f"kpti until {where}")
            assert found["agree"] is True, (where, found["doubts"])
            assert found["percent"] > last
            last = found["percent"]
            assert found["frontier"]["registers"]["va"] == found["frontier"]["tables"]["va"]
            roles = [cpu["role"] for cpu in found["cpus"]]
            assert roles == ["rewrites", "waits for the flag"]
            assert found["cpus"][1]["ttbr1"] == "reserved" and found["flag"] == 2
            if where.endswith("%"):
                assert abs(found["percent"] - float(where[:-1])) < 0.5
        live("kpti writes")
        done = live("kpti progress")
        assert (done["phase"], done["percent"], done["gaps"]) == ("done", 100.0, 0)
