"""Take single files out of a Debian package, or all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

from ptinspect import debfile
from ptinspect.errors import TargetError
from ptinspect.reference.helper_program import run

MAX_FILE = 4 << 30
"""Bytes above which no file of a package is unpacked."""
CHUNK = 1 << 20
UNPACK_TIMEOUT = 300.0


def extract(
    package: Path,
    patterns: Sequence[str],
    choose: Callable[[str], Path],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Path]:
    """Unpack, for each pattern, the first regular file whose path in the package matches it.

    Patterns are as fnmatch has them, without a leading slash; `choose` gives the place for a path.
    Nothing else is unpacked, and nothing is written elsewhere. `progress` gets bytes done and the
    size of the file. Returns pattern -> file for those that were found. Raises TargetError.
    """
    found: dict[str, Path] = {}
    wanted = list(patterns)
    try:
        with package.open("rb") as file:
            for path, size, source in debfile.files(file, package.name):
                match = next((p for p in wanted if fnmatchcase(path, p)), None)
                if match is None:
                    continue
                found[match] = _write(choose(path), source, path, size, progress)
                wanted.remove(match)
                if not wanted:
                    break
    except debfile.DAMAGE as error:
        raise TargetError(f"cannot unpack {package.name}: {error}") from error
    return found


def _write(
    target: Path, source: IO[bytes], path: str, size: int, progress: Callable[[int, int], None]
) -> Path:
    if size > MAX_FILE:
        raise TargetError(f"{path} is larger than any kernel: {size} bytes")
    with target.open("wb") as out:
        while data := source.read(CHUNK):
            out.write(data)
            progress(out.tell(), size)
        if out.tell() != size:
            raise EOFError(f"{path} ends early")
    return target


def unpack(package: Path, directory: Path) -> None:
    """Unpack a whole package under a directory, which is made. Raises TargetError."""
    result = run(["dpkg-deb", "-x", str(package), str(directory)], timeout=UNPACK_TIMEOUT)
    if result.code:
        raise TargetError(f"cannot unpack {package.name}: {result.last_words()}")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
