"""Find a GDB that knows aarch64."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from ptinspect.dataclass import dataclass
from ptinspect.errors import TargetError

OLDEST = 12
"""First major version with MI commands in Python and raw packets (GDB NEWS, "Changes in GDB 12")."""
_MARK = "ptinspect-check:"
ASK = f"python print('{_MARK}', gdb.VERSION, hasattr(gdb, 'MICommand'))"
"""Command of GDB's CLI whose output `answered` reads."""
_CHECK = ("-ex", "set architecture aarch64", "-ex", "show architecture", "-ex", ASK)


@dataclass(frozen=True)
class Gdb:
    """Describe a usable GDB."""

    path: str
    version: str
    """As GDB names it: `13.1`."""


def find_gdb(path: str | None = None) -> Gdb:
    """Return the first usable GDB: `path`, $PTINSPECT_GDB, the system's, the one beside this Python.

    Raises TargetError with what is wrong with each candidate. A `path` or $PTINSPECT_GDB that
    is given is the only candidate.
    """
    complaints = []
    for candidate in candidates(path):
        try:
            return check_gdb(candidate)
        except TargetError as error:
            complaints.append(f"{candidate}: {error.message}")
    hint = (
        "install gdb-multiarch (or: ptinspect setup), or pip install 'ptinspect[gdb]', or set PTINSPECT_GDB"
    )
    tried = "; ".join(complaints)
    raise TargetError(f"no usable GDB{f' ({tried})' if tried else ''}", hint)


def candidates(path: str | None) -> Iterator[str]:
    """Yield the programs that may be a GDB, the one to try first at first."""
    chosen = path or os.environ.get("PTINSPECT_GDB")
    if chosen:
        yield _in_path(chosen) or chosen
        return
    beside = Path(sys.executable).parent
    found = [_in_path(name) for name in ("gdb-multiarch", "gdb", "aarch64-linux-gnu-gdb")]
    scripts = [str(beside / name) for name in ("gdb", "gdb-for-pwndbg")]
    programs = [name for name in found if name]
    programs.sort(key=lambda name: Path(name).parent == beside)  # stable; of the system's Python all are
    yield from dict.fromkeys([*programs, *(name for name in scripts if os.access(name, os.X_OK))])


def _in_path(name: str) -> str | None:
    """Return the program of this name, as a shell finds it; only importing shutil.which takes longer."""
    if "/" in name:
        return name
    found = (f"{folder}/{name}" for folder in os.get_exec_path())
    return next((file for file in found if os.path.isfile(file) and os.access(file, os.X_OK)), None)  # noqa: PTH113


def check_gdb(path: str) -> Gdb:
    """Check that the program is a GDB with Python that knows aarch64. Raises TargetError."""
    try:
        return _run_check(path, Path(path).stat().st_mtime_ns)
    except OSError as error:
        raise TargetError(error.strerror or str(error)) from error


@lru_cache
def _run_check(path: str, modified: int) -> Gdb:
    try:
        done = subprocess.run(
            [path, "-nx", "-q", "-batch", *_CHECK],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=20,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise TargetError("does not end") from error
    text = done.stdout.decode("utf-8", "replace")
    if _MARK in text and not re.search(r'architecture is set to "aarch64"', text):
        raise TargetError("knows no aarch64")
    return Gdb(path, answered(text))


def answered(text: str) -> str:
    """Return the version in what GDB prints at ASK. Raises TargetError if such a GDB cannot be used."""
    match = re.search(rf"{_MARK} (\S+) (\w+)", text)
    if match is None:
        raise TargetError("no GDB, or one without Python")
    if match[2] != "True":
        raise TargetError(f"version {match[1]} is too old, {OLDEST} is needed")
    return match[1]
