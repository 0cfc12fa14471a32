"""A recorded boot on QEMU itself: a guest of a few instructions, whose every position and write is known."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bare import LOAD, assembled
from builders import AF, KERNEL_DATA, SH, UXN, TreeBuilder
from session import BOOT_SECONDS, Live, fresh, launched, need_guest

from ptinspect.arch.regime import Regime
from ptinspect.errors import UserError
from ptinspect.processes import poll

TABLES, D = 0x4101_0000, 0x4120_0000
A, B, C = 0xFFFF_8000_1234_5000, 0xFFFF_FFFF_FFE0_7000, 0xFFFF_8000_1234_9000
REGIME = Regime(12, 48, 48, True)
SIZE = 0x2_0000
WRITES = {
    "w0": (0, 0x703),
    "w1": (0x703, 0x1003),
    "w2": (0x1003, 0x2003),
    "w3": (0x2003, 0x2003),
    "w4": (0x2003, 0x2803),
    "w5": (0x2803, 0x3003),
    "w6": (0x3003, 0x3403),
    "w7": (0x3403, 0x60_0000_0000_3403),
    "w8": (0x60_0000_0000_3403, 0),
    "w9": (0, 0x3003),
    "w10": (0x3003, 0),
}
"""What each instruction of writes.S makes of the eight bytes at D."""
PHYSICAL = {"w0", "w1"}
"""Those with the MMU off."""


def guest(directory: Path, *, sets_af: bool) -> tuple[str, dict[str, int]]:
    """Return the command that starts the guest, and the addresses of its labels, and of C's descriptor.

    `sets_af`: QEMU's `max` CPU sets access flags (FEAT_HAFDBS), as it does from version 8 on.
    """
    upper = TreeBuilder(REGIME, tables_at=TABLES)
    lower = TreeBuilder(replace(REGIME, upper=False), memory=upper.memory, tables_at=TABLES + SIZE // 2)
    for va in (A, B):
        upper.map(va, D, size=4096, level=3, attributes=KERNEL_DATA)
    upper.map(C, D, size=4096, level=3, attributes=KERNEL_DATA & ~AF)
    lower.map(0x4000_0000, 0x4000_0000, size=32 << 20, level=2, attributes=UXN | SH | AF)
    kernel = assembled(
        directory, "writes.S", MAIR=0xFF, TCR=16 | 16 << 16 | 2 << 30 | 5 << 32 | sets_af << 39,
        TTBR0=lower.root, TTBR1=upper.root, D=D, A=A, B=B, C=C * sets_af,
    )  # fmt: skip
    (directory / "tables").write_bytes(upper.memory.read(TABLES, SIZE))
    loader = f"-device loader,file={directory / 'tables'},addr={TABLES:#x},force-raw=on"
    shown = subprocess.run(
        ["aarch64-linux-gnu-nm", directory / "a.o"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    labels = {name: LOAD + int(at, 16) for at, kind, name in map(str.split, shown) if kind == "t"}
    labels["C"] = upper.table_at(C, 3) + 8 * REGIME.index(C, 3)
    return f"launch {kernel} --no-initrd --cpu max --memory 64 --append '' {{}} -- {loader}", labels


@pytest.fixture
def recorded(tmp_path: Path, each_qemu: str) -> Iterator[tuple[Live, dict[str, int]]]:
    """The guest, recorded and opened again, at its start."""
    folder = tmp_path / "a, b"
    with fresh() as live:
        line, labels = guest(tmp_path, sets_af=each_qemu == "newer")
        live(line.format(f"--timeline '{folder}'"))
        live.ctx.guest.use_kernel(None)  # it is none
        assert live("status")["timeline"] == {
            "mode": "record", "position": 0, "end": None, "directory": str(folder)
        }  # fmt: skip
        with pytest.raises(UserError, match="recorded"):
            live("rsi")
        with pytest.raises(UserError, match="not written"):
            live("poke descriptor pa:0x40000000 0x0 --yes")
        live(f"until {labels['done']:#x} --timeout 300")
        length = live("timeline")["position"]
        live("detach")
        folder = folder.rename(tmp_path / "now, elsewhere")
        (tmp_path / "tables").unlink()  # the recording has its own
        opened = live(f"timeline open '{folder}' --trust")
        live.ctx.guest.use_kernel(None)
        assert opened["timeline"] == {
            "mode": "replay", "position": 0, "end": length, "directory": str(folder)
        }  # fmt: skip
        assert opened["console"] == f"{folder}/console.log"
        yield live, labels


def positions(live: Live, labels: dict[str, int]) -> dict[str, int]:
    """Step to each label that writes, and return the positions after the writes."""
    found = {}
    for name in WRITES:
        live(f"until {labels[name]:#x} --timeout 300")
        found[name] = live("timeline")["position"] + 1
    return found


def test_a_recording_is_replayed_to_its_end_and_back(recorded: tuple[Live, dict[str, int]]) -> None:
    live, labels = recorded
    at = positions(live, labels)
    assert live("timeline goto end")["pc"] == hex(labels["done"])
    with pytest.raises(UserError, match="end of the recording"):
        live("continue")
    assert live("rsi")["pc"] == hex(labels["done"] - 4) and live("stepi")["pc"] == hex(labels["done"])
    for name in ("w9", "w0", "w4"):
        assert live(f"timeline goto {at[name]}")["pc"] == hex(labels[name] + 4)
        assert live("rsi")["pc"] == hex(labels[name])
    for name in ("w2", "w1"):
        live(f"break {labels[name]:#x}")
    live("timeline goto end")
    for name in ("w2", "w1"):
        stop = live("rc")
        assert (stop["pc"], stop["position"]) == (hex(labels[name]), at[name] - 1)
    for command in ("delvm init", "savevm init"):
        with pytest.raises(UserError, match="QEMU may end"):
            live(f"monitor {command}")
    assert live("rc")["reason"] == "the start of the recording"
    with pytest.raises(UserError, match="start of the recording"):
        live("rsi")
    assert live("continue --timeout 300")["pc"] == hex(labels["w1"])


def test_a_recording_whose_qemu_was_killed_goes_as_far_as_it_goes(tmp_path: Path) -> None:
    need_guest("5.10-cloud")
    folder = tmp_path / "t"
    with launched("5.10-cloud", f"--memory 256 --timeline {folder}") as live:
        live("continue --background")
        qemu = live.ctx.guest.qemu
        assert qemu is not None
        assert poll(lambda: b"Freeing unused kernel memory" in qemu.console.read_bytes(), BOOT_SECONDS)
        os.kill(qemu.pid, signal.SIGKILL)
        qemu.process.wait()
        end = live(f"timeline open {folder}")["timeline"]["end"]
        assert live("timeline goto end")["position"] == end > 10_000_000
        assert live("rsi")["position"] == end - 1


def test_who_lists_exactly_the_writes_of_the_program(
    recorded: tuple[Live, dict[str, int]], each_qemu: str
) -> None:
    live, labels = recorded
    at = positions(live, labels)
    live("timeline goto end")
    live(f"break {labels['w5']:#x}")  # it stops nothing here
    found = live(f"who pa:{D:#x} --all --timeout 300")["descriptors"][0]
    assert found["at_reset"] == "0x0" and found["whole"] and not found["cut"]
    assert [
        (w["pc"], w["position"], int(w["before"], 16), int(w["after"], 16), w["how"]) for w in found["writes"]
    ] == [(hex(labels[name]), at[name], *values, "store") for name, values in WRITES.items()]
    assert {name for name, w in zip(WRITES, found["writes"], strict=True) if not w["mmu_on"]} == PHYSICAL
    assert live("timeline")["position"] == live("timeline")["end"]
    of_c = live(f"who {C:#x} --level pte --all")["descriptors"][0]
    assert of_c["descriptor_pa"] == hex(labels["C"]) and int(of_c["at_reset"], 16) & AF == 0
    by_cpu = [(hex(labels["w12"]), "hardware", ["attributes"])] if each_qemu == "newer" else []
    assert [(w["pc"], w["how"], w["changes"]) for w in of_c["writes"]] == by_cpu
    for name in ("w9", "w3", "w2", "w1"):
        live(f"timeline goto {at[name] + (name == 'w1')}")
        last = live(f"who pa:{D:#x}")["descriptors"][0]["writes"]
        assert [w["pc"] for w in last] == [hex(labels[name])]
    live(f"timeline goto {at['w0'] - 1}")
    assert live(f"who pa:{D:#x}")["descriptors"][0]["writes"] == []


def test_diff_names_who_wrote_what_changed(recorded: tuple[Live, dict[str, int]], tmp_path: Path) -> None:
    live, labels = recorded
    at = positions(live, labels)
    for name in ("w2", "w6", "w9", "w10"):
        live(f"timeline goto {at[name]}")
        extra = live(f"snap {name} --root pa:{D:#x}")["extra"]
        assert extra["timeline.position"] == f"{at[name]}"
    live("timeline goto start")
    live(f"save w10 {tmp_path}/w10.npz")

    def by(pair: str) -> list[tuple[str, str, int]]:
        found = live(f"diff {pair} --who")
        assert found["writers_left_out"] == 0 and live("timeline")["position"] == 0
        return [
            (c["descriptor_pa"], w["pc"], w["position"])
            for c in found["changes"]
            if (w := c.get("written")) is not None
        ]

    assert by("w2 w6") == [(hex(D), hex(labels["w6"]), at["w6"])] == by("w6 w2")
    assert by(f"w9 {tmp_path}/w10.npz") == [(hex(D + 8 * n), hex(labels["w10"]), at["w10"]) for n in range(2)]
    live("detach")
    with pytest.raises(UserError, match="only a recorded boot"):
        live("diff w2 w6 --who")
