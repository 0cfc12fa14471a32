"""Kernel files as bytes: arm64 Images and vmlinux ELF files, with what is at which address.

Source: Documentation/arch/arm64/booting.rst (the Image header).
"""

from __future__ import annotations

import re
import struct
from typing import BinaryIO

from ptinspect.arch import a64
from ptinspect.dataclass import dataclass

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
        bool(flags & 1),
        entry,
    )


@dataclass(frozen=True)
class Segment:
    """Map bytes of the file to link-time addresses."""

    va: int
    offset: int
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
