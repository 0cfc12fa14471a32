"""Files that further arguments of QEMU's name: what a recording keeps with it, and what it cannot keep."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ptinspect.errors import UserError
from ptinspect.link.qemu.machine import escape

WHOLE = {"bios", "dtb", "initrd", "kernel"}
"""Options whose value is the name of a file that is read (QEMU qemu-options.hx)."""
DISKS = {"drive", "blockdev", "hda", "hdb", "hdc", "hdd", "cdrom", "sd", "pflash", "mtdblock"}
FILE = re.compile(r"(?:^|,)file=((?:[^,]|,,)+)")
"""The same in a list of properties: of -device loader, -fw_cfg, -acpitable, -smbios, -drive."""


class Named(NamedTuple):
    """A file that an argument names."""

    word: int
    text: str
    """How it names it."""
    name: str
    """The copy's name in the directory of the recording."""

    @property
    def original(self) -> Path:
        """The file that was named."""
        return Path(self.text.replace(",,", ","))


def named_files(words: Sequence[str]) -> tuple[Named, ...]:
    """Return the files that arguments name and QEMU reads. Raises UserError for disks, which it writes to."""
    found: list[Named] = []
    for at, (word, value) in enumerate(pairwise(words), 1):
        option = word.lstrip("-") if word.startswith("-") else ""
        if option in DISKS and ("file" in value or "=" not in value):
            raise UserError(
                f"a recording cannot keep a disk: -{option} {value}",
                "the guest may write to it: use an initial RAM disk; -bios FILE for a firmware",
            )
        texts = [value.replace(",", ",,")] if option in WHOLE else FILE.findall(value)
        for text in texts:
            named = Named(at, text, f"file{len(found)}")
            if named.original.is_file():
                found.append(named)
    return tuple(found)


def with_copies(words: Sequence[str], files: Sequence[Named], folder: Path) -> tuple[str, ...]:
    """Return the arguments, with the copies in a directory for the files."""
    changed = list(words)
    for named in files:
        copy, old = folder / named.name, changed[named.word]
        whole = words[named.word - 1].lstrip("-") in WHOLE
        changed[named.word] = (
            str(copy) if whole else old.replace(f"file={named.text}", f"file={escape(copy)}")
        )
    return tuple(changed)
