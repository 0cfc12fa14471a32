"""The file that GDB is given instead of a vmlinux: the same symbols and sections, no debug information."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from kernels import TEXT_VA, vmlinux

from ptinspect.linux.image import gdbfile
from ptinspect.linux.image.gdbfile import gdb_file

ELF = vmlinux(
    symbols=[("_text", TEXT_VA, 0x10, 1), ("start_kernel", TEXT_VA + 0x100, 0x12, 1), ("x", 7, 0x10, 0xFFF1)],
    sections=[
        (".debug_info", 1, b"i" * 100_000),
        (".debug_frame", 1, b"frames"),
        (".debug_line", 1, b"l" * 99),
    ],
)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PTINSPECT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "vmlinux"
    path.write_bytes(ELF)
    return path


def symbols(path: Path) -> list[tuple[str, int, str, str]]:
    with path.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        return [
            (s.name, s["st_value"], s["st_info"]["type"], str(s["st_shndx"])) for s in table.iter_symbols()
        ]


def test_symbols_and_places_are_those_of_the_kernel_file(kernel: Path) -> None:
    small = gdb_file(kernel)
    assert small != kernel and small.stat().st_size < 4096
    assert symbols(small) == symbols(kernel) and len(symbols(small)) == 4
    with small.open("rb") as file, kernel.open("rb") as whole:
        ours, theirs = ELFFile(file), ELFFile(whole)
        assert [ours["e_machine"], ours["e_type"], ours["e_entry"]] == [
            theirs["e_machine"], theirs["e_type"], theirs["e_entry"]
        ]  # fmt: skip
        text, full = ours.get_section_by_name(".text"), theirs.get_section_by_name(".text")
        for field in ("sh_addr", "sh_size", "sh_flags"):
            assert text[field] == full[field]
        assert text["sh_type"] == "SHT_NOBITS"
        assert ours.get_section_by_name(".debug_frame").data() == b"frames"
        assert (
            ours.num_sections() == theirs.num_sections() and ours.get_section_by_name(".debug_info") is None
        )


def test_it_is_made_once_and_anew_for_another_kernel(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = gdb_file(kernel)
    with monkeypatch.context() as patch:
        patch.setattr(gdbfile, "_parts", lambda file: pytest.fail("made twice"))
        assert gdb_file(kernel) == small
    kernel.write_bytes(vmlinux(symbols=[("other", TEXT_VA, 0x10, 1)]))
    assert [name for name, *_ in symbols(gdb_file(kernel))] == ["", "other"]


def test_a_file_that_is_replaced_by_one_of_its_size_is_another(kernel: Path) -> None:
    small = gdb_file(kernel)
    os.utime(kernel, ns=(1, 1))
    assert gdb_file(kernel) != small


def test_old_files_go(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gdbfile, "MAX_FILES", 3)
    for n in range(6):
        os.utime(kernel, ns=(n, n))
        gdb_file(kernel)
    assert len(list((kernel.parent / "cache" / "gdb").iterdir())) == 3


@pytest.mark.parametrize(
    "data", [b"", b"\x7fELF", b"MZ" + bytes(100), ELF[:70], ELF[:-10], vmlinux()[:64] + bytes(999)]
)
def test_a_file_that_is_no_whole_kernel_is_left_to_gdb(kernel: Path, data: bytes) -> None:
    kernel.write_bytes(data)
    assert gdb_file(kernel) == kernel


def test_without_a_cache_gdb_gets_the_whole_file(kernel: Path) -> None:
    (kernel.parent / "cache").write_text("no directory")
    assert gdb_file(kernel) == kernel
    assert gdb_file(kernel.parent / "missing") == kernel.parent / "missing"


def test_damaged_files_end_in_a_file_or_in_none(kernel: Path) -> None:
    dice = random.Random(5)
    for _ in range(200):
        data = bytearray(ELF)
        for _ in range(dice.randrange(1, 6)):
            data[dice.choice((dice.randrange(64), dice.randrange(len(data) - 600, len(data))))] = (
                dice.randrange(256)
            )
        kernel.write_bytes(bytes(data))
        assert gdb_file(kernel).is_file()
