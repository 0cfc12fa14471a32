"""The modules that the running kernel has loaded: its own list, and their symbols, from memory alone.

A module is a struct module (include/linux/module.h) on the list `modules` (kernel/module/main.c); its symbols
are in struct mod_kallsyms, at the addresses where they are (kernel/module/kallsyms.c). All of it is the
guest's: lists may loop, sizes and strings may be anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from ptinspect.arch import a64
from ptinspect.arch.bits import MASK64, bit
from ptinspect.dataclass import dataclass
from ptinspect.errors import GuestError, KernelFileError, PtinspectError
from ptinspect.linux.image.btf import BtfTypes
from ptinspect.linux.image.entry import RunningKernel
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.image.module_file import ModuleFiles
from ptinspect.linux.image.symbols import NO_SYMBOLS, SymbolTable
from ptinspect.linux.image.vmlinux import SYMBOL, names_of
from ptinspect.memory.source import read_start
from ptinspect.text import escape

REACH = 4 << 30
"""Bytes from the kernel within which modules lie: their code takes the kernel's addresses by `adrp`, which
reaches so far (Arm ARM C6.2; arch/arm64/kernel/module.c: R_AARCH64_ADR_PREL_PG_HI21)."""
MAX_MODULES = 2_048
SOME = 12
"""Modules that are named where another one was meant."""
MAX_SYMBOLS = 200_000
"""Symbols of one module that are read at most."""
MAX_STRINGS = 16 << 20
"""Bytes of their names that are read at most."""
LONGEST_NAME = 512
"""KSYM_NAME_LEN, include/linux/kallsyms.h."""
MAX_SECTIONS = 1_000
MODULE_NAME = 56
"""MODULE_NAME_LEN: 64 - sizeof(unsigned long), include/linux/module.h."""
MAX_BYTES = 0x4000
"""Bytes of a struct module that are read at most; one has about 1 KiB."""
STATES = ("live", "coming", "going", "unformed")
"""enum module_state, include/linux/module.h."""
WALKERS = ("m_start", "find_module_all", "print_modules", "module_kallsyms_lookup_name")
"""Functions that take the list's address, which kallsyms names only with CONFIG_KALLSYMS_ALL.

There are others of the name m_start."""
NEAR_BASE = 0x100
"""Bytes past an address that code builds within which it addresses other data (GCC -fsection-anchors)."""
CODE_BYTES = 0x200
LAYOUTS = ("core_layout", "init_layout")
"""Where a module lies; from v6.4 on it is mem[], one for each kind of memory (Linux commit ac3b43283923)."""
MEMORIES = 7
"""MOD_MEM_NUM_TYPES."""


@dataclass(frozen=True)
class Module:
    """One module."""

    name: str
    """Escaped."""
    address: int
    """Of its struct module."""
    state: str
    """One of STATES; `?` for another."""
    parts: tuple[tuple[int, int], ...]
    """The memory that it takes, [start, end) each."""
    kallsyms: int
    """Address of its struct mod_kallsyms; 0 for none."""

    def part(self, address: int) -> tuple[int, int] | None:
        """Return the part of its memory that an address lies in; None if it does not."""
        return next((part for part in self.parts if part[0] <= address < part[1]), None)


@dataclass(frozen=True)
class InModule:
    """A symbol of a module's, and a place in it."""

    module: Module
    symbol: str
    offset: int
    """Bytes from its beginning."""
    end: int
    """Where it ends: the next symbol's address, or the end of the module's memory."""


class Modules:
    """Find modules and their symbols, at one stop."""

    def __init__(
        self,
        view: RunningKernel,
        files: ModuleFiles | None = None,
        known: dict[str, SymbolTable] | None = None,
    ) -> None:
        """Prepare; nothing is read before it is asked for. `files` add symbols that memory does not keep.

        `known` gets the symbols that are read, by module.
        """
        self._view = view
        self._files = files
        self._tables: dict[int, SymbolTable] = {}
        self._known = {} if known is None else known
        self._sizes: dict[int, int] = {}
        """Bytes of what lies at an address, as the module's symbol tells."""
        self.incomplete = ""
        """Why there may be more modules than were found; empty if the list was read and is whole."""
        self.refused: list[str] = []
        """Why files of modules are not used."""

    # -- what is asked --------------------------------------------------------------------------

    def may_hold(self, address: int) -> bool:
        """Tell whether a module may lie there; the guest is not asked for more than where its kernel is."""
        image = self._view.image
        if image is None or not bit(address, 55):
            return False
        try:
            start = (image.text_va + self._view.kaslr_offset) & MASK64
        except PtinspectError:
            return False
        end = start + image.size
        return not start <= address < end and end - REACH <= address < start + REACH

    def at(self, address: int) -> Module | None:
        """Return the module whose memory an address lies in; None if there is none, or it is not known."""
        if not self.may_hold(address):
            return None
        return next((module for module in self.known if module.part(address)), None)

    def nearest(self, address: int) -> InModule | None:
        """Return the symbol of a module's that an address belongs to; None if it belongs to none.

        So it is with veneers, by which its code reaches the kernel's (arch/arm64/kernel/module-plts.c).
        """
        module = self.at(address)
        part = None if module is None else module.part(address)
        if module is None or part is None:
            return None
        table = self.table(module)
        near = table.nearest(address)
        if near is None or address - near[1] < part[0]:
            return None
        size = self._sizes.get(address - near[1], 0)
        if near[1] >= size > 0:
            return None
        end = address - near[1] + size if size else table.end(address)
        return InModule(module, *near, end=part[1] if end is None else min(end, part[1]))

    def lookup(self, name: str, module: str = "") -> list[tuple[Module, int]]:
        """Return the modules that have a symbol of this name, and where: of all, or the one named `module`.

        Raises GuestError or KernelFileError if it is not known which are loaded.
        """
        chosen = [found for found in self.listed if not module or found.name == module]
        if module and not chosen:
            names = [found.name for found in self.listed]
            some = ", ".join((*names[:SOME], *("…" * (len(names) > SOME))))
            raise GuestError(f"no module {module} is loaded", f"loaded: {some}" if some else "none is loaded")
        return [(found, at) for found in chosen for at in self.table(found).by_name.get(name, ())]

    @cached_property
    def known(self) -> tuple[Module, ...]:
        """The modules that are loaded; none if that is not known."""
        try:
            return self.listed
        except PtinspectError:
            return ()

    # -- the list -------------------------------------------------------------------------------

    @cached_property
    def listed(self) -> tuple[Module, ...]:
        """The modules on the kernel's list. Raises GuestError or KernelFileError if it is not found."""
        if self._view.image is None:
            raise GuestError("modules need the kernel file", "--kernel FILE")
        head = self._head
        found: dict[int, Module] = {}
        link = self._view.read_u64(head)
        while link != head:
            address = (link - self._at["list"]) & MASK64
            if address in found or len(found) >= MAX_MODULES:
                self.incomplete = "the list of modules does not close"
                break
            try:
                found[address] = self._read(address)
                link = self._view.read_u64(link)
            except GuestError as error:
                self.incomplete = f"the list of modules is damaged: {error.message}"
                break
        return tuple(found.values())

    @cached_property
    def _at(self) -> dict[str, int]:
        """Offsets of members in struct module. Raises KernelFileError where nothing tells them."""
        offset = self._view.types.offset
        return {name: offset(f"module.{name}") for name in ("state", "list", "name", "kallsyms")}

    @cached_property
    def _spans(self) -> list[tuple[int, int]]:
        """Offsets of address and size of each part of a module's memory: four bytes of size."""
        offset = self._view.types.offset
        names = [f"mem[{kind}]" for kind in range(MEMORIES)]
        found = []
        for name in (*names, *LAYOUTS):
            try:
                found.append((offset(f"module.{name}.base"), offset(f"module.{name}.size")))
            except KernelFileError:
                continue
        return found

    @cached_property
    def _head(self) -> int:
        """The address of the list's head, which has to lead to modules, or to itself."""
        empty = None
        for head in self._candidates():
            try:
                link, back = self._view.read_u64(head), self._view.read_u64(head + 8)
                if link == back == head:
                    empty = empty or head
                elif self._view.read_u64(link + 8) == head:
                    self._read((link - self._at["list"]) & MASK64)
                    return head
            except GuestError:
                continue
        if empty is None:
            raise GuestError("the kernel's list of modules was not found", "a vmlinux names it")
        return empty

    def _candidates(self) -> Iterator[int]:
        image, offset = self._view.image, self._view.kaslr_offset
        assert image is not None
        for link_va in dict.fromkeys((*image.symbols.get("modules", ()), *_built(image))):
            yield (link_va + offset) & MASK64

    def _read(self, address: int) -> Module:
        """Read a struct module. Raises GuestError if there is none that makes sense."""
        at = self._at
        low = min(*at.values(), *(min(span) for span in self._spans))
        high = max(*at.values(), *(max(span) for span in self._spans), at["name"] + MODULE_NAME - 8) + 8
        if not bit(address, 55) or address % 8 or high - low > MAX_BYTES:
            raise GuestError(f"{address:#x} is no address of a module")
        data = self._view.read_virt(address + low, high - low)

        def number(offset: int, size: int) -> int:
            return int.from_bytes(data[offset - low : offset - low + size], "little")

        name, end, _ = data[at["name"] - low :][:MODULE_NAME].partition(b"\0")
        state = number(at["state"], 4)
        if not (name and end and name.isascii() and all(32 < c < 127 for c in name)):
            raise GuestError(f"{address:#x} holds no module: its name is {name[:16]!r}")
        if state >= len(STATES):
            raise GuestError(f"{address:#x} holds no module: its state is {state}")
        spans = [(number(base, 8), number(size, 4)) for base, size in self._spans]
        parts = tuple((base, base + size) for base, size in spans if size and self.may_hold(base))
        return Module(escape(name.decode()), address, STATES[state], parts, number(at["kallsyms"], 8))

    # -- symbols --------------------------------------------------------------------------------

    def table(self, module: Module) -> SymbolTable:
        """Return a module's symbols, by run-time addresses; empty if they cannot be read."""
        if module.address not in self._tables:
            try:
                found = self._symbols(module)
            except (GuestError, KernelFileError):
                found = NO_SYMBOLS
            try:
                found = self._with_file(module, found)
            except KernelFileError as error:
                self.refused.append(error.message)
            self._tables[module.address] = self._known[module.name] = found
        return self._tables[module.address]

    def _with_file(self, module: Module, kept: SymbolTable) -> SymbolTable:
        """Add the symbols of the module's file. Raises KernelFileError if that is another build's."""
        file = None if self._files is None else self._files.symbols(module.name)
        if file is None:
            return kept
        bases = {**self._sections(module), **file.bases(kept.by_name)}
        more = file.placed(bases)
        known = set(zip(kept.names, kept.addresses.tolist(), strict=True))
        rows = [
            i
            for i, (name, address) in enumerate(zip(more.names, more.addresses.tolist(), strict=True))
            if (name, address) not in known and module.part(address)
        ]
        return SymbolTable(
            [*kept.names, *(escape(more.names[i]) for i in rows)],
            np.concatenate([kept.addresses, more.addresses[rows]]).astype(np.uint64),
            kept.kinds + "".join(more.kinds[i] for i in rows),
        )

    def _sections(self, module: Module) -> dict[str, int]:
        """Return where the kernel has put the module's sections, as it tells in sysfs; none if it does not.

        Source: kernel/module/sysfs.c. Since v6.14 their number is not kept (Linux commit 34f5ec0f8225).
        """
        view, found = self._view, dict[str, int]()
        try:
            types = view.types
            if not isinstance(types, BtfTypes):
                return {}
            start = view.read_u64(module.address + types.offset("module.sect_attrs"))
            count = view.read_u64(start + types.offset("module_sect_attrs.nsections")) & 0xFFFF_FFFF
            first, each = types.offset("module_sect_attrs.attrs"), types.size("module_sect_attr")
            name, address = (types.offset(f"module_sect_attr.{m}") for m in ("battr.attr.name", "address"))
            for row in range(min(count, MAX_SECTIONS)):
                at = start + first + row * each
                text = read_start(view.read_virt, view.read_u64(at + name), LONGEST_NAME).partition(b"\0")[0]
                found[text.decode("utf-8", "replace")] = view.read_u64(at + address)
        except (GuestError, KernelFileError):
            pass
        return found

    def _symbols(self, module: Module) -> SymbolTable:
        at, read = self._view.types.offset, self._view.read_virt
        if not bit(module.kallsyms, 55):
            raise GuestError(f"the module {module.name} has no symbols")
        word = {
            member: self._view.read_u64(module.kallsyms + at(f"mod_kallsyms.{member}"))
            for member in ("symtab", "strtab")
        }
        count = int.from_bytes(read(module.kallsyms + at("mod_kallsyms.num_symtab"), 4), "little")
        if not 0 < count <= MAX_SYMBOLS:
            raise GuestError(f"the module {module.name} has {count} symbols")
        rows = np.frombuffer(read(word["symtab"], count * SYMBOL.itemsize), SYMBOL)
        kinds = self._kinds(module, rows)
        inside = np.zeros(count, np.bool_)
        for start, end in module.parts:
            inside |= (rows["value"] >= start) & (rows["value"] < end)
        chosen = np.flatnonzero(inside & (rows["section"] != 0) & (rows["name"] < MAX_STRINGS))
        if not chosen.size:
            return NO_SYMBOLS
        strings = read_start(read, word["strtab"], int(rows["name"][chosen].max()) + LONGEST_NAME)
        names, kept = names_of(rows[chosen], strings)
        chosen = chosen[kept]
        if self._has_typetab:  # before, other things stood in st_size
            for address, size in zip(
                *(rows[name][chosen].tolist() for name in ("value", "size")), strict=True
            ):
                self._sizes[address] = max(size, self._sizes.get(address, 0))
        letters = kinds[chosen].tobytes().decode("ascii")
        return SymbolTable([escape(name) for name in names], rows["value"][chosen], letters)

    @cached_property
    def _has_typetab(self) -> bool:
        try:
            return self._view.types.offset("mod_kallsyms.typetab") > 0
        except KernelFileError:
            return False

    def _kinds(self, module: Module, rows: np.ndarray) -> np.ndarray:
        """Return a letter for each symbol; they stood in the symbols before v5.2 (commit 1c7651f43777)."""
        try:
            types = self._view.types.offset("mod_kallsyms.typetab")
            start = self._view.read_u64(module.kallsyms + types)
            kinds = np.frombuffer(self._view.read_virt(start, len(rows)), np.uint8)
        except KernelFileError:
            kinds = rows["info"]
        letters = (kinds | 0x20 >= ord("a")) & (kinds | 0x20 <= ord("z"))
        return np.where(letters, kinds, ord("?")).astype(np.uint8)


def _built(image: KernelImage) -> Iterator[int]:
    """Yield the link-time addresses that may be the list's, from the code of functions that walk it."""
    bases: list[int] = []
    for start in (start for name in WALKERS for start in image.symbols.get(name, ())):
        try:
            length = min((image.table.end(start) or start + CODE_BYTES) - start, CODE_BYTES)
            words = a64.words(image.text_at(start, length))
        except KernelFileError:
            continue
        found = (a64.address_built(words, i, start) for i in range(len(words)))
        bases += [address for _, address in filter(None, found) if address % 8 == 0]
    bases = list(dict.fromkeys(bases))
    yield from bases
    for base in bases:
        yield from range(base + 8, base + NEAR_BASE, 8)
