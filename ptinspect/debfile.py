"""Debian packages: the files in one, without dpkg.

Source: deb(5): an `ar` archive, one member of which is `data.tar`, packed or not; that has what ustar and
GNU's long names have, and neither extended headers nor sparse files.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, BinaryIO, Self

from ptinspect.errors import TargetError
from ptinspect.packing import HEAD, DamagedError, joined, packing_of, unpacked

MAGIC = b"!<arch>\n"
"""How a package begins."""
DAMAGE = (DamagedError, OSError, tarfile.TarError, EOFError, ValueError)
"""What reading a damaged package raises."""
_HEADER = 60
_END = b"`\n"
_PIECE = 1 << 16
MAX_NAME = 1 << 16
"""Bytes of a path in a package; Linux has 4096 (PATH_MAX)."""
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_UNKNOWN = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_SPARSE
)  # fmt: skip


def is_package(head: bytes) -> bool:
    """Tell by its first bytes whether a file is a Debian package, or another archive of `ar`."""
    return head.startswith(MAGIC)


class _Member(tarfile.TarInfo):
    """A header in the archive, which tells how much memory what belongs to it takes."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header. Raises DamagedError for one that dpkg would refuse."""
        member = super().frombuf(buf, encoding, errors)
        if member.type in _UNKNOWN or (member.type in _LONG and member.size > MAX_NAME):
            raise DamagedError("its archive has a header that packages do not have")
        return member


def files(package: BinaryIO, name: str) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield the path of each regular file in a package, without a leading slash, its size, and its bytes.

    The bytes can be read until the next one is asked for. Raises TargetError if the package is damaged, as
    far as it shows so far; reading the bytes raises what DAMAGE names.
    """
    try:
        data = joined(_data(package))
        kind = packing_of(data.peek(HEAD)[:HEAD])
        with tarfile.open(fileobj=unpacked(data, kind) if kind else data, mode="r|", tarinfo=_Member) as tar:
            for member in tar:
                vars(tar)["members"] = []  # nobody asks for those that were passed
                source = tar.extractfile(member) if member.isreg() else None
                if source is not None:
                    yield member.name.removeprefix("./").lstrip("/"), member.size, source
    except DAMAGE as error:
        raise TargetError(f"cannot unpack {name}: {error}") from error


def _data(package: BinaryIO) -> Iterator[bytes]:
    """Yield the bytes of the member `data.tar`. Raises DamagedError."""
    if package.read(len(MAGIC)) != MAGIC:
        raise DamagedError("no Debian package")
    while True:
        header = package.read(_HEADER)
        if len(header) != _HEADER or header[58:] != _END or not header[48:58].strip().isdigit():
            raise DamagedError("it has no data, or is truncated")
        left = int(header[48:58])
        wanted = header.startswith(b"data.tar")
        odd = left % 2
        while left:
            piece = package.read(min(left, _PIECE))
            if not piece:
                raise DamagedError("it is truncated")
            left -= len(piece)
            if wanted:
                yield piece
        if wanted:
            return
        package.read(odd)
