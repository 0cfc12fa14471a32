"""Unpacking: every packing there and back, several streams, what follows them, damage, and bombs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import lz4.block
import lz4.frame
import numpy as np
import pytest
import zstandard
from lzallright import LZOCompressor

from ptinspect.packing import HEAD, DamagedError, chunks, packing_of, unpacked

TEXT = np.random.default_rng(3).integers(0, 50, 120_000, dtype=np.uint8).tobytes()
"""Bytes that get smaller, but not by much."""


def lz4_legacy(data: bytes) -> bytes:
    blocks = [data[at : at + (8 << 20)] for at in range(0, len(data), 8 << 20)]
    packed = [lz4.block.compress(block, store_size=False) for block in blocks]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(block)) + block for block in packed)


def lzop(data: bytes) -> bytes:
    """Write what `lzop -9` does: Adler checksums, the packed form's left out where nothing got smaller."""
    header = struct.pack(">HHHBBIIIIB", 0x1040, 0x20A0, 0x0940, 3, 9, 0x0300_0003, 0o100644, 0, 0, 1) + b"n"
    out = b"\x89LZO\0\r\n\x1a\n" + header + struct.pack(">I", zlib.adler32(header))
    for at in range(0, len(data), 256 << 10):
        block = data[at : at + (256 << 10)]
        packed = bytes(LZOCompressor().compress(block))
        smaller = len(packed) < len(block)
        packed = packed if smaller else block
        out += struct.pack(">III", len(block), len(packed), zlib.adler32(block))
        out += (struct.pack(">I", zlib.adler32(packed)) if smaller else b"") + packed
    return out + bytes(4)


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": zstandard.compress,
    "lz4": lz4.frame.compress,
    "lz4 -l": lz4_legacy,
    "lzop": lzop,
}
STREAMS = [kind for kind in PACK if kind not in ("lz4 -l", "lzop")]
"""Packings whose streams have an end of their own, so that others may follow."""


def whole(data: bytes, *, strict: bool = False) -> bytes:
    kind = packing_of(data[:HEAD])
    return b"".join(chunks(io.BytesIO(data), kind, strict=strict))


@pytest.mark.parametrize("kind", PACK)
def test_there_and_back(kind: str) -> None:
    for data in (TEXT, TEXT[:1], bytes(9 << 20), b"" if kind in STREAMS else b"x"):
        packed = PACK[kind](data)
        assert packing_of(packed[:HEAD]) == kind
        assert whole(packed) == data
    assert unpacked(io.BytesIO(PACK[kind](TEXT)), kind).read() == TEXT


@pytest.mark.parametrize("kind", PACK)
def test_a_truncated_file_gives_what_it_has(kind: str) -> None:
    packed = PACK[kind](TEXT)
    for size in (10, len(packed) // 2, len(packed) - 1):
        got = []
        with pytest.raises(DamagedError):
            got.extend(chunks(io.BytesIO(packed[:size]), kind))
        assert TEXT.startswith(b"".join(got))


@pytest.mark.parametrize("kind", PACK)
def test_a_damaged_file_is_refused_or_differs(kind: str) -> None:
    """Never another error; where there is a checksum, nothing wrong comes out unnoticed."""
    packed = PACK[kind](TEXT)
    for at in range(12, len(packed), len(packed) // 20):
        broken = bytearray(packed)
        broken[at] ^= 0x10
        try:
            out = whole(bytes(broken))
        except DamagedError as error:
            assert "\n" not in str(error) and len(str(error)) < 200
        else:
            assert kind in ("zstd", "lz4", "lz4 -l", "lzma") or out == TEXT, (kind, at)


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_in_a_row_are_one(kind: str) -> None:
    packed = PACK[kind](TEXT[:70_000]) + PACK[kind](TEXT[70_000:])
    assert whole(packed) == whole(packed, strict=True) == TEXT


@pytest.mark.parametrize("kind", STREAMS)
def test_what_follows_is_ignored_unless_it_is_to_be_noticed(kind: str) -> None:
    packed = PACK[kind](TEXT)
    for tail in (b"signature" * 1000, b"\xd0\x0d\xfe\xed" + bytes(5000)):
        assert whole(packed + tail) == TEXT
        with pytest.raises(DamagedError, match="something else follows"):
            whole(packed + tail, strict=True)
    assert whole(packed + bytes(9000), strict=True) == TEXT


def test_the_size_that_the_kernels_build_appends() -> None:
    assert whole(lz4_legacy(TEXT) + struct.pack("<I", len(TEXT))) == TEXT
    with pytest.raises(DamagedError):
        whole(lz4_legacy(TEXT) + struct.pack("<I", len(TEXT) + 1))


@pytest.mark.parametrize("kind", PACK)
def test_a_bomb_is_unpacked_piece_by_piece(kind: str) -> None:
    """The first megabyte of a gigabyte of zeros takes little memory."""
    part = PACK[kind](bytes(24 << 20))
    bomb = part * 40 if kind in STREAMS else part
    tracemalloc.start()
    try:
        assert unpacked(io.BytesIO(bomb), kind).read(1 << 20) == bytes(1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 160 << 20
    finally:
        tracemalloc.stop()


def test_a_bomb_of_one_slice_is_unpacked_piece_by_piece() -> None:
    """400 MiB of zeros are 300 bytes of bzip2's, which are all read at once."""
    packer = bz2.BZ2Compressor()
    bomb = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(400)), packer.flush()])
    assert len(bomb) < 4096
    sizes = [len(piece) for piece in chunks(io.BytesIO(bomb), "bzip2")]
    assert sum(sizes) == 400 << 20 and max(sizes) <= 16 << 20


def test_what_is_not_packed() -> None:
    for head in (b"", b"MZ", b"\x7fELF", b"Linux version"):
        assert packing_of(head) == ""
