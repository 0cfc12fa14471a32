"""Ways to boot: directly and by UEFI, with and without KASLR; `kpti run` finds the kernel on all of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from conftest import missing
from session import BOOT_SECONDS, KASLR_BOOT, NEWER, Live, fresh, guarded_to_shell, launched

from ptinspect.errors import GuestError, TargetError
from ptinspect.reference import emulator

GUESTS = (
    "5.10-cloud",
    "6.1-cloud",
    "6.12-cloud",
    "6.12-cloud --cpu max",
    "6.12-16k",
    "6.18-cloud",
    f"7.3-cloud --cpu max {NEWER}",
)
REWRITES = f'--append "{KASLR_BOOT} nokaslr kpti=on"'
MOVES = f'--append "{KASLR_BOOT}"'
FORCED = f'--append "{KASLR_BOOT} kpti=on"'
RUN = "kpti run --timeout 300"


@contextmanager
def booted(guest: str, options: str, *, uefi: bool = False) -> Iterator[Live]:
    """Launch a guest; with `uefi` the firmware boots it, and a random number generator lets it use KASLR."""
    more = ""
    if uefi:
        try:
            firmware = emulator.find("newer").share / "QEMU_EFI.fd"
        except TargetError:
            missing("the firmware of the newer QEMU")
        more = f"-- -bios {firmware} -device virtio-rng-pci,romfile="
    with launched(guest, f"{options} {more}") as live:
        yield live


def translates(live: Live, uefi: bool) -> None:
    """Compare what ptinspect says with QEMU's own walk: of code, and of the tables' own root."""
    view = live.ctx.guest.view
    assert view.placed and view.confirmed
    assert view.symbol("vectors") == live.ctx.guest.stopped.cpu_state(0).system["VBAR_EL1"]
    pa = view.pa_of_link(view.image.lookup("vectors"))  # type: ignore[union-attr]
    assert live.ctx.guest.stopped.gva2gpa(view.symbol("vectors")) == pa
    assert uefi == (view.image_pa != 0x4020_0000)


@pytest.mark.parametrize("uefi", [False, True], ids=["direct", "uefi"])
@pytest.mark.parametrize("guest", GUESTS)
def test_with_kaslr_nothing_is_rewritten(guest: str, uefi: bool) -> None:
    with booted(guest, MOVES, uefi=uefi) as live:
        done = live(RUN)
        assert not done["reached"], done
        assert "without a rewrite" in done["reason"]
        assert done["snapshots"] == []
        offset = live.ctx.guest.view.kaslr_offset
        assert offset % 0x1_0000 == 0 != offset
        status = live("kpti status")
        assert (status["state"], status["table_descriptors_marked"]) == ("not-needed", 0), status
        if "max" not in guest and guest != "6.12-16k":
            assert f"KASLR is on (offset {offset:#x})" in status["reason"]
        translates(live, uefi)
        assert "unconfirmed" not in live("map --limit 1")["root"]["provenance"]


@pytest.mark.parametrize("uefi", [False, True], ids=["direct", "uefi"])
@pytest.mark.parametrize("guest", ["6.18-cloud", "7.3-cloud"])
def test_the_rewrite_of_newer_kernels(guest: str, uefi: bool) -> None:
    rewritten(guest, uefi)


@pytest.mark.parametrize("guest", ["5.10-cloud", "6.1-cloud", "6.12-cloud", "6.12-16k"])
def test_the_rewrite_after_a_firmware(guest: str) -> None:
    rewritten(guest, True)


def test_kaslr_and_a_rewrite() -> None:
    """A CPU with E0PD (`max`) needs no KPTI for KASLR: all is global until kpti=on has it rewritten."""
    rewritten(f"7.3-cloud --cpu max {NEWER}", False, FORCED)


def rewritten(guest: str, uefi: bool, line: str = REWRITES) -> None:
    with booted(guest, line, uefi=uefi) as live:
        done = live(RUN)
        assert done["reached"], done
        live("diff before after --expect-only-bit11")
        for level in live("summary --snap after")["levels"]:
            assert level["leaves_ng"] == level["leaves"]
            assert level["table_descriptors_marked"] == level["table_descriptors"]
        translates(live, uefi)


def test_attach_in_the_firmware_and_in_the_kernel() -> None:
    """Somebody else's guest: while the firmware runs nothing is claimed; then the kernel is found."""
    with booted("5.10-cloud", MOVES, uefi=True) as live, fresh() as other:
        assert live.ctx.guest.qemu is not None
        socket, kernel = live.ctx.guest.qemu.gdb_socket, live.ctx.guest.kernel
        assert kernel is not None
        live.ctx.guest.drop_session()
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline:
            other(f"attach {socket}")
            other.ctx.guest.use_kernel(kernel.path)
            state = other.ctx.guest.stopped.cpu_state(0)
            if state.system.get("TTBR1_EL1"):
                break
            early = not state.system["SCTLR_EL1"] & 1  # the kernel's own code perhaps, up to its first tables
            with contextlib.suppress(GuestError) if early else pytest.raises(GuestError):
                pa = other.ctx.guest.view.pa_of_link(kernel.lookup("vectors"))
                there = other.ctx.guest.stopped.memory.read(pa, 64)
                assert there == kernel.text_at(kernel.lookup("vectors"), 64), hex(state.pc)
            assert not other.ctx.guest.view.placed
            other("detach --resume")
            time.sleep(0.1)
        else:
            pytest.fail("the kernel did not begin")
        done = other(RUN)
        assert not done["reached"], done
        translates(other, True)


@pytest.mark.parametrize("guest", ["5.10-cloud", "7.3-cloud"])
def test_the_guard_finds_the_kernel_behind_the_firmware(guest: str) -> None:
    with booted(guest, REWRITES, uefi=True) as live:
        guarded_to_shell(live)
        translates(live, True)
