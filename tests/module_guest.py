"""A kernel with modules in miniature: a list, struct module, symbols and their names, all in a few pages."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import stack_guest as sg
from fake_kernel import KERNEL, KernelFile, Types

from ptinspect.errors import GuestError, KernelFileError
from ptinspect.linux.running.modules import Modules

PAGE = 4096
SIZE = 32 << 20
MODULES = 0xFFFF_8000_0810_0000
"""Where modules lie, 256 KiB apart: text, data, struct module, symbols, names."""
HEAD = KERNEL + 0x80_0000
WALKER = KERNEL + 0x1_0000
BEFORE_6_4 = {
    "module.state": 0, "module.list": 8, "module.name": 24, "module.core_layout.base": 320,
    "module.core_layout.size": 328, "module.init_layout.base": 400, "module.init_layout.size": 408,
    "module.kallsyms": 560, "mod_kallsyms.symtab": 0, "mod_kallsyms.num_symtab": 8,
    "mod_kallsyms.strtab": 16, "mod_kallsyms.typetab": 24,
}  # fmt: skip
SINCE_6_4 = {name: at for name, at in BEFORE_6_4.items() if "_layout" not in name} | {
    f"module.mem[{kind}].{member}": 256 + 72 * kind + at
    for kind in range(7)
    for member, at in (("base", 0), ("size", 8))
}


class Image(KernelFile):
    """The kernel file: `m_start`, which builds the address of the list's head, or one shortly before it."""

    size = SIZE
    symbols: dict[str, list[int]] = {"m_start": [WALKER], "vfs_read": [WALKER + 0x200]}  # noqa: RUF012

    def __init__(self, before: int = 0) -> None:
        base = HEAD - before
        self.code = struct.pack("<2I", sg.adrp(1, WALKER, base), sg.add(1, 1, base & 0xFFF))

    def text_at(self, va: int, length: int) -> bytes:
        if va != WALKER:
            raise KernelFileError(f"{va:#x}: not in the file")
        return self.code[:length].ljust(length, b"\0")


class ModuleGuest:
    """Memory by virtual addresses; a view of the running kernel at the same time."""

    kaslr_offset = 0
    states = ()
    placement = None

    def __init__(self, offsets: Mapping[str, int] = SINCE_6_4, image: Any = None) -> None:
        self.image: Any = image or Image()
        self.types = Types(offsets)
        self.pages: dict[int, bytearray] = {}
        self.reads = self.size = 0
        self.loaded: list[int] = []
        self.link()

    @property
    def modules(self) -> Modules:
        view: Any = self
        return Modules(view)

    def symbol(self, name: str) -> int:
        return int(self.image.symbols[name][0])

    def read_virt(self, va: int, length: int) -> bytes:
        self.reads += 1
        out = b""
        while length:
            page, at = va & -PAGE, va % PAGE
            if page not in self.pages:
                raise GuestError(f"{va:#x} is not mapped")
            part = bytes(self.pages[page][at : at + length])
            out, va, length = out + part, va + len(part), length - len(part)
        return out

    def read_u64(self, va: int) -> int:
        return int.from_bytes(self.read_virt(va, 8), "little")

    def write(self, va: int, data: bytes) -> None:
        for i, byte in enumerate(data):
            page = self.pages.setdefault((va + i) & -PAGE, bytearray(PAGE))
            page[(va + i) % PAGE] = byte

    def put(self, va: int, *values: int) -> None:
        self.write(va, struct.pack(f"<{len(values)}Q", *values))

    def add(self, name: str, symbols: Mapping[str, int], kinds: str = "") -> int:
        """Load a module with symbols at offsets in its text (below 0x1000) and data; return its text."""
        base = MODULES + 0x4_0000 * len(self.loaded)
        module, table, strings = base + 0x2000, base + 0x8000, base + 0x1_0000
        at = self.types.offsets
        self.write(base, bytes(0x2000))
        self.write(module, bytes(PAGE))
        self.write(module + at["module.name"], name.encode("latin-1") + b"\0")
        self.put(module + at["module.kallsyms"], module + 0x800)
        if "module.mem[0].base" in at:
            for kind, start in enumerate((base, base + 0x1000)):
                self.put(module + at[f"module.mem[{kind}].base"], start, 0x1000)
        else:
            self.put(module + at["module.core_layout.base"], base, 0x2000)
        text, rows = b"\0", bytes(24)
        for symbol, offset in symbols.items():
            rows += struct.pack("<IBBHQQ", len(text), 0, 0, 1, base + offset, self.size)
            text += symbol.encode("latin-1") + b"\0"
        self.write(table, rows)
        self.write(strings, text)
        self.write(module + 0xC00, ("a" + (kinds or "t" * len(symbols))).encode())
        self.put(module + 0x800, table, len(symbols) + 1, strings, module + 0xC00)
        self.loaded.insert(0, module)
        self.link()
        return base

    def link(self) -> None:
        """Write the list: its head, then the newest module first."""
        ring = [HEAD, *(module + self.types.offsets["module.list"] for module in self.loaded)]
        for i, here in enumerate(ring):
            self.put(here, ring[(i + 1) % len(ring)], ring[i - 1])
