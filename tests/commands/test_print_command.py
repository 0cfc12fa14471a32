"""`print`, `whatis`, `ptype`, `watch` as they are typed: what is shown, and what JSON has."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from fakes import IMAGE, KERNEL, FakeKernel, Stop, context, kernel_tree, run, text
from kernels import BtfBuilder

from ptinspect.errors import PtinspectError, UserError
from ptinspect.linux.image.btf import BtfTypes

TASK = KERNEL + 0x2000


def types() -> BtfTypes:
    b = BtfBuilder()
    char, long = b.integer("char", 1), b.integer("unsigned long", 8)
    state = b.add(
        6, "states", 4, struct.pack("<IiIi", b.string("BOOTING"), 0, b.string("RUNNING"), 3), vlen=2
    )
    pointer, comm, cells = b.pointer(char), b.array(char, 8), b.array(long, 4)
    b.struct(
        "task_struct", 72,
        [("comm", comm, 0), ("flags", long, 64), ("name", pointer, 128), ("cells", cells, 192),
         ("state", state, 448), ("next", b.pointer(0), 512)],
    )  # fmt: skip
    return BtfTypes(b.blob())


class Kernel(FakeKernel):
    symbols = {**FakeKernel.symbols, "init_task": [TASK], "jiffies": [TASK + 8]}  # noqa: RUF012
    types = types()  # type: ignore[assignment]

    def kind_of(self, name: str) -> str:
        return "D" if name in ("init_task", "jiffies") else "T"


@pytest.fixture
def ctx(monkeypatch: pytest.MonkeyPatch) -> Any:
    tree = kernel_tree()
    data = b"sh\x1b[2J\0\0" + struct.pack("<QQ4QII", 0x40_0040, TASK, 7, 7, 7, 9, 3, 0) + bytes(8)
    tree.memory.write(IMAGE + 0x2000, data)
    found = context(tree, Kernel())
    monkeypatch.setattr("fakes.FakeView.symbol", lambda self, name: Kernel().lookup(name))
    return found


def test_two_dashes_end_the_options(ctx: Any) -> None:
    assert run(ctx, "print -- -0x10").result["signed"] == run(ctx, "print -0x10").result["signed"] == -16


def test_a_struct_member_by_member(ctx: Any) -> None:
    report = run(ctx, "print init_task")
    assert (report.result["type"], report.result["size"]) == ("struct task_struct", 72)
    assert [part["name"] for part in report.result["parts"]] == [
        "comm", "flags", "name", "cells", "state", "next",
    ]  # fmt: skip
    shown = text(report)
    assert "\x1b" not in shown
    for line in (
        "8  flags   0x400040",
        "24  cells   {7 (3 times), 9}",
        "56  state   RUNNING (3)",
        "64  next    NULL",
    ):
        assert line in shown
    assert f"struct task_struct at {TASK:#x}, 72 bytes" in shown


def test_a_struct_of_which_nothing_can_be_read_is_an_error_and_part_of_one_is_shown(ctx: Any) -> None:
    for line in (
        "p *(struct task_struct *) 0",
        "p *(char (*)[8]) 0",
        "p *(struct task_struct (*)[1000000000]) 0",
    ):
        with pytest.raises(PtinspectError, match="0x0 is not"):
            run(ctx, line)
    last = next(at for at in range(KERNEL, KERNEL + (1 << 30), 1 << 21) if not readable(ctx, at))
    shown = text(run(ctx, f"p *(struct task_struct *) {last - 8:#x}"))
    assert "comm" in shown and "unreadable" in shown


def readable(ctx: Any, at: int) -> bool:
    try:
        return bool(run(ctx, f"p *(char *) {at:#x}"))
    except PtinspectError:
        return False


def test_scalars_strings_and_enums(ctx: Any) -> None:
    flags = run(ctx, "p init_task.flags").result
    assert (flags["value"], flags["type"], flags["address"]) == (
        "0x400040",
        "unsigned long",
        f"{TASK + 8:#x}",
    )
    assert run(ctx, "p jiffies").result["value"] == "0x400040"
    assert run(ctx, "p &jiffies").result["value"] == f"{TASK + 8:#x}"
    assert "RUNNING" in text(run(ctx, "p init_task.state"))
    assert "decimal" in text(run(ctx, "p init_task.flags")) and "decimal" not in text(run(ctx, "p &jiffies"))
    assert run(ctx, "p RUNNING + 1").result["decimal"] == 4
    assert text(run(ctx, "p init_task.comm")).startswith('"sh\\x1b[2J"   char [8] at ')
    assert "sh\\x1b" in run(ctx, "p init_task.name").result["text"]
    assert text(run(ctx, "p/x init_task.state")) == "0x3\n"
    assert text(run(ctx, "p/x -1")) == text(run(ctx, "p /x -1")) == "0xffffffff\n"
    assert "'A'" in text(run(ctx, "p (char) 'A'"))
    assert run(ctx, "p 'A' == 65 && -1 < 0").result["decimal"] == 1


@pytest.mark.parametrize(
    "line", ["init_task+8", "pa:_text+0x2008", "&init_task.flags", "(u64) init_task + 8"]
)
def test_an_address_is_what_it_is_for_other_commands(ctx: Any, line: str) -> None:
    at = run(ctx, f"print {line}").result["value"]
    assert at in (f"{TASK + 8:#x}", f"{IMAGE + 0x2008:#x}")
    assert run(ctx, f"p *({line})").result["value"] == "0x400040"


@pytest.mark.parametrize(
    ("line", "at"),
    [
        ("init_task.name", TASK), ("init_task.comm", TASK), ("*(u64*)(init_task+16)", TASK),
        ("&init_task.flags", TASK + 8),
        ("init_task.name+8", TASK + 8), ("$current", TASK), ("'(u64) init_task + 8'", TASK + 8),
    ],
)  # fmt: skip
def test_commands_that_take_an_address_take_an_expression(
    ctx: Any, line: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptinspect.guest.expressions.guest_scope.GuestScope.task", lambda self: TASK)
    assert run(ctx, f"walk {line}").result["va"] == f"{at:#x}"
    assert run(ctx, f"x/1gx {line}").result == run(ctx, f"x/1gx {at:#x}").result | {
        "address": line.strip("'")
    }


def test_addresses_that_are_none(ctx: Any) -> None:
    for line, why in (
        ("walk init_task.nam", "no member 'nam'"),
        ("walk *(u64*)0xdead0000", "not translated"),
        ("walk init_task.(", "member's name is missing"),
        ("walk 5+", "not an address"),
        ("x *(u64", "is missing"),
        ("walk (u64)pa:0x40202000", "is a physical address"),
    ):
        with pytest.raises(PtinspectError, match=why):
            run(ctx, line)


def test_types(ctx: Any) -> None:
    assert run(ctx, "whatis init_task.cells").result == {"type": "unsigned long [4]", "size": 32}
    assert run(ctx, "whatis struct task_struct *").result == {"type": "struct task_struct *", "size": 8}
    found = run(ctx, "ptype init_task")
    assert found.result["parts"][2] == {"name": "name", "offset": 16, "type": "char *", "size": 8}
    assert "    24     32  cells   unsigned long [4]" in text(found)
    assert run(ctx, "ptype enum states").result["values"] == {"BOOTING": 0, "RUNNING": 3}
    with pytest.raises(UserError) as caught:
        run(ctx, "ptype struct task_strict")
    assert "did you mean struct task_struct?" in caught.value.hint


def test_watchpoints_and_what_they_say_at_a_stop(ctx: Any) -> None:
    made = run(ctx, "watch init_task.flags if init_task.state == RUNNING")
    assert made.result["kind"] == "watchpoint"
    assert (made.result["place"], made.result["address"]) == (
        f"init_task.flags (unsigned long at {TASK + 8:#x})",
        f"{TASK + 8:#x}",
    )
    assert made.result["condition"] == "init_task.state == RUNNING"
    (watch,) = ctx.guest.session.breakpoints
    assert watch.what == f"*(unsigned long *){TASK + 8:#x}" and str(TASK + 56) not in watch.condition
    assert f"{TASK + 56:#x}" in watch.condition
    run(ctx, "rwatch -location init_task.state")
    assert run(ctx, "awatch *(u32 *)init_task.name --if 1").result["kind"] == "access watchpoint"
    stop = Stop("watchpoint-trigger", 0, 1, KERNEL, "")
    values = {**vars(stop), "old": "64", "new": "4194368"}
    ctx.guest.session.on_wait = lambda: Stop(**values)
    stopped = run(ctx, "continue")
    assert (stopped.result["watched"], stopped.result["old"], stopped.result["new"]) == (
        "init_task.flags", "64", "0x400040",
    )  # fmt: skip
    assert "watchpoint 1, init_task.flags: old = 64, new = 0x400040" in text(stopped)
    values |= {"breakpoint": 2, "old": "3", "new": "3", "reason": "read-watchpoint-trigger"}
    assert "watchpoint 2, init_task.state = RUNNING (3)" in text(run(ctx, "continue"))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("watch $x0 > 5", "stepping each instruction"),
        ("watch init_task", "72 bytes"),
        ("watch 0x1000", "a number, and lies nowhere"),
        ("watch *pa:0x40202008", "is physical"),
        ("watch nosuch", "no symbol 'nosuch'"),
        ("watch *0xdead0000", "is not translated"),
    ],
)
def test_what_cannot_be_watched_is_said(ctx: Any, line: str, why: str) -> None:
    with pytest.raises(Exception, match=why):
        run(ctx, line)
    assert ctx.guest.session.breakpoints == ()
