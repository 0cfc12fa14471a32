"""Find the kernel's own root table, and where in virtual memory it maps the kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ptinspect.arch.bits import MASK64, PhysAddr, bit
from ptinspect.arch.regime import Regime, root_pa
from ptinspect.arch.sysregs import CpuState, mmu_on, translation_register, ttbr_base
from ptinspect.dataclass import dataclass
from ptinspect.errors import MemoryReadError
from ptinspect.linux.image.image import FIRST_CODE, KernelImage
from ptinspect.linux.layout.geometry import least_bits
from ptinspect.linux.layout.leaves import Leaves
from ptinspect.memory.source import PhysicalMemory
from ptinspect.snapshot.model import Root
from ptinspect.tables.capture import capture
from ptinspect.tables.walk import walk
from ptinspect.text import counted

PAGES_APART = (1, 2)
"""Pages from tramp_pg_dir to swapper_pg_dir: 1, or 2 with reserved_pg_dir (or reserved_ttbr0) between.

Source: arch/arm64/kernel/vmlinux.lds.S; TRAMP_SWAPPER_OFFSET in arch/arm64/include/asm/asm-offsets.
"""
VARIANTS_52 = 0x1E00
"""Bytes from swapper_pg_dir to TTBR1 of a 64K kernel for 52-bit addresses on a CPU with 48.

Source: TTBR1_BADDR_4852_OFFSET, arch/arm64/include/asm/pgtable-hwdef.h.
"""
MAX_SCAN = 16_384
"""Tables that a search for the image's mapping reads at most."""


@dataclass(frozen=True)
class RootFound:
    """The table that is the kernel's own, and what it tells."""

    pa: PhysAddr
    """The root table."""
    provenance: str
    """Where the address comes from and what was checked."""
    kaslr_offset: int | None
    """Run-time minus link-time address, modulo 2^64; None if the table could not tell."""
    confirmed: bool = True
    """True if it maps the kernel."""
    damaged: bool = False
    """True if it mapped the kernel at an earlier stop, and does not any more."""


def candidate_roots(
    memory: PhysicalMemory,
    states: Sequence[CpuState],
    regime: Regime,
    image: KernelImage | None,
    image_pa: int | None,
) -> Iterator[Root]:
    """Yield the tables that may be swapper_pg_dir, best first.

    TTBR1 is the reserved table on CPUs that wait for the rewrite, a temporary one on the CPU that
    does it (which keeps swapper's value in x3: Linux commit 47546a1912fc, in v6.0), and
    tramp_pg_dir in user mode with KPTI; only after those is swapper sought. x2 is swapper's address
    while the MMU is off (proc.S, v4.16 to v5.15). Which candidate is right is for the tables to tell.
    """
    for state in states:
        name = translation_register(state, "TTBR1")
        if state.system.get(name):
            yield Root(root_pa(state, regime), f"{name} of cpu {state.cpu}")
    if image is not None and image_pa is not None:
        for state in states:
            if image_pa <= state.pc < image_pa + image.size:
                yield from _of_rewrite(state, regime)
        if "swapper_pg_dir" in image.symbols:
            pa = image_pa + image.lookup("swapper_pg_dir") - image.text_va
            yield Root(PhysAddr(pa), "symbol swapper_pg_dir")
            if regime.granule_bits == 16 and regime.va_bits <= 48:
                yield Root(PhysAddr(pa + VARIANTS_52), "symbol swapper_pg_dir, 48-bit part")
            return
    for state in states:
        name = translation_register(state, "TTBR1")
        stands_in, distances = _stands_in(memory, state, regime) if state.system.get(name) else ("", ())
        for pages in distances:
            where = f"{counted(pages, 'page')} after {stands_in} in {name} of cpu {state.cpu}"
            yield Root(PhysAddr(root_pa(state, regime) + pages * regime.granule), where)


def _stands_in(memory: PhysicalMemory, state: CpuState, regime: Regime) -> tuple[str, tuple[int, ...]]:
    """Return which table stands in for swapper_pg_dir in TTBR1, and how many pages below it that may lie.

    tramp_pg_dir has one entry at its root, and user code or the trampoline runs; reserved_pg_dir has none
    (v5.10 and later; before, it is elsewhere). The boot's own table can have one entry too, and lower tables
    after it, which must not be taken for roots.
    """
    root = root_pa(state, regime)
    valid = valid_entries(memory, root, regime)
    if valid == 0:
        return "reserved_pg_dir", (1,)
    runs = state.el == 0 or (bit(state.pc, 55) and walk(memory, state.pc, root, regime).pa is not None)
    return ("tramp_pg_dir", PAGES_APART) if valid == 1 and runs else ("", ())


def valid_entries(memory: PhysicalMemory, root: int, regime: Regime) -> int | None:
    """Return how many entries of a root table are valid; None if it cannot be read."""
    try:
        raw = memory.read(root, regime.root_size)
    except MemoryReadError:
        return None
    return int(np.count_nonzero(np.frombuffer(raw, "<u8") & np.uint64(1)))


def _of_rewrite(state: CpuState, regime: Regime) -> Iterator[Root]:
    """Yield what the identity-mapped code of the rewrite keeps in x3 and x2: never the table of TTBR0.

    Other code that runs there, such as what makes the identity map, may have that in a register.
    """
    lower = ttbr_base(state.system.get(translation_register(state, "TTBR0"), 0), pa52=regime.wide_oa)
    for number in (3, 2):
        value = ttbr_base(state.x[number], pa52=regime.wide_oa)
        if value not in (0, lower) and not bit(state.x[number], 55):
            yield Root(value, f"x{number} of idmap_kpti_install_ng_mappings on cpu {state.cpu}")


def likely_offsets(states: Sequence[CpuState], image: KernelImage, hint: int | None) -> list[int]:
    """Return the KASLR offsets that registers suggest, the one of an earlier stop first.

    VBAR_EL1 holds the address of `vectors` while a CPU is in the kernel (arch/arm64/kernel/entry.S,
    head.S); in user mode with KPTI, that of a trampoline.
    """
    found = [] if hint is None else [hint]
    if image.linked:
        found.append(0)
    vectors = image.symbols.get("vectors")
    for state in states:
        vbar = state.system.get(translation_register(state, "VBAR"), 0)
        if vectors and bit(vbar, 55):
            found.append((vbar - vectors[0]) & MASK64)
    return list(dict.fromkeys(found))


def led_to(states: Sequence[CpuState]) -> list[int]:
    """Return the physical addresses that the registers of CPUs lead to: of code that runs, and of tables.

    The kernel's own tables for TTBR1, those that stand in for them, and the identity map are parts of its
    image (vmlinux.lds.S). The code of a CPU that translates without TTBR1 is a firmware's, or that of the
    EFI stub, which may run in another copy of the image. Those that tell most come first.
    """
    code, upper, lower = [], [], []
    for state in states:
        ttbr0, ttbr1 = (state.system.get(translation_register(state, name), 0) for name in ("TTBR0", "TTBR1"))
        if not mmu_on(state) and not bit(state.pc, 55):
            code.append(state.pc)
        if ttbr1:
            upper.append(int(ttbr_base(ttbr1)))
            lower.append(int(ttbr_base(ttbr0)))
    return list(dict.fromkeys((*upper, *code, *lower)))


def maps_kernel(
    memory: PhysicalMemory, root: int, regime: Regime, image: KernelImage, *, image_pa: int, offset: int
) -> bool:
    """Tell whether a table maps the image, code and data, to where it lies, if it runs with this offset.

    Pages from the first to the last of each are translated. One of the code's may be missing, and all but
    one of the data's, whose end shares a 2 MiB entry with stacks: the right table may be damaged.
    """
    for places, enough in ((image.code_pages, len(image.code_pages) - 1), (image.data_pages, 1)):
        right = 0
        for at in places:
            va = (image.text_va + offset + at) & MASK64
            if not (bit(va, 55) and regime.contains(va)):
                return False
            right += walk(memory, va, root, regime).pa == image_pa + at
        if right < min(len(places), max(enough, 1)):
            return False
    return True


def image_behind(
    memory: PhysicalMemory, root: int, regime: Regime, image: KernelImage, offset: int
) -> int | None:
    """Return where the image lies if it runs with this offset under this root; None if nothing is there."""
    va = (image.text_va + offset + FIRST_CODE) & MASK64
    if not (bit(va, 55) and regime.contains(va)):
        return None
    pa = walk(memory, va, root, regime).pa
    return None if pa is None else pa - FIRST_CODE


@dataclass(frozen=True)
class Run:
    """Executable memory that is mapped in one piece."""

    va: int
    """First virtual address."""
    pa: int
    """First physical address."""
    size: int
    """Bytes."""


def executable_runs(memory: PhysicalMemory, root: int, regime: Regime) -> list[Run]:
    """Return what the kernel may execute under a root, in ascending order.

    The kernel's image and modules; the linear map maps the same memory, but not executable (PXN).
    """
    tables, _ = capture(memory, root, regime, max_tables=MAX_SCAN)
    leaves, runs = Leaves.of(tables, regime), list[Run]()
    columns = (column[leaves.executable].tolist() for column in (leaves.va, leaves.pa, leaves.size))
    for va, pa, size in zip(*columns, strict=True):
        last = runs[-1] if runs else None
        if last is not None and (last.va + last.size, last.pa + last.size) == (va, pa):
            runs[-1] = Run(last.va, last.pa, last.size + size)
        else:
            runs.append(Run(va, pa, size))
    return runs


def image_in(runs: list[Run], image_pa: int) -> Iterator[int]:
    """Yield the virtual addresses at which the image begins if its first code is in one of the runs."""
    for run in runs:
        if run.pa <= image_pa + FIRST_CODE < run.pa + run.size:
            yield (run.va + image_pa - run.pa) & MASK64


def in_its_half(image: KernelImage, regime: Regime, va: int) -> bool:
    """Tell whether KASLR may have moved the image to `va`: it stays in its half of the kernel's addresses.

    The other half is the linear map's (asm/memory.h: PAGE_END, KIMAGE_VADDR; before v5.4 the halves are
    the other way round). A file that has symbols and does not tell where it is linked is of 7.2 or later.
    True if nothing tells.
    """
    shift = least_bits(regime.va_bits, regime) - 1
    if not image.linked:
        return not image.symbols or va >> shift == MASK64 >> shift
    return va >> shift == image.text_va >> shift


def maps_vectors(memory: PhysicalMemory, root: int, regime: Regime, states: Sequence[CpuState]) -> bool:
    """Tell whether a table maps a CPU's exception vectors and has more than the trampoline in it.

    For want of a kernel file. tramp_pg_dir has one valid entry at its root, and so has a
    temporary table; a kernel's own table has at least two: image and linear map.
    """
    if (valid_entries(memory, root, regime) or 0) < 2:
        return False
    vbars = (state.system.get(translation_register(state, "VBAR"), 0) for state in states)
    return any(
        bit(vbar, 55) and regime.contains(vbar) and walk(memory, vbar, root, regime).pa is not None
        for vbar in vbars
    )
