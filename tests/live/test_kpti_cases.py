"""The cases of the thread on real guests: the kernel's own code, patched, and injected faults."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kpti_patches import not_tracked, written_back
from session import NEWER, Live, launched

from ptinspect.guest.rewrite.rewrite import Runner
from ptinspect.guest.rewrite.state import STORES
from ptinspect.linux.kpti.code import KptiCode
from ptinspect.linux.kpti.running_code import running_code

KERNELS = [
    ("5.10-cloud", ""),
    ("6.1-cloud", ""),
    ("6.12-cloud", "--cpu cortex-a72"),
    ("6.12-cloud", "--cpu max"),
    ("7.3-cloud", f"--cpu max {NEWER}"),
]


DIFFERENT = [KERNELS[0], KERNELS[1], KERNELS[3], KERNELS[4]]
"""Both algorithms, four and five levels."""


def patch(live: Live, patches: Callable[[KptiCode, bytes], dict[int, int]]) -> KptiCode:
    """Patch the rewrite where it runs; return what is recognised then."""
    runner = Runner(live.ctx.guest, 300)
    runner.place_kernel()
    session, entry = live.ctx.guest.stopped, runner.physical(runner.code.entry_va)
    for at, word in patches(runner.code, session.memory.read(entry, runner.code.size)).items():
        session.write_physical((entry + at, word.to_bytes(4, "little")))
    code = running_code(live.ctx.guest.view)
    assert code is not None
    return code


def forget_stores(live: Live) -> None:
    """Leave the verdict to the tables and the code."""
    del live.ctx.guest.kept[STORES]


@pytest.mark.parametrize(("guest", "options"), DIFFERENT)
def test_tables_that_are_not_tracked(guest: str, options: str) -> None:
    """The first debug patch: `b next_X` becomes `b skip_X`; the new algorithm branches before it marks."""
    with launched(guest, f"--memory 256 --smp 2 {options}") as live:
        code = patch(live, not_tracked)
        assert code.tables == "never-written"
        middle = live("kpti until 40%")
        assert middle["agree"] is None and not middle["marks_tables"]
        live("snap before")
        found = live("kpti writes")
        assert all(level["tables"] == 0 for level in found["levels"])
        assert sum(level["changed"] for level in found["levels"]) > 0
        levels = live("summary")["levels"]
        assert sum(level["table_descriptors_marked"] for level in levels) == 0
        verdict = live("kpti verdict")
        assert verdict["code"] == "no-table-marks"
        assert any("0 to table descriptors" in text for text in verdict["evidence"]) is found["whole"]
        forget_stores(live)
        verdict = live("kpti verdict")
        assert verdict["code"] == "no-table-marks"
        assert verdict["evidence"][1] == "the kernel's code has no store for tables"


@pytest.mark.parametrize(("guest", "options"), DIFFERENT)
def test_tables_that_are_written_back_unchanged(guest: str, options: str) -> None:
    """What the second debug patch does: each table is stored with the value that it had."""
    with launched(guest, f"--memory 256 {options}") as live:
        code = patch(live, written_back)
        assert code.tables == "written-back"
        found = live("kpti writes")
        assert sum(level["tables"] for level in found["levels"]) > 50
        assert sum(level["tables_changed"] for level in found["levels"]) == 0
        unchanged = [w for w in found["writes"] if not w["changed"]]
        assert len(unchanged) == sum(level["tables"] for level in found["levels"])
        assert all(w["before"] == w["stored"] and int(w["stored"], 16) & 0x803 == 3 for w in unchanged)
        verdict = live("kpti verdict")
        assert verdict["code"] == "toggle-write-back"
        assert any("0 of these changed them" in text for text in verdict["evidence"])
        forget_stores(live)
        verdict = live("kpti verdict")
        assert verdict["code"] == "toggle-write-back"
        assert verdict["evidence"][1] == "the kernel's code stores tables without setting bit 11"


def test_before_and_after_alone_cannot_tell_the_two_apart() -> None:
    with launched("5.10-cloud", "--memory 256") as live:
        patch(live, written_back)
        live("kpti run")
        live.ctx.guest.drop_session()
        live.ctx.guest.use_kernel(None)
        found = live("kpti verdict")
        assert found["code"] == "unknown"
        assert "no-table-marks or toggle-write-back" in found["unknown"][0]


@pytest.mark.parametrize(("guest", "options"), DIFFERENT)
@pytest.mark.parametrize("way", ["stores", "snapshots"])
def test_an_entry_that_is_lost_or_reverts_is_named(guest: str, options: str, way: str) -> None:
    with launched(guest, f"--memory 256 {options}") as live:
        live("kpti run" if way == "snapshots" else "kpti writes")
        sp = live.ctx.guest.stopped.cpu_state(live.ctx.guest.stopped.current_cpu).sp
        steps = live(f"walk {sp:#x}")["steps"]
        step = next(s for s in steps if s["name"] == "pmd")
        live(f"poke descriptor pa:{step['descriptor_pa']} 0 --yes")
        found = live("kpti verdict --live")
        assert found["code"] == "lost-write"
        old = int(step["raw"], 16) & ~0x800
        assert step["descriptor_pa"] in found["evidence"][0]
        assert f"{old:#x}" in found["evidence"][0] or step["raw"] in found["evidence"][0]
        assert live.exit_code("kpti verdict --live") == 1
        live("poke undo")
        healthy = live("kpti verdict --live")["code"]
        assert healthy in ("normal", "unknown" if way == "snapshots" else "normal")
        older = int(steps[0]["raw"], 16) - 0x1000 & ~0x800
        live(f"poke descriptor pa:{steps[0]['descriptor_pa']} {older:#x} --yes")
        found = live("kpti verdict --live")
        assert found["code"] == "reverted-entry"
        assert steps[0]["descriptor_pa"] in found["evidence"][0]
        assert f"{older:#x}" in found["evidence"][0]


@pytest.mark.parametrize(("guest", "options"), DIFFERENT[1:])
def test_an_entry_that_is_lost_while_the_walk_goes_on(guest: str, options: str) -> None:
    with launched(guest, f"--memory 256 {options}") as live:
        live("kpti until 0%")
        live("snap before")
        live("kpti until 60%")
        first = live("map")["runs"][0]["va_start"]
        step = next(s for s in live(f"walk {first}")["steps"] if s["name"] == "pmd")
        assert int(step["raw"], 16) & 0x803 == 0x803, "the walk has passed it"
        live(f"poke descriptor pa:{step['descriptor_pa']} 0 --yes")
        assert live("kpti writes")["whole"] is False
        found = live("kpti verdict")
        assert found["code"] == "lost-write", found
        assert step["descriptor_pa"] in found["evidence"][0]


@pytest.mark.parametrize(("guest", "options"), KERNELS)
def test_until_stands_where_registers_and_tables_agree(guest: str, options: str) -> None:
    with launched(guest, f"--memory 256 --smp 2 {options}") as live:
        live("kpti until 0%")
        last = -1.0
        sp = live.ctx.guest.stopped.cpu_state(1).sp
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
