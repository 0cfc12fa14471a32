"""Watches of descriptors on QEMU itself: a guest whose every write is known, and Linux."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from session import BOOT_SECONDS, Live, fresh, launched
from test_timeline_live import PHYSICAL, WRITES, D, guest

LIMIT = f"--timeout {BOOT_SECONDS:.0f}"


def test_the_guest_stops_at_exactly_the_writes_of_the_program(tmp_path: Path, each_qemu: str) -> None:
    with fresh() as live:
        line, labels = guest(tmp_path, sets_af=each_qemu == "newer")
        live(line.format(""))
        live.ctx.guest.use_kernel(None)  # it is none
        watch = live(f"watch table pa:{D:#x}")
        live(f"break {labels['done']:#x}")
        found = []
        while (stop := live("continue --timeout 300"))["breakpoint"] == watch["id"]:
            (write,) = stop["writes"]
            assert stop["pc"] == hex(int(write["pc"], 16) + 4)
            found.append(write)
        assert stop["pc"] == hex(labels["done"]) and "writes" not in stop
        assert [(w["pc"], int(w["before"], 16), int(w["after"], 16), w["how"]) for w in found] == [
            (hex(labels[name]), *values, "store") for name, values in WRITES.items()
        ]
        assert {name for name, w in zip(WRITES, found, strict=True) if w["way"] == "physical"} == PHYSICAL
        listed = [one for one in live("break")["watchpoints"] if one["id"] == watch["id"]]
        assert [(one["hits"], one["place"]) for one in listed] == [(len(WRITES), f"tables of pa:{D:#x}")]
        live(f"delete {watch['id']}")
        assert live("break")["watchpoints"] == []


def writes_of(live: Live, watch: int, count: int) -> list[dict[str, Any]]:
    """Let the guest run until a watch has stopped it `count` times, and return what it was stopped for."""
    found = []
    for _ in range(count):
        stop = live(f"continue {LIMIT}")
        assert stop["breakpoint"] == watch
        found += stop["writes"]
    return found


@pytest.mark.parametrize(
    ("name", "way", "levels"),
    [
        ("5.10-cloud", "physical", [3, 2, 1, 0]),
        ("6.1-cloud", "window of the rewrite", [0, 1, 2, 3]),
        ("6.12-cloud", "window of the rewrite", [0, 1, 2, 3]),
    ],
)
def test_the_rewrite_and_the_protection_of_read_only_data_are_seen(
    name: str, way: str, levels: list[int]
) -> None:
    with launched(name, "--memory 256 --smp 2") as live:
        live(f"until {'__' * (name == '6.12-cloud')}kpti_install_ng_mappings {LIMIT}")
        watch = live("watch table $sp")["id"]
        marked = writes_of(live, watch, len(levels))
        assert [w["level"] for w in marked] == levels
        assert {(w["way"], w["how"], int(w["before"], 16) ^ int(w["after"], 16)) for w in marked} == {
            (way, "store", 0x800)
        }
        live(f"delete {watch}")
        live(f"until mark_rodata_ro {LIMIT}")
        kernel = live.ctx.guest.kernel
        assert kernel is not None
        banner = kernel.banner_va + live.ctx.guest.view.kaslr_offset
        watch = live(f"watch table {banner:#x}")["id"]
        (write, *_) = writes_of(live, watch, 1)
        assert write["way"] == "fixmap" and write["mmu_on"] and write["task"] == "swapper/0"
        assert any("mark_rodata_ro" in call for call in write["calls"]), write
        walk = live(f"walk {banner:#x}")["steps"]
        assert {(step["descriptor_pa"], step["raw"]) for step in walk} >= {
            (write["descriptor_pa"], write["after"])
        }
