"""Where the kernel of a guest runs, followed from reset on: what is known at a stop, and where to stop next.

A kernel that QEMU loads lies where it stays; where it runs is known when its boot CPU goes over to the
kernel's own addresses (`linux.image.code_parts.switches`). A firmware may put the kernel anywhere: it stays
where it lies when the boot services of UEFI end. Where neither can be seen, the guest is looked at every
LOOK_SECONDS, until registers lead into the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptinspect.arch.bits import MASK64
from ptinspect.arch.sysregs import translation_register
from ptinspect.errors import GuestError, KernelFileError

if TYPE_CHECKING:
    from ptinspect.guest.guest import Guest
    from ptinspect.linux.image.image import KernelImage
    from ptinspect.linux.running.guest_view import GuestView

ANCHOR = "idmap_cpu_replace_ttbr1"
"""Runs from the identity map in paging_init(), early and with the final vectors installed: a place at an
address known in advance for kernels whose switch to virtual addresses is not known, or was missed.

It changes TTBR1. In 5.10 and 6.1 the table before it maps the kernel already; in 6.12 only the one after it
does (arch/arm64/kernel/pi/map_kernel.c), so its return is looked at too."""
FIRST_VIRTUAL = "start_kernel"
"""The C function that a kernel enters first, when it does not move any more."""
LOOK_SECONDS = 0.05
"""How long the guest runs between two looks for the kernel while a firmware runs: the kernel needs some
hundred milliseconds from its first instruction to the rewrite."""
SLICE_SECONDS = 2.0
"""How long it runs at most, at breakpoints that it may have passed already, before it is looked at again."""


class KernelPlace:
    """What is known of where the kernel runs."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self.known = False
        """It is known, and the kernel does not move any more."""
        self.offset: int | None = None
        """Run-time minus link-time address, modulo 2^64: for now, unless `known`; None if nobody knows."""
        self.bases: tuple[int, ...] = ()
        """Physical addresses of the image: one, or while a firmware runs those of the copies that it has."""
        self.lies = False
        """`bases` is where the image lies, and stays."""
        self.stops: tuple[int, ...] = ()
        """Where more is to be learnt, what tells most first."""
        self.pause: float | None = None
        """Seconds after which the guest is to be looked at again; None: a stop at `stops` tells all."""
        self.reached = ""
        """Where it became known: one of FIRST_VIRTUAL and ANCHOR; empty if it was known at a look."""
        self._returns: set[int] = set()

    def forget(self) -> None:
        """Forget all: the kernel is another one."""
        self.__init__(self._guest)  # type: ignore[misc]

    def look(self, image: KernelImage) -> None:
        """Find out what is known now that the guest is stopped.

        Raises KernelFileError if the guest runs another kernel.
        """
        view = self._guest.view
        pcs = {state.pc for state in view.states}
        jumps = self._jumps(image)
        tables = any(state.system.get(translation_register(state, "TTBR1")) for state in view.states)
        if self.known and tables and not pcs & set(jumps):
            self._follow(view)
            self.stops = self._begins(view)
            return
        self.known, self.lies, self.offset, self.reached = False, False, None, ""
        if not view.entered:
            self._firmware(view, image, pcs)
            return
        self._lies(view, image)
        jumps = self._jumps(image)
        anchors = self._physical(image, ANCHOR)
        for state in view.states:
            if state.pc in anchors:
                self._returns.add(state.x[30])
        if view.placed:
            self.offset = view.kaslr_offset
        first = self._first(view, image)
        if self.offset is not None and (pcs & {*anchors, *self._returns, *first} or _filled(view)):
            self.known = True
            self.reached = FIRST_VIRTUAL if pcs & set(first) else ANCHOR if pcs & self._at(anchors) else ""
            self.stops, self.pause, self._returns = self._begins(view), None, set()
            return
        late = tables and not pcs & set(jumps)
        early = () if jumps and not tables else (*anchors, *self._returns)
        self.stops = (*first, *reversed(jumps), *early)
        self.pause = LOOK_SECONDS if not self.bases or (late and view.placed) else SLICE_SECONDS

    def _begins(self, view: GuestView) -> tuple[int, ...]:
        """Return where a CPU begins after a reset: QEMU's loader before the image, or a firmware.

        QEMU's loader lies at the start of RAM (hw/arm/boot.c), a firmware in the first flash (hw/arm/virt.c).
        A kernel runs nothing at these addresses, so that breakpoints there cost nothing. But a CPU that is
        off stands in the flash, and GDB would have it step off a breakpoint there, for ever.
        """
        firmware = [int(block.start) for block in view.ram if not block.writable][:1]
        loader = [int(b.start) for b in view.ram if b.writable and any(map(b.contains, self.bases))]
        stand = {state.pc for state in view.states}
        return tuple(at for at in (*loader[:1], *firmware) if at not in stand)

    def _at(self, anchors: tuple[int, ...]) -> set[int]:
        return {*anchors, *self._returns}

    def _follow(self, view: GuestView) -> None:
        """Notice that a kernel that was known runs elsewhere: the guest was reset while nobody looked."""
        if view.placed and view.confirmed and self.offset != view.kaslr_offset:
            self.offset, self.bases = view.kaslr_offset, (int(view.image_pa),)

    def _lies(self, view: GuestView, image: KernelImage) -> None:
        """Take over where the image lies. Raises KernelFileError if it is another kernel's."""
        try:
            self.bases = (int(view.pa_of_link(image.text_va)),)
            self.lies = True
        except KernelFileError:
            raise
        except GuestError:  # copies that the firmware had are all that is known
            pass

    def _firmware(self, view: GuestView, image: KernelImage, pcs: set[int]) -> None:
        """Find out what a firmware that runs has of the kernel, and when it will have all."""
        from ptinspect.linux.running.efi import exit_boot_services
        from ptinspect.linux.running.placement import EFI_BOUNDARY, code_places

        ends = exit_boot_services(view.memory, view.ram)
        if ends in pcs:
            self.bases = tuple(code_places(view.memory, image, view.ram, EFI_BOUNDARY))
        elif all(any(block.contains(pc) for block in view.ram if not block.writable) for pc in pcs):
            # It begins: what is in memory is of another boot. CPUs that are off stand there all the time.
            self.bases = ()
        first = () if self.bases else self._first(view, image)
        self.stops = (*self._jumps(image), *(() if ends is None else (ends,)), *first)
        self.pause = SLICE_SECONDS if self.bases or ends is not None else LOOK_SECONDS

    def _jumps(self, image: KernelImage) -> tuple[int, ...]:
        from ptinspect.linux.image.code_parts import switches

        return tuple(base + at - image.text_va for base in self.bases for at in switches(image))

    def _physical(self, image: KernelImage, name: str) -> tuple[int, ...]:
        if name not in image.symbols:
            return ()
        return tuple(base + image.lookup(name) - image.text_va for base in self.bases)

    def _first(self, view: GuestView, image: KernelImage) -> tuple[int, ...]:
        """Return where the first C function is; as linked where nothing better will be known in time."""
        if FIRST_VIRTUAL not in image.symbols:
            return ()
        if self.offset is not None:
            return ((image.lookup(FIRST_VIRTUAL) + self.offset) & MASK64,)
        return () if self._jumps(image) or not image.linked else (image.lookup(FIRST_VIRTUAL),)


def _filled(view: GuestView) -> bool:
    """Tell whether the kernel's own table has more in it than the image: then the kernel stays.

    With KASLR a kernel up to v6.5 runs where it was linked for a while before it moves (head.S,
    __primary_switched).
    """
    from ptinspect.linux.running.swapper import valid_entries

    return (valid_entries(view.memory, view.swapper().pa, view.regime) or 0) > 1
