"""Conditions of breakpoints as they are typed: C with the kernel's types, in words that GDB understands."""

from __future__ import annotations

import re

from ptinspect.errors import UserError
from ptinspect.guest.expressions import c_tree
from ptinspect.guest.expressions.c_evaluator import Evaluator
from ptinspect.guest.expressions.guest_scope import GuestScope
from ptinspect.guest.expressions.machines import GdbWords
from ptinspect.guest.guest import Guest

_COUNTER = r"\$(?![xw]\d|sp\b|pc\b|cpsr\b|[A-Z])\w+\s*(\+\+|--)"
_OF_GDB = re.compile(rf"\$_|\$\d|\$\$|{_COUNTER}|::|\"")
"""What only GDB's own language has: its variables and functions, strings.

What would change the guest is refused: an assignment is mostly meant to be a comparison.
"""

_STRING = re.compile(r'"(?:\\.|[^"\\])*"')
_VARIABLE = re.compile(r"\$\w+")
"""A register, variable or function of GDB's."""
_CALL = re.compile(r"(?<![$\w])(?!sizeof\b)[A-Za-z_]\w*(?=\s*\()")
"""A function of the guest's, which GDB would call there each time."""
_ASSIGNMENT = re.compile(r"(?<![=!<>])=(?!=)|<<=|>>=|\+\+|--")
SECONDS = 5.0
"""How long GDB is given to tell a value."""


def for_gdb(guest: Guest, condition: str) -> str:
    """Return a condition in GDB's language, names and types of the kernel put into numbers.

    What is GDB's alone stays as it is. Raises PtinspectError for names and types that are not known, or that
    GDB does not know: it would stop the guest each time then, for it cannot tell.
    """
    if _OF_GDB.search(condition):
        _check(guest, _STRING.sub('""', condition))
        return condition
    tree = c_tree.parse(condition)
    scope = GuestScope(guest)
    evaluator = Evaluator(scope, GdbWords(scope))
    return str(evaluator.truth(evaluator.operand(tree)))


def _check(guest: Guest, condition: str) -> None:
    """Raise UserError for what would change the guest, and for names of GDB's that it does not have."""
    if call := _CALL.search(condition):
        own = "GDB's own: $_streq(A, B), $_memeq(A, B, N), $_regex(A, B), $_strlen(A)"
        raise UserError(f"condition: {call[0]} would be called in the guest", own)
    if change := _ASSIGNMENT.search(re.sub(_COUNTER, "0", condition)):
        raise UserError(f"condition: {change[0]} would change something", "== compares")
    for name in dict.fromkeys(_VARIABLE.findall(condition)):
        if guest.target.escort.command(f"output {name}", SECONDS).strip() == "void":
            own = "gdb show convenience lists its own"
            hint = own if name.startswith("$_") else f"gdb set {name} = 0 makes a variable"
            raise UserError(f"condition: GDB has no {name}", hint)
