"""The kernel's code as the unwinder asks for it: from the kernel file, by run-time address."""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.arch import a64
from ptinspect.arch.bits import MASK64, bit
from ptinspect.errors import KernelFileError, PtinspectError
from ptinspect.linux.running.guest_view import GuestView


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
