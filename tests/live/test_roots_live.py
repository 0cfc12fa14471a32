"""Root tables besides the kernel's own, against /proc/1/maps and QEMU's own walk."""

from __future__ import annotations

import itertools
import re
import time
from pathlib import Path

import pytest
from bare import assembled
from session import NEWER, Live, initrd_with, launched

from ptinspect.errors import GuestError
from ptinspect.linux.running.tasks import Tasks
from ptinspect.reference.initrd import INIT, READY

GUESTS = (
    "5.10-cloud",
    "6.1-cloud",
    "6.12-cloud --cpu cortex-a72",
    f"7.3-cloud --cpu max {NEWER}",
    "6.12-16k",
)
SPIN = f"""mkdir -p "/d/e f" /m; mount -t tmpfs none /m
echo 1 > "/d/e f/gone"; echo 2 > "$(printf '/m/a\\033\\nb')"
/many "/d/e f/gone" /m/* &
while [ $(wc -l < /proc/$!/maps) -lt 125 ]; do sleep 1; done
rm "/d/e f/gone"; echo MANY $!; cat /proc/$!/maps; echo OVER
echo MAPS; cat /proc/1/maps; echo END; echo "{READY}"; while :; do :; done
"""
"""Starts a process with many areas, prints its map and the first process's own, and keeps the CPU."""


def busy_initrd(name: str, directory: Path) -> Path:
    """The guest's own RAM disk, whose first process prints its memory map and then keeps its CPU."""
    init = INIT.replace(f'echo "{READY}"\n', SPIN)
    assert init != INIT
    many = assembled(directory, "many.S", link=True).read_bytes()
    return initrd_with(name, directory, {"init": init, "many": many})


def maps(live: Live, begin: str = "MAPS", end: str = "END") -> list[tuple[int, int, str, str]]:
    """Wait for the maps that the first process prints, and read one of them."""
    assert live.ctx.guest.qemu is not None
    for _ in range(1600):
        time.sleep(0.25)
        text = live.ctx.guest.qemu.console.read_text("utf-8", "replace")
        if READY in text:
            break
    else:
        pytest.fail("the guest did not get ready")
    shown = text[text.index(begin) : text.index(end)]
    lines = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+ *(.*?)\r?$", shown, re.MULTILINE)
    return [(int(a, 16), int(b, 16), mode, name) for a, b, mode, name in lines]


def in_user_mode(live: Live) -> None:
    for tries in range(100):  # of a busy machine the guest gets little, and spends that on its timer
        live("interrupt")
        if live.ctx.guest.stopped.cpu_state(0).el == 0:
            return
        live("continue --background")
        time.sleep(0.05 * (1 + tries))
    pytest.fail("the first process was never in user mode")


@pytest.mark.parametrize("guest", GUESTS)
def test_the_tables_of_the_first_process(guest: str, tmp_path: Path) -> None:
    with launched(guest, f"--memory 512 --initrd {busy_initrd(guest, tmp_path)}") as live:
        live("continue --background")
        areas = maps(live)
        assert len(areas) > 4
        in_user_mode(live)
        found = live("map --root task:1")
        assert found["root"]["provenance"].startswith("mm->pgd of task 1 (")
        assert ";" not in found["root"]["provenance"]
        seen = set()
        for run in found["runs"]:
            for number in range(run["count"]):
                va = int(run["va_start"], 16) + number * run["leaf_size"]
                area = next((a for a in areas if a[0] <= va < a[1]), None)
                if area is None:  # heap and stack may have grown since
                    assert run["permissions"]["el0"].startswith("rw")
                    continue
                seen.add(area)
                assert run["region"] == (area[3] or "anonymous"), (run, area)
                for letter, allowed in zip("rwx", area[2], strict=False):
                    assert letter not in run["permissions"]["el0"] or allowed == letter, (hex(va), area)
        assert any(mode.startswith("r-x") for _, _, mode, _ in seen)
        assert any(mode.startswith("rw") for _, _, mode, _ in seen)
        names = {run["region"] for run in found["runs"]}
        assert names >= {"/bin/busybox", "[stack]"}, names
        areas_are_those_of_proc(live, areas, 1)
        many_areas(live)
        session = live.ctx.guest.stopped
        for run in found["runs"][:40]:
            assert session.gva2gpa(int(run["va_start"], 16)) == int(run["pa_start"], 16), run
        for root in ("user", "ttbr0"):
            other = live(f"map --root {root}")
            assert other["runs"] == found["runs"]
            assert "task 1 (" in other["root"]["provenance"]
        outside = live("walk 0x1000 --root task:1")
        assert outside["outcome"] == "fault"
        thread = next(t for t in Tasks(live.ctx.guest.view).all().tasks if t.comm.startswith("kthreadd"))
        with pytest.raises(GuestError, match="kernel thread: it has no user tables"):
            live(f"map --root task:{thread.pid}")
        with pytest.raises(GuestError, match="no task has PID 999999"):
            live("map --root task:999999")
        identity_and_trampoline(live)
        assert live("nexti --timeout 300")["cpu"] == 0, "an instruction of the process"


def areas_are_those_of_proc(live: Live, areas: list[tuple[int, int, str, str]], pid: int) -> None:
    """Every address has the name that /proc/PID/maps gave it, in areas without pages too."""
    for start, end, _, name in areas if len(areas) < 30 else areas[::9] + areas[-8:]:
        if name.startswith("/m/"):  # /proc escapes other characters
            continue
        grown = name in ("[heap]", "[stack]")  # since then: its end is certain
        for va in (end - 4096 if grown else start, (start + end) // 2, end - 1):
            found = live(f"walk {va:#x} --root task:{pid}")["region"]
            assert found == (name or "anonymous"), (hex(va), name)
    gaps = [a[1] for a, b in itertools.pairwise(areas) if a[1] < b[0]]
    for va in (areas[0][0] - 1, *gaps[:4]):
        assert live(f"walk {va:#x} --root task:{pid}")["region"] == "user", hex(va)


def many_areas(live: Live) -> None:
    """A process with more areas than a node of a maple tree holds, and files of all kinds."""
    assert live.ctx.guest.qemu is not None
    number = re.search(r"MANY (\d+)", live.ctx.guest.qemu.console.read_text("utf-8", "replace"))
    assert number is not None
    areas, pid = maps(live, "MANY", "OVER"), int(number[1])
    assert len(areas) > 120
    names = {area[3] for area in areas}
    assert names >= {"/d/e f/gone (deleted)", "/many", "[stack]", "[vdso]"}, names
    found = live(f"map --root task:{pid}")
    assert ";" not in found["root"]["provenance"]
    assert {run["region"] for run in found["runs"]} >= {
        "/many",
        "/d/e f/gone (deleted)",
        "/m/a\\x1b\\nb",
        "anonymous",
    }
    areas_are_those_of_proc(live, areas, pid)


def identity_and_trampoline(live: Live) -> None:
    """The identity map maps its text to itself; the trampoline is global, executable, and in swapper too."""
    view = live.ctx.guest.view
    text = view.pa_of_link(view.image.lookup("__idmap_text_start"))  # type: ignore[union-attr]
    found = live(f"walk {text:#x} --root idmap")
    assert (int(found["pa"], 16), found["region"]) == (text, "identity map")
    listed = live("map --root idmap")["runs"]
    assert [r for r in listed if r["va_start"] != r["pa_start"]] == []
    why = live("map --root idmap")["root"]["provenance"]
    assert re.search(r"to itself, (48|52)-bit addresses$", why), why
    tramp = live("map --root tramp")["runs"]
    assert {r["attributes"]["ng"] for r in tramp} == {False}
    code = [r for r in tramp if r["permissions"]["el1"] == "r-x"]
    assert code and {r["region"] for r in code} == {"KPTI trampoline"}
    state = live.ctx.guest.stopped.cpu_state(0)
    assert any(int(r["va_start"], 16) <= state.system["VBAR_EL1"] <= int(r["va_end"], 16) for r in code)
    for run in code:
        assert view.pa_of(int(run["va_start"], 16)) == int(run["pa_start"], 16)
