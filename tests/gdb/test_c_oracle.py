"""C's integer arithmetic against GDB's own, on random expressions: value and type."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import Any

from conftest import need_gdb

from ptinspect.errors import UserError
from ptinspect.guest.expressions import c_tree
from ptinspect.guest.expressions.c_evaluator import Evaluator
from ptinspect.guest.expressions.machines import Numbers
from ptinspect.linux.image.c_types import CTypes

TYPES = ("char", "signed char", "unsigned char", "short", "unsigned short", "int", "unsigned int", "long",
         "unsigned long")  # fmt: skip
SIGNS = ("+", "-", "*", "/", "%", "&", "|", "^", "<", ">", "<=", ">=", "==", "!=", "&&", "||")
CONSTANTS = ("0", "1", "7", "255", "0x7fffffff", "0x80000000", "0xffffffff", "0x8000000000000000", "1ul",
             "3u", "0xffffffffffffffff", "5l", "2147483647", "'a'", "'\\377'", "017", "0x1000u")  # fmt: skip


def expression(dice: random.Random, depth: int = 0) -> str:
    kind = dice.randrange(8) if depth < 4 else 0
    if kind == 0:
        return dice.choice(CONSTANTS)
    a, b, c = (expression(dice, depth + 1 + later) for later in (0, 0, 1))
    forms = {
        1: f"({dice.choice(TYPES)})({a})",
        2: f"{dice.choice('~!+')}({a})",
        3: f"-({a})",
        4: f"(({a}) {dice.choice(('<<', '>>'))} {dice.randrange(32)})",
        5: f"({a} ? {b} : {c})",
        6: f"{a} {dice.choice(SIGNS)} {b}",
        7: f"({a} {dice.choice(SIGNS)} {b})",
    }
    return forms[kind]


def test_random_expressions(tmp_path: Path) -> None:
    gdb = need_gdb()
    dice = random.Random(1)
    scope: Any = type("Scope", (), {"types": CTypes(None)})
    evaluator = Evaluator(scope, Numbers(scope))
    wanted: dict[str, tuple[int, str]] = {}
    while len(wanted) < 1500:
        text = expression(dice)
        try:
            operand = evaluator.operand(c_tree.parse(text))
        except UserError as error:
            assert "division by zero" in error.message, text
            continue
        value = evaluator.value(operand)
        assert isinstance(value, int)
        wanted[text] = (value & (1 << 64) - 1, operand.type.name)
    script = tmp_path / "script"
    lines = ["set architecture aarch64", "set language c"]
    lines += [line for text in wanted for line in (f"output/x (long)({text})", "echo \\n", f"whatis {text}")]
    script.write_text("\n".join(lines))
    run = subprocess.run(
        [gdb.path, "-batch", "-nx", "-x", str(script)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    said = [line for line in run.stdout.splitlines() if line.startswith(("0x", "type = "))]
    found = zip(said[::2], said[1::2], strict=True)
    wrong = [
        (text, pair, told)
        for (text, pair), told in zip(wanted.items(), found, strict=True)
        if (int(told[0], 16), told[1].removeprefix("type = ")) != pair
    ]
    assert wrong == []
