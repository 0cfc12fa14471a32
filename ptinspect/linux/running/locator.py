"""Put together where the kernel is: its image in physical memory, its root table, its virtual place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from ptinspect.arch.bits import MASK64, bit
from ptinspect.arch.regime import Regime, regime_from_registers, root_pa
from ptinspect.arch.sysregs import CpuState, current_regime, mmu_on, translation_register
from ptinspect.dataclass import dataclass, field, replace
from ptinspect.errors import GuestError, PtinspectError, RegimeError
from ptinspect.linux.image.image import FIRST_CODE, KernelImage
from ptinspect.linux.running import placement, swapper
from ptinspect.linux.running.placement import EFI_BOUNDARY, Placement
from ptinspect.linux.running.swapper import RootFound
from ptinspect.memory.source import PhysicalMemory, RamBlock
from ptinspect.snapshot.model import Root
from ptinspect.tables.walk import walk

LOADER_SIZE = 4096
"""Bytes at the start of RAM in which QEMU's loader stays."""
ENTRY = frozenset(
    (
        "primary_entry",
        "record_mmu_state",
        "preserve_boot_args",
        "init_kernel_el",
        "__cpu_setup",
        "create_idmap",
    )
)
"""Functions of head.S that run before the kernel has tables of its own; the EFI stub runs none of them."""
MAX_RUNS = 256
"""Pieces of executable memory that are looked at in the search for the image; modules are further up."""


@dataclass
class Locator:
    """Search with one stop's registers and memory."""

    memory: PhysicalMemory
    """Guest-physical memory."""
    states: Sequence[CpuState]
    """Registers of the CPUs, the current one first."""
    image: KernelImage | None
    """The kernel file, if there is one."""
    ram: Sequence[RamBlock]
    """Guest RAM."""
    regime: Callable[[], Regime]
    """Returns the kernel half of the translation regime, or raises RegimeError."""
    hint: tuple[int | None, int | None, int | None] = (None, None, None)
    """Image address, KASLR offset and the kernel's own root at an earlier stop."""
    _executable: dict[int, list[swapper.Run]] = field(default_factory=dict)

    def find_image(self) -> Placement | None:
        """Find the image: where registers lead, by its header, by its code where tables map it or in RAM.

        There may be several copies: a firmware reads the image to one place, the EFI stub moves it to
        another. The one that the CPUs use counts; before they use any the answer is not settled. If another
        kernel's code is where a header announces a kernel, the answer does not agree.
        """
        image = self.image
        if image is None:
            return None
        try:
            candidates = list(swapper.candidate_roots(self.memory, self.states, self.regime(), None, None))
        except RegimeError:
            candidates = []
        found = placement.first_matching(self.memory, image, self._likely(image, candidates))
        if found is not None:
            return found
        entered = self._entered(image)
        if entered is not None:
            return entered
        led = self.led()
        copy = placement.find_image(self.memory, image, self.ram, self.hint[0])
        if copy is not None and copy.agrees and any(copy.pa <= pa < copy.pa + image.size for pa in led):
            return copy
        near = placement.find_near(self.memory, image, led)
        if near is not None:
            return near
        if copy is None or not copy.agrees:
            found = placement.first_matching(self.memory, image, self._mapped(candidates))
            found = found or placement.find_code(self.memory, image, self.ram, self.hint[0])
        found = found or copy
        return None if found is None else replace(found, settled=not self._in_firmware(found.pa))

    def _entered(self, image: KernelImage) -> Placement | None:
        """Return the copy in whose entry a CPU is with a firmware's tables still; None if none is.

        The EFI stub enters a kernel with the MMU on since v6.3 (Linux commit 6178617038a8). Its own code may
        run in another copy, and does not count.
        """
        for state in self.states:
            if mmu_on(state) is not True or bit(state.pc, 55) or not state.el:
                continue
            if state.system.get(translation_register(state, "TTBR1")):
                continue
            try:
                regime = regime_from_registers(state, False, current_regime(state))
                pa = walk(self.memory, state.pc, root_pa(state, regime), regime).pa
            except PtinspectError:
                continue
            if pa is None or not any(block.writable and block.contains(pa) for block in self.ram):
                continue
            found = placement.find_near(self.memory, image, [pa])
            near = None if found is None else image.nearest(image.text_va + pa - found.pa)
            if near is not None and near[0] in ENTRY:
                return found
        return None

    def led(self) -> list[int]:
        """Return the addresses in RAM that the registers lead to; none while nothing but a firmware runs."""
        ram = [block for block in self.ram if block.writable]
        return [pa for pa in swapper.led_to(self.states) if any(block.contains(pa) for block in ram)]

    def _likely(self, image: KernelImage, candidates: list[Root]) -> Iterator[tuple[int, str]]:
        """Yield the places that a table maps where, by registers or an earlier stop, the code runs."""
        for candidate in candidates:
            for offset in swapper.likely_offsets(self.states, image, self.hint[1]):
                pa = swapper.image_behind(self.memory, candidate.pa, self.regime(), image, offset)
                if pa is not None:
                    yield pa, f"its code, mapped by {candidate.provenance}"

    def _mapped(self, candidates: list[Root]) -> Iterator[tuple[int, str]]:
        """Yield the places where a table maps code.

        The header's memory is free after boot (Linux commit e2a073dde921 ("arm64: omit [_text, _stext)
        from permanent kernel mapping") (in v5.11)), so that code is what is left to find.
        """
        for candidate in candidates:
            for run in self._runs(candidate.pa):
                why = f"its code, mapped by {candidate.provenance}"
                yield from ((pa, why) for pa in (run.pa - FIRST_CODE, run.pa) if pa > 0)

    def _in_firmware(self, pa: int) -> bool:
        """Tell whether something runs that may still move the image which lies at `pa`.

        No CPU has tables for kernel addresses, and none is in the few instructions with which QEMU's own
        loader begins, at the start of the RAM that holds the image (QEMU hw/arm/boot.c: bootloader_aarch64).
        """
        block = next((block for block in self.ram if block.contains(pa)), None)
        for state in self.states:
            if state.system.get(translation_register(state, "TTBR1")):
                return False
            if block is not None and block.start <= state.pc < min(block.start + LOADER_SIZE, pa):
                return False
        return bool(self.states)

    def _runs(self, root: int) -> list[swapper.Run]:
        """Return the executable runs under a table, kept for this stop."""
        if root not in self._executable:
            self._executable[root] = swapper.executable_runs(self.memory, root, self.regime())[:MAX_RUNS]
        return self._executable[root]

    def find_root(self, known: Placement | None) -> RootFound:
        """Find the kernel's own root table, given where its image lies.

        A table that cannot be confirmed is returned all the same, marked as such. Raises RegimeError or
        GuestError before there is one.
        """
        regime = self.regime()
        pa = None if known is None else known.pa
        candidates: dict[int, Root] = {}
        for candidate in swapper.candidate_roots(self.memory, self.states, regime, self.image, pa):
            candidates.setdefault(candidate.pa, candidate)
        for search in (self._confirm, self._scan):
            for candidate in candidates.values():
                found = search(candidate, known)
                if found is not None:
                    return found
        return self._lost(candidates, known) or self._unconfirmed(regime)

    def _lost(self, candidates: dict[int, Root], known: Placement | None) -> RootFound | None:
        """Return the root of an earlier stop if a register still leads to it: its tables are damaged.

        While the new algorithm runs TTBR1 has a temporary table, which tells nothing of the kernel's own.
        """
        found = candidates.get(self.hint[2] or 0)
        if found is None:
            return None if known is None or self.image is None else self._broken(self.image, known)
        doubt = "which mapped the kernel image at an earlier stop and does not any more"
        offset = self.hint[1] if known is not None and known.pa == self.hint[0] else None
        return RootFound(found.pa, f"{found.provenance}, {doubt}", offset, confirmed=False, damaged=True)

    def _broken(self, image: KernelImage, known: Placement) -> RootFound | None:
        """Return the table of a CPU that runs in the image, by its vectors, where that table does not map it.

        The kernel died before anybody looked.
        """
        begin, length = image.code_range
        for state in self.states:
            name = translation_register(state, "TTBR1")
            if not state.system.get(name):
                continue
            root = root_pa(state, self.regime())
            vbar = state.system.get(translation_register(state, "VBAR"), 0)
            offset = (vbar - image.symbols.get("vectors", (0,))[0]) & MASK64
            runs = bit(state.pc, 55) and 0 <= state.pc - offset - image.text_va - begin < length
            if runs and not offset % EFI_BOUNDARY and known.pa <= root < known.pa + image.size:
                why = f"{name} of cpu {state.cpu}, which does not map the kernel image, where that CPU runs"
                return RootFound(root, why, offset, confirmed=False, damaged=True)
        return None

    def _confirm(self, candidate: Root, known: Placement | None) -> RootFound | None:
        """Return the root if it maps the kernel, with what that tells about KASLR."""
        regime, image = self.regime(), self.image
        if image is None or known is None:
            if swapper.maps_vectors(self.memory, candidate.pa, regime, self.states):
                return RootFound(
                    candidate.pa, f"{candidate.provenance}, which maps the exception vectors", None
                )
            return None
        offsets = swapper.likely_offsets(self.states, image, self.hint[1])
        return self._first_proved(candidate, image, known, offsets)

    def _scan(self, candidate: Root, known: Placement | None) -> RootFound | None:
        """Return the root if the kernel is mapped anywhere under it."""
        regime, image = self.regime(), self.image
        if image is None or known is None:
            return None
        places = swapper.image_in(self._runs(candidate.pa), known.pa)
        offsets = ((va - image.text_va) & MASK64 for va in places if swapper.in_its_half(image, regime, va))
        return self._first_proved(candidate, image, known, offsets)

    def _first_proved(
        self, candidate: Root, image: KernelImage, known: Placement, offsets: Iterable[int]
    ) -> RootFound | None:
        """Return the root with the first of some KASLR offsets with which it maps the image where it lies."""
        for offset in offsets:
            if swapper.maps_kernel(
                self.memory, candidate.pa, self.regime(), image, image_pa=known.pa, offset=offset
            ):
                return RootFound(candidate.pa, _say(candidate, image, known, offset), offset)
        return None

    def _unconfirmed(self, regime: Regime) -> RootFound:
        for state in self.states:
            name = translation_register(state, "TTBR1")
            if state.system.get(name):
                what = "the exception vectors" if self.image is None else "the kernel image"
                doubt = f"{name} of cpu {state.cpu}; unconfirmed: no table was found that maps {what}"
                return RootFound(root_pa(state, regime), doubt, None, confirmed=False)
        raise GuestError("the guest has no kernel tables yet (TTBR1 is 0)", "let it run further")


def _say(candidate: Root, image: KernelImage, known: Placement, offset: int) -> str:
    """Return why a root is the right one, in words."""
    text = candidate.provenance
    if "symbol" not in text and "swapper_pg_dir" in image.symbols:
        near = image.nearest(candidate.pa - known.pa + image.text_va)
        if near is not None and near[1] == 0 and near[0].endswith("_pg_dir"):
            text += f" = {near[0]}"
    text += ", which maps the kernel image"
    return text + (f", KASLR offset {offset:#x}" if offset and image.linked else "")
