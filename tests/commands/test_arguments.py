from __future__ import annotations

import pytest

from ptinspect.arch.levels import level_number
from ptinspect.commands.framework import arguments
from ptinspect.errors import UserError
from ptinspect.guest import expression


class Names:
    def symbol(self, name: str) -> int:
        if name == "swapper_pg_dir":
            return 0xFFFF_8000_1123_0000
        raise UserError(f"no symbol {name!r}")

    def register(self, name: str) -> int:
        return {"sp": 0x1000, "TTBR1_EL1": 0x41A91001}[name]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0x10", 16),
        ("16", 16),
        ("0xffff800010000000", 0xFFFF800010000000),
        ("0xffff_8000_1000_0000", 0xFFFF800010000000),
        ("ffff800010000000", 0xFFFF800010000000),
        ("0000000000000010", 16),
        ("swapper_pg_dir", 0xFFFF_8000_1123_0000),
        ("swapper_pg_dir+0x1000", 0xFFFF_8000_1123_1000),
        ("swapper_pg_dir + 4096 - 0x10", 0xFFFF_8000_1123_0FF0),
        ("$sp-16", 0xFF0),
        ("$sp+4K", 0x2000),
        ("pa:0x41475000", 0x41475000),
        ("PA:0x41475000+8", 0x41475008),
    ],
)
def test_address(text: str, value: int) -> None:
    found = expression.address(text)
    assert found.value(Names()) == value
    assert found.physical == text.lower().startswith("pa:")


@pytest.mark.parametrize(
    "text", ["", "0x", "0xzz", "-5", "a b", "1 2", "+", "a+", "a++b", "12ab", "pa:", "$", "a*2"]
)
def test_address_refuses(text: str) -> None:
    with pytest.raises(UserError, match="is not an address"):
        expression.address(text)


@pytest.mark.parametrize("text", ["$sp-8192", "0xffffffffffffffff+1"])
def test_address_outside_of_64_bits(text: str) -> None:
    with pytest.raises(UserError, match="64 bits"):
        expression.address(text).value(Names())


def test_a_name_needs_something_that_resolves_it() -> None:
    assert expression.address("0x10").value() == 16
    with pytest.raises(UserError, match="look it up"):
        expression.address("swapper_pg_dir").value()


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("0x1000..0x3000", 0x1000, 0x2FFF),
        ("0x1000+8K", 0x1000, 0x2FFF),
        ("0x1000+0x2000", 0x1000, 0x2FFF),
        ("0x1000", 0x1000, 0x1000),
        ("swapper_pg_dir+0x1000", 0xFFFF800011230000, 0xFFFF800011230FFF),
        ("swapper_pg_dir", 0xFFFF800011230000, 0xFFFF800011230000),
        ("$sp-16..$sp", 0xFF0, 0xFFF),
        ("$sp-16+32", 0xFF0, 0x100F),
        ("0xffff000000000000+256T", 0xFFFF000000000000, 0xFFFFFFFFFFFFFFFF),
        ("0xffffffffffff0000+1G", 0xFFFFFFFFFFFF0000, 0xFFFFFFFFFFFFFFFF),
    ],
)
def test_range(text: str, first: int, last: int) -> None:
    assert expression.address_range(text).value(Names()) == (first, last)


@pytest.mark.parametrize("text", ["0x2000..0x1000", "0x1000..0x1000", "0x1000+0"])
def test_an_empty_range_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="empty"):
        expression.address_range(text).value(Names())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4096", 4096),
        ("0x1000", 4096),
        ("4K", 4096),
        ("4k", 4096),
        ("2M", 2 << 20),
        ("1GiB", 1 << 30),
        ("64KB", 65536),
    ],
)
def test_size(text: str, value: int) -> None:
    assert arguments.size(text) == value


@pytest.mark.parametrize("text", ["", "0", "K", "4X", "-4K", "4.5K"])
def test_size_refuses(text: str) -> None:
    with pytest.raises(UserError, match="is not a size"):
        arguments.size(text)


@pytest.mark.parametrize(
    ("text", "start", "value"),
    [
        ("-1", 0, -1),
        ("3", 0, 3),
        ("pgd", 0, 0),
        ("pgd", 1, 1),
        ("pgd", -1, -1),
        ("p4d", -1, 0),
        ("pud", 0, 1),
        ("pud", 2, 2),
        ("PMD", 0, 2),
        ("pte", 1, 3),
    ],
)
def test_level(text: str, start: int, value: int) -> None:
    assert level_number(arguments.level(text), start) == value


@pytest.mark.parametrize("text", ["4", "-2", "", "page", "1.0"])
def test_level_refuses(text: str) -> None:
    with pytest.raises(UserError, match="is not a level"):
        arguments.level(text)


@pytest.mark.parametrize("text", ["", "0x1_0000_0000_0000_0000", "-1", "zz", "18446744073709551616"])
def test_number_refuses(text: str) -> None:
    with pytest.raises(UserError, match="64-bit"):
        arguments.number(text)


@pytest.mark.parametrize(
    ("text", "value"), [("30", 30.0), ("0.5", 0.5), ("2m", 120.0), ("250ms", 0.25), ("1s", 1.0)]
)
def test_seconds(text: str, value: float) -> None:
    assert arguments.seconds(text) == value


@pytest.mark.parametrize("text", ["", "-1", "1h", "inf", "nan"])
def test_seconds_refuses(text: str) -> None:
    with pytest.raises(UserError, match="is not a time"):
        arguments.seconds(text)


def test_whole_has_bounds() -> None:
    read = arguments.whole(1, 8)
    assert (read("1"), read("8"), read("0x2")) == (1, 8, 2)
    for text in ("0", "9", "x", "-1"):
        with pytest.raises(UserError, match="from 1 to 8"):
            read(text)
