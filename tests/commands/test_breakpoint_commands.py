"""`break` as it lists, `condition`, `enable`, `disable`, `tbreak`: all that stops the guest in one list."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fakes import KERNEL, FakeKernel, context, kernel_tree, run, text

from ptinspect.dataclass import replace
from ptinspect.errors import UserError
from ptinspect.guest.breakpoints.breakpoints import NOT_USER, symbol_breakpoints
from ptinspect.link.gdb.slots import Purpose
from ptinspect.link.session import Breakpoint

FUNCTION = KERNEL + 0x1000


@pytest.fixture
def ctx() -> Any:
    return context(kernel_tree(), FakeKernel())


def conditions(ctx: Any) -> list[str]:
    return [b.condition for b in ctx.guest.session.breakpoints]


@pytest.mark.parametrize(
    ("line", "condition"),
    [
        ("b start_kernel if $x0 == 5", "$x0 == 5"),
        ("b start_kernel if($x0 == 'a')", "($x0 == 'a')"),
        ("break start_kernel --cpu 0 if $x0 > 1 && $x1 | 4  # why", "$x0 > 1 && $x1 | 4"),
        ("break start_kernel --if '$x0 == 5'", "$x0 == 5"),
        ("tbreak start_kernel if $x0 == 5", "$x0 == 5"),
    ],
)
def test_a_condition_as_gdbs_users_type_it(ctx: Any, line: str, condition: str) -> None:
    made = run(ctx, line).result
    assert (made["condition"], made["address"]) == (condition, f"{FUNCTION:#x}")
    assert made["temporary"] is line.startswith("tb")
    assert len(conditions(ctx)) == 1 and "$x0" in conditions(ctx)[0]
    assert f"if {condition}" in text(run(ctx, "break"))


@pytest.mark.parametrize(
    ("typed", "spelt"),
    [
        ("$X1", "$x1"), ("$w01", "$w1"), ("$LR", "$x30"), ("$fp", "$x29"), ("$Sp", "$sp"),
        ("$sp_el0", "$SP_EL0"), ("$ttbr1", "$TTBR1_EL1"), ("$sctlr_el1", "$SCTLR"),
        ("$pstate", "($cpsr & 0xffffffff)"),
    ],
)  # fmt: skip
def test_a_register_is_spelt_as_gdb_does(ctx: Any, typed: str, spelt: str) -> None:
    """`$X1` would be a variable of GDB's own, and the condition an error that stops the guest each time."""
    ctx.guest.session.stub = {"SP_EL0": 1, "TTBR1_EL1": 2, "SCTLR": 3}
    run(ctx, f"break start_kernel if {typed} == 5")
    assert f") {spelt})" in conditions(ctx)[0]


def test_a_register_that_gdb_does_not_have_is_refused(ctx: Any) -> None:
    with pytest.raises(UserError, match="no register"):
        run(ctx, "break start_kernel if $nosuch == 5")
    with pytest.raises(UserError, match="GDB has no register"):
        run(ctx, "break start_kernel if $ttbr1_el1 == 5")


def test_a_function_whose_name_begins_with_if(ctx: Any) -> None:
    with pytest.raises(UserError, match="ifconfig"):
        run(ctx, "break ifconfig")
    with pytest.raises(UserError):
        run(ctx, "break start_kernel if")
    for line in ("break \\ if $x0 == 1", "break 'start if_kernel' if 'x", "break 'a if b' if $x0 == 1"):
        with pytest.raises(UserError):
            run(ctx, line)


def test_a_condition_later_and_none_again(ctx: Any) -> None:
    run(ctx, "break start_kernel")
    run(ctx, "break 0x1000")
    assert run(ctx, "condition 1 $x0 == -1").result["condition"] == "$x0 == -1"
    made = run(ctx, "condition 2 *(char *) $sp == 'a'").result
    assert made["condition"] == "*(char *) $sp == 'a'"
    sp = "((unsigned long) $sp)"
    known = "(((signed long) $x0) == (-1))"
    assert conditions(ctx) == [known, f"(((signed int) *(unsigned char *)({sp})) == 97)"]
    run(ctx, "condition 2")
    assert conditions(ctx) == [known, ""]
    run(ctx, "condition 2 $_thread == 2")  # GDB's alone
    assert conditions(ctx)[1] == "$_thread == 2"
    with pytest.raises(UserError, match="no breakpoint 3"):
        run(ctx, "condition 3 1")


@pytest.mark.parametrize(
    "condition",
    [
        "$x0 = 5", "f($x0)", "$x0++ < 3", "*$sp = 1", 'strcmp($x0, "a=b(") == 0',
        *(f"$_thread == 1 && {change}" for change in ("($x0 = 5)", "($x0 <<= 1)", "$x0++", "--*(int *)$sp")),
    ],
)  # fmt: skip
def test_a_condition_changes_nothing(ctx: Any, condition: str) -> None:
    with pytest.raises(UserError):
        run(ctx, f"b start_kernel if {condition}")
    assert ctx.guest.session.breakpoints == ()


def test_variables_of_gdbs_own_may_count(ctx: Any) -> None:
    run(ctx, "b start_kernel if $n++ > 3")
    assert conditions(ctx) == ["$n++ > 3"]


def test_what_gdb_does_not_know_is_refused_in_its_conditions_too(ctx: Any) -> None:
    """GDB takes such a condition, and stops the guest each time, for it cannot tell whether it holds."""
    known = {"output $_thread": "1", "output $_streq": "<internal function _streq>"}
    ctx.guest.session.escort.command = lambda line, seconds: known.get(line, "void")
    for line, name, hint in (
        ("b start_kernel if $n++ > 3", "$n", "gdb set $n = 0"),
        ("b 0x1000 if $_thred == 2", "$_thred", "gdb show convenience"),
    ):
        with pytest.raises(UserError, match=re.escape(f"GDB has no {name}")) as caught:
            run(ctx, line)
        assert hint in (caught.value.hint or "")
    assert ctx.guest.session.breakpoints == ()
    for condition in (r'$_thread == 2 && $_streq((char *)($x0), "\"$m=f(")', "$_thread >= sizeof(int)"):
        known["output $x0"] = "5"
        run(ctx, f"b 0x1000 if {condition}")
    assert len(conditions(ctx)) == 2


def test_at_a_physical_place_the_condition_is_the_kernels_too(ctx: Any) -> None:
    run(ctx, "break start_kernel")
    ours = symbol_breakpoints(ctx.guest)
    ours.all[0].places = {0x4020_1000: 1}
    ours.alter(1, condition="$x0")
    assert conditions(ctx) == [f"{NOT_USER} && ((((signed long) $x0) != 0))"]
    ours.alter(1, condition="")
    assert conditions(ctx) == [NOT_USER]


def test_disabled_ones_stay_disabled_where_they_are_set_next(ctx: Any) -> None:
    run(ctx, "break start_kernel")
    run(ctx, "disable 1")
    assert not run(ctx, "break").result["breakpoints"][0]["enabled"]
    with symbol_breakpoints(ctx.guest).aside():
        assert ctx.guest.session.breakpoints == ()
    assert [b.enabled for b in ctx.guest.session.breakpoints] == [False]
    assert "breakpoint, disabled" in text(run(ctx, "break"))
    assert run(ctx, "enable").result == {"numbers": [1], "enabled": True}
    assert [b.enabled for b in ctx.guest.session.breakpoints] == [True]


def test_hits_are_counted_wherever_it_was(ctx: Any) -> None:
    run(ctx, "break start_kernel")
    session = ctx.guest.session
    session.breakpoints = tuple(replace(b, hits=2) for b in session.breakpoints)
    assert run(ctx, "break").result["breakpoints"][0]["hits"] == 2
    with symbol_breakpoints(ctx.guest).aside():  # it is set anew, with another count of GDB's
        pass
    session.breakpoints = tuple(replace(b, hits=b.hits + 1) for b in session.breakpoints)
    assert run(ctx, "break").result["breakpoints"][0]["hits"] == 3


def test_hits_that_are_ignored(ctx: Any) -> None:
    made = run(ctx, "break start_kernel --ignore 3")
    assert made.result["ignore"] == 3 and "ignoring the next 3 hits" in text(made)
    session = ctx.guest.session
    assert [b.ignore for b in session.breakpoints] == [3]
    session.breakpoints = tuple(replace(b, hits=2, ignore=1) for b in session.breakpoints)
    (one,) = run(ctx, "break").result["breakpoints"]
    assert (one["hits"], one["ignore"]) == (2, 1)
    with symbol_breakpoints(ctx.guest).aside():  # what is left of them is ignored at the next place
        pass
    assert [b.ignore for b in session.breakpoints] == [1]
    assert run(ctx, "ignore 1 5").result["ignore"] == 5
    assert "ignore" not in run(ctx, "ignore 1 0").result and session.breakpoints[0].ignore == 0
    run(ctx, f"break {FUNCTION + 8:#x}")
    assert run(ctx, "ignore 2 1").result["ignore"] == session.breakpoints[1].ignore == 1
    assert "ignoring the next 1 hit" in text(run(ctx, "break"))
    symbol_breakpoints(ctx.guest).others[7] = Table()
    for line, why in (("ignore 7 1", "none of its hits is ignored"), ("ignore 9 1", "no breakpoint 9")):
        with pytest.raises(UserError, match=why):
            run(ctx, line)


def test_watchpoints_stand_in_the_same_list(ctx: Any) -> None:
    run(ctx, "break start_kernel")
    session = ctx.guest.session
    watch = Breakpoint(7, 0x4000, kind="acc watchpoint", what="*(int *)0x4000", condition="$x1", hits=4)
    session.breakpoints += (watch, Breakpoint(8, None, kind="catchpoint", what="fork"))
    session.slots.note(7, Purpose.GUARD)
    listed = run(ctx, "break")
    assert [one["id"] for one in listed.result["breakpoints"]] == [1]
    assert listed.result["watchpoints"][0] == {
        "id": 7, "place": "*(int *)0x4000", "kind": "access watchpoint", "hits": 4, "condition": "$x1",
        "enabled": True, "temporary": False, "owner": "stack guard", "address": "0x4000",
    }  # fmt: skip
    assert "access watchpoint, stack guard     4  *(int *)0x4000, if $x1" in text(listed)
    run(ctx, "delete 7 8")
    assert run(ctx, "break").result["watchpoints"] == []


class Table:
    """Something made of two watchpoints."""

    words, hits, enabled, numbers = "the descriptors of 0x1000", 3, True, (2, 3)
    deleted = False

    def enable(self, on: bool) -> None:
        self.enabled = on

    def delete(self) -> None:
        self.deleted = True


def test_what_is_made_of_several_is_one(ctx: Any) -> None:
    table, session = Table(), ctx.guest.session
    session.breakpoints = tuple(Breakpoint(n, 0x4000, kind="watchpoint", what="x") for n in (2, 3))
    symbol_breakpoints(ctx.guest).others[2] = table
    (one,) = run(ctx, "break").result["watchpoints"]
    assert (one["id"], one["hits"], one["place"]) == (2, 3, table.words)
    run(ctx, "disable 2")
    assert not table.enabled
    with pytest.raises(UserError, match="no condition"):
        run(ctx, "condition 2 1")
    run(ctx, "delete 2")
    assert table.deleted and symbol_breakpoints(ctx.guest).others == {}
