"""A kernel file without a file, and the view of a kernel that runs where it was linked, without KASLR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from builders import TreeBuilder

from ptinspect.arch.bits import PhysAddr
from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import GuestError, KernelFileError
from ptinspect.linux.image.symbols import SymbolTable
from ptinspect.memory.source import RamBlock
from ptinspect.snapshot.model import Root
from ptinspect.tables.walk import walk

KERNEL = 0xFFFF_8000_1000_0000
IMAGE = 0x4020_0000


class Types:
    """Offsets as a kernel's BTF gives them."""

    def __init__(self, offsets: Mapping[str, int]) -> None:
        self.offsets = offsets

    def offset(self, path: str) -> int:
        if path not in self.offsets:
            raise KernelFileError(f"no {path}")
        return self.offsets[path]


class KernelFile:
    """A kernel file with a few symbols: functions, all of them."""

    path = Path("vmlinuz-test")
    symbols: dict[str, list[int]]
    text_va, linked, size = KERNEL, True, 0x20_0000
    banner = ""

    def lookup(self, name: str) -> int:
        if name not in self.symbols:
            raise KernelFileError(f"no symbol {name!r}")
        return self.symbols[name][0]

    def kind_of(self, name: str) -> str:
        return "T"

    def text_at(self, va: int, length: int) -> bytes:
        raise KernelFileError(f"{va:#x}: not in the file")

    @property
    def table(self) -> SymbolTable:
        rows = sorted((values[0], name) for name, values in self.symbols.items())
        return SymbolTable([n for _, n in rows], np.array([a for a, _ in rows], np.uint64), "T" * len(rows))

    def nearest(self, va: int) -> tuple[str, int] | None:
        below = [(values[0], name) for name, values in self.symbols.items() if values[0] <= va]
        inside = below and self.text_va <= va < self.text_va + self.size
        return (max(below)[1], va - max(below)[0]) if inside else None


class View:
    """The running kernel, as a debugger sees it at one stop."""

    kaslr_offset = 0
    confirmed = placed = entered = is_kernels = True
    ram: Sequence[RamBlock] = (RamBlock(PhysAddr(0x4000_0000), 1 << 30),)
    voffset = KERNEL - IMAGE
    placement = None
    modules: Any = SimpleNamespace(
        nearest=lambda address: None, lookup=lambda name, module="": [], refused=[]
    )

    def __init__(self, tree: TreeBuilder, image: Any = None, states: Sequence[CpuState] = ()) -> None:
        self._tree = tree
        self.memory, self.regime = tree.memory, tree.regime
        self.image = image
        self.states = tuple(states)

    @property
    def types(self) -> Any:
        return self.image.types

    @property
    def state(self) -> CpuState:
        return self.states[0]

    def symbol(self, name: str) -> int:
        return int(self.image.lookup(name))

    def swapper(self) -> Root:
        return Root(PhysAddr(self._tree.root), "TTBR1_EL1 of cpu 0")

    def maps_kernel(self, pa: int) -> bool:
        return pa == self._tree.root

    def banner(self) -> str:
        return "Linux version 5.10.0-test"

    def pa_of_link(self, link_va: int) -> int:
        return link_va - self.voffset

    def link_of_pa(self, pa: int) -> int | None:
        return pa + self.voffset if IMAGE <= pa < IMAGE + (4 << 20) else None

    def pa_of_lower(self, va: int, state: CpuState) -> int:
        return va

    def pa_of(self, va: int) -> int:
        found = walk(self.memory, va, self._tree.root, self.regime)
        if found.pa is None:
            raise GuestError(f"{va:#x} is not mapped: {found.reason}")
        return found.pa

    def read_virt(self, va: int, length: int) -> bytes:
        out = b""
        while length:
            part = min(length, 4096 - va % 4096)
            out += self.memory.read(self.pa_of(va), part)
            va, length = va + part, length - part
        return out

    def read_ahead(self, ranges: object) -> None:
        """Nothing is far away."""

    def read_u64(self, va: int) -> int:
        return int.from_bytes(self.read_virt(va, 8), "little")
