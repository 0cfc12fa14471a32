"""Which tables are meant: the words for roots, and for the rules by which one is used."""

from __future__ import annotations

import re

from ptinspect.dataclass import dataclass
from ptinspect.guest.expression import Address, address

REGISTERS = ("ttbr0_el1", "ttbr1_el1", "ttbr0_el2", "ttbr1_el2")
RULES = ("el1", "el2", *REGISTERS)
RULES_HELP = "whose rules an address given as root is used by: el1, el2, or ttbr0_el2 and its like"
WORDS = ("ttbr0", "ttbr1", *REGISTERS, "swapper", "user", "idmap", "tramp", "trampoline")
ROOT_HELP = (
    "swapper (default for kernel addresses), ttbr0 (default for others), ttbr1, ttbr0_el2 and its like, "
    "user (tables of the current task), task:PID, task:NAME, idmap, tramp, or the address of a table"
)


def root_choice(text: str) -> str | Address:
    """Read a word of WORDS, `task:PID` or `task:NAME`, or the address of a table."""
    word = text.lower()
    if word in WORDS:
        return word
    if re.fullmatch(r"task:.{1,64}", text):
        return text
    return address(text)


@dataclass(frozen=True)
class Tables:
    """Say which tables are meant: whose, from which root, by which rules."""

    root: str | Address | None = None
    """A word of WORDS, `task:PID`, `task:NAME`, a table's address; None: the kernel's own, or TTBR0's."""
    regime: str | None = None
    """A word of RULES: by whose rules a root given by its address is used."""
    cpu: int | None = None
    """Whose registers count; None for the CPU that stopped."""
    snap: str | None = None
    """A snapshot, by its name or its file; None for the guest."""
