"""Conditions of breakpoints as they are typed: C with the kernel's types, in words that GDB understands."""

from __future__ import annotations

import re

from ptinspect.errors import UserError
from ptinspect.guest.expressions import c_tree
from ptinspect.guest.expressions.c_evaluator import Evaluator
from ptinspect.guest.expressions.guest_scope import GuestScope
from ptinspect.guest.expressions.machines import GdbWords
from ptinspect.guest.guest import Guest

_OF_GDB = re.compile(r"\$_|\$\d|\$\$|\$(?![xw]\d|sp\b|pc\b|cpsr\b|[A-Z])\w+\s*(\+\+|--)|::|\"")
"""What only GDB's own language has: its variables and functions, strings.

What would change the guest is refused: an assignment is mostly meant to be a comparison.
"""

_VARIABLE = re.compile(r'"(?:\\.|[^"])*"|(\$\w+)')
"""A register, variable or function of GDB's; strings are passed over."""
SECONDS = 5.0
"""How long GDB is given to tell a value."""


def for_gdb(guest: Guest, condition: str) -> str:
    """Return a condition in GDB's language, names and types of the kernel put into numbers.

    What is GDB's alone stays as it is. Raises PtinspectError for names and types that are not known, or that
    GDB does not know: it would stop the guest each time then, for it cannot tell.
    """
    if _OF_GDB.search(condition):
        for name in filter(None, dict.fromkeys(_VARIABLE.findall(condition))):
            if guest.target.escort.command(f"output {name}", SECONDS).strip() == "void":
                own = "gdb show convenience lists its own"
                hint = own if name.startswith("$_") else f"gdb set {name} = 0 makes a variable"
                raise UserError(f"condition: GDB has no {name}", hint)
        return condition
    tree = c_tree.parse(condition)
    scope = GuestScope(guest)
    evaluator = Evaluator(scope, GdbWords(scope))
    return str(evaluator.truth(evaluator.operand(tree)))
