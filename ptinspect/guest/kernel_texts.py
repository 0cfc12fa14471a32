"""The kernel's text of its page tables: from a file, or made from a snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ptinspect.guest.guest import Guest

if TYPE_CHECKING:
    from ptinspect.linux.ptdump.kernel_text import Text


def is_kernel_text(guest: Guest, name: str) -> bool:
    """Tell whether a name is no snapshot in memory but a file with the kernel's text."""
    from ptinspect.linux.ptdump.kernel_text import is_text

    return name not in guest.snapshots and Path(name).is_file() and is_text(Path(name))


def kernel_text(guest: Guest, name: str) -> Text:
    """Return the text in a file, or the one that the kernel would print for a snapshot.

    Raises UserError if there is no such text in it, or it contradicts itself.
    """
    from ptinspect.linux.ptdump.kernel_lines import kernel_lines
    from ptinspect.linux.ptdump.kernel_text import load, parse

    if is_kernel_text(guest, name):
        return load(Path(name))
    return parse(kernel_lines(guest.snapshot_or_file(name))[0], name)
