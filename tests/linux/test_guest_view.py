"""Where the kernel is: image, root table, KASLR, in every state in which a guest can be stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from builders import KERNEL_TEXT, TreeBuilder, regime_4k
from kernels import BANNER, BANNER_AT, TEXT_SIZE, TEXT_VA, image, table, with_symbols
from sparse_memory import SparseMemory
from stopped_guest import (
    DATA_SYMBOLS,
    IMAGE_PA,
    RAM,
    RESERVED,
    SWAPPER,
    SYMBOLS,
    TCR,
    TEMPORARY,
    TRAMP,
    TRAMP_VA,
    Guest,
)

from ptinspect.arch.bits import MASK64
from ptinspect.arch.sysregs import UNWRITTEN
from ptinspect.errors import GuestError, KernelFileError, MemoryReadError, RegimeError
from ptinspect.linux.image import kallsyms
from ptinspect.linux.image.image import KernelImage


@pytest.fixture
def symbols(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, int, str]]:
    """The symbols that are recovered from an Image; a test may add some."""
    monkeypatch.setenv("PTINSPECT_CACHE", str(tmp_path / "cache"))
    found = list(SYMBOLS)
    monkeypatch.setattr(kallsyms, "_run", lambda data: (table(found), "" if found else "there are none"))
    return found


@pytest.fixture
def kernel(tmp_path: Path, symbols: list[tuple[str, int, str]]) -> KernelImage:
    (tmp_path / "Image").write_bytes(image())
    return KernelImage.open(tmp_path / "Image")


@pytest.fixture
def other(tmp_path: Path, symbols: list[tuple[str, int, str]]) -> KernelImage:
    (tmp_path / "other").write_bytes(image(seed=2))
    return KernelImage.open(tmp_path / "other")


# -- in the kernel ------------------------------------------------------------------------------


@pytest.mark.parametrize("kaslr", [0, 0x3456_0000_0000])
def test_in_the_kernel(kernel: KernelImage, kaslr: int) -> None:
    guest = Guest(kaslr)
    view = guest.view(kernel)
    assert (view.image_pa, view.placement.match, view.placement.settled) == (IMAGE_PA, 1.0, True)
    assert view.placed and view.confirmed
    assert view.kaslr_offset == kaslr
    assert view.voffset == (TEXT_VA + kaslr - IMAGE_PA) & MASK64
    assert view.swapper().pa == SWAPPER
    expected = "TTBR1_EL1 of cpu 0, which maps the kernel image"
    assert view.swapper().provenance == expected + (f", KASLR offset {kaslr:#x}" if kaslr else "")
    assert view.symbol("vectors") == guest.va(0x1_0800)
    assert view.pa_of(guest.va(0x1_0804)) == IMAGE_PA + 0x1_0804
    assert view.pa_of_link(TEXT_VA + 0x123) == IMAGE_PA + 0x123
    assert view.banner() == BANNER.decode().strip()


def test_reads_cross_pages_and_go_through_the_tables(kernel: KernelImage) -> None:
    guest = Guest()
    guest.tree.map(0xFFFF_8000_2000_0000, 0x4300_5000)
    guest.tree.map(0xFFFF_8000_2000_1000, 0x4300_1000)
    guest.memory.write(0x4300_5FFC, b"abcd")
    guest.memory.write(0x4300_1000, b"efghijkl")
    view = guest.view(kernel)
    assert view.read_virt(0xFFFF_8000_2000_0FFC, 8) == b"abcdefgh"
    assert view.read_u64(0xFFFF_8000_2000_1000) == int.from_bytes(b"efghijkl", "little")
    assert view.read_virt(0xFFFF_8000_2000_0FFC, 0) == b""
    with pytest.raises(GuestError, match="0xffff800020002000 is not mapped: translation fault"):
        view.read_virt(0xFFFF_8000_2000_1FFC, 8)
    guest.tree.map(0xFFFF_8000_2000_2000, 0x9_0000_0000)
    with pytest.raises(MemoryReadError):
        guest.view(kernel).read_virt(0xFFFF_8000_2000_2000, 8)


def test_neighbours_are_found_in_the_last_table(kernel: KernelImage) -> None:
    guest = Guest()
    guest.tree.map(0xFFFF_8000_2000_0000, 0x4300_5000)
    guest.tree.map(0xFFFF_8000_2000_3000, 0x4300_1000)
    guest.tree.map(0xFFFF_8000_2020_0000, 0x4320_0000, level=2)
    view = guest.view(kernel)
    assert view.pa_of(0xFFFF_8000_2000_0008) == 0x4300_5008
    reads = guest.memory.reads
    assert view.pa_of(0xFFFF_8000_2000_3008) == 0x4300_1008 and guest.memory.reads == reads + 1
    assert view.pa_of(0xFFFF_8000_2020_0008) == 0x4320_0008
    assert view.pa_of(0xFFFF_8000_203F_F008) == 0x433F_F008


def test_patched_code_still_matches(kernel: KernelImage) -> None:
    guest = Guest()
    for at in range(0x1_0000, 0x5_0000, 0x40):
        guest.memory.write(IMAGE_PA + at, bytes.fromhex("1f2003d5"))
    placement = guest.view(kernel).placement
    assert placement.pa == IMAGE_PA
    assert placement.match is not None and 0.9 < placement.match < 1.0


def test_the_root_is_named_where_the_kernel_names_its_data(
    kernel: KernelImage, symbols: list[tuple[str, int, str]]
) -> None:
    symbols += DATA_SYMBOLS
    guest = Guest()
    assert (
        guest.view(kernel).swapper().provenance.startswith("TTBR1_EL1 of cpu 0 = swapper_pg_dir, which maps")
    )
    early = TreeBuilder(guest.regime, memory=guest.memory, tables_at=0x4600_0000, root=IMAGE_PA + 0x9_0000)
    early.map(guest.va(0), IMAGE_PA, size=0x10_0000)
    view = guest.view(kernel, guest.cpu(TTBR1_EL1=IMAGE_PA + 0x9_0000))
    assert view.swapper().provenance == "TTBR1_EL1 of cpu 0 = init_pg_dir, which maps the kernel image"


# -- elsewhere ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kaslr", [0, 0x1000_0000])
def test_in_user_mode_with_kpti(kernel: KernelImage, kaslr: int) -> None:
    guest = Guest(kaslr)
    user = guest.cpu(el=0, pc=0x40_0078, TTBR1_EL1=TRAMP | 3 << 48, VBAR_EL1=TRAMP_VA + 0x800)
    view = guest.view(kernel, user)
    assert view.swapper().pa == SWAPPER
    assert view.swapper().provenance.startswith(
        "2 pages after tramp_pg_dir in TTBR1_EL1 of cpu 0, which maps"
    )
    assert (view.kaslr_offset, view.placed) == (kaslr, True)


def test_another_cpu_knows_more(kernel: KernelImage) -> None:
    guest = Guest(0x1000_0000)
    user = guest.cpu(el=0, TTBR1_EL1=TRAMP, VBAR_EL1=TRAMP_VA + 0x800)
    view = guest.view(kernel, user, guest.cpu(1))
    assert view.swapper().provenance.startswith("TTBR1_EL1 of cpu 1, which maps the kernel image")
    assert view.kaslr_offset == 0x1000_0000


def test_the_current_cpu_is_asked_first(kernel: KernelImage) -> None:
    guest = Guest()
    view = guest.view(kernel, guest.cpu(0), guest.cpu(1), current=1)
    assert view.state.cpu == 1
    assert "cpu 1" in view.swapper().provenance


@pytest.mark.parametrize("register", [3, 2])
def test_in_the_rewrite(kernel: KernelImage, register: int) -> None:
    """The boot CPU has a temporary table in TTBR1, the other one the reserved one."""
    guest = Guest()
    inside = IMAGE_PA + 0x4_0600
    boot = guest.cpu(pc=inside, x={2: TEMPORARY} | {register: SWAPPER}, TTBR1_EL1=TEMPORARY)
    view = guest.view(kernel, boot, guest.cpu(1, pc=inside, TTBR1_EL1=RESERVED))
    assert view.swapper().pa == SWAPPER
    assert view.swapper().provenance.startswith(f"x{register} of idmap_kpti_install_ng_mappings on cpu 0")
    assert view.kaslr_offset == 0


def test_in_the_rewrite_when_the_root_does_not_map_the_kernel_any_more(kernel: KernelImage) -> None:
    """A lost entry must not make the temporary table the kernel's own."""
    guest = Guest()
    boot = guest.cpu(pc=IMAGE_PA + 0x4_0600, x={2: TEMPORARY, 3: SWAPPER}, TTBR1_EL1=TEMPORARY)
    sound = guest.view(kernel, boot)
    assert sound.confirmed
    root = int.from_bytes(guest.memory.read(SWAPPER + 8 * 256, 8), "little")
    guest.memory.write(SWAPPER + 8 * 256, bytes(8))
    damaged = guest.view(kernel, boot, previous=sound)
    for view in (damaged, guest.view(kernel, boot, previous=damaged)):
        assert view.swapper().pa == SWAPPER and not view.confirmed
        assert view.is_kernels, "its tables are captured, however damaged"
        assert view.placed and view.kaslr_offset == 0, "the kernel is where it was"
        assert view.swapper().provenance.endswith("at an earlier stop and does not any more")
    guest.memory.write(SWAPPER + 8 * 256, root.to_bytes(8, "little"))
    assert guest.view(kernel, boot, previous=damaged).confirmed
    elsewhere = guest.cpu(pc=IMAGE_PA + 0x4_0600, x={2: TEMPORARY}, TTBR1_EL1=TEMPORARY)
    guest.memory.write(SWAPPER + 8 * 256, bytes(8))
    other = guest.view(kernel, elsewhere, previous=sound)
    assert other.swapper().pa == TEMPORARY and not other.is_kernels


def test_a_root_that_does_not_map_the_kernel_when_somebody_comes(kernel: KernelImage) -> None:
    """The kernel has died at its own vectors: they tell where it ran."""
    guest = Guest(kaslr=0x1000_0000)
    dead = guest.cpu(pc=guest.va(0x1_0800) + 0x200)
    sound = guest.view(kernel, dead)
    assert sound.confirmed and sound.kaslr_offset == 0x1000_0000
    guest.memory.write(SWAPPER + 8 * 256, bytes(8))
    view = guest.view(kernel, dead)
    assert (view.swapper().pa, view.kaslr_offset, view.confirmed) == (SWAPPER, 0x1000_0000, False)
    assert view.is_kernels and "which does not map the kernel image" in view.swapper().provenance
    off = guest.cpu(1, TTBR1_EL1=UNWRITTEN)
    for other in (guest.cpu(pc=dead.pc, TTBR1_EL1=TEMPORARY), guest.cpu(pc=dead.pc, VBAR_EL1=dead.pc)):
        found = guest.view(kernel, other, off).swapper()
        assert "unconfirmed" in found.provenance, "another table, or vectors of something else"


def test_in_the_rewrite_without_a_file_another_cpu_tells(kernel: KernelImage) -> None:
    """A CPU that waits has reserved_pg_dir, which lies a page below swapper_pg_dir."""
    guest = Guest()
    boot = guest.cpu(pc=IMAGE_PA + 0x4_0600, x={2: TEMPORARY, 3: SWAPPER}, TTBR1_EL1=TEMPORARY)
    waits = guest.cpu(1, pc=IMAGE_PA + 0x4_0600, TTBR1_EL1=RESERVED)
    view = guest.view(None, boot, waits)
    assert (view.swapper().pa, view.confirmed) == (SWAPPER, True)
    assert view.swapper().provenance.startswith("1 page after reserved_pg_dir in TTBR1_EL1 of cpu 1, which")


def test_a_root_that_has_lost_the_end_of_the_image_is_the_root(kernel: KernelImage) -> None:
    """The 2 MiB that hold the end of .data and .bss hold stacks too: a loss there is what people look for."""
    guest = Guest(0x1000_0000)
    guest.tree.set(guest.va(0x7_F000), 3, 0)
    guest.tree.set(guest.va(0xF_F000), 3, 0)
    view = guest.view(kernel)
    assert (view.swapper().pa, view.confirmed, view.placed) == (SWAPPER, True, True)


def test_registers_that_lead_nowhere(kernel: KernelImage, symbols: list[tuple[str, int, str]]) -> None:
    guest = Guest()
    lost = guest.cpu(pc=IMAGE_PA + 0x4_0600, x={2: 0x4600_0000, 3: 0x9_9999_0000}, TTBR1_EL1=0x4700_0000)
    view = guest.view(kernel, lost)
    assert not view.confirmed and not view.placed
    assert "unconfirmed: no table was found that maps the kernel image" in view.swapper().provenance
    with pytest.raises(GuestError, match="it is not known where the kernel runs"):
        _ = view.kaslr_offset
    with_symbols(kernel, symbols + DATA_SYMBOLS)
    view = guest.view(kernel, lost)
    assert view.swapper().provenance == "symbol swapper_pg_dir, which maps the kernel image"


def test_the_mmu_is_off(kernel: KernelImage) -> None:
    """Kernel addresses are translated all the same; others are physical."""
    guest = Guest()
    view = guest.view(kernel, guest.cpu(pc=IMAGE_PA + 0x4_0600, SCTLR_EL1=0))
    assert view.pa_of(guest.va(0x1_0800)) == IMAGE_PA + 0x1_0800
    assert view.pa_of(IMAGE_PA + 8) == IMAGE_PA + 8


def test_user_addresses_go_through_ttbr0(kernel: KernelImage) -> None:
    guest = Guest()
    user = TreeBuilder(regime_4k(upper=False), memory=guest.memory, tables_at=0x4700_0000, root=0x4600_0000)
    user.map(0x40_0000, 0x4111_1000)
    view = guest.view(kernel)
    assert view.pa_of(0x40_0123) == 0x4111_1123
    with pytest.raises(GuestError, match="not mapped under TTBR0"):
        view.pa_of(0x50_0000)


def test_addresses_of_a_cpu_at_el2_go_through_its_own_table(kernel: KernelImage) -> None:
    guest = Guest()
    hyp = TreeBuilder(regime_4k(upper=False), memory=guest.memory, tables_at=0x4700_0000, root=0x4600_0000)
    hyp.map(0x40_0000, 0x4111_1000)
    el2 = {"TTBR0_EL2": 0x4600_0000, "TCR_EL2": 16 | 5 << 16, "SCTLR_EL2": 1, "MAIR_EL2": 0, "TTBR0_EL1": 0}
    view = guest.view(kernel, dataclasses.replace(guest.cpu(**el2), pstate=0x3C9))
    assert view.pa_of(0x40_0123) == 0x4111_1123
    assert view.pa_of(guest.va(0x1_0800)) == IMAGE_PA + 0x1_0800
    with pytest.raises(GuestError, match="not mapped under TTBR0_EL2"):
        view.pa_of(0x50_0000)


# -- before there is a kernel -------------------------------------------------------------------

RESET = {"TTBR1_EL1": 0, "TCR_EL1": 0, "SCTLR_EL1": 0, "VBAR_EL1": 0, "TTBR0_EL1": 0}


def test_at_reset_the_image_is_there_and_no_table(kernel: KernelImage) -> None:
    guest = Guest()
    view = guest.view(kernel, guest.cpu(pc=0x4000_0000, **RESET))
    assert (view.image_pa, view.placed, view.confirmed) == (IMAGE_PA, False, False)
    assert view.pa_of_link(TEXT_VA + 0x4_0510) == IMAGE_PA + 0x4_0510
    with pytest.raises(RegimeError, match="TCR_EL1 is 0"):
        view.swapper()
    with pytest.raises(RegimeError):
        _ = view.kaslr_offset


def test_before_the_image_is_loaded_its_place_is_not_known(kernel: KernelImage) -> None:
    """At reset with a firmware: it may put the kernel anywhere."""
    guest = Guest()
    guest.memory.write(IMAGE_PA, bytes(0x8_0000))
    view = guest.view(kernel, guest.cpu(pc=0, **RESET))
    assert not view.placed
    with pytest.raises(GuestError, match="was not found in guest memory"):
        view.pa_of_link(TEXT_VA)


@pytest.mark.parametrize("mmu", [0, 1])
def test_what_a_firmware_has_read_may_still_be_moved(kernel: KernelImage, mmu: int) -> None:
    """The EFI stub runs in such a copy, with the firmware's tables in TTBR0."""
    guest = Guest()
    where = IMAGE_PA + 0x4_0000 if mmu else 0x1234
    state = guest.cpu(pc=where, **RESET | {"SCTLR_EL1": mmu, "TCR_EL1": TCR[48], "TTBR0_EL1": 0x47FF_F000})
    view = guest.view(kernel, state)
    assert (view.image_pa, view.placement.settled, view.placed) == (IMAGE_PA, False, False)
    with pytest.raises(GuestError, match="a firmware or boot loader runs: Image is at pa:0x40200000, but"):
        view.pa_of_link(TEXT_VA)


def test_the_copy_that_the_cpus_use_counts(kernel: KernelImage) -> None:
    """The kernel runs at a multiple of 64 KiB; what the firmware has read lies below, whole and unused."""
    guest = Guest(0x1000_0000, image_pa=0x4C23_0000)
    copy = guest.memory.read(guest.image_pa, 0x8_0000)
    guest.memory.write(IMAGE_PA, copy)
    before = guest.view(kernel, guest.cpu(pc=guest.image_pa + 0x1_0000, **RESET))
    assert (before.image_pa, before.placement.settled) == (0x4C23_0000, True)
    early = guest.view(kernel, guest.cpu(pc=guest.image_pa + 0x4_0000, VBAR_EL1=0), previous=before)
    assert (early.image_pa, early.kaslr_offset) == (0x4C23_0000, 0x1000_0000)
    for kernel_mode in (guest.view(kernel), guest.view(kernel, previous=early)):
        assert (kernel_mode.image_pa, kernel_mode.kaslr_offset) == (0x4C23_0000, 0x1000_0000)
        assert kernel_mode.pa_of(guest.va(0x1_0800)) == 0x4C23_0000 + 0x1_0800


def test_lower_tables_behind_the_boots_own_are_no_roots(kernel: KernelImage) -> None:
    """A PTE page taken for a root leads through code and back into the tables: the image seems to be mapped.

    The table two pages behind the boot's own holds what maps the image at an odd place.
    """
    guest = Guest()
    boot = 0x4700_0000
    tables = TreeBuilder(guest.regime, memory=guest.memory, tables_at=0x4710_0000, root=boot)
    tables.map(guest.va(0), IMAGE_PA, size=0x10_0000)
    odd = TreeBuilder(guest.regime, memory=guest.memory, tables_at=0x4720_0000, root=boot + 0x2000)
    odd.map(0xFFFF_0B2C_8020_0000, IMAGE_PA, size=0x10_0000, attributes=KERNEL_TEXT)
    state = guest.cpu(pc=IMAGE_PA + 0x4_0000, TTBR1_EL1=boot, VBAR_EL1=0, TTBR0_EL1=SWAPPER - 0x3000)
    assert guest.view(kernel, state).swapper().pa == boot
    moved = Guest(0x1000_0000)
    tables = TreeBuilder(moved.regime, memory=moved.memory, tables_at=0x4710_0000, root=boot)
    tables.map(moved.va(0), IMAGE_PA, size=0x10_0000)
    odd = TreeBuilder(moved.regime, memory=moved.memory, tables_at=0x4720_0000, root=boot + 0x2000)
    odd.map(0xFFFF_0B2C_8020_0000, IMAGE_PA, size=0x10_0000, attributes=KERNEL_TEXT)
    view = moved.view(kernel, state)
    assert (view.swapper().pa, view.confirmed, view.placed) == (boot, False, False)
    assert "unconfirmed" in view.swapper().provenance


def test_a_table_that_maps_the_code_elsewhere_in_part_is_no_root(kernel: KernelImage) -> None:
    """One page of code at the right place proves nothing."""
    guest = Guest()
    half = TreeBuilder(guest.regime, memory=guest.memory, tables_at=0x4710_0000, root=0x4700_0000)
    half.map(guest.va(0x1_0000), IMAGE_PA + 0x1_0000, size=0x1_0000, attributes=KERNEL_TEXT)
    half.map(guest.va(0x2_0000), IMAGE_PA + 0x3_0000, size=0x8_0000, attributes=KERNEL_TEXT)
    view = guest.view(kernel, guest.cpu(TTBR1_EL1=0x4700_0000))
    assert not view.confirmed


def test_a_firmware_at_el2_runs_in_a_copy(kernel: KernelImage) -> None:
    """Its MMU is on by SCTLR_EL2; SCTLR_EL1 says nothing."""
    guest = Guest()
    system = RESET | {"SCTLR_EL2": 1, "HCR_EL2": 0, "TTBR0_EL2": 0x47FF_F000}
    state = dataclasses.replace(guest.cpu(pc=IMAGE_PA + 0x4_0000, **system), pstate=0x3C9)
    assert not guest.view(kernel, state).placement.settled
    entered = dataclasses.replace(state, system=state.system | {"SCTLR_EL2": 0})
    assert guest.view(kernel, entered).placement.settled


def test_tables_that_map_nothing_yet(kernel: KernelImage) -> None:
    guest = Guest()
    view = guest.view(kernel, guest.cpu(**RESET | {"TCR_EL1": TCR[48]}))
    with pytest.raises(GuestError, match="no kernel tables yet"):
        view.swapper()
    assert not view.placed


# -- the image ----------------------------------------------------------------------------------


def test_an_image_elsewhere_in_ram(kernel: KernelImage) -> None:
    """EFI may put it at any 2 MiB boundary; what it was loaded from may still lie around."""
    guest = Guest()
    data = guest.memory.read(IMAGE_PA, 0x8_0000)
    guest.memory.write(0x4E20_0000, data)
    guest.memory.write(IMAGE_PA + 0x1_0000, bytes(TEXT_SIZE))
    view = guest.view(kernel)
    assert view.image_pa == 0x4E20_0000
    assert not view.placed, "the tables map another place"


@pytest.mark.parametrize("kaslr", [0, 0x1000_0000])
def test_the_header_is_gone(kernel: KernelImage, kaslr: int) -> None:
    guest = Guest(kaslr)
    guest.memory.write(IMAGE_PA, bytes(64))
    view = guest.view(kernel)
    assert (view.image_pa, view.kaslr_offset) == (IMAGE_PA, kaslr)
    assert view.placement.provenance == "its code, mapped by TTBR1_EL1 of cpu 0"
    user = guest.cpu(el=0, TTBR1_EL1=TRAMP, VBAR_EL1=TRAMP_VA)
    view = guest.view(kernel, user)
    assert (view.image_pa, view.kaslr_offset) == (IMAGE_PA, kaslr)


def test_in_the_rewrite_without_the_header(kernel: KernelImage) -> None:
    """The temporary table of the rewrite maps no kernel, and the header's page may hold a table by then."""
    guest = Guest()
    guest.memory.write(IMAGE_PA, bytes(0x1000))
    view = guest.view(kernel, guest.cpu(TTBR1_EL1=TEMPORARY, x3=SWAPPER))
    assert (view.image_pa, view.placement.provenance) == (IMAGE_PA, "its code in RAM")
    guest.memory.write(IMAGE_PA, bytes(0x8_0000))
    with pytest.raises(GuestError, match="was not found in guest memory"):
        _ = guest.view(kernel, guest.cpu(TTBR1_EL1=TEMPORARY, x3=SWAPPER)).image_pa


def test_another_kernels_file_is_refused_unless_forced(kernel: KernelImage, other: KernelImage) -> None:
    guest = Guest()
    view = guest.view(other)
    with pytest.raises(
        KernelFileError, match=r"other is not the kernel in this guest: another kernel's header|0%"
    ):
        _ = view.image_pa
    for ask in (lambda: view.voffset, lambda: view.kaslr_offset, lambda: view.symbol("vectors")):
        with pytest.raises(KernelFileError):
            ask()
    assert not view.placed
    assert view.banner() == ""
    assert view.swapper().pa == SWAPPER, "the registers do for walks"
    forced = guest.view(other, force=True)
    assert (forced.image_pa, forced.kaslr_offset) == (IMAGE_PA, 0)


def test_an_image_without_symbols(kernel: KernelImage) -> None:
    guest = Guest(0x1000_0000)
    view = guest.view(with_symbols(kernel, [], "none"))
    assert view.image_pa == IMAGE_PA
    assert view.voffset == (TEXT_VA + 0x1000_0000 - IMAGE_PA) & MASK64
    assert view.pa_of_link(0x1_0000) == IMAGE_PA + 0x1_0000
    assert view.swapper().provenance == "TTBR1_EL1 of cpu 0, which maps the kernel image"
    assert view.banner() == BANNER.decode().strip()


def test_no_kernel_file(kernel: KernelImage) -> None:
    guest = Guest()
    view = guest.view(None)
    assert view.swapper().provenance == "TTBR1_EL1 of cpu 0, which maps the exception vectors"
    assert view.pa_of(guest.va(0x1_0800)) == IMAGE_PA + 0x1_0800
    assert (view.placed, view.banner()) == (False, "")
    for ask in (
        lambda: view.kaslr_offset,
        lambda: view.symbol("vectors"),
        lambda: view.image_pa,
        lambda: view.pa_of_link(0),
    ):
        with pytest.raises(GuestError, match="kernel"):
            ask()
    user = guest.cpu(el=0, TTBR1_EL1=TRAMP, VBAR_EL1=TRAMP_VA)
    assert guest.view(None, user).swapper().pa == SWAPPER


def test_an_earlier_stop_is_a_hint_and_no_more(kernel: KernelImage) -> None:
    guest = Guest(0x1000_0000)
    first = guest.view(kernel)
    assert first.placed
    reads = guest.memory.reads
    again = guest.view(kernel, previous=first)
    assert again.placed
    cheap = guest.memory.reads - reads
    guest.memory.reads = 0
    assert guest.view(kernel).placed
    assert cheap < guest.memory.reads
    moved = Guest(0x2000_0000)
    assert moved.view(kernel, previous=first).kaslr_offset == 0x2000_0000


def test_a_banner_cannot_send_control_codes(kernel: KernelImage) -> None:
    guest = Guest()
    guest.memory.write(IMAGE_PA + BANNER_AT, b"Linux version 5.10 \x1b[31m\xff\tx\n")
    assert guest.view(kernel).banner() == "Linux version 5.10 \\x1b[31m\\xff\\tx"


def test_39_bit_kernels(kernel: KernelImage, tmp_path: Path) -> None:
    base = 0xFFFF_FFC0_1000_0000
    guest = Guest.__new__(Guest)
    guest.kaslr, guest.regime, guest.memory = 0, regime_4k(39), SparseMemory(RAM)
    guest.memory.write(IMAGE_PA, image())
    guest.tree = TreeBuilder(guest.regime, memory=guest.memory, tables_at=0x4400_0000, root=SWAPPER)
    guest.tree.map(base, IMAGE_PA, size=0x8_0000, attributes=KERNEL_TEXT)
    with_symbols(kernel, [(n, a - TEXT_VA + base, k) for n, a, k in SYMBOLS])
    state = guest.cpu(TCR_EL1=TCR[39], VBAR_EL1=base + 0x1_0800)
    view = guest.view(kernel, dataclasses.replace(state, pc=base + 0x1_0000))
    assert (view.regime.va_bits, view.kaslr_offset, view.swapper().pa) == (39, 0, SWAPPER)
