"""Symbols of loaded modules: where the kernel has none of the name, or as NAME [MODULE]."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fakes import FakeKernel, context, kernel_tree, run
from module_guest import MODULES, ModuleGuest

from ptinspect.commands.framework.context import Context
from ptinspect.errors import GuestError, KernelFileError, UserError
from ptinspect.output.text import render


@pytest.fixture
def ctx() -> Context:
    """A stopped guest with two modules, one of which has a start_kernel too."""
    made = context(kernel_tree(), FakeKernel())
    loaded = ModuleGuest()
    loaded.add("first", {"init_module": 0, "start_one": 0x40, "start_kernel": 0x80})
    loaded.add("second", {"init_module": 0, "start_two": 0x80})
    made.guest.view.modules = loaded.modules  # type: ignore[misc]
    return made


def test_a_symbol_of_a_module(ctx: Context) -> None:
    found = run(ctx, "symbol start_one+8")
    assert f"{MODULES + 0x48:#x} (start_one+0x8 [first])" in render(found, width=80)
    assert (found.result["symbol"], found.result["module"]) == ("start_one", "first")
    assert run(ctx, "print start_two").result["value"] == f"{MODULES + 0x4_0080:#x}"
    assert run(ctx, "break start_one").result["place"] == f"{MODULES + 0x40:#x} (start_one+0x0 [first])"


def test_the_kernel_s_own_comes_first(ctx: Context) -> None:
    found = run(ctx, "symbol start_kernel")
    assert "module" not in found.result
    assert found.result["also"] == ["first"]
    assert "modules have one of this name too: first" in render(found, width=80)
    assert run(ctx, "symbol 'start_kernel [first]'").result["address"] == f"{MODULES + 0x80:#x}"
    assert run(ctx, "symbol start_kernel+0x4/0x10 [first]").result["address"] == f"{MODULES + 0x84:#x}"


def test_one_name_in_several_modules(ctx: Context) -> None:
    with pytest.raises(
        UserError, match=r"2 symbols are named 'init_module': .*\[second\].*\[first\]"
    ) as told:
        run(ctx, "print init_module")
    assert "[MODULE]" in str(told.value.hint)
    assert run(ctx, "print 'init_module [second]'").result["value"] == f"{MODULES + 0x4_0000:#x}"


def test_what_there_is_not(ctx: Context) -> None:
    with pytest.raises(KernelFileError, match="no symbol 'nothing'"):
        run(ctx, "print nothing")
    with pytest.raises(GuestError, match="second has no symbol 'start_one'"):
        run(ctx, "print 'start_one [second]'")
    with pytest.raises(GuestError, match="no module third is loaded"):
        run(ctx, "print 'start_one [third]'")


def test_a_directory_with_files_of_modules(ctx: Context, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no directory"):
        run(ctx, f"kernel --modules {tmp_path}/none")
    with pytest.raises(UserError, match="no directory"):
        run(ctx, f"launch --modules {tmp_path}/none")
    ctx.guest.use_modules(tmp_path)
    assert ctx.guest.module_files is not None and ctx.guest.module_files.directory == tmp_path


def test_modules_are_listed(ctx: Context) -> None:
    found = run(ctx, "modules")
    assert [(each["name"], each["state"]) for each in found.result["modules"]] == [
        ("second", "live"), ("first", "live"),
    ]  # fmt: skip
    assert found.result["modules"][1]["parts"][0]["start"] == f"{MODULES:#x}"
    assert re.search(rf"(?m)^first +live +\d+K +{MODULES:#x} +0x\w+$", render(found, width=80))
    assert "incomplete" not in found.result
    ctx.guest.view.modules.incomplete = "the list of modules does not close"
    assert "does not close" in render(run(ctx, "modules"), width=80)
