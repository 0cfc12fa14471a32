"""Symbols of an Image, recovered from the kallsyms table inside it and kept in the user's cache.

The table's format is not an interface; vmlinux-to-elf knows its variants (scripts/kallsyms.c).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from ptinspect.errors import UserError
from ptinspect.files import cache_directory, replacing
from ptinspect.linux.image.derived import prune
from ptinspect.linux.image.symbols import NO_SYMBOLS, SymbolTable
from ptinspect.processes import die_with_parent

VERSION = 1
"""Version of the cache's format; another one is recovered anew."""
NOT_INSTALLED = "vmlinux-to-elf is not installed: pip install --no-deps vmlinux-to-elf"
TIMEOUT = 300.0
"""Seconds that a recovery may take; it needs about 3 on an ordinary machine."""
MAX_FILES = 48
"""Files kept in the cache; the ones used longest ago go first."""
MAX_SYMBOLS = 4_000_000
MAX_BYTES = 256 << 20


def recover(data: bytes) -> tuple[SymbolTable, str]:
    """Return the symbols of an Image, and why there are none (empty if there are).

    The answer comes from the cache if this Image was asked for before. Never raises: a kernel
    without kallsyms is a kernel all the same.
    """
    path = cache_directory() / "symbols" / f"{hashlib.sha256(data).hexdigest()}.npz"
    table = _load(path)
    if table is None:
        table, reason = _run(data)
        if reason:
            return NO_SYMBOLS, reason
        _save(path, table)
    return table, ""


def _run(data: bytes) -> tuple[SymbolTable, str]:
    script = Path(__file__).with_name("recover.py")
    try:
        run = subprocess.run(
            [sys.executable, "-P", str(script)],
            input=data,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
            preexec_fn=die_with_parent,
        )
    except subprocess.TimeoutExpired:
        return NO_SYMBOLS, f"the search for kallsyms took more than {TIMEOUT:.0f} seconds"
    except OSError as error:
        return NO_SYMBOLS, f"the search for kallsyms did not start: {error}"
    if run.returncode != 0:
        last = run.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
        missing = "No module named 'vmlinux_to_elf'" in last[0]
        no_table = f"no kallsyms table was found in the image: {last[0][:200]}"
        return NO_SYMBOLS, NOT_INSTALLED if missing else no_table
    try:
        found = json.loads(run.stdout)
        names = [str(name).replace("\n", " ") for name in found["names"]]
        addresses = np.array([int(a) & (1 << 64) - 1 for a in found["addresses"]], dtype=np.uint64)
        kinds = str(found["kinds"])
    except (ValueError, KeyError, TypeError) as error:
        return NO_SYMBOLS, f"the search for kallsyms gave no usable answer: {error}"
    if not names or not len(names) == len(addresses) == len(kinds) or not kinds.isascii():
        return NO_SYMBOLS, "the kallsyms table of the image is empty or damaged"
    return SymbolTable(names, addresses, kinds), ""


def _load(path: Path) -> SymbolTable | None:
    """Return a cached table; None if there is none or it cannot be used."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                return None
        with np.load(path, allow_pickle=False) as arrays:
            if int(arrays["version"]) != VERSION:
                return None
            addresses = arrays["addresses"].astype(np.uint64)
            names = arrays["names"].tobytes().decode("utf-8").split("\n")
            kinds = arrays["kinds"].tobytes().decode("ascii")
        os.utime(path)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    if addresses.ndim != 1 or not len(names) == len(addresses) == len(kinds) <= MAX_SYMBOLS:
        return None
    return SymbolTable(names, addresses, kinds)


def _save(path: Path, table: SymbolTable) -> None:
    """Keep a table; a cache that cannot be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez_compressed(
                file,
                version=np.array(VERSION),
                addresses=table.addresses,
                names=np.frombuffer("\n".join(table.names).encode(), np.uint8),
                kinds=np.frombuffer(table.kinds.encode(), np.uint8),
            )
        prune(path.parent, MAX_FILES, "*.npz")
    except (OSError, UserError):
        return
