"""Dumps that QEMU writes of a live guest, against the guest itself."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from session import KASLR_BOOT, NEWER, fresh, launched, to_shell

from ptinspect.dataclass import replace
from ptinspect.guest.stacks.kernel_stacks import UNSURE
from ptinspect.snapshot.model import Snapshot

SAME = ("summary", "map --level pmd", "check", "find pa:0x41000000", "walk vectors", "x/8gx pa:0x40200000")
FROM_THE_SOURCE = ("root", "snapshot", "regime", "doubt")
SIZE = 256 << 20


def arrays(snapshot: Snapshot) -> list[Any]:
    tables = snapshot.tables
    return [tables.level, tables.pa, tables.va, tables.raw, tables.readable]


def without(result: dict[str, Any]) -> dict[str, Any]:
    """What does not say where it comes from, how wide the CPU's addresses are, or what a dump lacks."""
    return {name: value for name, value in result.items() if name not in FROM_THE_SOURCE}


@pytest.mark.parametrize(
    ("guest", "options"),
    [
        ("5.10-cloud-dbg", ""),
        ("6.12-cloud", f"--cpu max --append '{KASLR_BOOT} kpti=on'"),
        ("7.3-cloud", f"{NEWER} --append '{KASLR_BOOT}'"),  # a dump does not tell of indirect permissions
    ],
)
def test_a_dump_is_the_guest(guest: str, options: str, tmp_path: Path) -> None:
    """Tables bit by bit, and what commands say of them, with the kernel file and without any."""
    with launched(guest, f"--memory 256 {options}") as live:
        to_shell(live)
        live("snap a")
        wanted = {line: without(live(line)) for line in SAME}
        stacks = live("stack tasks")
        live(f"monitor dump-guest-memory {tmp_path}/core")
        live(f'monitor pmemsave 0x40000000 {SIZE:#x} "{tmp_path}/raw"')
        kernel, taken = live.ctx.guest.kernel_path, live.ctx.guest.snapshots["a"]
        state = live.ctx.guest.stopped.cpu_state(0)
    try:
        for (file, cpus), known in product((("core", 1), ("raw --base pa:0x40000000", 0)), (kernel, None)):
            with fresh() as offline:
                offline.ctx.guest.use_kernel(known)
                assert offline(f"import {tmp_path}/{file}")["cpus"] == cpus
                offline("snap b")
                own = offline.ctx.guest.snapshots["b"]
                for ours, theirs in zip(arrays(own), arrays(taken), strict=True):
                    assert np.array_equal(ours, theirs)
                assert own.regime.mair & 0xFFFF_FFFF_FFFF_00FF == taken.regime.mair & ~0xFF00
                if cpus:
                    dumped = replace(offline.ctx.guest.stopped.cpu_state(0), system=state.system)
                    assert dumped == state
                if known is not None:
                    for line, result in wanted.items():
                        assert without(offline(line)) == result, line
                    known_tasks = {task["address"]: task for task in stacks["tasks"]}
                    slept = [task for task in offline("stack tasks")["tasks"] if task["how"] == UNSURE]
                    assert len(slept) > 20
                    for task in slept:
                        other = known_tasks[task["address"]]
                        if other["how"] == "saved":
                            assert {**task, "how": "saved"} == other
    finally:
        for name in ("core", "raw"):
            (tmp_path / name).unlink(missing_ok=True)
