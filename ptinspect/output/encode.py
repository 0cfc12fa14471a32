"""The one encoder of results: a dataclass as JSON has it, and the JSON Schema of its type."""

from __future__ import annotations

import enum
import types
from collections.abc import Mapping, Sequence
from functools import cache

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.dataclass import field_names, is_dataclass
from ptinspect.typed import Any, Final, NewType, TypeVar

Hex = NewType("Hex", int)
"""A number that is shown as hexadecimal text: a raw descriptor, a register, an address of either kind."""
HEX: tuple[object, ...] = (Hex, VirtAddr, PhysAddr)
"""The types of numbers that are shown so."""
HEX_SCHEMA: Mapping[str, Any] = {"type": "string", "pattern": "^0x[0-9a-f]+$"}

Result = TypeVar("Result")

NAMES: Mapping[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    type(None): "null",
}
"""Python's types, and what JSON Schema calls them."""


class Absent(enum.Enum):
    """Stand for a field that a result does not have."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT
"""The default of a field that is left out where there is nothing to report."""


def encode(value: object, kind: object = object) -> Any:
    """Return a value of a type as JSON has it.

    Dataclasses are objects, without the fields that are ABSENT; numbers of the types HEX are hexadecimal
    text; enumerations their text; numpy's scalars and arrays Python's numbers and lists. A field whose name
    Python keeps for itself is written with an underscore after it: `class_`.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if type(value) in NAMES:
        return f"{value:#x}" if type(value) is int and _is_hex(kind) else value
    kind_of: type = type(value)
    if is_dataclass(kind_of):
        return {
            name.rstrip("_"): encode(found, hint)
            for name, hint in hints(kind_of).items()
            if (found := getattr(value, name)) is not ABSENT
        }
    if isinstance(value, Mapping):
        inner = _arguments(kind, Mapping)[-1:] or (object,)
        return {str(key): encode(found, inner[0]) for key, found in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        each = _arguments(kind, Sequence)[:1] or (object,)
        return [encode(found, each[0]) for found in value]
    return str(value) if isinstance(value, enum.Enum) else value


def filled(kind: type[Result], value: object, /, **more: object) -> Result:
    """Return a result of a type: what `value` has under the names of its fields, and `more`."""
    wanted: type = kind
    other: type = type(value)
    names = [name for name in _shared(wanted, other) if name not in more]
    return kind(**{name: getattr(value, name) for name in names}, **more)


@cache
def _shared(kind: type, other: type) -> tuple[str, ...]:
    """Return the names of the fields of a dataclass that another one has too, as fields or as properties."""
    fields = field_names(other)
    return tuple(n for n in field_names(kind) if n in fields or isinstance(getattr(other, n, None), property))


@cache
def hints(kind: type) -> Mapping[str, object]:
    """Return the fields of a dataclass and their types, in order."""
    from typing import get_type_hints

    found = get_type_hints(kind)
    return {name: found[name] for name in field_names(kind)}


def _choices(kind: object) -> tuple[object, ...]:
    """Return the members of a union, `Absent` left out; any other type alone."""
    from typing import Union, get_args, get_origin

    if get_origin(kind) in (Union, types.UnionType):
        return tuple(member for member in get_args(kind) if member is not Absent)
    return (kind,)


@cache
def _is_hex(kind: object) -> bool:
    return any(member in HEX for member in _choices(kind))


@cache
def _arguments(kind: object, container: type) -> tuple[object, ...]:
    """Return the type arguments of the member of `kind` that is such a container."""
    from typing import get_args, get_origin

    for member in _choices(kind):
        origin = get_origin(member)
        if isinstance(origin, type) and issubclass(origin, container):
            return get_args(member)
    return ()


def schema_of(kind: object) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of what `encode` makes of values of a type."""
    from typing import Literal, get_args, get_origin

    choices = _choices(kind)
    if len(choices) > 1:
        found = [schema_of(member) for member in choices]
        plain = all(set(item) == {"type"} and isinstance(item["type"], str) for item in found)
        return {"type": [item["type"] for item in found]} if plain else {"anyOf": found}
    (kind,) = choices
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in HEX:
        return dict(HEX_SCHEMA)
    if origin is Literal:
        return {"enum": list(arguments)}
    if isinstance(origin, type) and issubclass(origin, Mapping | Sequence):
        mapping = issubclass(origin, Mapping)
        each = schema_of(arguments[-1 if mapping else 0])
        return (
            {"type": "object", "additionalProperties": each} if mapping else {"type": "array", "items": each}
        )
    if isinstance(kind, type) and is_dataclass(kind):
        return _object(kind)
    return {"type": NAMES[kind]} if isinstance(kind, type) and kind in NAMES else {}


def _object(kind: type) -> dict[str, Any]:
    from dataclasses import fields

    types_of = hints(kind)
    optional = {item.name for item in fields(kind) if item.default is ABSENT}
    return {
        "type": "object",
        "required": sorted(name.rstrip("_") for name in set(types_of) - optional),
        "properties": {name.rstrip("_"): schema_of(hint) for name, hint in types_of.items()},
    }
