"""The running kernel as a debugger sees it at one stop: where it lies, its own tables, its memory."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import cached_property

from ptinspect.arch.bits import MASK64, PhysAddr, bit
from ptinspect.arch.regime import LEVEL_LAST, Regime, regime_from_registers, root_pa
from ptinspect.arch.sysregs import CpuState, current_regime, mmu_on, translation_register
from ptinspect.dataclass import replace
from ptinspect.errors import GuestError, KernelFileError, PtinspectError, RegimeError
from ptinspect.linux.image.btf import Offsets
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.image.module_file import ModuleFiles
from ptinspect.linux.image.symbols import SymbolTable
from ptinspect.linux.running.locator import Locator
from ptinspect.linux.running.member_offsets import MemberOffsets
from ptinspect.linux.running.modules import Modules
from ptinspect.linux.running.placement import EFI_BOUNDARY, Placement, find_near, mismatch
from ptinspect.linux.running.swapper import RootFound, maps_kernel
from ptinspect.memory.source import PhysicalMemory, RamBlock, far
from ptinspect.snapshot.model import Root
from ptinspect.tables.walk import walk
from ptinspect.text import escape

MAX_BANNER = 512
MAX_COPIES = 16
"""Places around which another copy of the image is looked for at one stop."""


class GuestView:
    """Answer for symbols, tables and kernel memory of a stopped guest, from memory and registers alone.

    Every answer is derived from the guest as it stands, and kept: a view is of one stop.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        states: Sequence[CpuState],
        image: KernelImage | None,
        ram: Sequence[RamBlock] = (),
        *,
        current: int = 0,
        previous: GuestView | None = None,
        force: bool = False,
        root: RootFound | None = None,
        module_files: ModuleFiles | None = None,
        module_symbols: dict[str, SymbolTable] | None = None,
    ) -> None:
        """Prepare; nothing is read before it is asked for.

        `previous` is the view of an earlier stop of the same guest, whose findings are tried first.
        With `force` a kernel file is used even if the code in memory is another one's. `root` is the
        kernel's own table where it is known otherwise: the registers hold no other. `module_files` add to
        the symbols of modules, `module_symbols` gets those that are read.
        """
        self.memory = memory
        self.states = tuple(sorted(states, key=lambda state: (state.cpu != current, state.cpu)))
        self.image = image
        self.ram = tuple(ram)
        self.current = current
        self.force = force
        self._given = root
        self._module_files = module_files
        self._module_symbols = module_symbols
        self._previous = previous._known() if previous is not None and previous.image is image else None
        self._pages: dict[int, int] = {}
        self._last_tables: dict[int, PhysAddr] = {}
        """Those that walks have come to, by the first address that each maps: its neighbours begin there."""
        self._copies: list[Placement] = []
        self._searched: set[int] = set()

    @property
    def known_offset(self) -> int | None:
        """The KASLR offset as far as it was found already; nothing is read for it."""
        return self._known()[1]

    def _known(self) -> tuple[int | None, int | None, int | None]:
        """Return image address, KASLR offset and root as far as this view, or an earlier one, found them."""
        pa, offset, table = self._previous or (None, None, None)
        found = self.__dict__.get("_placement")
        if isinstance(found, Placement) and found.settled:
            pa = int(found.pa)
        root = self.__dict__.get("_root")
        if isinstance(root, RootFound) and root.kaslr_offset is not None:
            offset, table = root.kaslr_offset, int(root.pa)
        return pa, offset, table

    # -- placement ------------------------------------------------------------------------------

    @property
    def state(self) -> CpuState:
        """The registers of the current CPU."""
        return self.states[0]

    @cached_property
    def regime(self) -> Regime:
        """The kernel half of the translation regime. Raises RegimeError before it is set up."""
        failure: RegimeError | None = None
        for state in self.states:
            if not state.system.get(translation_register(state, "TCR")):
                continue
            try:
                return regime_from_registers(state, True)
            except RegimeError as error:
                failure = failure or error
        raise failure or RegimeError(
            "no CPU has set up its translation (TCR_EL1 is 0)", "let the guest run further"
        )

    @cached_property
    def _locator(self) -> Locator:
        hint = self._previous or (None, None, None)
        return Locator(self.memory, self.states, self.image, self.ram, lambda: self.regime, hint)

    @cached_property
    def _placement(self) -> Placement | None:
        return self._locator.find_image()

    @property
    def entered(self) -> bool:
        """True if a CPU may run a kernel: its registers lead to code or tables in RAM. Nothing is read."""
        return bool(self._locator.led())

    @property
    def placement(self) -> Placement:
        """Where the image lies in memory, and how that is known.

        Raises GuestError if it is not known, KernelFileError if memory holds another kernel's code.
        """
        if self.image is None:
            raise GuestError("it is not known which kernel runs", "--kernel FILE names its file")
        found = self._placement
        if found is None:
            raise GuestError(f"{self.image.path.name} was not found in guest memory", "is it loaded yet?")
        if not found.agrees and not self.force:
            if not found.settled:
                name = self.image.path.name
                raise GuestError(f"{name} is not in guest memory as a whole: a firmware or boot loader runs")
            raise mismatch(self.image, found)
        return found

    @property
    def image_pa(self) -> PhysAddr:
        """The physical address of the image's first byte. Raises as `placement` does."""
        return self.placement.pa

    @cached_property
    def _root(self) -> RootFound:
        known = self._placement
        if known is not None and not (known.settled and (known.agrees or self.force)):
            known = None
        if self._given is None:
            return self._locator.find_root(known)
        found = None if self.image is None else self._locator.find_root(known)
        if found is None or found.pa != self._given.pa:
            return self._given
        return replace(self._given, kaslr_offset=found.kaslr_offset)

    def swapper(self) -> Root:
        """Return the kernel's own root table and how it was found.

        A table that cannot be confirmed to be the kernel's own is returned all the same: its
        provenance says so. Raises RegimeError or GuestError before there is one.
        """
        return Root(self._root.pa, self._root.provenance)

    def maps_kernel(self, pa: int) -> bool:
        """Tell whether a table maps the kernel image where it runs; False where that is not known."""
        if not self.placed or self.image is None:
            return False
        return maps_kernel(
            self.memory, pa, self.regime, self.image, image_pa=self.image_pa, offset=self.kaslr_offset
        )

    @property
    def confirmed(self) -> bool:
        """True if the table of `swapper` maps the kernel."""
        try:
            return self._root.confirmed
        except GuestError:
            return False

    @property
    def is_kernels(self) -> bool:
        """True if the table of `swapper` maps the kernel, or did at an earlier stop: it may be damaged."""
        try:
            return self._root.confirmed or self._root.damaged
        except GuestError:
            return False

    @property
    def placed(self) -> bool:
        """True if it is known where the kernel runs, physically and virtually."""
        try:
            return self._root.kaslr_offset is not None and self.placement.settled
        except PtinspectError:
            return False

    @property
    def kaslr_offset(self) -> int:
        """Run-time minus link-time address of the kernel, modulo 2^64. Raises GuestError if unknown."""
        offset = self._root.kaslr_offset
        if offset is None:
            self.placement  # noqa: B018  a wrong kernel file is the better explanation
            raise GuestError(
                "it is not known where the kernel runs: no table was found that maps it",
                "let the guest run further, or name the kernel file with --kernel",
            )
        return offset

    @property
    def voffset(self) -> int:
        """Run-time virtual minus physical address of the image, modulo 2^64 (Linux: kimage_voffset)."""
        pa = self.image_pa
        assert self.image is not None
        return (self.image.text_va + self.kaslr_offset - pa) & MASK64

    @cached_property
    def types(self) -> Offsets:
        """Where the kernel's types keep what: as its file says, else as far as memory tells.

        Raises GuestError without a kernel file.
        """
        if self.image is None:
            raise GuestError("types need the kernel file", "--kernel FILE")
        try:
            return self.image.types
        except KernelFileError:
            return MemberOffsets(self)

    @cached_property
    def modules(self) -> Modules:
        """The modules that the kernel has loaded."""
        return Modules(self, self._module_files, self._module_symbols)

    # -- symbols and memory ---------------------------------------------------------------------

    def symbol(self, name: str) -> int:
        """Return the run-time address of a symbol. Raises KernelFileError or GuestError."""
        if self.image is None:
            raise GuestError(f"symbol {name!r} needs the kernel file", "--kernel FILE")
        return (self.image.lookup(name) + self.kaslr_offset) & MASK64

    def pa_of_link(self, link_va: int) -> PhysAddr:
        """Return where a link-time address of the image lies; works before the MMU is on.

        Raises GuestError while a firmware runs that may still move the image, and as `placement` does.
        """
        found = self.placement
        assert self.image is not None
        if not found.settled:
            raise GuestError(
                f"a firmware or boot loader runs: {self.image.path.name} is at pa:{found.pa:#x}, "
                "but may still be moved",
                "let the guest run until the kernel has started",
            )
        return PhysAddr(found.pa + link_va - self.image.text_va)

    def link_of_pa(self, pa: int) -> int | None:
        """Return the link-time address of what lies at a physical one; None if that is not in the image.

        A copy that a firmware may still move counts as well: it is there now. Raises KernelFileError if
        memory holds another kernel's code.
        """
        if self.image is None:
            return None
        try:
            found = self.placement
        except GuestError:
            found = None
        copies = self._copies if found is None else [found, *self._copies]
        copy = next((c for c in copies if c.pa <= pa < c.pa + self.image.size), None)
        if copy is None and (found is None or not found.settled):
            copy = self._find_copy(self.image, pa)
        return None if copy is None else self.image.text_va + pa - copy.pa

    def _find_copy(self, image: KernelImage, pa: int) -> Placement | None:
        """Find a copy of the image around an address, as a firmware or the EFI stub makes some."""
        where = pa & -EFI_BOUNDARY
        if where in self._searched or len(self._searched) >= MAX_COPIES:
            return None
        self._searched.add(where)
        if not any(block.writable and block.contains(pa) for block in self.ram):
            return None
        found = find_near(self.memory, image, [pa])
        if found is not None:
            self._copies.append(found)
        return found

    def pa_of(self, va: int) -> PhysAddr:
        """Translate an address: kernel ones through the kernel's own table, user ones through TTBR0.

        With the MMU of the current CPU off an address of the lower half is physical already (Arm
        ARM D8.2.9, flat mapping). Raises GuestError if it is not mapped.
        """
        if not bit(va, 55):
            return self.pa_of_lower(va, self.state)
        page = va & ~(self.regime.granule - 1)
        if page not in self._pages:
            area = page & -self.regime.entry_size(LEVEL_LAST - 1)
            table, level = self._last_tables.get(area), LEVEL_LAST
            if table is None:
                table, level = self._root.pa, self.regime.start_level
            found = walk(self.memory, page, table, self.regime, level)
            if found.pa is None:
                raise GuestError(f"{va:#x} is not mapped: {found.reason}", f"walk {va:#x} shows why")
            self._pages[page] = found.pa
            if found.steps[-1].level == LEVEL_LAST:
                self._last_tables[area] = found.steps[-1].table_pa
        return PhysAddr(self._pages[page] + va - page)

    def pa_of_lower(self, va: int, state: CpuState) -> PhysAddr:
        """Translate an address of the lower half as a CPU does now: it is physical while its MMU is off.

        Raises GuestError if it is not mapped, RegimeError.
        """
        if mmu_on(state) is False:
            return PhysAddr(va)
        regime = regime_from_registers(state, False, current_regime(state))
        found = walk(self.memory, va, root_pa(state, regime), regime)
        if found.pa is None:
            raise GuestError(f"{va:#x} is not mapped under {regime.register('TTBR0')}: {found.reason}")
        return found.pa

    def read_virt(self, va: int, length: int) -> bytes:
        """Read memory by virtual address, whatever the MMU and the exception level of the CPU.

        Raises GuestError if any page of the range is not mapped, MemoryReadError if one is not RAM.
        """
        out = bytearray()
        while length > 0:
            part = min(length, 4096 - va % 4096)
            out += self.memory.read(self.pa_of(va), part)
            va, length = (va + part) & MASK64, length - part
        return bytes(out)

    def read_ahead(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Have ranges (va, bytes) that may be read next come in one go, where each read is a request.

        What is not mapped is left out. Raises TargetError.
        """
        if not far(self.memory):
            return
        pages = {page for va, size in ranges for page in range(va & -4096, va + size, 4096)}
        found = []
        for page in sorted(pages):
            with contextlib.suppress(GuestError):
                found.append((int(self.pa_of(page)), 4096))
        self.memory.read_ahead(found)

    def read_u64(self, va: int) -> int:
        """Read eight bytes at a virtual address as a number."""
        return int.from_bytes(self.read_virt(va, 8), "little")

    def banner(self) -> str:
        """Return the running kernel's banner, without control codes; empty if it was not found."""
        if self.image is None or not self.image.banner_va:
            return ""
        try:
            raw = self.memory.read(self.pa_of_link(self.image.banner_va), MAX_BANNER)
        except (GuestError, KernelFileError):
            return ""
        text = raw.split(b"\0")[0].split(b"\n")[0].decode("ascii", errors="backslashreplace")
        return escape(text)
