"""`--cpu`: every command that looks at a CPU takes it, and says so if there is no such CPU."""

from __future__ import annotations

import argparse

import pytest
from fakes import KERNEL, FakeKernel, context, cpu, kernel_tree, run, text

from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import build_registry
from ptinspect.errors import UserError

LOOKS = {
    "bt": "",
    "check": "",
    "disassemble": "$pc",
    "find": "0x40200000",
    "finish": "",
    "kpti progress": None,
    "kpti status": None,
    "map": "",
    "nexti": "",
    "print": "$pc",
    "regime": "",
    "regs": "",
    "snap": "x",
    "stack": None,
    "stack trace": None,
    "status": "",
    "stepi": "",
    "summary": "",
    "walk": "$pc",
    "why": "",
    "x": "$pc",
}
"""Command -> arguments that it needs besides; None where the fake kernel does not do."""
OTHERS = {"break", "tbreak", "launch", "demo"}
"""Where --cpu means something else: whom to stop, or a model."""


@pytest.fixture
def ctx() -> Context:
    tree = kernel_tree()
    made = context(tree, FakeKernel())
    session = made.guest.stopped
    session.cpus = [cpu(tree), cpu(tree, 1)]  # type: ignore[attr-defined]
    return made


def test_all_commands_that_look_at_a_cpu_have_one_and_the_same_option() -> None:
    registry = build_registry()
    found: dict[str, argparse.Action] = {}
    for words, command in registry.commands.items():
        for action in command.parser().actions():
            if "--cpu" in action.option_strings:
                found[" ".join(words)] = action
    assert set(found) - OTHERS == set(LOOKS)
    every = {name for name in LOOKS if found[name].metavar == "N|all"}
    assert every == {"stack"}
    assert all(found[name].metavar == "N" for name in set(LOOKS) - every)


@pytest.mark.parametrize("name", [name for name, more in LOOKS.items() if more is not None])
def test_there_is_no_such_cpu(ctx: Context, name: str) -> None:
    with pytest.raises(UserError, match="no CPU 9: the guest has 2, numbered from 0"):
        run(ctx, f"{name} {LOOKS[name]} --cpu 9")


def test_the_other_cpu_s_registers_count(ctx: Context) -> None:
    session = ctx.guest.stopped
    other = session.cpus[1]  # type: ignore[attr-defined]
    session.cpus[1] = type(other)(1, other.x, other.sp, KERNEL + 0x4, other.pstate, other.system)  # type: ignore[attr-defined]
    assert run(ctx, "status --cpu 1").result["pc"] == hex(KERNEL + 4)
    assert run(ctx, "status").result["cpu"] == 0
    assert run(ctx, "bt --cpu 1").result["frames"][0]["pc"] == hex(KERNEL + 4)


def test_the_list_says_what_is_known(ctx: Context) -> None:
    report = run(ctx, "cpus")
    first = report.result["cpus"][0]
    assert (first["mmu_on"], first["ttbr1_is"], first["pid"], first["stack"]) == (True, "swapper", None, None)
    assert "stack used" in text(report)
