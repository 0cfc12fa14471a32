"""Loaded modules and their symbols, from a guest's memory: whole, damaged, huge, and without an end."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from module_guest import BEFORE_6_4, HEAD, KERNEL, MODULES, SINCE_6_4, Image, ModuleGuest

from ptinspect.errors import GuestError, KernelFileError
from ptinspect.linux.running.modules import REACH
from ptinspect.stack.kernel_code import KernelCode


@pytest.fixture(params=[BEFORE_6_4, SINCE_6_4], ids=["core_layout", "mem"])
def guest(request: pytest.FixtureRequest) -> ModuleGuest:
    made = ModuleGuest(request.param)
    made.add("first", {"init_module": 0, "start_one": 0x40, "table_one": 0x1100}, "ttd")
    made.add("second", {"init_module": 0, "start_two": 0x80})
    return made


def test_modules_and_their_symbols(guest: ModuleGuest) -> None:
    modules = guest.modules
    assert [(module.name, module.state) for module in modules.listed] == [
        ("second", "live"),
        ("first", "live"),
    ]
    assert modules.incomplete == ""
    found = modules.nearest(MODULES + 0x48)
    assert found is not None
    assert (found.symbol, found.offset, found.module.name) == ("start_one", 8, "first")
    data = modules.nearest(MODULES + 0x1108)
    assert data is not None and (data.symbol, data.end) == ("table_one", MODULES + 0x2000)
    assert modules.nearest(MODULES + 0x2000) is None, "past the end of its memory"
    assert modules.lookup("start_two")[0][1] == MODULES + 0x4_0080
    assert [module.name for module, _ in modules.lookup("init_module")] == ["second", "first"]
    assert [at for _, at in modules.lookup("init_module", "first")] == [MODULES]
    assert modules.lookup("nothing") == []
    with pytest.raises(GuestError, match="no module third is loaded") as caught:
        modules.lookup("init_module", "third")
    assert caught.value.hint == "loaded: second, first"


def test_a_symbol_does_not_reach_into_another_part() -> None:
    """Text, data and what is read-only lie apart since v6.4."""
    guest = ModuleGuest(SINCE_6_4)
    guest.add("first", {"start_one": 0x40})
    assert guest.modules.nearest(MODULES + 0x800) is not None
    assert guest.modules.nearest(MODULES + 0x1008) is None


def test_what_follows_the_last_function_is_not_its_own() -> None:
    """Veneers have no symbols; the size of a symbol tells, where there is one."""
    guest = ModuleGuest(SINCE_6_4)
    guest.size = 0x20
    guest.add("first", {"start_one": 0x40})
    found = guest.modules.nearest(MODULES + 0x5C)
    assert found is not None and found.end == MODULES + 0x60
    assert guest.modules.nearest(MODULES + 0x60) is None


def test_nothing_is_read_for_what_no_module_may_hold(guest: ModuleGuest) -> None:
    for address in (KERNEL, KERNEL - REACH - 8, KERNEL + REACH, 0xFFFF_0000_0000_0000, 0x4020_0000):
        assert guest.modules.nearest(address) is None
    assert guest.reads == 0


@pytest.mark.parametrize("before", [0x8, 0x50, 0xF8])
def test_the_head_near_an_address_that_code_builds(before: int) -> None:
    """As compilers do that address several variables from one place."""
    guest = ModuleGuest(image=Image(before))
    guest.add("first", {"start_one": 0x40})
    assert [module.name for module in guest.modules.listed] == ["first"]


def test_a_kernel_that_names_its_list() -> None:
    image = Image()
    image.symbols = {"modules": [HEAD]}
    guest = ModuleGuest(image=image)
    assert guest.modules.listed == ()
    guest.add("first", {"start_one": 0x40})
    assert [module.name for module in guest.modules.listed] == ["first"]


def test_what_is_not_known_is_said(guest: ModuleGuest) -> None:
    guest.image.symbols = {"vfs_read": [KERNEL]}
    with pytest.raises(GuestError, match="list of modules was not found"):
        guest.modules.lookup("start_one")
    assert guest.modules.nearest(MODULES + 0x48) is None
    guest.types.offsets = {}
    guest.image.symbols = {"modules": [HEAD]}
    with pytest.raises(KernelFileError):
        guest.modules.lookup("start_one")
    assert guest.modules.nearest(MODULES + 0x48) is None


def test_a_list_without_an_end(guest: ModuleGuest) -> None:
    first = guest.loaded[-1] + 8
    guest.put(first, guest.loaded[0] + 8)
    modules = guest.modules
    assert [module.name for module in modules.listed] == ["second", "first"]
    assert "does not close" in modules.incomplete


@pytest.mark.parametrize("link", [0, 0x41, 0x4000_0000, 0xFFFF_8000_0999_0000])
def test_a_list_that_leads_nowhere(guest: ModuleGuest, link: int) -> None:
    guest.put(guest.loaded[0] + 8, link)
    modules = guest.modules
    assert [module.name for module in modules.listed] == ["second"]
    assert "damaged" in modules.incomplete


@pytest.mark.parametrize("name", ["", "x" * 60, "bad\x1b[31m"])
def test_a_name_that_is_none(guest: ModuleGuest, name: str) -> None:
    guest.write(guest.loaded[-1] + 24, name.encode("latin-1").ljust(64, b"\0" if len(name) < 56 else b"x"))
    modules = guest.modules
    assert [module.name for module in modules.listed] == ["second"]
    assert "holds no module" in modules.incomplete


def test_symbols_that_make_no_sense(guest: ModuleGuest) -> None:
    """Too many, at places that cannot be read, of names without an end: there are none, or those that are."""
    module = guest.loaded[-1]
    for symtab, count, strtab in (
        (MODULES + 0x8000, 1 << 31, MODULES + 0x1_0000),
        (MODULES + 0x8000, 4, 0),
        (0, 4, MODULES + 0x1_0000),
        (MODULES + 0x8000, 0, MODULES + 0x1_0000),
    ):
        guest.put(module + 0x800, symtab, count, strtab)
        assert guest.modules.lookup("start_one") == []
        assert guest.modules.nearest(MODULES + 0x48) is None
    guest.put(module + 0x800, MODULES + 0x8000, 4, MODULES + 0x1_0000)
    guest.put(MODULES + 0x8000 + 2 * 24 + 8, KERNEL)
    assert guest.modules.lookup("start_one") == [], "it would lie in the kernel itself"
    guest.write(MODULES + 0x8000 + 24, b"\xff\xff\xff\x7f")
    assert guest.modules.lookup("init_module", "first") == []
    assert len(guest.modules.lookup("table_one")) == 1


def test_control_codes_in_names_are_escaped() -> None:
    guest = ModuleGuest()
    guest.add("first", {"evil\x1b[2J": 0x40})
    found = guest.modules.nearest(MODULES + 0x40)
    assert found is not None and found.symbol == "evil\\x1b[2J"


def test_letters_that_stand_in_the_symbols(guest: ModuleGuest) -> None:
    """Before v5.2 there was no table of them."""
    guest.types.offsets = {path: at for path, at in guest.types.offsets.items() if "typetab" not in path}
    for row, letter in enumerate(b"\0tTd"):
        guest.write(MODULES + 0x8000 + 24 * row + 4, bytes([letter]))
    first = guest.modules.listed[1]
    assert guest.modules.table(first).kinds == "tTd"


def test_the_unwinder_knows_functions_and_code_of_modules(guest: ModuleGuest) -> None:
    view: Any = guest
    guest.write(MODULES + 0x40, struct.pack("<2I", 0xD503233F, 0xA9BF7BFD))
    code = KernelCode(view)
    assert code.start(MODULES + 0x48) == MODULES + 0x40
    assert code.words(MODULES + 0x40, 2) == (0xD503233F, 0xA9BF7BFD)
    assert code.symbol(MODULES + 0x48) == "start_one+0x8 [first]"
    assert code.symbol(MODULES + 0x40, returns=True) == "init_module+0x40 [first]"
    apart = "module.mem[0].base" in guest.types.offsets
    assert code.extent(MODULES + 0x48) == (
        MODULES + 0x40,
        MODULES + (0x1000 if apart else 0x1100),
    )
    assert code.start(MODULES - 0x1000) is None
    assert code.start(KERNEL + 0x1_0204) == KERNEL + 0x1_0200
