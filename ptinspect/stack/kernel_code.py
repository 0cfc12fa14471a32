"""The kernel's code as the unwinder asks for it, by run-time address, and what a function does to SP and x29.

Source: AAPCS64 6.4.6 (a frame record is x29 and x30 of the caller, x29 points to it); Arm ARM C6.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from ptinspect.arch import a64
from ptinspect.arch.bits import MASK64, bit
from ptinspect.arch.sysregs import CpuState
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import GuestError, KernelFileError, PtinspectError
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.running.guest_view import GuestView
from ptinspect.linux.running.modules import InModule

MAX_WORDS = 96
"""Instructions from a function's first on that are looked at for its prologue."""
MAX_TAIL = 24
"""Instructions up to a return that count as its epilogue."""


@dataclass(frozen=True)
class Prologue:
    """What the instructions up to some place have done."""

    lowered: int
    """Bytes that SP was lowered by, up to the frame record."""
    record: int | None
    """Bytes from x29 up to SP as it was at the function's entry; None if x29 is the caller's still."""


def prologue(words: Sequence[int]) -> Prologue:
    """Follow the instructions from a function's first on up to its frame record, as if none branched."""
    lowered = 0
    constants: dict[int, int] = {}
    for word in words[:MAX_WORDS]:
        lowered -= a64.moves_sp(word, constants) or 0
        record = a64.sets_frame_pointer(word)
        if record is not None:
            return Prologue(lowered, lowered - record)
        if word in a64.RETURNS:
            lowered = max(lowered, 0)
    return Prologue(max(lowered, 0), None)


@dataclass(frozen=True)
class Epilogue:
    """What the instructions from some place to the return do."""

    raised: int
    """Bytes that SP is raised by."""
    pops_record: bool
    """True if x29 and x30 are still to be restored."""


def epilogue(words: Sequence[int]) -> Epilogue | None:
    """Follow the instructions to the return; None if they branch before, or no return is near."""
    raised, pops = 0, False
    constants: dict[int, int] = {}
    for word in words[:MAX_TAIL]:
        if word in a64.RETURNS:
            return Epilogue(raised, pops)
        change = a64.moves_sp(word, constants)
        unknown = change is None and a64.adds_register_to_sp(word)
        if a64.branches(word) or word == a64.MOV_SP_FP or unknown or (change or 0) < 0:
            return None
        raised += change or 0
        pops = pops or a64.loads_frame_record(word)
    return None


@dataclass(frozen=True)
class Near:
    """The symbol that an address belongs to."""

    symbol: str
    """Its name."""
    offset: int
    """Bytes from its beginning to the address."""
    module: str = ""
    """The module that it is in; empty for the kernel itself."""
    as_linked: bool = False
    """True if it is not known where the kernel runs: it lies there if it runs where it was linked."""

    def __str__(self) -> str:
        """Return `function+0x10`, or `function+0x10 [module]`."""
        return f"{self.symbol}+{self.offset:#x}{self.where}"

    @property
    def where(self) -> str:
        """What follows the name: ` [module]`, or that it is not certain."""
        if self.module:
            return f" [{self.module}]"
        return ", as linked" if self.as_linked else ""

    def further(self, count: int) -> Near:
        """Return the same symbol for an address that lies so many bytes further on."""
        return replace(self, offset=self.offset + count)


class KernelCode:
    """Name the running kernel's code, and give its functions and instructions, by what a CPU has for a PC.

    An address of the upper half is the kernel's own mapping. One of the lower half is as the CPU takes it:
    physical with its MMU off, else through its own tables, such as those of the identity map; one that these
    do not map is taken for the identity map's at another time.
    """

    def __init__(
        self, view: GuestView, state: CpuState | None = None, kernel: KernelImage | None = None
    ) -> None:
        """Prepare; `state` is the CPU that addresses of the lower half are for: the current one if None.

        `kernel` is the kernel file, if it is not the view's own.
        """
        self._view = view
        self._state = state
        self._kernel = kernel or view.image

    @cached_property
    def _image(self) -> KernelImage | None:
        """The kernel file; None if it is another kernel's, or there is none."""
        try:
            _ = self._view.placement
        except KernelFileError:
            return None
        except PtinspectError:  # it may yet be found where the code runs
            pass
        return self._kernel

    @cached_property
    def _offset(self) -> int | None:
        try:
            return self._view.kaslr_offset
        except PtinspectError:
            return None

    @property
    def refused(self) -> bool:
        """True if there is a kernel file, and it is another kernel's."""
        return self._image is None and self._kernel is not None

    @property
    def placed(self) -> bool:
        """True if it is known where the kernel's own mapping is."""
        return self._offset is not None

    def link(self, pc: int, *, physical: bool = False) -> int | None:
        """Return the link-time address of code; None if it is not in the image, or nobody knows."""
        if self._image is None:
            return None
        if bit(pc, 55) and not physical:
            return None if self._offset is None else (pc - self._offset) & MASK64
        try:
            pa = pc if physical else self._view.pa_of_lower(pc, self._state or self._view.state)
        except PtinspectError:
            pa = pc
        try:
            return self._view.link_of_pa(pa)
        except PtinspectError:
            return None

    def nearest(self, pc: int, *, physical: bool = False) -> Near | None:
        """Return the symbol at or below an address, which `physical` says is one; None if none is known."""
        link = self.link(pc, physical=physical)
        near = None if link is None or self._image is None else self._image.nearest(link)
        if near is not None:
            return Near(*near)
        found = None if physical else self._in_module(pc)
        return None if found is None else Near(found.symbol, found.offset, found.module.name)

    def _in_module(self, pc: int) -> InModule | None:
        """Return the symbol of a module's at an address; None if it is in no module."""
        if not bit(pc, 55) or self._image is None or self._offset is None:
            return None
        return self._view.modules.nearest(pc)

    def extent(self, pc: int, *, physical: bool = False) -> tuple[int, int | None] | None:
        """Return first address and end of the function at `pc`; the end None at the last of all symbols."""
        near, link = self.nearest(pc, physical=physical), self.link(pc, physical=physical)
        if near is not None and near.module:
            found = self._in_module(pc)
            return None if found is None else (pc - found.offset, found.end)
        if near is None or link is None or self._image is None:
            return None
        end = self._image.table.end(link)
        return pc - near.offset, None if end is None else pc + end - link

    def start(self, pc: int) -> int | None:
        """Return where the function at `pc` begins; None if it is not known."""
        near = self.nearest(pc)
        return None if near is None else pc - near.offset

    def symbol(self, pc: int, *, returns: bool = False) -> str:
        """Return `function+0x10`; the address in hex if nothing is known of it.

        `returns`: it is a return address, which may lie past the end of the function that called.
        """
        back = 4 if returns else 0
        near = self.nearest(pc - back)
        return f"{pc:#x}" if near is None else str(near.further(back))

    def words(self, va: int, count: int) -> Sequence[int]:
        """Return up to `count` instructions at `va`: of the file, or of a module in memory; else none."""
        link = self.link(va)
        if self._image is None or link is None or count <= 0:
            return ()
        try:
            if self._in_module(va) is not None:
                return a64.words(self._view.read_virt(va, 4 * count))
            return a64.words(self._image.text_at(link, 4 * count))
        except (GuestError, KernelFileError):
            return ()
