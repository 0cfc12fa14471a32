"""Files of modules: symbols that memory does not keep, from ELF files as they are, packed, and damaged."""

from __future__ import annotations

import gzip
import lzma
import os
import struct
from pathlib import Path

import pytest
from module_guest import MODULES, ModuleGuest

from ptinspect.arch.bits import MASK64
from ptinspect.errors import KernelFileError, UserError
from ptinspect.linux.image.module_file import ModuleFile, ModuleFiles
from ptinspect.linux.running.modules import Modules

SECTIONS = ((".text", 1, 6), (".data", 1, 3), (".bss", 8, 3), (".rodata", 1, 2))
"""Name, sh_type and sh_flags."""


def module(symbols: list[tuple[str, int, int]], machine: int = 183, kind: int = 1) -> bytes:
    """A relocatable file with symbols: name, number of its section from 1 on, value."""
    strings, table = b"\0", bytes(24)
    for name, section, value in symbols:
        table += struct.pack("<IBBHQQ", len(strings), 0x12, 0, section, value, 0)
        strings += name.encode() + b"\0"
    count = len(SECTIONS)
    listed = [*((name, type_, flags, b"", 0) for name, type_, flags in SECTIONS)]
    listed += [(".symtab", 2, 0, table, count + 2), (".strtab", 3, 0, strings, 0)]
    titles, bodies, heads = b"\0", b"", bytes(64)
    for name, type_, flags, held, link in [*listed, (".shstrtab", 3, 0, b"", 0)]:
        at = len(titles)
        titles += name.encode() + b"\0"
        raw = titles if name == ".shstrtab" else held
        heads += struct.pack("<IIQQQQIIQQ", at, type_, flags, 0, 64 + len(bodies), len(raw), link, 0, 8, 0)
        bodies += raw
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    total = count + 4
    head = (kind, machine, 1, 0, 0, 64 + len(bodies), 0, 64, 0, 0, 64, total, total - 1)
    return ident + struct.pack("<HHIQQQIHHHHHH", *head) + bodies + heads


OWN = [("init_module", 1, 0), ("start_one", 1, 0x40), ("inner", 1, 0x60), ("numbers", 2, 8), ("$d", 2, 0)]
FIRST = module(OWN)
PACKINGS = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress}


@pytest.fixture
def guest() -> ModuleGuest:
    made = ModuleGuest()
    made.add("a_module", {"init_module": 0, "start_one": 0x40, "a_datum": 0x1100})
    return made


def loaded(guest: ModuleGuest, directory: Path) -> Modules:
    return Modules(guest, ModuleFiles(directory))  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", PACKINGS)
def test_a_file_adds_what_memory_does_not_keep(guest: ModuleGuest, tmp_path: Path, suffix: str) -> None:
    """Text is where the symbols lie that both have; of data nothing tells."""
    folder = tmp_path / "kernel" / "drivers"
    folder.mkdir(parents=True)
    (folder / f"a-module.ko{suffix}").write_bytes(PACKINGS[suffix](FIRST))
    modules = loaded(guest, tmp_path)
    assert [at for _, at in modules.lookup("inner")] == [MODULES + 0x60]
    assert [at for _, at in modules.lookup("start_one")] == [MODULES + 0x40]
    assert [at for _, at in modules.lookup("a_datum")] == [MODULES + 0x1100], "memory's own remain"
    assert modules.lookup("numbers") == []
    found = modules.nearest(MODULES + 0x64)
    assert found is not None and (found.symbol, found.offset) == ("inner", 4)
    assert modules.refused == []


def test_another_build_is_refused(guest: ModuleGuest, tmp_path: Path) -> None:
    (tmp_path / "a_module.ko").write_bytes(
        module([("init_module", 1, 0), ("start_one", 1, 0x44), ("inner", 1, 0x60)])
    )
    modules = loaded(guest, tmp_path)
    assert modules.lookup("inner") == []
    assert [at for _, at in modules.lookup("start_one")] == [MODULES + 0x40]
    assert "is not the module in memory" in modules.refused[0]


def test_symbols_outside_of_the_module_are_left_out(guest: ModuleGuest, tmp_path: Path) -> None:
    (tmp_path / "a_module.ko").write_bytes(module([("init_module", 1, 0), ("far", 1, 1 << 40)]))
    assert loaded(guest, tmp_path).lookup("far") == []


def test_values_that_no_address_has_are_left_out(guest: ModuleGuest, tmp_path: Path) -> None:
    huge = [*OWN, ("huge", 1, MASK64), ("low", 2, 0), ("a_datum", 2, MASK64 - 0xFFFF)]
    (tmp_path / "a_module.ko").write_bytes(module(huge))
    modules = loaded(guest, tmp_path)
    assert modules.lookup("huge") == [] and modules.lookup("low") == []
    assert [at for _, at in modules.lookup("inner")] == [MODULES + 0x60]


def test_a_pipe_is_no_module(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.ko")
    with pytest.raises(KernelFileError):
        ModuleFiles(tmp_path).symbols("x")


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.ko"
    for data in (b"", b"no module", FIRST[:100], module([], machine=62), module([], kind=2)):
        path.write_bytes(data)
        with pytest.raises(KernelFileError, match=r"x\.ko"):
            ModuleFile.read(path)
    far = bytearray(FIRST)
    far[0x28:0x30] = b"\xff" * 8  # e_shoff
    path.write_bytes(far)
    with pytest.raises(KernelFileError, match=r"x\.ko"):
        ModuleFile.read(path)
    path.write_bytes(lzma.compress(FIRST)[:-40])
    with pytest.raises(KernelFileError):
        ModuleFile.read(path)
    for cut in range(64, len(FIRST), 97):
        path.write_bytes(FIRST[:cut] + bytes(len(FIRST) - cut))
        try:
            ModuleFile.read(path)
        except KernelFileError:
            continue
    with pytest.raises(UserError, match="no directory"):
        ModuleFiles(tmp_path / "none")
