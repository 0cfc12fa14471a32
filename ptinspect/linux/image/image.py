"""A kernel file: an Image or vmlinuz as it is booted, or a vmlinux with symbols."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ptinspect.arch.bits import align_down, align_up
from ptinspect.errors import KernelFileError
from ptinspect.linux.image.btf import BtfTypes, find_btf
from ptinspect.linux.image.container import BANNER, Blob, FileBytes, ImageHeader, Segment
from ptinspect.linux.image.symbols import SymbolTable
from ptinspect.linux.image.vmlinux import Vmlinux
from ptinspect.text import similar

if TYPE_CHECKING:
    from ptinspect.linux.image.source_lines import SourceLines

BOUNDARY = 2 << 20
"""An Image is linked, like it is loaded, at a multiple of 2 MiB plus text_offset (booting.rst)."""
SEGMENT = 1 << 16
"""Segments of the image begin at multiples of this (vmlinux.lds.S: SEGMENT_ALIGN)."""
MAX_BTF = 64 << 20
GET_BTF = (
    "a kernel with CONFIG_DEBUG_INFO_BTF has them; `pahole -J vmlinux` makes them from debug information"
)
"""How a kernel file comes to describe its types."""
MAX_BANNER_SEARCH = 64 << 20
DATA_LETTERS = "bBd"
"""What nm prints for data; an Image without CONFIG_KALLSYMS_ALL has none of these."""
FIRST_CODE = 0x1_0000
"""Offset at which .text begins at the latest: the header has a segment of its own (vmlinux.lds.S)."""


class KernelImage:
    """The symbols, types and bytes of one kernel file, by link-time addresses.

    Symbols and types are read when they are first needed. An Image without a symbol table does not
    record where it was linked: its link-time addresses are then offsets from its first byte.
    """

    def __init__(
        self, path: Path, data: Blob | FileBytes, header: ImageHeader | None, elf: Vmlinux | None
    ) -> None:
        """Use `open`."""
        self.path = path
        self.header = header
        """The Image header; None for a vmlinux."""
        self._data = data
        self._elf = elf

    @classmethod
    def open(cls, path: Path) -> KernelImage:
        """Open a kernel file. Raises KernelFileError unless it is an arm64 Image, vmlinuz or vmlinux."""
        from ptinspect.linux.image.unpacking import open_bytes

        data, header = open_bytes(path)
        elf = Vmlinux(path, data) if isinstance(data, FileBytes) else None
        return cls(path, data, header, elf)

    @property
    def is_elf(self) -> bool:
        """True for a vmlinux."""
        return self._elf is not None

    # -- symbols --------------------------------------------------------------------------------

    @cached_property
    def _table(self) -> tuple[SymbolTable, str]:
        if self._elf is not None:
            return self._elf.symbols()
        assert isinstance(self._data, Blob)
        from ptinspect.linux.image.kallsyms import recover

        found, missing = recover(self._data.data)
        return found.placed(), missing

    @property
    def table(self) -> SymbolTable:
        """All symbols; empty if the file has none, or none could be recovered."""
        return self._table[0]

    @property
    def symbols_missing(self) -> str:
        """Why there are no symbols; empty if there are."""
        return self._table[1]

    @property
    def symbols(self) -> Mapping[str, list[int]]:
        """Link-time addresses by name."""
        return self.table.by_name

    def kind_of(self, name: str) -> str:
        """Return the letter that nm prints for a symbol (upper case: global); `?` for none."""
        return self.table.kind_of.get(name, "?")

    def lookup(self, name: str) -> int:
        """Return the link-time address of a symbol; of several with that name the one that is meant.

        See SymbolTable.lookup for the rules. Raises KernelFileError if there is none, or no rule decides.
        """
        try:
            return self.table.lookup(name)
        except KernelFileError as error:
            raise KernelFileError(
                f"{self.path.name}: {error.message}", error.hint or self._hint(name)
            ) from None

    def _like(self, name: str) -> list[str]:
        """Return up to three names that begin with this one, contain it, or are spelled alike."""
        if not name:
            return []
        close = [other for other in self.symbols if other.startswith(name)]
        close = close or [other for other in self.symbols if name in other]
        if close:
            return sorted(close, key=lambda other: (len(other), other))[:3]
        near = [o for o in self.symbols if o[:3] == name[:3] and abs(len(o) - len(name)) < 4]
        return similar(name, near, cutoff=0.8)

    def _hint(self, name: str) -> str:
        if self.symbols_missing:
            return self.symbols_missing
        close = self._like(name)
        near = f"did you mean {' or '.join(close)}?" if close else ""
        if self.is_elf or not set(DATA_LETTERS).isdisjoint(self.table.kinds):
            return near or f"is it another kernel's {'vmlinux' if self.is_elf else 'Image'}?"
        return f"{near} this Image names no data (no CONFIG_KALLSYMS_ALL); a vmlinux names everything".strip()

    def nearest(self, va: int) -> tuple[str, int] | None:
        """Return the symbol that a link-time address belongs to, and the offset in bytes."""
        if not self.text_va <= va < self.text_va + self.size:
            return None
        return self.table.nearest(va)

    @cached_property
    def _lines(self) -> SourceLines | None:
        if self._elf is None or self._elf.section(".debug_line") is None:
            return None
        from ptinspect.linux.image.source_lines import SourceLines

        return SourceLines(self.path)

    def source_line(self, va: int) -> str:
        """Return `file:line` of an instruction; empty where there is no debug information of it."""
        return "" if self._lines is None else self._lines.at(va)

    @cached_property
    def types(self) -> BtfTypes:
        """The layouts of the kernel's types. Raises KernelFileError where the file has none."""
        blob = self._btf()
        if blob is not None:
            return BtfTypes(blob)
        for segment in self._segments:
            found = find_btf(self._data.read(segment.offset, segment.size))
            if found is not None:
                return found
        raise KernelFileError(f"{self.path.name} describes no types (BTF)", GET_BTF)

    def _btf(self) -> bytes | None:
        """Return the BTF that a section or symbols lead to."""
        if self._elf is not None:
            section = self._elf.section(".BTF")
            if section is not None and section.stored:
                return self._elf.bytes_of(section, MAX_BTF)
        start, stop = self.symbols.get("__start_BTF"), self.symbols.get("__stop_BTF")
        if start and stop and 0 < stop[0] - start[0] <= MAX_BTF:
            return self.text_at(start[0], stop[0] - start[0])
        return None

    # -- bytes ----------------------------------------------------------------------------------

    @cached_property
    def _segments(self) -> list[Segment]:
        if self._elf is not None:
            return self._elf.segments
        assert isinstance(self._data, Blob)
        return [Segment(self.text_va, 0, len(self._data.data))]

    @property
    def linked(self) -> bool:
        """Tell whether it is known where the kernel was linked."""
        return self.text_va != 0

    @cached_property
    def text_va(self) -> int:
        """Link-time address of the image's first byte (_text); 0 if it is not known."""
        for name in ("_text", "_head"):
            if name in self.symbols:
                return self.symbols[name][0]
        if self._elf is not None:
            return min(segment.va for segment in self._elf.segments)
        assert self.header is not None
        for name in ("primary_entry", "stext"):
            if name in self.symbols and self.header.entry_offset:
                return self.symbols[name][0] - self.header.entry_offset
        if "_stext" in self.symbols:
            shift = self.header.text_offset % BOUNDARY
            return align_down(self.symbols["_stext"][0] - shift, BOUNDARY) + shift
        return 0

    @cached_property
    def size(self) -> int:
        """Bytes that the image takes in memory, .bss included."""
        if self.header is not None and self.header.image_size:
            return self.header.image_size
        if "_end" in self.symbols:
            return self.symbols["_end"][0] - self.text_va
        if self._elf is not None:
            return int(self._elf.end) - self.text_va
        return self._segments[0].size

    @property
    def text_offset(self) -> int:
        """Bytes above a 2 MiB boundary at which the image lies in memory: 0 since 5.8, 0x80000 before.

        Source: Linux commit 120dc60d0bdb ("arm64: get rid of TEXT_OFFSET") (in v5.10). A vmlinux has no
        header; there the link-time address tells it.
        """
        return self.header.text_offset if self.header is not None else self.text_va % BOUNDARY

    @property
    def stored_size(self) -> int:
        """Bytes of the file that begin at `text_va` and lie in one piece."""
        return next((s.size for s in self._segments if s.va == self.text_va), 0)

    def text_at(self, va: int, length: int) -> bytes:
        """Return bytes of the file by link-time address. Raises KernelFileError outside of it."""
        for segment in self._segments:
            if segment.va <= va and va + length <= segment.va + segment.size:
                data = self._data.read(segment.offset + va - segment.va, length)
                if len(data) == length:
                    return data
        raise KernelFileError(f"{va:#x}: not in {self.path.name}")

    @cached_property
    def code_range(self) -> tuple[int, int]:
        """Offset from the image's first byte, and length, of code that stays in memory.

        Length 0 if the file holds no code (debug information split from its vmlinux).
        """
        if self._elf is not None and not self._elf.has_code:
            return FIRST_CODE, 0
        if "_stext" in self.symbols and "_etext" in self.symbols:
            start, end = self.symbols["_stext"][0], self.symbols["_etext"][0]
        else:
            start, end = self.text_va + FIRST_CODE, self.text_va + self._segments[0].size // 4
        holder = next((s for s in self._segments if s.va <= start < s.va + s.size), None)
        if holder is None:
            return FIRST_CODE, 0
        return start - self.text_va, max(min(end, holder.va + holder.size) - start, 0)

    @cached_property
    def code_pages(self) -> tuple[int, ...]:
        """Offsets of code from the image's first byte: near its start and its end, and between."""
        start, length = self.code_range
        if not length:
            return (FIRST_CODE,)
        return tuple(start + align_down((length - 4) * part // 4, 4) for part in range(5))

    @cached_property
    def data_pages(self) -> tuple[int, ...]:
        """Offsets of data from the image's first byte: the first of .rodata, the last of .data and of .bss.

        These stay mapped, as the memory for initialization does not (arch/arm64/mm/mmu.c: free_initmem).
        The last is left out for a file that does not record its size in memory.
        """
        code_end = sum(self.code_range)
        stored = self.stored_size or code_end
        if "_edata" in self.symbols:
            stored = self.symbols["_edata"][0] - self.text_va
        places = (align_up(code_end, SEGMENT) + 8, stored - 8, self.size - 8)
        return tuple(at for at in dict.fromkeys(places) if code_end < at < self.size)

    @cached_property
    def _banner(self) -> tuple[int, str]:
        if "linux_banner" in self.symbols:
            start = self.symbols["linux_banner"][0]
            try:
                found = BANNER.match(self.text_at(start, 512))
            except KernelFileError:
                found = None
            if found:
                return start, found[0].decode("ascii")
        for va, data in self._searched():
            found = BANNER.search(data)
            if found:
                return va + found.start(), found[0].decode("ascii")
        return 0, ""

    def _searched(self) -> Iterator[tuple[int, bytes]]:
        for segment in self._segments:
            yield segment.va, self._data.read(segment.offset, min(segment.size, MAX_BANNER_SEARCH))

    @property
    def banner(self) -> str:
        """The kernel's banner, `Linux version …`, printable; an empty string if it was not found."""
        return self._banner[1]

    @property
    def banner_va(self) -> int:
        """Link-time address of the banner; 0 if it was not found."""
        return self._banner[0]
