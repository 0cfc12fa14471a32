"""Watches of descriptors on QEMU itself: a guest whose every write is known, and Linux."""

from __future__ import annotations

from pathlib import Path

import pytest
from session import Live
from test_timeline_live import PHYSICAL, WRITES, D, guest

from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import build_registry

pytestmark = pytest.mark.live


def test_the_guest_stops_at_exactly_the_writes_of_the_program(tmp_path: Path, each_qemu: str) -> None:
    ctx = Context(build_registry())
    live = Live(ctx)
    try:
        line, labels = guest(tmp_path, sets_af=each_qemu == "newer")
        live(line.format(""))
        ctx.guest.use_kernel(None)  # it is none
        watch = live(f"watch table pa:{D:#x}")
        live(f"break {labels['done']:#x}")
        found = []
        while (stop := live("continue --timeout 60"))["breakpoint"] == watch["id"]:
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
    finally:
        ctx.close()
