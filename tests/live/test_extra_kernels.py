"""Kernels that were built elsewhere: $PTINSPECT_EXTRA_KERNELS names a directory with one directory for each.

Each holds an `Image`, a `vmlinux` if there is one, and may hold `expect.toml`:

    verdict = "toggle-write-back"   # what `kpti verdict` has to say; "normal" where nothing is said
    granule = 65536
    va_bits = 52
    cpu = "max"
    kasan = true                    # the shadow has more runs than `map` lists
    vmap_stack = false              # stacks lie in the linear map
    ptdump = true                   # the kernel has CONFIG_PTDUMP_DEBUGFS: its own account is the truth
"""

from __future__ import annotations

import os
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ptdump_oracle import END, account, differences, with_ptdump
from session import Live, fresh, need_guest

FOLDER = os.environ.get("PTINSPECT_EXTRA_KERNELS", "")
KERNELS = sorted(path.parent for path in Path(FOLDER).glob("*/Image")) if FOLDER else []
SHELL_SECONDS = 60
READY = "ptinspect guest ready"


def expected(kernel: Path) -> dict[str, Any]:
    file = kernel / "expect.toml"
    return tomllib.loads(file.read_text()) if file.is_file() else {}


@pytest.fixture(params=KERNELS, ids=lambda path: path.name)
def kernel(request: pytest.FixtureRequest) -> Path:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def live(kernel: Path, tmp_path: Path) -> Iterator[Live]:
    symbols = kernel / "vmlinux"
    initrd = need_guest("5.10-cloud").initrd
    assert initrd is not None
    if expected(kernel).get("ptdump"):
        initrd = with_ptdump("5.10-cloud", tmp_path)
    more = f"--symbols {symbols}" if symbols.is_file() else ""
    cpu = expected(kernel).get("cpu", "max")
    with fresh(f"launch {kernel / 'Image'} {more} --memory 512 --cpu {cpu} --initrd {initrd}") as live:
        yield live


def test_the_rewrite(live: Live, kernel: Path) -> None:
    wanted = expected(kernel)
    verdict = wanted.get("verdict", "normal")
    done = live("kpti run --timeout 300")
    assert done["reached"], done["reason"]
    live("diff before after --expect-only-bit11")
    before, after = live("summary --snap before"), live("summary --snap after")
    assert [level["leaves"] for level in before["levels"]] == [level["leaves"] for level in after["levels"]]
    assert all(level["leaves_ng"] == level["leaves"] for level in after["levels"])
    assert live("kpti verdict")["code"] == verdict
    if verdict == "normal":
        assert live("check --snap after --against before")["ok"]
        assert all(
            level["table_descriptors_marked"] == level["table_descriptors"] for level in after["levels"]
        )
    regime = after["regime"]
    assert wanted.get("granule", regime["granule"]) == regime["granule"]
    assert wanted.get("va_bits", regime["va_bits"]) == regime["va_bits"]
    stack = live("stack")
    assert 0 < stack["used"] < stack["size"] and stack["frames_complete"]


def test_the_middle_of_the_rewrite_and_afterwards(live: Live, kernel: Path) -> None:
    wanted = expected(kernel)
    middle = live("kpti until 50%")
    marks = wanted.get("verdict", "normal") == "normal"
    assert middle["agree"] is (True if marks else None), middle
    assert abs(middle["percent"] - 50) < 5 and middle["marks_tables"] is marks
    frontier = middle["frontier"]["registers"]
    assert frontier["descriptor_pa"] in {s["descriptor_pa"] for s in live(f"walk {frontier['va']}")["steps"]}
    assert live("kpti status")["state"] == "in-progress"
    assert live("kpti verdict")["code"] == "unknown", "it is not over"
    stack = live("stack")
    assert 0 < stack["used"] < stack["size"] and stack["frames_complete"]
    for _ in range(SHELL_SECONDS // 5):
        guard = live("stack guard --timeout 5")
        assert guard["quiet"] and guard["way"] == "time", guard
        if any(READY in line for line in live("console -n 100000")["lines"]):
            break
    assert live("kpti status")["state"] == "after"
    assert live("check --expect-clean")["findings"] == []
    tasks = live("stack tasks --all")["tasks"]
    assert len(tasks) > 10 and all(0 < task["used"] < task["size"] for task in tasks)
    first, text = live("map --limit 1")["runs"], live.ctx.guest.view.symbol("_stext")
    part = f"{text:#x}..0xffffffffffffffff" if wanted.get("kasan") else ""
    regions = {run["region"] for run in [*first, *live(f"map {part} --limit 100000")["runs"]]}
    kernels = {f"kernel {part}" for part in ("text", "rodata", "data")}
    assert regions >= {"linear map", "fixmap", "KPTI trampoline", *kernels}
    assert not regions & {"kernel", "user", ""}


def test_the_kernels_own_account(live: Live, kernel: Path, tmp_path: Path) -> None:
    if not expected(kernel).get("ptdump"):
        return
    lines: list[str] = []
    for _ in range(SHELL_SECONDS):
        live("continue --background")
        time.sleep(1.0)
        live("interrupt")
        lines = live("console -n 100000")["lines"]
        if any(line.strip() == END for line in lines):
            break
    kernels = account(lines)
    assert kernels
    runs = [] if expected(kernel).get("kasan") else live("map --limit 1000000")["runs"]
    found = differences(runs, kernels) if runs else []
    # what the shell's start changes after the account was printed: stacks come and go in the vmalloc area
    assert [line for line in found if not is_vmalloc(live, line)] == []
    live("snap now")
    live(f"export now --format ptdump -o {tmp_path}/text")
    text = [line.strip() for line in lines if line.startswith(("0x", "---["))]
    ours = [line.strip() for line in (tmp_path / "text").read_text().splitlines()]
    assert [line for line in ours if "---[" in line] == [line for line in text if "---[" in line]
    changed = [f"line: {line.partition(' ')[0]}" for line in set(text) ^ set(ours)]
    assert [line for line in changed if not is_vmalloc(live, line)] == []


def is_vmalloc(live: Live, line: str) -> bool:
    start = line.partition(": ")[2].partition("-")[0]
    return bool(live(f"walk {start}")["region"] in ("vmalloc", "task stack"))


@pytest.mark.parametrize("fault", ["lost", "reverted"])
def test_a_fault_is_named(kernel: Path, tmp_path: Path, fault: str) -> None:
    """Up to v5.3 the boot's root table is swapper_pg_dir itself.

    Without VMAP_STACK (as 5.10 with KASAN) stacks share their entries with much else.
    """
    if expected(kernel).get("vmap_stack") is False:
        return
    symbols = kernel / "vmlinux"
    with fresh() as live:
        live.ctx.guest.kernel_path = symbols if symbols.is_file() else kernel / "Image"
        found = live(f"demo --fault {fault} --kernel {kernel / 'Image'} --directory {tmp_path} --cpu max")
    assert found["ok"], found
