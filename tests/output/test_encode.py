from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import pytest

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.output.encode import ABSENT, Absent, Hex, encode, filled, schema_of

jsonschema = pytest.importorskip("jsonschema")


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    raw: Hex | None
    note: str | Absent = ABSENT


@dataclass(frozen=True)
class Outer:
    va: VirtAddr
    places: list[PhysAddr]
    inner: Inner | None
    many: tuple[Inner, ...]
    named: Mapping[str, Hex] = field(default_factory=dict)
    colour: Colour = Colour.RED
    count: int = 3
    flag: bool = True
    more: int | Absent | None = ABSENT


FULL = Outer(
    VirtAddr(0xFFFF << 48), [PhysAddr(0)], Inner(Hex(16), "n"), (Inner(None),), {"a": Hex(255)}, more=7
)
LEAST = Outer(VirtAddr(1), [], None, ())


def test_addresses_and_raw_values_are_hexadecimal_and_numbers_numbers() -> None:
    assert encode(FULL) == {
        "va": "0xffff000000000000",
        "places": ["0x0"],
        "inner": {"raw": "0x10", "note": "n"},
        "many": [{"raw": None}],
        "named": {"a": "0xff"},
        "colour": "red",
        "count": 3,
        "flag": True,
        "more": 7,
    }
    assert "more" not in encode(LEAST)
    assert encode({"n": np.uint64(5), "a": np.arange(2)}) == {"n": 5, "a": [0, 1]}


def test_numbers_of_numpy_are_hexadecimal_where_they_are_addresses() -> None:
    assert encode(Inner(np.uint64(1 << 63))) == {"raw": "0x8000000000000000"}  # type: ignore[arg-type]
    assert encode(np.arange(2), list[PhysAddr]) == ["0x0", "0x1"]


def test_what_is_encoded_is_as_the_schema_of_its_type() -> None:
    schema = schema_of(Outer)
    assert schema["required"] == sorted({"va", "places", "inner", "many", "named", "colour", "count", "flag"})
    check = jsonschema.Draft202012Validator(schema)
    for value in (FULL, LEAST):
        check.validate(encode(value))
    for wrong in ({"va": 1}, {"count": "3"}, {"inner": {"raw": 4}}, {"named": {"a": 1}}):
        assert not check.is_valid({**encode(FULL), **wrong})


@dataclass(frozen=True)
class Place:
    raw: int
    size: int

    @property
    def note(self) -> str:
        return f"{self.size} bytes"


def test_a_result_is_filled_with_what_a_value_has_under_its_names() -> None:
    assert filled(Inner, Place(16, 8)) == Inner(Hex(16), "8 bytes")
    assert filled(Inner, Place(16, 8), note="n") == Inner(Hex(16), "n")
    assert filled(Inner, FULL, raw=None) == Inner(None)
    with pytest.raises(TypeError, match="raw"):
        filled(Inner, FULL)
