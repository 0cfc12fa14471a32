"""A GDB that its user has started, which takes ptinspect from this tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import missing

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "gdbscripts"
SOURCE = f"source {SCRIPTS / 'ptinspect.py'}"
SECONDS = 400


def need_gdb(name: str = "gdb-multiarch") -> str:
    """Return the program; fail or skip where it is missing."""
    return shutil.which(name) or missing(name)


def typed(
    gdb: str, *lines: str, folder: Path | None = None, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Type lines into it, and return what it prints."""
    return subprocess.run(
        [gdb, "-nx", "-q", "-batch", *(word for line in lines for word in ("-ex", line))],
        cwd=folder,
        env={**os.environ, "PTINSPECT_PYTHON": python, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
