"""Put together where the kernel is: its image in physical memory, its root table, its virtual place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ptinspect.arch.bits import MASK64, PhysAddr
from ptinspect.arch.regime import Regime
from ptinspect.arch.sysregs import CpuState, root_pa, translation_register
from ptinspect.errors import GuestError, RegimeError
from ptinspect.linux import placement, roots
from ptinspect.linux.image import FIRST_CODE, KernelImage
from ptinspect.linux.placement import Found
from ptinspect.linux.roots import Candidate, RootFound
from ptinspect.memory.source import PhysicalMemory, RamBlock

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
    _executable: dict[int, list[roots.Run]] = field(default_factory=dict)

    def find_image(self) -> Found | None:
        """Find the image: by its header, by its code where tables map it, by its code in RAM, by prediction.

        If another kernel's code is where a header says that a kernel is, the answer does not agree.
        """
        image = self.image
        if image is None:
            return None
        found = placement.find_image(self.memory, image, self.ram, self.hint[0])
        if found is not None and found.agrees:
            return found
        try:
            candidates = list(roots.candidate_roots(self.states, self.regime(), None, None))
        except RegimeError:
            code = placement.find_code(self.memory, image, self.ram, self.hint[0])
            return code or found or placement.predict(image, self.ram)
        for pa, candidate in self._places(image, candidates):
            match = placement.compare(self.memory, image, pa)
            if match is not None and match >= placement.ENOUGH:
                return Found(PhysAddr(pa), match, f"its code, mapped by {candidate.name}")
        return placement.find_code(self.memory, image, self.ram, self.hint[0]) or found

    def _places(self, image: KernelImage, candidates: list[Candidate]) -> Iterator[tuple[int, Candidate]]:
        """Go through the places where a table maps code: as registers suggest first, then anywhere.

        The header's memory is free after boot (Linux commit e2a073dde921 ("arm64: omit [_text, _stext)
        from permanent kernel mapping") (in v5.11)), so that code is what is left to find.
        """
        regime = self.regime()
        for candidate in candidates:
            for offset in roots.likely_offsets(self.states, image, self.hint[1]):
                pa = roots.image_behind(self.memory, candidate.pa, regime, image, offset)
                if pa is not None:
                    yield pa, candidate
        for candidate in candidates:
            for run in self._runs(candidate.pa):
                yield from ((pa, candidate) for pa in (run.pa - FIRST_CODE, run.pa) if pa > 0)

    def _runs(self, root: int) -> list[roots.Run]:
        """Return the executable runs under a table, kept for this stop."""
        if root not in self._executable:
            self._executable[root] = roots.executable_runs(self.memory, root, self.regime())[:MAX_RUNS]
        return self._executable[root]

    def find_root(self, known: Found | None) -> RootFound:
        """Find the kernel's own root table, given where its image lies.

        A table that cannot be confirmed is returned all the same, and says so. Raises RegimeError or
        GuestError before there is one.
        """
        regime = self.regime()
        pa = None if known is None else known.pa
        candidates: dict[int, Candidate] = {}
        for candidate in roots.candidate_roots(self.states, regime, self.image, pa):
            candidates.setdefault(candidate.pa, candidate)
        for search in (self._confirm, self._scan):
            for candidate in candidates.values():
                found = search(candidate, known)
                if found is not None:
                    return found
        return self._lost(candidates) or self._unconfirmed(regime)

    def _lost(self, candidates: dict[int, Candidate]) -> RootFound | None:
        """Return the root of an earlier stop if a register still leads to it: its tables are damaged.

        While the new algorithm runs TTBR1 has a temporary table, which says nothing of the kernel's own.
        """
        found = candidates.get(self.hint[2] or 0)
        if found is None:
            return None
        doubt = "which mapped the kernel image at an earlier stop and does not any more"
        return RootFound(found.pa, f"{found.name}, {doubt}", None, confirmed=False)

    def _confirm(self, candidate: Candidate, known: Found | None) -> RootFound | None:
        """Return the root if it maps the kernel, with what that tells about KASLR."""
        regime, image = self.regime(), self.image
        if image is None or known is None:
            if roots.maps_vectors(self.memory, candidate.pa, regime, self.states):
                return RootFound(candidate.pa, f"{candidate.name}, which maps the exception vectors", None)
            return None
        for offset in roots.likely_offsets(self.states, image, self.hint[1]):
            if roots.maps_image(self.memory, candidate.pa, regime, image, image_pa=known.pa, offset=offset):
                return RootFound(candidate.pa, _say(candidate, image, known, offset), offset)
        return None

    def _scan(self, candidate: Candidate, known: Found | None) -> RootFound | None:
        """Return the root if the kernel is mapped anywhere under it."""
        regime, image = self.regime(), self.image
        if image is None or known is None:
            return None
        va = roots.image_in(self._runs(candidate.pa), known.pa)
        if va is None or not roots.maps_throughout(
            self.memory, candidate.pa, regime, image, image_pa=known.pa, va=va
        ):
            return None  # a table of a lower level, taken for a root, maps pieces of the image at odd places
        offset = (va - image.text_va) & MASK64
        return RootFound(candidate.pa, _say(candidate, image, known, offset), offset)

    def _unconfirmed(self, regime: Regime) -> RootFound:
        for state in self.states:
            name = translation_register(state, "TTBR1")
            if state.system.get(name):
                what = "the exception vectors" if self.image is None else "the kernel image"
                doubt = f"{name} of cpu {state.cpu}; unconfirmed: no table was found that maps {what}"
                return RootFound(root_pa(state, regime), doubt, None, confirmed=False)
        raise GuestError("the guest has no kernel tables yet (TTBR1 is 0)", "let it run further")


def _say(candidate: Candidate, image: KernelImage, known: Found, offset: int) -> str:
    """Write down why a root is the right one."""
    text = candidate.name
    if "symbol" not in text and "swapper_pg_dir" in image.symbols:
        near = image.nearest(candidate.pa - known.pa + image.text_va)
        if near is not None and near[1] == 0 and near[0].endswith("_pg_dir"):
            text += f" = {near[0]}"
    text += ", which maps the kernel image"
    return text + (f", KASLR offset {offset:#x}" if offset and image.linked else "")
