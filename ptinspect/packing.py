"""Packed files as streams: gzip, xz, lzma, bzip2, Zstandard, lz4 and lzop, whatever their size.

A file is packed the way its first bytes say. Memory is bounded: SLICE bytes at a time are unpacked, which
give 128 MiB at the most (Zstandard, RFC 8878 3.1.1.2: blocks of 128 KiB in four bytes), usually some KiB;
of bzip2, where they give 4 GiB, and of xz no more than LARGEST at once.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping

from ptinspect.typed import Any, BinaryIO, Protocol

HEAD = 16
"""Bytes that tell how a file is packed."""
SLICE = 4096
BUFFER = 1 << 18
LARGEST = 16 << 20
"""Bytes of one piece of what bzip2 and xz have packed."""
LZ4_BLOCK = 8 << 20
"""Bytes that a block of lz4's legacy format unpacks to (lz4_Frame_format.md, Legacy frame)."""
LZO_BLOCK = 256 << 10
"""Bytes that a block of lzop's unpacks to (Linux lib/decompress_unlzo.c)."""
MAX_MEMORY = 1 << 30
"""Bytes that unpacking xz may take; `xz -9` needs 65 MiB."""

_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_LZOP = b"\x89LZO\0\r\n\x1a\n"
MAGICS: Mapping[bytes, str] = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    _LZ4_LEGACY: "lz4 -l",
    _LZOP: "lzop",
    b"\x5d\0\0": "lzma",
}
"""How a packed file begins."""


class DamagedError(Exception):
    """Report that what is packed ends early or makes no sense; what came before it has been yielded."""


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes | None: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def packing_of(head: bytes) -> str:
    """Return how a file is packed that begins with these HEAD bytes; empty if it is not."""
    return next((kind for magic, kind in MAGICS.items() if head.startswith(magic)), "")


def chunks(file: BinaryIO, kind: str, *, strict: bool = False) -> Iterator[bytes]:
    """Yield what a file unpacks to, from where it stands on, piece by piece.

    Several streams in a row are one, as their tools have it. What else follows the last one is ignored
    (a signature, a device tree), but for `strict`: then it is damage, except zeros. Raises DamagedError,
    and OSError if the file cannot be read.
    """
    if kind == "lz4 -l":
        return _lz4_blocks(file)
    if kind == "lzop":
        return _lzop_blocks(file)
    return _streams(file, kind, strict)


def unpacked(file: BinaryIO, kind: str, *, strict: bool = False) -> io.BufferedReader:
    """Return a file that reads as `chunks` yields; reading raises DamagedError."""
    return joined(chunks(file, kind, strict=strict))


def joined(pieces: Iterator[bytes]) -> io.BufferedReader:
    """Return a file that reads as these pieces do, one after the other; none of them is empty."""
    return io.BufferedReader(_Stream(pieces), BUFFER)


class _Stream(io.RawIOBase):
    """A file made of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        done = 0
        while done < len(buffer):
            if not self._left:
                self._left = memoryview(next(self._pieces, b""))
                if not self._left:
                    break
            part = self._left[: len(buffer) - done]
            buffer[done : done + len(part)] = part
            self._left = self._left[len(part) :]
            done += len(part)
        return done


def _streams(file: BinaryIO, kind: str, strict: bool) -> Iterator[bytes]:
    make, errors = _maker(kind)
    data = file.read(SLICE)
    while True:
        unpacker = make()
        while data:
            try:
                for out in _pieces(unpacker, data):
                    if out:
                        yield out
            except errors as error:
                raise DamagedError(f"damaged {kind} data: {error}") from error
            if unpacker.eof:
                break
            data = file.read(SLICE)
        if not unpacker.eof:
            raise DamagedError(f"the {kind} data is truncated")
        data = _what_follows(file, unpacker.unused_data)
        if packing_of(data) != kind:
            if data and strict:
                raise DamagedError(f"something else follows the {kind} data")
            return


def _pieces(unpacker: _Unpacker, data: bytes) -> Iterator[bytes]:
    """Unpack some bytes: whole, or piece by piece where the standard library can be asked for that."""
    if not hasattr(unpacker, "needs_input"):
        yield unpacker.decompress(data)
        return
    bounded: Any = unpacker
    yield bounded.decompress(data, LARGEST)
    while not (bounded.eof or bounded.needs_input):
        yield bounded.decompress(b"", LARGEST)


def _what_follows(file: BinaryIO, unused: bytes | None) -> bytes:
    """Return some bytes that follow a stream and the zeros that may pad it; none at the end."""
    data = (unused or b"").lstrip(b"\0")
    while not data and (more := file.read(SLICE)):
        data = more.lstrip(b"\0")
    while 0 < len(data) < HEAD and (more := file.read(SLICE)):
        data += more
    return data


def _maker(kind: str) -> tuple[Callable[[], _Unpacker], tuple[type[Exception], ...]]:
    """Return what makes the unpacker of a stream, and the errors by which it reports damage."""
    if kind == "gzip":
        import zlib

        return lambda: zlib.decompressobj(wbits=31), (zlib.error,)
    if kind in ("xz", "lzma"):
        import lzma

        return lambda: lzma.LZMADecompressor(memlimit=MAX_MEMORY), (lzma.LZMAError,)
    if kind == "bzip2":
        import bz2

        return bz2.BZ2Decompressor, (OSError, ValueError)
    if kind == "zstd":
        import zstandard

        make = zstandard.ZstdDecompressor().decompressobj
        return make, (zstandard.ZstdError,)
    from lz4.frame import LZ4FrameDecompressor

    return LZ4FrameDecompressor, (RuntimeError, ValueError)


def _lz4_blocks(file: BinaryIO) -> Iterator[bytes]:
    """Unpack what `lz4 -l` writes, as the kernel's build does: blocks with a size before each, no end.

    What `size_append` of Linux scripts/Makefile.lib puts after it, the unpacked size, is the end too.
    """
    import lz4.block

    done, limit = 0, LZ4_BLOCK + LZ4_BLOCK // 255 + 16
    while head := file.read(4):
        size = int.from_bytes(head, "little")
        if head == _LZ4_LEGACY:
            continue
        data = file.read(size) if len(head) == 4 and size <= limit else b""
        if len(head) == 4 and not data and size == done:
            return
        if not data or len(data) != size:
            raise DamagedError("the lz4 data is truncated or damaged")
        try:
            out = lz4.block.decompress(data, uncompressed_size=LZ4_BLOCK)
        except (lz4.block.LZ4BlockError, ValueError) as error:
            raise DamagedError(f"damaged lz4 data: {error}") from error
        done += len(out)
        yield out


def _lzop_blocks(file: BinaryIO) -> Iterator[bytes]:
    """Unpack what lzop writes. Source: Linux lib/decompress_unlzo.c."""
    import zlib

    try:
        from lzallright import LZOCompressor, LZOError
    except ImportError as error:
        raise DamagedError("unpacking LZO needs lzallright: pip install lzallright") from error
    checks, packed_checks = _lzop_header(file)
    while size := _number(file, ">I"):
        length = _number(file, ">I")
        if not length <= size <= LZO_BLOCK:
            raise DamagedError("damaged lzop data: a block of a wrong size")
        adler = [_number(file, ">I") for _ in range(checks)]
        if length < size:
            _exactly(file, 4 * packed_checks)
        data = _exactly(file, length)
        try:
            out = LZOCompressor.decompress(data, size) if length < size else data
        except LZOError as error:
            raise DamagedError("damaged lzop data") from error
        if len(out) != size or (adler and adler[0] not in (zlib.adler32(out), zlib.crc32(out))):
            raise DamagedError("damaged lzop data: a block does not have its checksum")
        yield bytes(out)


def _lzop_header(file: BinaryIO) -> tuple[int, int]:
    """Skip the header; return how many checksums a block has of its content, and of its packed form."""
    _exactly(file, len(_LZOP))
    version = _number(file, ">H")
    later = version >= 0x940
    _exactly(file, 5 if later else 2)  # the library's version, the version needed, the method
    _exactly(file, 1)
    flags = _number(file, ">I")
    _exactly(file, (4 if flags & 0x800 else 0) + (12 if later else 8))  # filter, mode, times
    _exactly(file, _number(file, ">B") + 4)  # name, checksum
    return sum(bool(flags & f) for f in (0x1, 0x100)), sum(bool(flags & f) for f in (0x2, 0x200))


def _exactly(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) != length:
        raise DamagedError("the lzop data is truncated")
    return data


def _number(file: BinaryIO, form: str) -> int:
    import struct

    return int(struct.unpack(form, _exactly(file, struct.calcsize(form)))[0])
