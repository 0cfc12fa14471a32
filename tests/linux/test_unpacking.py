"""Kernel files in every form: what comes out of them, for whom, and what damaged and foreign ones say."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import tarfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import missing
from kernels import TEXT_VA, fit, image, uimage, unified, vmlinux, zboot
from test_packing import PACK, lz4_legacy

from ptinspect import debfile
from ptinspect.errors import KernelFileError, TargetError
from ptinspect.linux.image import unpacking
from ptinspect.linux.image.container import parse_header
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.image.unpacking import UnknownFile, bootable, is_elf, plain

IMAGE = image()
ELF = vmlinux(symbols=[("_text", TEXT_VA, 0x10, 1), ("here", TEXT_VA + 0x1_0000, 0x12, 1)])
ZSTD = PACK["zstd"](IMAGE)

FORMS: dict[str, bytes] = {
    **{kind: pack(IMAGE) for kind, pack in PACK.items()},
    "zboot gzip": zboot(PACK["gzip"](IMAGE), b"gzip"),
    "zboot zstd": zboot(ZSTD, b"zstd22") + struct.pack("<I", len(IMAGE)),
    "zboot lz4": zboot(lz4_legacy(IMAGE), b"lz4") + struct.pack("<I", len(IMAGE)),
    "zboot lzma": zboot(PACK["lzma"](IMAGE), b"lzma"),
    "zboot lzo": zboot(PACK["lzop"](IMAGE), b"lzo"),
    "zboot xz": zboot(PACK["xz"](IMAGE), b"xzkern"),
    "zboot, signed": zboot(ZSTD, b"zstd22") + b"signature" * 300,
    "zboot, packed": PACK["gzip"](zboot(ZSTD, b"zstd22")),
    "gzip with a device tree": PACK["gzip"](IMAGE) + b"\xd0\x0d\xfe\xed" + bytes(3000),
    "uImage": uimage(IMAGE),
    "uImage gzip": uimage(PACK["gzip"](IMAGE)),
    "FIT": fit(PACK["gzip"](IMAGE)),
    "FIT, its data outside": fit(PACK["lz4"](IMAGE), external=True),
    "UKI": unified(IMAGE),
    "UKI of a zboot": unified(zboot(ZSTD, b"zstd22")),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PTINSPECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def write(tmp_path: Path, data: bytes, name: str = "vmlinuz") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def package(tmp_path: Path, pack: str, files: dict[str, bytes]) -> Path:
    """Build a package with dpkg's own tool."""
    if shutil.which("dpkg-deb") is None:
        missing("dpkg-deb")
    tree = tmp_path / "tree"
    for path, content in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    (tree / "DEBIAN").mkdir()
    text = "Package: p\nVersion: 1\nArchitecture: arm64\nMaintainer: N <n@localhost>\nDescription: test\n"
    (tree / "DEBIAN" / "control").write_text(text)
    deb = tmp_path / "p.deb"
    command = ["dpkg-deb", f"-Z{pack}", "--root-owner-group", "-b", str(tree), str(deb)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    return deb


@pytest.mark.parametrize("form", FORMS)
def test_the_image_in_every_form(tmp_path: Path, form: str) -> None:
    path = write(tmp_path, FORMS[form])
    assert plain(path).read_bytes() == IMAGE
    assert bootable(path, firmware=False) == plain(path) != path
    assert KernelImage.open(path).header == parse_header(IMAGE)
    assert KernelImage.open(path).path == path


@pytest.mark.parametrize("form", FORMS)
def test_every_form_cut_off_is_refused_in_a_line(tmp_path: Path, cache: Path, form: str) -> None:
    data = FORMS[form]
    inside = data[: data.find(b"signature" * 9)] if b"signature" in data else data
    end = {"gzip with a device tree": 3004, "zboot zstd": 4}.get(form, 0)
    for size in (4, 17, 70, len(inside) // 3, len(inside) - end - 700):
        with pytest.raises(KernelFileError) as caught:
            plain(write(tmp_path, data[:size], f"cut{size}"))
        assert f"cut{size}" in caught.value.message and "\n" not in caught.value.message
    assert not cache.exists() or list(cache.iterdir()) == [], "nothing is left of what failed"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_damaged_is_refused_or_survived(tmp_path: Path, form: str) -> None:
    rng = np.random.default_rng(7)
    for n in range(12):
        broken = bytearray(FORMS[form])
        where = int(rng.integers(0, 600 if n % 2 else len(broken)))
        broken[where] ^= 1 << int(rng.integers(0, 8))
        path = write(tmp_path, bytes(broken), f"broken{n}")
        for what in (lambda p=path: plain(p), lambda p=path: bootable(p, firmware=True)):
            try:
                what()
            except KernelFileError as error:
                assert "\n" not in error.message


def test_an_image_cut_off_is_refused(tmp_path: Path) -> None:
    """The EFI stub's section table tells how long the file is; no more than that is asked of it."""
    section = b".data\0\0\0" + struct.pack("<IIIII", 0x9000, 0x7_0000, 0x8000, 0x7_0000, 0).ljust(32, b"\0")
    table = b"PE\0\0" + struct.pack("<HHIIIHH", 0xAA64, 1, 0, 0, 0, 0, 0) + section
    whole = image(text=[(0x3C, struct.pack("<I", 0x40)), (0x40, table)])
    for data in (whole, whole[:0x7_8000], whole + b"signature"):
        path = write(tmp_path, data)
        assert plain(path) == bootable(path, firmware=True) == path
        KernelImage.open(path)
    path = write(tmp_path, whole[:0x7_7FFF])
    for use in (plain, KernelImage.open, lambda path: bootable(path, firmware=True)):
        with pytest.raises(KernelFileError, match="truncated: 491519 bytes of at least 491520"):
            use(path)


@pytest.mark.parametrize("pack", ["none", "gzip", "xz", "zstd"])
def test_the_kernel_in_a_package(tmp_path: Path, pack: str) -> None:
    files = {
        "boot/config-1": b"C" * 999,
        "boot/vmlinuz-1": FORMS["zboot zstd"],
        "lib/modules/1/vmlinux.ko": b"x" * 70_000,
    }
    deb = package(tmp_path, pack, files)
    assert plain(deb).read_bytes() == bootable(deb, firmware=False).read_bytes() == IMAGE
    assert bootable(deb, firmware=True).read_bytes() == FORMS["zboot zstd"]


def test_the_vmlinux_in_a_package(tmp_path: Path) -> None:
    deb = package(tmp_path, "xz", {"usr/lib/debug/boot/vmlinux-1": ELF})
    assert is_elf(plain(deb)) and plain(deb).read_bytes() == ELF
    assert KernelImage.open(deb).lookup("here") == TEXT_VA + 0x1_0000
    assert bootable(deb, firmware=False).read_bytes() == IMAGE


def test_packages_without_a_kernel_and_damaged_ones(tmp_path: Path) -> None:
    deb = package(tmp_path, "xz", {"boot/config-1": b"c" * 5000, "boot/vmlinux": b"x"})
    with pytest.raises(KernelFileError, match="no kernel in this package") as caught:
        plain(deb)
    assert "linux-binary-" in caught.value.hint
    data = package(tmp_path, "xz", {"boot/vmlinuz-1": IMAGE}).read_bytes()
    for size in (8, 100, len(data) // 2, len(data) - 900):
        with pytest.raises(KernelFileError, match=r"cannot unpack|truncated") as caught:
            plain(write(tmp_path, data[:size], "cut.deb"))
        assert "cut.deb" in caught.value.message


@pytest.mark.parametrize("kind", PACK)
def test_a_packed_vmlinux(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, PACK[kind](ELF))
    kernel = KernelImage.open(path)
    assert kernel.is_elf and kernel.lookup("here") == TEXT_VA + 0x1_0000
    assert kernel.text_at(TEXT_VA, 64) == IMAGE[:64]
    assert is_elf(plain(path)) and plain(path).read_bytes() == ELF


def test_the_image_that_a_vmlinux_was_made_from(tmp_path: Path) -> None:
    assert bootable(write(tmp_path, ELF), firmware=False).read_bytes() == IMAGE
    assert bootable(write(tmp_path, vmlinux(va=0), "at 0"), firmware=True).read_bytes() == IMAGE
    with pytest.raises(KernelFileError, match="cannot be booted") as caught:
        bootable(write(tmp_path, vmlinux(code=bytes(4096)), "debug"), firmware=False)
    assert caught.value.hint.startswith("launch IMAGE --symbols")


def test_a_firmware_gets_the_efi_file(tmp_path: Path) -> None:
    for form in ("zboot zstd", "zboot, signed", "UKI"):
        path = write(tmp_path, FORMS[form])
        assert bootable(path, firmware=True) == path
    assert bootable(write(tmp_path, FORMS["zboot, packed"]), firmware=True).read_bytes() == zboot(
        ZSTD, b"zstd22"
    )
    path = write(tmp_path, IMAGE)
    assert bootable(path, firmware=True) == bootable(path, firmware=False) == path


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (zboot(ZSTD, b"zstd22", machine=0x8664), "for x86-64, not"),
        (bytes(0x202) + b"HdrS" + bytes(99), "for x86, not"),
        (bytes(0x38) + b"RSC\x05" + bytes(99), "for RISC-V, not"),
        (bytes(0x24) + b"\x18\x28\x6f\x01" + bytes(99), "for 32-bit Arm, not"),
        (PACK["gzip"](bytes(0x202) + b"HdrS" + bytes(99)), "for x86, not"),
        (uimage(IMAGE, machine=2), "holds no arm64 kernel"),
        (uimage(IMAGE, kind=3), "holds no arm64 kernel"),
        (fit(IMAGE, machine=b"arm"), "'arm', not arm64"),
        (zboot(b"abcd", b"zstd22"), "packed with 'zstd22'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "of",
)
def test_kernels_for_others(tmp_path: Path, data: bytes, match: str) -> None:
    with pytest.raises(KernelFileError, match=match) as caught:
        bootable(write(tmp_path, data), firmware=False)
    assert not isinstance(caught.value, UnknownFile)


def test_what_may_be_anything(tmp_path: Path) -> None:
    for data in (b"", bytes(4096), b"#!/bin/sh\n", IMAGE[64:], b"MZ" + bytes(500)):
        with pytest.raises(UnknownFile):
            bootable(write(tmp_path, data), firmware=False)


def test_bombs_are_bounded(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MAX_IMAGE", 0x7_0000)
    monkeypatch.setattr(unpacking, "MAX_ELF", 0x9_0000)
    for pack in PACK.values():
        with pytest.raises(KernelFileError, match="larger than"):
            plain(write(tmp_path, pack(IMAGE)))
        with pytest.raises(KernelFileError, match="ELF file of more than"):
            plain(write(tmp_path, pack(ELF + bytes(0x9_0000))))
    matryoshka = IMAGE[:0x6_0000]
    for _ in range(9):
        matryoshka = PACK["gzip"](matryoshka)
    with pytest.raises(KernelFileError, match="packed and wrapped more than"):
        plain(write(tmp_path, matryoshka))
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, b"S"])
def test_a_package_whose_headers_are_bombs(kind: bytes) -> None:
    """64 MiB that stand for a name or its like, in a file of 64 KiB."""
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 64 << 20
    data = PACK["gzip"](header.tobuf(tarfile.GNU_FORMAT) + bytes(header.size))
    name = b"data.tar.gz".ljust(16) + b"0".ljust(12) + b"0".ljust(6) + b"0".ljust(6) + b"644".ljust(8)
    deb = b"!<arch>\n" + name + str(len(data)).encode().ljust(10) + b"`\n" + data
    assert len(deb) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(TargetError, match="a header that packages do not have"):
            list(debfile.files(io.BytesIO(deb), "x.deb"))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_device_tree_of_long_names_and_deep_nodes(tmp_path: Path) -> None:
    """Each path would be longer than the one before: more than any memory, from 40 MB."""
    for name in (b"a" * 20_003 + b"\0", b"abc\0"):
        tree = (struct.pack(">I", 1) + name) * 2000
        data = b"\xd0\x0d\xfe\xed" + struct.pack(">III", 0, 56, 56) + bytes(40) + tree
        with pytest.raises(KernelFileError, match="damaged"):
            plain(write(tmp_path, data))


def test_it_is_unpacked_once_and_anew_for_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, FORMS["zboot zstd"])
    first = plain(path)
    with monkeypatch.context() as patch:
        patch.setattr(unpacking, "_unwrap", lambda *a: pytest.fail("unpacked twice"))
        assert plain(path) == first
    path.write_bytes(PACK["gzip"](image(seed=2)))
    assert plain(path).read_bytes() == image(seed=2)


def test_the_cache_keeps_few_but_none_that_is_about_to_be_booted(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "MAX_FILES", 2)
    kept = [plain(write(tmp_path, FORMS["gzip"], f"k{n}")) for n in range(4)]
    assert all(file.exists() for file in kept)
    for file in kept:
        os.utime(file, (time.time() - 2 * unpacking.SPARE_SECONDS,) * 2)
    new = plain(write(tmp_path, FORMS["gzip"], "new"))
    assert new.exists() and len(list(cache.iterdir())) == 2


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTINSPECT_CACHE", str(write(tmp_path, b"in the way", "file")))
    with pytest.raises(KernelFileError, match="cannot be kept"):
        plain(write(tmp_path, FORMS["gzip"]))
    assert plain(write(tmp_path, IMAGE)).read_bytes() == IMAGE
