"""Lines of source, from the debug information of a vmlinux (DWARF 5, 6.2: line number information)."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from ptinspect.files import open_input

MOST_BYTES = 1 << 30
"""Largest `.debug_info` that is read: all of it stays in memory."""
NEEDED = frozenset(
    {".debug_info", ".debug_aranges", ".debug_abbrev", ".debug_str", ".debug_line", ".debug_line_str"}
    | {".debug_str_offsets", ".debug_addr"}
)
"""Sections; what else there is of debug information is as large again, and tells nothing of lines."""


class SourceLines:
    """Find the lines that instructions were made of."""

    def __init__(self, path: Path) -> None:
        """Read what is needed; a file without debug information, or one that is damaged, knows no lines."""
        from elftools.common.exceptions import DWARFError, ELFError
        from elftools.construct import ConstructError

        self._damage = (
            ELFError, DWARFError, ConstructError, OSError, ValueError, LookupError, AttributeError, TypeError,
            AssertionError,
        )  # fmt: skip
        self._dwarf: Any = None
        self._ranges: Any = None
        try:
            with open_input(path) as file:
                self._read(file)
        except self._damage:
            self._ranges = None

    def _read(self, file: IO[bytes]) -> None:
        from elftools.elf.elffile import ELFFile

        elf = ELFFile(file)
        section = elf.get_section_by_name
        elf.get_section_by_name = lambda name: section(name) if name in NEEDED else None
        info = elf.get_section_by_name(".debug_info")
        if info is not None and info.data_size <= MOST_BYTES:
            self._dwarf = elf.get_dwarf_info(relocate_dwarf_sections=False, follow_links=False)
            self._ranges = self._dwarf.get_aranges()

    def at(self, address: int) -> str:
        """Return `file:line` of an instruction by its link-time address; empty if it is not known."""
        if self._ranges is None:
            return ""
        try:
            offset = self._ranges.cu_offset_at_addr(address)
            return "" if offset is None else self._line(self._dwarf.get_CU_at(offset), address)
        except self._damage:
            return ""

    def _line(self, unit: Any, address: int) -> str:
        program = self._dwarf.line_program_for_CU(unit)
        last: Any = None
        for entry in () if program is None else program.get_entries():
            state = entry.state
            if state is None:
                continue
            if last is not None and last.address <= address < state.address:
                return f"{self._file(unit, program.header, last.file)}:{last.line}"
            inside = last is not None and last.address == state.address and last.is_stmt
            if not inside or state.is_stmt or state.end_sequence:  # of several the last that begins a line
                last = None if state.end_sequence else state
        return ""

    @staticmethod
    def _file(unit: Any, header: Any, number: int) -> str:
        """Return a file's name, below the directory in which the kernel was built (DWARF 5, 6.2.4)."""
        first = 0 if header["version"] >= 5 else 1
        file = header["file_entry"][number - first]
        folders = [folder.decode("utf-8", "replace") for folder in header["include_directory"]]
        name, at = file["name"].decode("utf-8", "replace"), file["dir_index"]
        top = unit.get_top_DIE().attributes.get("DW_AT_comp_dir")
        build = top.value.decode("utf-8", "replace") if top is not None else ""
        folder = "" if at < first else folders[at - first]
        path = name if name.startswith("/") or not folder else f"{folder}/{name}"
        return path.removeprefix(f"{build}/") if build else path
