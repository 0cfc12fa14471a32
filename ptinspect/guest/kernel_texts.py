"""The kernel's text of its page tables: from a file, or made from a snapshot."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ptinspect.files import open_input
from ptinspect.guest.guest import Guest

if TYPE_CHECKING:
    from ptinspect.linux.ptdump.kernel_text import Text

ZIP = b"PK\x03\x04"
"""How the file of a snapshot begins: it is a zip."""


def is_kernel_text(guest: Guest, name: str) -> bool:
    """Tell whether a name is no snapshot in memory but a file with the kernel's text."""
    path = Path(name)
    if name in guest.snapshots or not path.is_file():
        return False
    with suppress(OSError), open_input(path) as file:
        if file.read(len(ZIP)) == ZIP:
            return False
    from ptinspect.linux.ptdump.kernel_text import is_text

    return is_text(path)


def kernel_text(guest: Guest, name: str) -> Text:
    """Return the text in a file, or the one that the kernel would print for a snapshot.

    Raises UserError if there is no such text in it, or it contradicts itself.
    """
    from ptinspect.linux.ptdump.kernel_lines import kernel_lines
    from ptinspect.linux.ptdump.kernel_text import load, parse

    if is_kernel_text(guest, name):
        return load(Path(name))
    return parse(kernel_lines(guest.snapshot_or_file(name))[0], name)
