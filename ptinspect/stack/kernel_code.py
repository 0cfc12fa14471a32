"""The kernel's code as the unwinder asks for it, by run-time address, and what a function does to SP and x29.

Source: AAPCS64 6.4.6 (a frame record is x29 and x30 of the caller, x29 points to it); Arm ARM C6.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.arch import a64
from ptinspect.arch.bits import MASK64, bit
from ptinspect.dataclass import dataclass
from ptinspect.errors import KernelFileError, PtinspectError
from ptinspect.linux.running.guest_view import GuestView

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


class KernelCode:
    """Give functions and instructions of the running kernel; code of modules is not known."""

    def __init__(self, view: GuestView) -> None:
        """Prepare; where the kernel runs is looked up once."""
        self._image = view.image
        try:
            self._virtual = view.kaslr_offset
            self._physical = view.kaslr_offset - view.voffset
        except PtinspectError:
            self._image = None

    def link(self, pc: int) -> int:
        """Return the link-time address of code; that of the identity map is at physical addresses."""
        return (pc - (self._virtual if bit(pc, 55) else self._physical)) & MASK64

    def start(self, pc: int) -> int | None:
        """Return where the function at `pc` begins; None if it is not known."""
        if self._image is None:
            return None
        near = self._image.nearest(self.link(pc))
        return None if near is None else pc - near[1]

    def symbol(self, pc: int, *, returns: bool = False) -> str:
        """Return `function+0x10`; the address in hex if nothing is known of it.

        `returns`: it is a return address, which may lie past the end of the function that called.
        """
        back = 4 if returns else 0
        near = None if self._image is None else self._image.nearest(self.link(pc - back))
        return f"{pc:#x}" if near is None else f"{near[0]}+{near[1] + back:#x}"

    def words(self, va: int, count: int) -> Sequence[int]:
        """Return up to `count` instructions at `va`; none where the file has none."""
        if self._image is None or count <= 0:
            return ()
        try:
            return a64.words(self._image.text_at(self.link(va), 4 * count))
        except KernelFileError:
            return ()
