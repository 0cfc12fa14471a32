"""Kernel files: what is accepted, where it was linked, its symbols, and the cache of recovered ones."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from kernels import BANNER, SYMBOLS, TEXT_VA, BtfBuilder, image, packed, table, vmlinux, zboot

from ptinspect.errors import KernelFileError
from ptinspect.linux.image import kallsyms, unpacking
from ptinspect.linux.image.container import parse_header
from ptinspect.linux.image.derived import prune
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.image.symbols import NO_SYMBOLS, SymbolTable


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PTINSPECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "symbols"


@pytest.fixture
def recovered(monkeypatch: pytest.MonkeyPatch) -> list[SymbolTable]:
    """What the search for kallsyms answers, in order."""
    answers: list[SymbolTable] = []
    monkeypatch.setattr(kallsyms, "_run", lambda data: (answers.pop(0), ""))
    return answers


def write(tmp_path: Path, data: bytes, name: str = "vmlinuz") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


# -- Images -------------------------------------------------------------------------------------


def test_an_image(tmp_path: Path, recovered: list[SymbolTable]) -> None:
    recovered.append(SYMBOLS)
    data = image()
    kernel = KernelImage.open(write(tmp_path, data))
    assert (kernel.is_elf, kernel.linked, kernel.text_va, kernel.size) == (False, True, TEXT_VA, 0x10_0000)
    assert kernel.text_offset == 0
    assert kernel.lookup("vectors") == TEXT_VA + 0x1_0800
    assert kernel.nearest(TEXT_VA + 0x1_0804) == ("vectors", 4)
    assert kernel.nearest(TEXT_VA + 0x20_0000) is None
    assert kernel.nearest(TEXT_VA - 8) is None
    assert kernel.code_range == (0x1_0000, 0x4_0000)
    assert kernel.text_at(TEXT_VA + 0x1_0000, 16) == data[0x1_0000:0x1_0010]
    assert kernel.banner == BANNER.decode().strip()
    assert kernel.banner_va == TEXT_VA + 0x6_0000
    for va, length in ((TEXT_VA - 1, 4), (TEXT_VA + len(data) - 2, 4), (0, 1)):
        with pytest.raises(KernelFileError, match="not in vmlinuz"):
            kernel.text_at(va, length)


@pytest.mark.parametrize("kind", ["gzip", "xz", "zboot gzip", "zboot xz"])
def test_packed_images(tmp_path: Path, recovered: list[SymbolTable], kind: str) -> None:
    recovered.append(SYMBOLS)
    data = image()
    kernel = KernelImage.open(write(tmp_path, packed(data)[kind]))
    assert kernel.text_at(TEXT_VA, len(data)) == data


@pytest.mark.parametrize("kind", ["gzip", "xz", "zboot gzip", "zboot xz"])
def test_truncated_packed_images(tmp_path: Path, kind: str) -> None:
    data = packed(image())[kind]
    for size in (12, 40, len(data) // 2, len(data) - 1):
        with pytest.raises(KernelFileError):
            KernelImage.open(write(tmp_path, data[:size]))


@pytest.mark.parametrize("kind", ["gzip", "xz"])
def test_images_that_unpack_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    data = packed(image())[kind]
    monkeypatch.setattr(unpacking, "MAX_IMAGE", 0x7_0000)
    with pytest.raises(KernelFileError, match="larger than"):
        KernelImage.open(write(tmp_path, data))


def test_what_is_no_kernel(tmp_path: Path) -> None:
    for data in (b"", b"#!/bin/sh\n", bytes(1000), image(magic=b"ARMx"), b"\x7fELF", b"\x7fELF" + bytes(100)):
        with pytest.raises(KernelFileError):
            KernelImage.open(write(tmp_path, data))
    with pytest.raises(KernelFileError, match="packed with 'zstd22'"):
        KernelImage.open(write(tmp_path, zboot(b"abcd", b"zstd22")))
    with pytest.raises(KernelFileError, match="No such file"):
        KernelImage.open(tmp_path / "nothing")
    with pytest.raises(KernelFileError, match="big-endian"):
        KernelImage.open(write(tmp_path, image(flags=1)))
    with pytest.raises(KernelFileError, match="directory"):
        KernelImage.open(tmp_path)


def test_header() -> None:
    found = parse_header(image(text_offset=0x8_0000, flags=0b0110, entry=0x7000))
    assert found is not None
    assert (found.text_offset, found.image_size, found.page_size) == (0x8_0000, 0x10_0000, 65536)
    assert (found.entry_offset, found.big_endian) == (0x7000, False)
    real = bytes.fromhex(
        "4d5a40fa3b386214" + "00" * 9 + "00e701" + "00" * 4 + "0a" + "00" * 31 + "41524d6440000000"
    )
    newer = parse_header(real)
    assert newer is not None
    assert (newer.entry_offset, newer.image_size, newer.page_size) == (0x188E0F0, 0x1E70000, 4096)


@pytest.mark.parametrize(
    ("symbols", "text_offset", "expected"),
    [
        ([("_text", TEXT_VA, "T")], 0, TEXT_VA),
        ([("_head", TEXT_VA, "t")], 0, TEXT_VA),
        ([("primary_entry", TEXT_VA + 0x1_0000, "T"), ("_stext", TEXT_VA + 0x21_0000, "T")], 0, TEXT_VA),
        ([("_stext", TEXT_VA + 0x1_0000, "T")], 0, TEXT_VA),
        ([("_stext", 0xFFFF_0000_0808_1000, "T")], 0x8_0000, 0xFFFF_0000_0808_0000),
        ([("other", TEXT_VA, "T")], 0, 0),
        ([("_text", 0x283_0000, "T")], 0, 0),
        ([], 0, 0),
    ],
)
def test_where_an_image_was_linked(
    tmp_path: Path,
    recovered: list[SymbolTable],
    symbols: list[tuple[str, int, str]],
    text_offset: int,
    expected: int,
) -> None:
    recovered.append(table(symbols))
    kernel = KernelImage.open(write(tmp_path, image(text_offset=text_offset)))
    assert kernel.text_va == expected
    assert kernel.linked == bool(expected)


def test_addresses_that_are_no_kernels_are_offsets(tmp_path: Path, recovered: list[SymbolTable]) -> None:
    """Of kernels from 7.2 on the search for kallsyms knows no base, and gives them some other."""
    recovered.append(table([("vectors", 0x284_0800, "T"), ("_text", 0x283_0000, "T")]))
    kernel = KernelImage.open(write(tmp_path, image()))
    assert (kernel.lookup("vectors"), kernel.nearest(0x1_0804)) == (0x1_0800, ("vectors", 4))


def test_an_image_without_kallsyms(tmp_path: Path) -> None:
    """The real search, in its process of its own, finds nothing and says so."""
    data = image()
    kernel = KernelImage.open(write(tmp_path, data))
    assert kernel.symbols == {}
    assert kernel.symbols_missing.startswith("no kallsyms table was found in the image")
    assert kernel.text_at(0x1_0000, 8) == data[0x1_0000:0x1_0008]
    with pytest.raises(KernelFileError, match="no symbol 'vectors'") as caught:
        kernel.lookup("vectors")
    assert caught.value.hint == kernel.symbols_missing
    with pytest.raises(KernelFileError, match="describes no types"):
        _ = kernel.types


def test_types_of_an_image(tmp_path: Path, recovered: list[SymbolTable]) -> None:
    recovered.append(SYMBOLS)
    b = BtfBuilder()
    for i in range(100):
        b.struct(f"filler_{i}", 8, [("x", 1, 64)])
    kernel = KernelImage.open(write(tmp_path, image(text=[(0x5_4321, b.blob())])))
    assert kernel.types.offset("filler_7.x") == 8


# -- the cache ----------------------------------------------------------------------------------


def test_recovered_symbols_are_kept(tmp_path: Path, cache: Path, recovered: list[SymbolTable]) -> None:
    recovered.append(SYMBOLS)
    path = write(tmp_path, image())
    first = KernelImage.open(path)
    assert first.lookup("vectors") == TEXT_VA + 0x1_0800
    assert len(list(cache.iterdir())) == 1
    again = KernelImage.open(path)
    assert (again.table.names, again.table.kinds) == (list(SYMBOLS.names), SYMBOLS.kinds)
    assert again.table.addresses.tolist() == SYMBOLS.addresses.tolist()
    assert recovered == [], "asked for once"


@pytest.mark.parametrize("how", ["garbage", "truncated", "version", "shapes", "pickle"])
def test_a_damaged_cache_is_recovered_anew(
    tmp_path: Path, cache: Path, recovered: list[SymbolTable], how: str
) -> None:
    recovered.extend([SYMBOLS, SYMBOLS])
    path = write(tmp_path, image())
    assert KernelImage.open(path).symbols
    (file,) = cache.iterdir()
    if how == "garbage":
        file.write_bytes(b"PK\3\4" + bytes(100))
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:-30])
    else:
        with np.load(file) as old:
            arrays = dict(old)
        arrays |= {
            "version": {"version": np.array(99)},
            "shapes": {"addresses": arrays["addresses"][:-1]},
            "pickle": {"addresses": np.array([{}], dtype=object)},
        }[how]
        np.savez_compressed(file, **arrays)
    assert KernelImage.open(path).lookup("vectors") == TEXT_VA + 0x1_0800
    assert recovered == [], "searched again"
    recovered.append(NO_SYMBOLS)
    assert KernelImage.open(path).symbols, "and kept again"


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, recovered: list[SymbolTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PTINSPECT_CACHE", str(tmp_path / "file"))
    recovered.append(SYMBOLS)
    assert KernelImage.open(write(tmp_path, image())).symbols


def test_the_cache_is_bounded(tmp_path: Path) -> None:
    for i in range(5):
        file = tmp_path / f"{i}.npz"
        file.write_bytes(b"x")
        os.utime(file, (1000 + i, 1000 + i))
    (tmp_path / "other").write_bytes(b"x")
    (tmp_path / ".6.npz.abandoned").write_bytes(b"x")
    os.utime(tmp_path / ".6.npz.abandoned", (1000, 1000))
    (tmp_path / ".7.npz.in_work").write_bytes(b"x")
    prune(tmp_path, 2, "*.npz")
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == [
        ".7.npz.in_work",
        "3.npz",
        "4.npz",
        "other",
    ]


def test_a_search_that_answers_nonsense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (b"", b"[]", b"{}", b'{"names": ["a"], "addresses": [], "kinds": ""}'):
        monkeypatch.setattr(
            kallsyms.subprocess, "run",
            lambda *a, answer=answer, **k: kallsyms.subprocess.CompletedProcess(a, 0, answer, b""),
        )  # fmt: skip
        kernel = KernelImage.open(write(tmp_path, image()))
        assert kernel.symbols == {}
        assert kernel.symbols_missing


def test_without_the_library_that_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    said = b"Traceback\nModuleNotFoundError: No module named 'vmlinux_to_elf'\n"
    monkeypatch.setattr(
        kallsyms.subprocess, "run", lambda *a, **k: kallsyms.subprocess.CompletedProcess(a, 1, b"", said)
    )
    assert kallsyms._run(b"")[1] == ("vmlinux-to-elf is not installed: pip install --no-deps vmlinux-to-elf")


def test_a_search_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kallsyms, "TIMEOUT", 0.01)
    kernel = KernelImage.open(write(tmp_path, image()))
    assert "took more than" in kernel.symbols_missing


# -- vmlinux ------------------------------------------------------------------------------------

ELF_SYMBOLS = [
    ("_text", TEXT_VA, 0x10, 1),
    ("_stext", TEXT_VA + 0x1_0000, 0x10, 1),
    ("_etext", TEXT_VA + 0x5_0000, 0x10, 1),
    ("$x", TEXT_VA + 0x1_0000, 0x00, 1),
    (".Llabel", TEXT_VA + 0x1_0010, 0x00, 1),
    ("do_pgd", TEXT_VA + 0x1_0020, 0x00, 1),
    ("file.c", 0, 0x04, 0xFFF1),
    ("absolute", 0x1234, 0x10, 0xFFF1),
    ("elsewhere", 0, 0x10, 0),
    ("_end", TEXT_VA + 0x9_0000, 0x10, 1),
]


def test_a_vmlinux(tmp_path: Path) -> None:
    b = BtfBuilder()
    b.struct("task_struct", 8, [("stack", b.integer("long", 8), 256)])
    path = write(tmp_path, vmlinux(symbols=ELF_SYMBOLS, sections=[(".BTF", 1, b.blob())]), "vmlinux")
    kernel = KernelImage.open(path)
    assert (kernel.is_elf, kernel.header, kernel.text_va, kernel.size) == (True, None, TEXT_VA, 0x9_0000)
    assert set(kernel.symbols) == {"_text", "_stext", "_etext", "do_pgd", "absolute", "_end"}
    assert kernel.table.kinds[kernel.table.names.index("do_pgd")] == "t"
    assert kernel.table.kinds[kernel.table.names.index("_stext")] == "T"
    assert kernel.nearest(TEXT_VA + 0x1_0024) == ("do_pgd", 4)
    assert kernel.text_at(TEXT_VA + 0x1_0000, 8) == image()[0x1_0000:0x1_0008]
    assert kernel.types.offset("task_struct.stack") == 32
    assert kernel.banner == BANNER.decode().strip()
    assert kernel.code_range == (0x1_0000, 0x4_0000)


def test_a_vmlinux_of_an_old_kernel_tells_text_offset_by_its_address(tmp_path: Path) -> None:
    old = 0xFFFF_0000_0808_0000
    kernel = KernelImage.open(write(tmp_path, vmlinux(symbols=[("_text", old, 0x10, 1)], va=old)))
    assert (kernel.text_va, kernel.text_offset) == (old, 0x8_0000)


def test_a_vmlinux_with_an_absurd_segment(tmp_path: Path) -> None:
    data = bytearray(vmlinux())
    data[64 + 32 : 64 + 40] = (1 << 62).to_bytes(8, "little")  # p_filesz
    with pytest.raises(KernelFileError, match="a segment of 4611686018427387904 bytes"):
        KernelImage.open(write(tmp_path, bytes(data)))


def test_a_stripped_vmlinux(tmp_path: Path) -> None:
    data = bytearray(vmlinux())
    kernel = KernelImage.open(write(tmp_path, bytes(data)))
    assert kernel.symbols == {}
    assert kernel.text_va == TEXT_VA


@pytest.mark.parametrize(
    ("more", "match"),
    [({"machine": 62}, "not a little-endian arm64"), ({"kind": 1}, "relocatable or core")],
)
def test_elf_files_that_are_no_kernel(tmp_path: Path, more: dict[str, int], match: str) -> None:
    with pytest.raises(KernelFileError, match=match):
        KernelImage.open(write(tmp_path, vmlinux(**more)))  # type: ignore[arg-type]


def test_damaged_elf_files(tmp_path: Path) -> None:
    """Whatever is cut off or overwritten is refused or survived, never a crash."""
    data = vmlinux(symbols=ELF_SYMBOLS, code=image()[:0x1_1000])
    rng = np.random.default_rng(5)
    for i in range(300):
        broken = bytearray(data)
        if i % 3 == 0:
            broken = broken[: int(rng.integers(0, len(data)))]
        else:
            where = int(rng.integers(0, 120)) if i % 3 == 1 else int(rng.integers(len(data) - 400, len(data)))
            broken[where] ^= 1 << int(rng.integers(0, 8))
        try:
            kernel = KernelImage.open(write(tmp_path, bytes(broken)))
            _ = kernel.symbols, kernel.text_va, kernel.size, kernel.banner, kernel.code_range
        except KernelFileError:
            pass


def test_symbols_with_names_outside_the_strings(tmp_path: Path) -> None:
    data = vmlinux(symbols=[("_text", TEXT_VA, 0x10, 1), ("x", TEXT_VA, 0x10, 1)])
    at = data.index(struct.pack("<Q", TEXT_VA), data.index(b"Linux version 5"))
    broken = data[: at + 16] + struct.pack("<I", 0xFFFF_FF00) + data[at + 20 :]
    assert "_text" in KernelImage.open(write(tmp_path, broken)).symbols


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("vect", "vectors"), ("ectors", "vectors"), ("vectosr", "vectors")],
)
def test_a_misspelt_symbol_is_guessed(
    typed: str, meant: str, tmp_path: Path, recovered: list[SymbolTable]
) -> None:
    recovered.append(SYMBOLS)
    kernel = KernelImage.open(write(tmp_path, image()))
    with pytest.raises(KernelFileError) as caught:
        kernel.lookup(typed)
    assert f"did you mean {meant}" in caught.value.hint
