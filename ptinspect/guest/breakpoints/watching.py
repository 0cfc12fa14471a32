"""Watchpoints on what an expression names: GDB's and QEMU's hardware watchpoints, on a place in memory."""

from __future__ import annotations

from typing import Literal

from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.guest.breakpoints.breakpoints import condition_for_gdb, symbol_breakpoints
from ptinspect.guest.breakpoints.numbered import Watched
from ptinspect.guest.expressions import c_tree
from ptinspect.guest.expressions.c_evaluator import Operand
from ptinspect.guest.expressions.values import Values
from ptinspect.guest.guest import Guest
from ptinspect.link.state import StopInfo
from ptinspect.linux.image.c_types import CType

Access = Literal["write", "read", "access"]
STEPS = "GDB could watch it only by stepping each instruction"


@dataclass(frozen=True)
class Change:
    """What a watchpoint saw when it stopped the guest, in words; empty where GDB did not tell."""

    text: str
    """What is watched, as typed."""
    old: str
    new: str

    @property
    def words(self) -> str:
        """The same in words."""
        if self.old == self.new:
            return f"{self.text} = {self.new}" if self.new else self.text
        return f"{self.text}: old = {self.old}, new = {self.new}"


def watch(guest: Guest, text: str, access: Access, condition: str = "") -> Watched:
    """Stop the guest when what an expression names is written (and changes), read, or accessed.

    Raises UserError for what lies nowhere in memory, OutOfSlots under KVM, MiError.
    """
    session = guest.stopped
    values = Values(guest)
    operand = values.evaluator.operand(c_tree.parse(text))
    kind, address = operand.type, _place(text, operand)
    plain = {1: "char", 2: "short", 4: "int", 8: "long"}.get(kind.size)
    if plain is None:
        raise UserError(
            f"{text} has {kind.size} bytes, and a watchpoint 1, 2, 4 or 8",
            f"watch {text}{'[0]' if kind.kind == 'array' else '.MEMBER'}",
        )
    words = condition_for_gdb(guest, condition)
    values.number(Operand(kind, address=address)) if kind.scalar else values.scope.read(
        address, kind.size, physical=False
    )
    type = f"{'signed' if kind.signed else 'unsigned'} {plain} *"
    number = session.watch_access(address, kind.size, type=type, access=access)
    try:
        if words:
            session.alter_place(number, condition=words)
    except BaseException:
        session.delete_breakpoint(number)
        raise
    ours = symbol_breakpoints(guest)
    ours.typed[number] = condition
    made = ours.watched[number] = Watched(number, text, kind, address)
    return made


def _place(text: str, operand: Operand) -> int:
    address = operand.address
    if operand.bits:
        raise UserError(
            f"{text} is a bit field: a watchpoint watches whole bytes", "watch the word that it is in"
        )
    if not isinstance(address, int):
        if operand.type.kind == "int" and not isinstance(operand.value, str) and "$" not in text:
            raise UserError(
                f"{text} is a number, and lies nowhere", f"watch *{text}, or watch *(u32 *) {text}"
            )
        raise UserError(
            f"{text} lies nowhere in memory: {STEPS}", "watch what it is made from, or break with a condition"
        )
    if operand.physical:
        what = f"{text} is physical, and QEMU watches the addresses that the guest uses"
        raise UserError(what, "find PA lists those that lead there")
    return address


def change_at(guest: Guest, stop: StopInfo) -> Change | None:
    """Return what a watchpoint of ours saw at a stop; None if it was none."""
    if stop.breakpoint is None:
        return None
    found = symbol_breakpoints(guest).watched.get(stop.breakpoint)
    if found is None or not stop.reason.endswith("watchpoint-trigger"):
        return None
    values = Values(guest)
    return Change(found.text, *(_shown(values, found.type, raw) for raw in (stop.old, stop.new)))


def _shown(values: Values, kind: CType, raw: str) -> str:
    """Write a value that GDB told as its type says: GDB writes the number first."""
    number = raw.partition(" ")[0]
    try:
        value = int(number, 0)
    except ValueError:
        return raw
    return values.scalar(kind, value) if kind.scalar else f"{value:#x}"
