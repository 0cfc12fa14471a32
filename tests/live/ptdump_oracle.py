"""The kernel's own account of its tables, /sys/kernel/debug/kernel_page_tables, held against `map`.

Its text is made by arch/arm64/mm/ptdump.c (dump.c up to 5.4): one line for each run of equal attributes,
whatever the output addresses are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from session import initrd_with

from ptinspect.reference import initrd

BEGIN, END = "ptdump begins", "ptdump ends"
_LINE = re.compile(r"0x([0-9a-f]{16})-0x([0-9a-f]{16})\s+\d+[KMGTPE] (?:PGD|P4D|PUD|PMD|PTE)\b(.*)")
NORMAL = {"MEM/NORMAL": "Normal WB", "MEM/NORMAL-TAGGED": "Normal WB", "MEM/NORMAL-NC": "Normal NC"}
DEVICES = {"DEVICE/nGnRnE": "Device-nGnRnE", "DEVICE/nGnRE": "Device-nGnRE", "DEVICE/GRE": "Device-GRE"}


@dataclass(frozen=True)
class Truth:
    """A run as the kernel tells it."""

    start: int
    end: int
    read_only: bool
    executable: bool
    el0: bool
    ng: bool
    contiguous: bool
    block: bool
    uxn: bool
    memory: str


def with_ptdump(name: str, folder: Path) -> Path:
    """Write a guest's RAM disk whose first process prints the account before it starts its shell."""
    show = f'echo "{BEGIN}"; cat /sys/kernel/debug/kernel_page_tables; echo "{END}"\nwhile :; do'
    return initrd_with(name, folder, {"init": initrd.INIT.replace("while :; do", show, 1)})


def said(lines: Iterable[str]) -> list[str]:
    """Return the kernel's lines between the two marks on a console."""
    found: list[str] = []
    inside = False
    for line in lines:
        if line.strip() in (BEGIN, END):
            inside = line.strip() == BEGIN
        elif inside:
            found.append(line.rstrip())
    return found


def account(lines: Iterable[str]) -> list[Truth]:
    """Return the mapped runs between the two marks on a console."""
    found: list[Truth] = []
    for line in said(lines):
        match = _LINE.match(line.strip())
        words = match[3].split() if match else []
        if not match or not words:
            continue
        memory = next(w for w in words if "/" in w)
        found.append(
            Truth(
                int(match[1], 16),
                int(match[2], 16) or 1 << 64,
                "ro" in words,
                "x" in words,
                "USR" in words,
                "NG" in words,
                "CON" in words,
                "BLK" in words,
                "UXN" in words,
                (NORMAL | DEVICES).get(memory, memory),
            )
        )
    return found


def told(run: Mapping[str, Any]) -> Truth:
    """Return a run of `map --json` in the kernel's terms."""
    attributes, level = run["attributes"], run["level"]
    return Truth(
        int(run["va_start"], 16),
        int(run["va_end"], 16) + 1,
        "w" not in run["permissions"]["el1"],
        "x" in run["permissions"]["el1"],
        run["permissions"]["el0"] != "---",
        attributes["ng"],
        attributes["contiguous"],
        level < 3,
        attributes["uxn"],
        attributes["memory_type"],
    )


def merged(runs: Iterable[Truth]) -> list[tuple[int, int, tuple[Any, ...]]]:
    """Join neighbours of equal attributes, as the kernel does: output addresses do not matter to it."""
    out: list[tuple[int, int, tuple[Any, ...]]] = []
    for run in runs:
        what = (
            run.read_only,
            run.executable,
            run.el0,
            run.ng,
            run.contiguous,
            run.block,
            run.uxn,
            run.memory,
        )
        if out and out[-1][1] == run.start and out[-1][2] == what:
            out[-1] = (out[-1][0], run.end, what)
        else:
            out.append((run.start, run.end, what))
    return out


def differences(ours: Iterable[Mapping[str, Any]], kernels: Iterable[Truth]) -> list[str]:
    """Return what stands in only one of the two accounts."""
    mine, theirs = set(merged(told(run) for run in ours)), set(merged(kernels))
    return [f"only in map: {a:#x}-{b:#x} {what}" for a, b, what in sorted(mine - theirs)] + [
        f"only in the kernel's account: {a:#x}-{b:#x} {what}" for a, b, what in sorted(theirs - mine)
    ]
