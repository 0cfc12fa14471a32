"""Files of the user's cache that are made from kernel files: made once, and anew when the file is another."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from ptinspect.errors import UserError
from ptinspect.files import cache_directory, replacing

ABANDONED_SECONDS = 3600.0
"""Nobody takes longer to write a file."""


def derived(
    path: Path,
    folder: str,
    version: str,
    suffix: str,
    write: Callable[[IO[bytes]], None],
    *,
    keep: int,
    spare: float = 0.0,
) -> Path:
    """Return the file that `write` makes from `path`, now or earlier.

    It lies in that folder of the cache, where `keep` files stay, and those used in the last `spare` seconds.
    `version`: what it depends on besides the file. Raises OSError, UserError, and what `write` raises.
    """
    stat = path.stat()
    facts = f"{version} {path.resolve()} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns}"
    digest = hashlib.sha256(os.fsencode(facts)).hexdigest()[:32]
    kept = cache_directory() / folder / f"{digest}{suffix}"
    if kept.is_file():
        os.utime(kept)
        return kept
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {kept.parent}: {error.strerror or error}") from error
    with replacing(kept) as out:
        write(out)
    prune(kept.parent, keep, f"*{suffix}", spare)
    return kept


def prune(directory: Path, keep: int, pattern: str, spare: float = 0.0) -> None:
    """Delete the files of a cache directory that were used longest ago, all but `keep`.

    Those used within the last `spare` seconds stay too. What a killed process had begun to write goes.
    """
    for when, old in _by_use(directory, pattern)[keep:]:
        if not 0 <= time.time() - when < spare:
            old.unlink(missing_ok=True)
    for when, begun in _by_use(directory, f".{pattern}.*"):
        if time.time() - when > ABANDONED_SECONDS:
            begun.unlink(missing_ok=True)


def _by_use(directory: Path, pattern: str) -> list[tuple[float, Path]]:
    """Return when each file was used last, and the file, the latest first."""
    used: list[tuple[float, Path]] = []
    for file in directory.glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            used.append((file.stat().st_mtime, file))
    return sorted(used, reverse=True)
