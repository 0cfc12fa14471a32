"""Expressions are understood wherever a command takes an address."""

from __future__ import annotations

import argparse

import pytest
from fakes import IMAGE, KERNEL, FakeKernel, context, kernel_tree, run
from module_guest import MODULES, ModuleGuest

from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.registry import Command, build_registry
from ptinspect.errors import UserError
from ptinspect.guest import expression
from ptinspect.guest.names import GuestNames

FORMS = {
    "0xffff800010000010": KERNEL + 0x10,
    "ffff800010000010": KERNEL + 0x10,
    "swapper_pg_dir+0x1000": KERNEL + 0x10_1000,
    "swapper_pg_dir+4K-8": KERNEL + 0x10_0FF8,
    "$sp-16": 0x7F_F0,
    "$x1+$x1+1": 0x2001,
    "start_kernel+swapper_pg_dir-_text": KERNEL + 0x10_1000,
    "pa:0x41475000+0x18": 0x4147_5018,
    "swapper_pg_dir+0x1000/0x2000": KERNEL + 0x10_1000,
    "start_one+0x8/0x20 [first]": MODULES + 0x48,
    f"pa:start_kernel-{KERNEL - IMAGE:#x}": IMAGE + 0x1000,
}
KINDS = {"address": arguments.computed, "location": arguments.location}
WITHOUT = {"attach", "decode", "break --if", "on stop", "kpti until"}
"""Commands whose help speaks of other addresses: of sockets, or read by the command itself."""


def takers() -> list[tuple[Command, argparse.Action]]:
    """Every argument of every command that is an address, a range, a root or a part of an expression."""
    found = []
    for command in build_registry():
        if command.passthrough:
            continue
        for action in command.parser().actions():
            if arguments.completion_kind(action) in ("address", "root"):
                found.append((command, action))
    return found


IDS = [f"{command.name} {action.dest}" for command, action in takers()]


@pytest.mark.parametrize(("command", "action"), takers(), ids=IDS)
@pytest.mark.parametrize("form", FORMS)
def test_every_command_that_takes_an_address_takes_an_expression(
    command: Command, action: argparse.Action, form: str
) -> None:
    ctx = context(kernel_tree(), FakeKernel())
    loaded = ModuleGuest()
    loaded.add("first", {"start_one": 0x40})
    ctx.guest.view.modules = loaded.modules  # type: ignore[misc]
    state = ctx.guest.session.cpus[0]  # type: ignore[union-attr]
    fields = {**vars(state), "sp": 0x8000, "x": (0, 0x1000, *state.x[2:])}
    ctx.guest.session.cpus[0] = type(state)(**fields)  # type: ignore[union-attr]
    assert callable(action.type)
    read = action.type(form)
    if isinstance(read, str):
        read = expression.address(read)
    if isinstance(read, expression.Range):
        assert read.end is None
        assert read.value(GuestNames(ctx.guest))[0] in (FORMS[form], read.start.value(GuestNames(ctx.guest)))
        return
    assert read.value(GuestNames(ctx.guest)) == FORMS[form]
    assert read.physical is form.startswith("pa:")


def test_no_argument_that_is_an_address_is_forgotten() -> None:
    known = {(command.name, action.dest) for command, action in takers()}
    forgotten = [
        (command.name, action.dest)
        for command in build_registry()
        if not command.passthrough and command.name not in WITHOUT
        for action in command.parser().actions()
        if action.metavar in ("ADDR", "PA", "VA", "RANGE", "ROOT")
        and (command.name, action.dest) not in known
    ]
    assert forgotten == []


@pytest.mark.parametrize(
    ("form", "first", "last"),
    [
        ("_text..start_kernel", KERNEL, KERNEL + 0xFFF),
        ("_text+0x10..start_kernel-0x10", KERNEL + 0x10, KERNEL + 0xFEF),
        ("swapper_pg_dir+0x1000+2M", KERNEL + 0x10_1000, KERNEL + 0x30_0FFF),
    ],
)
def test_ranges_of_expressions(form: str, first: int, last: int) -> None:
    ctx = context(kernel_tree(), FakeKernel())
    assert expression.address_range(form).value(GuestNames(ctx.guest)) == (first, last)


def test_blanks_around_a_sign_are_no_matter() -> None:
    ctx = context(kernel_tree(), FakeKernel())
    together = run(ctx, "walk _text+0x1000-8").result
    assert run(ctx, "walk _text + 0x1000 - 8").result == together
    assert run(ctx, "walk '_text + 0x1000 - 8'").result["va"] == together["va"]
    assert run(ctx, "walk --cpu 0 _text + 0x1000 - 8").result == together
    for line in ("walk _text +", "walk + 8", "walk _text - --cpu 0"):
        with pytest.raises(UserError):
            run(ctx, line)


def test_gdbs_star_is_an_address_where_instructions_are_meant() -> None:
    ctx = context(kernel_tree())
    run(ctx, f"b *{KERNEL:#x}")
    run(ctx, f"until *{KERNEL:#x}+4")
    assert [call[:2] for call in ctx.guest.session.calls] == [  # type: ignore[union-attr]
        ("break", KERNEL),
        ("until", (KERNEL + 4,)),
    ]
    assert run(ctx, f"walk *{KERNEL:#x}").result["va"] == "0x0"  # elsewhere it is what lies there


@pytest.mark.parametrize(
    "text",
    [
        "0xffff800010000000..0xffff800010010000",
        "0xffff800010000000-0xffff800010010000",
        "ffff800010000000-ffff800010010000",
        "0xffff800010000000+64K",
    ],
)
def test_ranges_as_the_kernel_lists_them(text: str) -> None:
    assert expression.address_range(text).value() == (KERNEL, KERNEL + 0xFFFF)
