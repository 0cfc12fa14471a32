"""C expressions: constants, precedence, conversions, pointers, members; and what they are in GDB's words."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from kernels import BtfBuilder

from ptinspect.errors import GuestError, KernelFileError, PtinspectError, UserError
from ptinspect.guest.expressions import c_tree
from ptinspect.guest.expressions.c_evaluator import Evaluator, Operand, Variable
from ptinspect.guest.expressions.machines import GdbWords, Numbers
from ptinspect.linux.image.btf import BtfTypes
from ptinspect.linux.image.c_types import CTypes

TASK, OTHER, PAGE = 0xFFFF_8000_1000_1000, 0xFFFF_8000_1000_2000, 0xFFFF_8000_1000_3000
SYMBOLS = {"init_task": TASK, "start_kernel": 0xFFFF_8000_1000_0010, "table": PAGE, "f.isra.0": PAGE + 16}


def types() -> CTypes:
    b = BtfBuilder()
    char, long, uint = b.integer("char", 1), b.integer("long unsigned int", 8), b.integer("unsigned int", 4)
    signed = b.add(1, "int", 4, struct.pack("<I", 1 << 24 | 32))
    pair = b.struct("pair", 16, [("first", long, 0), ("second", long, 64)])
    pointer = b.pointer(pair + 7)  # which comes last
    inner = b.struct("", 8, [("left", uint, 0), ("right", uint, 32)])
    bits = b.struct("", 4, [("three", uint, 3 << 24 | 0), ("next", signed, 5 << 24 | 3)], flag=True)
    made = b.struct(
        "task_struct", 96,
        [("comm", b.array(char, 16), 0), ("pid", signed, 128), ("parent", pointer, 192), ("", inner, 256),
         ("", bits, 320), ("grid", b.array(pair, 2), 384), ("text", b.pointer(char), 640)],
    )  # fmt: skip
    assert made == pair + 7
    return CTypes(BtfTypes(b.blob()))


MEMORY: dict[int, bytes] = {
    TASK: b"init\0".ljust(16, b"x")
    + struct.pack("<iIQIIIIQQQQQ", -7, 0, OTHER, 5, 6, 0b10001_011, 0, 1, 2, 3, 4, 0),
    OTHER: b"other".ljust(16, b"\0") + struct.pack("<i", 42),
    PAGE: struct.pack("<4Q", 0x11, 0x22, 0xFFFF_FFFF_FFFF_FFF0, 0x44),
}


class Scope:
    types = types()

    def symbol(self, name: str) -> int:
        if name not in SYMBOLS:
            raise KernelFileError(f"no symbol {name!r}")
        return SYMBOLS[name]

    def physical(self, name: str) -> int:
        return self.symbol(name) & 0xFFFF_FFFF

    def variable(self, name: str) -> Variable | None:
        if name != "init_task":
            return None
        return Variable(self.types.named(("struct", "task_struct")), TASK, physical=False)

    def register(self, name: str) -> int:
        known = {"x0": 2**64 - 5, "w0": 2**32 - 5, "x1": 3, "sp": PAGE + 8, "SP_EL0": TASK}
        if name not in known:
            raise UserError(f"no register ${name}")
        return known[name]

    def spelling(self, name: str) -> str:
        self.register(name)
        return name

    def task(self) -> int:
        return TASK

    def read(self, address: int, length: int, *, physical: bool) -> bytes:
        for start, data in MEMORY.items():
            at = (address | 0xFFFF_8000_0000_0000 if physical else address) - start
            if 0 <= at <= len(data) - length:
                return data[at : at + length]
        raise GuestError(f"{address:#x} is not mapped")


def evaluated(text: str) -> tuple[Evaluator, Operand]:
    scope = Scope()
    evaluator = Evaluator(scope, Numbers(scope))
    return evaluator, evaluator.operand(c_tree.parse(text))


def value(text: str) -> Any:
    evaluator, operand = evaluated(text)
    return evaluator.value(operand)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("init_task.pid", -7), ("(&init_task)->pid", -7), ("init_task->pid", -7), ("init_task.pid < 0", 1),
        ("init_task.parent->pid", 42), ("$current->parent->pid", 42), ("init_task.parent", OTHER),
        ("init_task.right", 6), ("init_task.three", 3), ("init_task.next", -15),
        ("init_task.comm[1]", ord("n")),
        ("*init_task.comm == 'i'", 1), ("init_task.comm", TASK), ("&init_task.right", TASK + 36),
        ("init_task.grid[1].first", 3), ("(&init_task.grid[1])->second", 4), ("init_task.grid[1]", None),
        ("((struct task_struct *)$SP_EL0)->pid", -7), ("((struct pair *)table)[1].second", 0x44),
        ("*table", 0x11), ("table[3]", 0x44), ("*(table + 8)", 0x22), ("*(unsigned long *)table", 0x11),
        ("*((unsigned long *)table + 1)", 0x22), ("*(u32 *)(table+8)", 0x22), ("*(s64 *)(table+16)", -16),
        ("(unsigned char)*(s64 *)(table+16)", 0xF0), ("*pa:0x10003008", 0x22), ("*pa:table", 0x11),
        ("*$sp", 0x22), ("$sp - 8", PAGE), ("$x0", -5), ("$w0", -5), ("$x0 < 0", 1), ("$x0 == -5", 1),
        ("0x__1__2_", 0x12), ("1__2", 12),
        ("&table", PAGE), ("table", PAGE), ("start_kernel + 0x10", 0xFFFF_8000_1000_0020),
        ("f.isra.0", PAGE + 16), ("f.isra.0 - table", 16), ("init_task + 16", TASK + 16),
        ("&init_task + 1", TASK + 96), ("&init_task.grid[1] - &init_task.grid[0]", 1),
        ("1 + &init_task.grid[0] == &init_task.grid[1]", 1), ("!init_task.parent", 0),
        ("!init_task.text", 1),
        ("init_task.parent && init_task.parent->pid == 42", 1), ("init_task.text && *init_task.text", 0),
        ("init_task.text || 1", 1), ("init_task.text ? *init_task.text : 9", 9),
        ("sizeof(struct task_struct)", 96), ("sizeof init_task.comm", 16), ("sizeof(init_task)", 96),
        ("sizeof(struct pair *)", 8), ("sizeof(struct pair[3])", 48), ("sizeof(long)", 8),
        ("sizeof 'a'", 1), ("sizeof *(char (*)[4])0", 4), ("(*(struct pair (*)[2])table)[1].second", 0x44),
        ("((u32 (*)[2])table)[1][0]", 0x22), ("(int (*)[3][4])0 + 1", 48), ("sizeof(char (*)[4])", 8),
        ("offsetof(struct task_struct, right)", 36), ("offsetof(struct task_struct, grid[1].second)", 72),
        ("container_of(&init_task.pid, struct task_struct, pid)", TASK),
        ("container_of(&init_task.pid, struct task_struct, pid)->parent->pid", 42),
        ("BIT(11)", 1 << 11), ("GENMASK(47, 12)", 0xFFFF_FFFF_F000), ("ffff800010003000", PAGE),
        ("4K * 2", 8192), ("2M", 2 << 20), ("0x10_00", 4096), ("010", 8), ("0b101", 5), ("'\\n'", 10),
        ("'\\x41'", 65), ("'\\101'", 65), ("'\\\\'", 92), ("1 ? 2 : 3 ? 4 : 5", 2),
        ("0 ? 2 : 0 ? 4 : 5", 5),
        ("(struct pair *)0 + 1", 16), ("(void *)8 + 1", 9), ("(bool)256", 1), ("0 && *0", 0),
        ("1 || *0", 1),
    ],
)  # fmt: skip
def test_values(text: str, expected: int | None) -> None:
    if expected is None:
        with pytest.raises(UserError, match="no one value"):
            value(text)
    else:
        assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("1", "int"), ("0x80000000", "unsigned int"), ("2147483648", "long"),
        ("0x8000000000000000", "unsigned long"),
        ("1u", "unsigned int"), ("1l", "long"), ("1ul", "unsigned long"), ("'a'", "char"),
        ("'a' + 0", "int"),
        ("(u8)1 + (u16)1", "int"), ("1u + 1l", "long"), ("1 + 1u", "unsigned int"),
        ("1ul + -1", "unsigned long"),
        ("1 < 2u", "int"), ("$x0", "long"), ("$w0", "int"), ("$sp", "unsigned long"),
        ("sizeof(int)", "unsigned long"),
        ("(u32)1", "u32"), ("&init_task", "struct task_struct *"), ("&init_task.comm", "char (*)[16]"),
        ("(char (**)[16])0", "char (**)[16]"), ("*(char (*)[4])table", "char [4]"),
        ("(unsigned int (*)[2][3])0 + 1", "unsigned int (*)[2][3]"),
        ("init_task.comm + 1", "char *"), ("init_task.parent", "struct task_struct *"),
        ("*init_task.parent", "struct task_struct"),
        ("init_task.three + 0", "int"), ("(long unsigned)1", "unsigned long"),
        ("(const struct pair *)0", "struct pair *"),
        ("$current", "struct task_struct *"), ("1 ? 1 : 2ul", "int"),
    ],
)  # fmt: skip
def test_types(text: str, name: str) -> None:
    assert evaluated(text)[1].type.name == name


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("1 +", "an operand is missing at the end", ""), ("(1", r"'\)' is missing at the end", ""),
        ("1 2", "an operator is missing before '2'", ""), ("1 # 2", "'# 2' is part of no expression", ""),
        ("x = 1", "= would change something", "poke"), ("x++", "would change something", "poke"),
        ("nosuch", "no symbol 'nosuch'", ""), ("f(1)", "cannot be called", "offsetof"),
        ("1 << 40", "int has 32 bits", "1ul << 40"), ("1ul << 64", "unsigned long has 64 bits", ""),
        ("1 << -1", "by -1", ""), ("1 / (2 - 2)", "division by zero", ""),
        ("5 % 0", "division by zero", ""),
        ("init_task.pit", "no member 'pit'", "did you mean pid"),
        ("$x0->pid", "no pointer to a struct", "cast|struct NAME"),
        ("((struct tusk_struct *)0)->pid", "no type 'struct tusk_struct'", "struct task_struct"),
        ("(struct pair)1", "nothing is cast to struct pair", r"\*\(struct pair \*\)"),
        ("((pair *)0)->first", "no type 'pair'", "struct pair"), ("*(void *)1", "has no size", "cast it"),
        ("&1 + &x", "lies in memory|only what", ""), ("&init_task.three", "bit field has no address", ""),
        ("init_task.pid.x", "has no members", "whatis"), ("*0x40", "not mapped", ""),
        ("$x99", r"no register \$x99", ""),
        ("08", "octal", ""), ("0x1_0000_0000_0000_0000", "more than 64 bits", ""),
        ("0x_", "part of no", ""), ("0b_", "part of no", ""), ("1" * 5000, "part of no", ""),
        ("0x" + "1" * 5000, "part of no|operator is missing", ""), ("1.5", "part of no", ""),
        ("(char (*))0", r"'\[' is missing", ""), ("(char (*[4])0", "'\\)' is missing", ""),
        ("'ab'", "part of no expression", ""), ("GENMASK(1, 2)", "the highest first", ""),
        ("BIT(64)", "highest first", ""),
        ("offsetof(struct pair)", "takes 2 arguments", ""), ("(" * 100 + "1" + ")" * 100, "too deep", ""),
        ("-" * 100 + "1", "would change|too deep", ""), ("!" * 100 + "1", "too deep", ""),
        ("", "an operand is missing", ""),
        ("+".join("1" * 400), "too long", ""), ("+".join("1" * 148) + "+nosuch", "no symbol", ""),
        ("init_task" + "[0]" * 90 + ".x", "not mapped|no member|too long", ""),
        ("&init_task - (struct pair *)0", "different sizes", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(text: str, message: str, hint: str) -> None:
    with pytest.raises(PtinspectError, match=message) as caught:
        value(text)
    assert "\n" not in caught.value.message
    if hint:
        import re

        assert re.search(hint, caught.value.hint)


def test_without_a_kernel_there_are_the_types_of_the_language() -> None:
    class Bare(Scope):
        types = CTypes(None, "no kernel file")

        def variable(self, name: str) -> Variable | None:
            return None

    evaluator = Evaluator(Bare(), Numbers(Bare()))
    assert evaluator.value(evaluator.operand(c_tree.parse("*(u32 *)(table+8) + sizeof(long)"))) == 0x2A
    with pytest.raises(KernelFileError, match="no kernel file"):
        evaluator.operand(c_tree.parse("((struct page *)0)->flags"))


def gdb_words(text: str) -> str:
    scope = Scope()
    evaluator = Evaluator(scope, GdbWords(scope))
    return str(evaluator.truth(evaluator.operand(c_tree.parse(text))))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("$x0 == 5", "(((signed long) $x0) == 5)"),
        ("$x1", "(((signed long) $x1) != 0)"),
        ("init_task.pid > 1", f"(*(signed int *)({TASK + 16:#x}ul) > 1)"),
        ("sizeof(struct pair) == 16", "1"),
        ("$current->pid == 1", "(*(signed int *)((((unsigned long) $SP_EL0) + 16)) == 1)"),
        ("$x0 < 0 || $x1 > 3", "((((signed long) $x0) < 0) ? 1 : (((signed long) $x1) > 3))"),
        ("(u8)$x0 == 0xff", "(((signed int) ((unsigned char) ((signed long) $x0))) == 255)"),
        ("$sp >= 0xffff800000000000", "(((unsigned long) $sp) >= 0xffff800000000000ul)"),
    ],
)
def test_conditions_in_gdbs_words(text: str, words: str) -> None:
    assert gdb_words(text) == words
