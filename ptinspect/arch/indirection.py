"""Fields of PIR_EL1, PIRE0_EL1 and PIR_EL2: what an index in a leaf permits (FEAT_S1PIE)."""

from __future__ import annotations

from dataclasses import dataclass

INDIRECT = (
    *("---", "r--", "--x", "r-x", "---", "rw-", "rwx", "rwx"),
    *("r--", "r--", "r-x", "---", "rw-", "---", "rwx", "---"),
)
"""Field -> base permissions (Arm ARM R_LLZDZ, PIR_EL1)."""
GCS = 9
"""The field that allows a guarded control stack."""
WXN = 6
"""The field that forbids to execute what may be written (R_HJYGR)."""
PLAIN = 8
"""From this field on the overlay has no part (FEAT_S1POE)."""


@dataclass(frozen=True)
class Access:
    """Say what one level may do, and what may still be taken from it."""

    read: bool = False
    write: bool = False
    execute: bool = False
    gcs: bool = False
    """It may use the memory as a guarded control stack (FEAT_GCS)."""
    wxn: bool = False
    """What may be written may not be executed."""
    overlay: bool = False
    """An overlay register may take from it."""

    @property
    def letters(self) -> str:
        """The access as `rwx`."""
        allowed = (self.read, self.write, self.execute)
        return "".join(letter if on else "-" for letter, on in zip("rwx", allowed, strict=True))


def field(register: int, index: int) -> int:
    """Return one of the sixteen fields of four bits that PIR and POR registers have."""
    return register >> 4 * index & 15


def base_access(register: int, index: int) -> Access:
    """Return the base permissions that a field of PIR_EL1, PIRE0_EL1 or PIR_EL2 gives one level."""
    found = field(register, index)
    read, write, execute = (letter != "-" for letter in INDIRECT[found])
    return Access(read, write, execute, found == GCS, found == WXN, found < PLAIN)


def field_text(name: str, register: int, index: int) -> str:
    """Write what a field gives: `PIR_EL1 0b1001 r--, GCS`."""
    found = field(register, index)
    more = ", GCS" if found == GCS else ", not executable where writable" if found == WXN else ""
    return f"{name} {found:#06b} {INDIRECT[found]}{more}"
