"""Addresses that take more than a sum to compute: `init_task.stack`, `*(u64 *)$sp`, `$current->mm->pgd`."""

from __future__ import annotations

import re

from ptinspect.arch.bits import MASK64
from ptinspect.dataclass import dataclass, field
from ptinspect.errors import UserError
from ptinspect.guest.expression import Address, Names
from ptinspect.guest.expression import address as plain_address
from ptinspect.guest.expressions import c_tree
from ptinspect.guest.expressions.values import Values
from ptinspect.guest.names import GuestNames, SnapshotNames

_MEMBER = re.compile(r"[A-Za-z_]\w*\.(?!(?:isra|part|constprop|cold|llvm|lto_priv|\d+)\b)[A-Za-z_]")
"""A name and its member; what compilers append to a function's name is none."""


@dataclass(frozen=True)
class Computed(Address):
    """A C expression that is an address."""

    tree: c_tree.Node = field(default_factory=lambda: c_tree.Number(0))

    def value(self, names: Names | None = None) -> int:
        """Return the address: a scalar's value, where an array or a struct lies. Raises PtinspectError."""
        if not isinstance(names, GuestNames | SnapshotNames):
            raise UserError(f"{self.text!r}: not attached to a stopped guest", "use a number: 0x…")
        snap = names.snap if isinstance(names, SnapshotNames) else None
        values = Values(names.guest, names.cpu, snap)
        operand = values.evaluator.operand(self.tree)
        if operand.type.kind in ("struct", "union") and isinstance(operand.address, int):
            found, physical = operand.address, operand.physical
        else:
            found, physical = values.number(operand), operand.physical and operand.address is None
        if physical:
            raise UserError(f"{self.text!r} is a physical address", f"pa:{found & MASK64:#x}")
        return found & MASK64


def address(text: str) -> Address:
    """Read an address: a sum as everywhere, or else a C expression. Raises UserError."""
    more = _MEMBER.search(text) is not None or "$current" in text
    try:
        if not more:
            return plain_address(text)
    except UserError as error:
        try:
            tree = c_tree.parse(text)
        except UserError as other:
            raise (other if re.search(r"[>*&(~]", text) else error) from None
        return Computed(text, False, (), tree)
    return Computed(text, False, (), c_tree.parse(text))
