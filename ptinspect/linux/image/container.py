"""Kernel files as bytes: arm64 Images, packed Images and vmlinux ELF files, with what is at which address.

Source: Documentation/arch/arm64/booting.rst (the Image header), drivers/firmware/efi/libstub/zboot.lds
and Makefile.zboot (the header of an EFI zboot image).
"""

from __future__ import annotations

import lzma
import re
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from ptinspect.arch import a64
from ptinspect.dataclass import dataclass
from ptinspect.errors import KernelFileError
from ptinspect.files import open_input

MAX_IMAGE = 384 << 20
"""Bytes that an Image may have; real ones are below 100 MB. Unpacking takes twice that."""
HEADER_SIZE = 64
_MAGIC = b"ARMd"
_PAGE_SIZES = {1: 4096, 2: 16384, 3: 65536}
BANNER = re.compile(rb"Linux version \d[ -~]*")
"""What init/version.c calls linux_banner; format strings (`Linux version %s`) do not match."""


@dataclass(frozen=True)
class ImageHeader:
    """The fields of the 64-byte header of an Image."""

    text_offset: int
    """Bytes above a 2 MiB boundary at which the image must lie."""
    image_size: int
    """Bytes that the image takes in memory, .bss included; 0 before Linux 3.17."""
    page_size: int
    """Bytes of a page that the kernel was built for; 0 if the header leaves it open."""
    anywhere: bool
    """The 2 MiB boundary may be anywhere in RAM, not only near its start."""
    big_endian: bool
    """The kernel is big-endian."""
    entry_offset: int
    """Offset of the code that the header's branch goes to, `primary_entry`; 0 if it has none."""


def parse_header(data: bytes) -> ImageHeader | None:
    """Return the header at the start of `data`, or None if this is no arm64 Image."""
    if len(data) < HEADER_SIZE or data[56:60] != _MAGIC:
        return None
    text_offset, image_size, flags = struct.unpack_from("<QQQ", data, 8)
    branches = (a64.branch(word, 4 * i) for i, word in enumerate(a64.words(data[:8])))
    entry = next((target for target in branches if target is not None), 0)
    if image_size == 0:
        text_offset = text_offset or 0x80000
    return ImageHeader(
        text_offset,
        image_size,
        _PAGE_SIZES.get(flags >> 1 & 3, 0),
        bool(flags >> 3 & 1),
        bool(flags & 1),
        entry,
    )


def unpack(data: bytes, name: str) -> bytes:
    """Return the Image inside a packed kernel; an Image is returned as it is.

    Raises KernelFileError if it is neither, if the packing is one that the standard library does not
    know, or if what comes out is not an Image.
    """
    if parse_header(data) is not None:
        return data
    if data[4:8] == b"zimg":
        data = _unpack_zboot(data, name)
    elif data[:2] == b"\x1f\x8b":
        data = _gunzip(data, name)
    elif data[:6] == b"\xfd7zXZ\0":
        data = _unxz(data, name)
    if parse_header(data) is None:
        raise KernelFileError(
            f"{name}: neither an arm64 Image, nor one packed by gzip, xz or EFI zboot, nor an ELF file",
            "give the Image or vmlinuz that QEMU boots, or the vmlinux it was made from",
        )
    return data


def _unpack_zboot(data: bytes, name: str) -> bytes:
    if len(data) < 32:
        raise KernelFileError(f"{name}: the EFI zboot image is truncated")
    offset, size = struct.unpack_from("<II", data, 8)
    kind = data[24:32].split(b"\0")[0].decode("ascii", "replace")
    payload = data[offset : offset + size]
    if not size or len(payload) != size:
        raise KernelFileError(f"{name}: the EFI zboot image is truncated")
    if kind == "gzip":
        return _gunzip(payload, name)
    if kind in ("lzma", "xzkern", "xz"):
        return _unxz(payload, name)
    raise KernelFileError(
        f"{name}: the EFI zboot image is packed with {kind!r}, which ptinspect cannot unpack",
        "give the vmlinux, or the plain Image (arch/arm64/boot/Image)",
    )


def _gunzip(data: bytes, name: str) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        out = unpacker.decompress(data, MAX_IMAGE)
    except zlib.error as error:
        raise KernelFileError(f"{name}: damaged gzip data: {error}") from error
    if not unpacker.eof:
        raise KernelFileError(f"{name}: the gzip data is truncated or larger than {MAX_IMAGE >> 20} MiB")
    return out


def _unxz(data: bytes, name: str) -> bytes:
    try:
        unpacker = lzma.LZMADecompressor(memlimit=1 << 30)
        out = unpacker.decompress(data, MAX_IMAGE)
    except lzma.LZMAError as error:
        raise KernelFileError(f"{name}: damaged xz data: {error}") from error
    if not unpacker.eof:
        raise KernelFileError(f"{name}: the xz data is truncated or larger than {MAX_IMAGE >> 20} MiB")
    return out


@dataclass(frozen=True)
class Segment:
    """Map bytes of the file to link-time addresses."""

    va: int
    """First address."""
    offset: int
    """Offset in the file."""
    size: int
    """Bytes."""


class FileBytes:
    """Read parts of a file that stays open; a file that shrinks meanwhile gives short reads."""

    def __init__(self, file: BinaryIO) -> None:
        """Take over an open file."""
        self.file = file

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes at `offset`; none where the file has none, or cannot be read."""
        try:
            self.file.seek(offset)
            return self.file.read(length)
        except (OSError, OverflowError, ValueError):
            return b""


class Blob:
    """Read parts of an Image that is in memory."""

    def __init__(self, data: bytes) -> None:
        """Hold the bytes."""
        self.data = data

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes at `offset`."""
        return self.data[offset : offset + length]


def open_bytes(path: Path) -> tuple[FileBytes, None] | tuple[Blob, ImageHeader]:
    """Open a kernel file: an ELF file as it stands, an Image unpacked and with its header.

    Raises KernelFileError if it cannot be read or is neither.
    """
    try:
        file = open_input(path)
        magic = file.read(4)
        if magic == b"\x7fELF":
            return FileBytes(file), None
        with file:
            data = magic + file.read(MAX_IMAGE)
    except OSError as error:
        raise KernelFileError(f"{path}: {error.strerror or error}") from error
    if len(data) > MAX_IMAGE:
        raise KernelFileError(f"{path}: larger than {MAX_IMAGE >> 20} MiB, and no ELF file")
    data = unpack(data, str(path))
    header = parse_header(data)
    assert header is not None
    if header.big_endian:
        raise KernelFileError(f"{path}: a big-endian kernel; ptinspect reads only little-endian ones")
    return Blob(data), header
