"""Lines of source; GDB's own account of a kernel's is in tests/live/test_gdb_symbols_live.py."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from ptinspect.linux.image.source_lines import SourceLines


def elf(names: bytes, *sections: tuple[int, bytes]) -> bytes:
    """An ELF file with sections: the offset of each one's name in `names`, and its bytes."""
    at, heads, body = 64, [bytes(64)], b""
    for name, content in ((0, names), *sections):
        heads.append(struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, at + len(body), len(content), 0, 0, 1, 0))
        body += content
    kind, counts = b"\x7fELF\x02\x01\x01", (64, 0, 0, 64, len(heads), 1)
    head = struct.pack("<16sHHIQQQIHHHHHH", kind, 2, 183, 1, 0, 0, at + len(body), 0, *counts)
    return head + body + b"".join(heads)


NAMES = b"\0.debug_info\0.debug_aranges\0.debug_line\0.debug_abbrev\0.debug_str\0"
INFO, RANGES, LINE, ABBREV, STR = (
    NAMES.index(b".debug_" + name) for name in (b"i", b"ar", b"l", b"ab", b"s")
)
COVERED = struct.pack("<IHIBB4xQQQQ", 44, 2, 0, 8, 0, 0x1000, 0x100, 0, 0)
"""That the unit at 0 has 0x1000..0x1100."""
EMPTY = b"\x04\0\0\0\x04\0\0\0"
"""A unit with nothing in it."""


@pytest.mark.parametrize(
    "data",
    [
        b"", b"no ELF file", elf(NAMES), elf(NAMES, (INFO, b"")),
        elf(NAMES, (INFO, EMPTY), (RANGES, COVERED)),
        elf(NAMES, (INFO, b"\xff" * 40), (RANGES, COVERED)),
        elf(NAMES, (INFO, EMPTY), (RANGES, COVERED), (ABBREV, b"\0"), (LINE, b"\0"), (STR, b"\0")),
        elf(NAMES, (INFO, b"\0"), (RANGES, COVERED[:20])),
    ],
)  # fmt: skip
def test_a_file_without_sound_debug_information_knows_no_lines(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "vmlinux").write_bytes(data)
    assert SourceLines(tmp_path / "vmlinux").at(0x1010) == ""


def test_a_file_that_is_gone_knows_none(tmp_path: Path) -> None:
    assert SourceLines(tmp_path / "gone").at(0x1010) == ""
