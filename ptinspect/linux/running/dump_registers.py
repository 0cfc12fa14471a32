"""Translation registers for memory that came without any: found in the kernel itself, or assumed.

A dump of memory has general registers at most. Root table, granule and address size come from
VMCOREINFO, from the kernel file and its code in memory, or from the user; MAIR_EL1 from the release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from ptinspect.arch.bits import MASK64, PhysAddr
from ptinspect.arch.levels import size_text
from ptinspect.arch.regime import Regime
from ptinspect.dataclass import dataclass
from ptinspect.errors import GuestError, MemoryReadError, UserError
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.image.vmcoreinfo import VmcoreInfo
from ptinspect.linux.releases import image_in_upper_half, indirect_permissions, mair_el1, parse
from ptinspect.linux.running import placement
from ptinspect.linux.running.swapper import VARIANTS_52, RootFound
from ptinspect.memory.source import PhysicalMemory, RamBlock
from ptinspect.tables.walk import walk

SCAN = 4 << 20
MAX_TABLES = 1024
TG0 = {12: 0, 16: 1, 14: 2}
TG1 = {12: 2, 14: 1, 16: 3}
"""TCR_EL1.TG0 and .TG1 by log2 of the granule (Arm ARM TCR_EL1)."""


@dataclass(frozen=True)
class Given:
    """What the user gives; None where nothing is given."""

    root: int | None = None
    """Address of the root table."""
    granule: int | None = None
    """Bytes of a page."""
    va_bits: int | None = None
    """Width of kernel addresses."""
    mair: int | None = None
    """MAIR_EL1."""


@dataclass(frozen=True)
class Derived:
    """What the translation registers must have been."""

    root: PhysAddr
    """The kernel's root table."""
    provenance: str
    """Why this one."""
    system: Mapping[str, int]
    """System registers under their Arm ARM names."""
    sources: tuple[str, ...]
    """Where each fact comes from, one sentence each."""
    release: str = ""
    """The kernel's release, if it is known."""

    @property
    def root_found(self) -> RootFound:
        """The root table, as the view of a running kernel takes it."""
        return RootFound(self.root, self.provenance, None)

    @property
    def banner(self) -> str:
        """The release as the kernel's banner begins; empty if it is not known."""
        known = self.release.startswith("Linux version") or not self.release
        return self.release if known else f"Linux version {self.release}"


def derive(
    memory: PhysicalMemory,
    ram: Sequence[RamBlock],
    image: KernelImage | None,
    infos: Callable[[], Iterable[VmcoreInfo]],
    given: Given,
) -> Derived:
    """Find the kernel's root table and the registers under which it is walked.

    A root is taken only if it maps what it must: itself (VMCOREINFO), or the kernel's code (kernel
    file); the user's own is believed. `infos` is asked only if the kernel file does not tell all.
    Raises UserError that names what to give.
    """

    def candidates() -> Iterator[_Candidate]:
        yield from (*_as_given(given, image), *_from_image(memory, ram, image, given))
        for info in infos():
            yield from _from_info(info, given)

    tried = []
    for found in candidates():
        tried.append(found.provenance)
        if found.holds(memory):
            return found.derived(given)
    what = f" (tried: {', '.join(dict.fromkeys(tried))})" if tried else ""
    raise UserError(
        f"nothing tells where the kernel's tables are{what}",
        "--kernel FILE names the kernel's file; or --root pa:0x… --granule 4K --va-bits 48 --mair 0x…",
    )


@dataclass(frozen=True)
class _Candidate:
    """One guess."""

    root: int
    provenance: str
    granule_bits: int
    va_bits: int
    release: str
    sources: tuple[str, ...]
    proof: tuple[tuple[int, int], ...]
    """Addresses, and where they must lead, all but one in four; none to believe it."""

    @property
    def regime(self) -> Regime:
        """The kernel half, as far as walking needs it."""
        wide = self.va_bits > 48
        ds = wide and self.granule_bits != 16
        return Regime(self.granule_bits, self.va_bits, 52 if wide else 48, True, ds=ds)

    def holds(self, memory: PhysicalMemory) -> bool:
        """Tell whether the tables map what they must."""
        try:
            if self.root % self.regime.root_alignment:
                return False
            memory.read(self.root, self.regime.root_size)
            right = sum(walk(memory, va, self.root, self.regime).pa == pa for va, pa in self.proof)
            return right >= len(self.proof) - len(self.proof) // 4
        except GuestError:
            return False

    def derived(self, given: Given) -> Derived:
        """Return the registers."""
        mair, why = _mair(self.release, given.mair)
        regime = self.regime
        size = 64 - self.va_bits
        tcr = size | size << 16 | TG0[self.granule_bits] << 14 | TG1[self.granule_bits] << 30
        tcr |= 3 << 12 | 3 << 28 | (6 if regime.pa_bits == 52 else 5) << 32 | int(regime.ds) << 59
        system = {"TTBR1_EL1": self.root, "TCR_EL1": tcr, "MAIR_EL1": mair, "SCTLR_EL1": 1}
        known = parse(self.release)
        indirect = ", indirect permissions (TCR2_EL1)"
        if known is not None and not indirect_permissions(known):
            system["TCR2_EL1"] = 0
            indirect = ""
        width = f"addresses of {52 if self.va_bits > 48 else 48} bits in descriptors are assumed"
        sources = (
            *self.sources,
            why,
            f"{width}; hardware management of the Access flag and of dirty state, WXN{indirect}, "
            "TTBR0 and the tasks that CPUs run (SP_EL0) are unknown",
        )
        return Derived(PhysAddr(self.root), self.provenance, system, sources, self.release)


def _as_given(given: Given, image: KernelImage | None) -> Iterator[_Candidate]:
    """Yield what the user gives in full."""
    if given.root is None or given.granule is None or given.va_bits is None:
        return
    release = "" if image is None else image.banner
    sources = ("root, granule and address size are as given",)
    yield _Candidate(
        given.root, "--root", given.granule.bit_length() - 1, given.va_bits, release, sources, ()
    )


def _from_image(
    memory: PhysicalMemory, ram: Sequence[RamBlock], image: KernelImage | None, given: Given
) -> Iterator[_Candidate]:
    """Yield what the kernel file tells of the kernel in memory; proved by where that maps its code."""
    if image is None or not image.linked:
        return
    found = placement.find_image(memory, image, ram)
    if found is None or not found.agrees:
        find = placement.find_code
        found = find(memory, image, ram) or find(memory, image, ram, boundary=placement.EFI_BOUNDARY) or found
    if found is None:
        raise UserError(f"{image.path.name} is not in this memory", "is it the kernel that ran there?")
    if not found.agrees:
        raise placement.mismatch(image, found)
    roots = [(given.root, "--root")] if given.root is not None else []
    if given.root is None and "swapper_pg_dir" in image.symbols:
        pa = found.pa + image.lookup("swapper_pg_dir") - image.text_va
        roots = [(pa, "symbol swapper_pg_dir"), (pa + VARIANTS_52, "symbol swapper_pg_dir, 48-bit part")]
    page = 0 if image.header is None else image.header.page_size
    if not roots:
        roots = [(pa, "a table in the image") for pa in _tables_inside(memory, image, found.pa)]
    granules = [given.granule or page] if given.granule or page else [4096, 65536, 16384]
    pages = (*image.code_pages, *image.data_pages)
    proof = tuple((image.text_va + at, found.pa + at) for at in pages)
    for root, name in roots:
        for granule in granules:
            for bits in _widths(image.text_va, given.va_bits, granule, image.banner):
                sources = (
                    f"the kernel's code is at pa:{found.pa:#x} ({found.provenance}), where {name} maps it",
                    f"{size_text(granule)} pages and {bits}-bit addresses: with these the code is mapped so",
                )
                shift = granule.bit_length() - 1
                provenance = f"{name}, which maps the kernel's code"
                yield _Candidate(root, provenance, shift, bits, image.banner, sources, proof)


def _tables_inside(memory: PhysicalMemory, image: KernelImage, image_pa: int) -> list[int]:
    """Return the pages of the image that may be the kernel's root table, those with most entries first.

    For kernel files that do not name swapper_pg_dir: it is a page of the image all of whose entries are
    valid or zero, and that has one for the linear map besides that for the image (the trampoline's has
    one only).
    """
    found: list[tuple[int, int]] = []
    for at in range(0, image.size, SCAN):
        try:
            data = memory.read(image_pa + at, min(SCAN, image.size - at) & ~4095)
        except MemoryReadError:
            continue
        words = np.frombuffer(data, "<u8").reshape(-1, 512)
        used = words != 0
        alike = (words & np.uint64(0x000F_0000_0000_0001)) == np.uint64(1)
        counts = used.sum(axis=1)
        fits = (alike == used).all(axis=1) & (counts >= 1)
        found += [(-int(counts[n]), image_pa + at + 4096 * int(n)) for n in np.flatnonzero(fits)]
    return [pa for _, pa in sorted(found)[:MAX_TABLES]]


def _widths(text_va: int, wish: int | None, granule: int, banner: str) -> list[int]:
    """Return the address sizes that an image linked there may have, likely ones first.

    The half of the kernel's addresses that the image is in follows from the release.
    """
    if wish is not None:
        return [wish]
    ones = 64 - (~text_va & MASK64).bit_length()
    release = parse(banner)
    likely = [64 - ones + 1, 64 - ones]
    if release is not None:
        likely = [64 - ones + image_in_upper_half(release)]
    if likely[0] == (47 if granule == 16384 else 48):
        likely.append(52)
    return [bits for bits in likely if 25 <= bits <= 52]


def _from_info(info: VmcoreInfo, given: Given) -> Iterator[_Candidate]:
    """Yield what the kernel tells of itself; proved by its table, which maps its own memory."""
    granule = given.granule or info.page_size
    bits = given.va_bits or (None if info.t1sz is None else 64 - info.t1sz) or info.va_bits
    if info.swapper is None or granule not in (4096, 16384, 65536) or bits is None or not 25 <= bits <= 52:
        return
    if info.voffset is None and given.root is None:
        return
    offset = info.voffset or 0
    pa = info.swapper - offset & MASK64
    proof = () if info.voffset is None else ((info.swapper, pa),)
    sources = (
        f"VMCOREINFO in {info.where}: Linux {info.release}, {size_text(granule)} pages, {bits}-bit addresses",
    )
    shift = granule.bit_length() - 1
    if given.root is not None:
        yield _Candidate(given.root, "--root", shift, bits, info.release, sources, proof)
        return
    for root in (pa, pa + VARIANTS_52):
        name = "swapper_pg_dir of VMCOREINFO, which maps itself"
        yield _Candidate(root, name, shift, bits, info.release, sources, proof)


def _mair(release: str, wish: int | None) -> tuple[int, str]:
    """Return MAIR_EL1 and why. Raises UserError if nothing tells it."""
    if wish is not None:
        return wish, "MAIR_EL1 is as given"
    found = parse(release)
    mair = mair_el1(found)
    if mair is not None:
        return mair, f"MAIR_EL1 {mair:#x} is assumed: Linux {found} sets it so, without MTE"
    raise UserError(
        "nothing tells MAIR_EL1: the kernel's release is not known",
        "--mair 0x…, or --kernel FILE; 0x40044ffff is Linux's from v5.14 on",
    )
