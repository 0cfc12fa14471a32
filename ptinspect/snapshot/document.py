"""The JSON document of a snapshot file: everything but the tables. See `store` for the file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, get_args

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.arch.regime import Regime, may_be_indirect
from ptinspect.arch.sysregs import UNWRITTEN, CpuState, RegimeName, kernel_regime
from ptinspect.dataclass import field_names
from ptinspect.errors import RegimeError, SnapshotError
from ptinspect.memory.source import RamBlock
from ptinspect.snapshot.model import Meta, Root, Snapshot
from ptinspect.tables.index import Tables
from ptinspect.text import escape

FORMAT = "ptinspect-snapshot"
VERSION = 1
MAX_ITEMS = 65_536
"""Upper bound on the entries of any list or mapping in a document."""

_HEX = re.compile(r"0x[0-9a-f]{1,16}")
_WIDE = frozenset({"mair", "mair2", "pir", "pire0", "por", "por0"})
"""Fields of Regime that are registers of 64 bits: written in hex."""
_PA_BITS = (32, 36, 40, 42, 44, 48, 52, 56)


def encode(snapshot: Snapshot) -> bytes:
    """Write everything but the tables as UTF-8 JSON; addresses and registers are hex strings."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "name": snapshot.name,
        "root": {"pa": hex(snapshot.root.pa), "provenance": snapshot.root.provenance},
        "regime": _regime_out(snapshot.regime),
        "cpus": [_cpu_out(state) for state in snapshot.cpus],
        "ram": [{"start": hex(b.start), "size": hex(b.size), "name": b.name} for b in snapshot.ram],
        "meta": {**vars(snapshot.meta), "extra": dict(snapshot.meta.extra)},
        "va_range": None if snapshot.va_range is None else [hex(va) for va in snapshot.va_range],
        "truncated": snapshot.truncated,
    }
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def decode(data: bytes, tables: Callable[[Regime, PhysAddr], Tables]) -> Snapshot:
    """Read a document; `tables` gives what belongs to its regime and root.

    Raises SnapshotError that names the first field that is wrong, and what `tables` raises.
    """
    try:
        document = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except RecursionError as error:
        raise SnapshotError("the document is nested too deeply") from error
    except ValueError as error:
        raise SnapshotError(f"the document is not JSON: {error}") from error
    top = _Fields(document, "document")
    if top.get("format") != FORMAT:
        raise SnapshotError("not a ptinspect snapshot")
    version = top.number("version")
    if version != VERSION:
        raise SnapshotError(
            f"snapshot format version {version} is unknown; this is for version {VERSION}",
            "use the version of ptinspect that wrote it, or a newer one",
        )
    root = top.fields("root")
    cpus = tuple(_cpu_in(item) for item in top.items("cpus"))
    regime = _regime(top.fields("regime"), cpus)
    pa = PhysAddr(root.hex("pa"))
    return Snapshot(
        name=top.text("name"),
        root=Root(pa, root.text("provenance")),
        regime=regime,
        cpus=cpus,
        ram=tuple(_ram(item) for item in top.items("ram")),
        meta=_meta(top.fields("meta")),
        va_range=_range(top.get("va_range"), regime),
        truncated=top.text("truncated"),
        tables=tables(regime, pa),
    )


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not allowed")


class _Fields:
    """Take typed values out of a JSON object; SnapshotError names what is wrong."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise SnapshotError(f"{path} is not an object")
        self._value: dict[str, object] = value
        self._path = path

    def get(self, key: str) -> object:
        """Return a field as it is. Raises SnapshotError if it is missing."""
        if key not in self._value:
            raise SnapshotError(f"{self._path} has no {key!r}")
        return self._value[key]

    def fields(self, key: str) -> _Fields:
        """Return a field that is an object."""
        return _Fields(self.get(key), f"{self._path}.{key}")

    def items(self, key: str) -> list[_Fields]:
        """Return a field that is a list of objects."""
        return [_Fields(item, f"{self._path}.{key}[{i}]") for i, item in enumerate(self.entries(key))]

    def entries(self, key: str) -> list[object]:
        """Return a field that is a list of bounded length."""
        value = self.get(key)
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise SnapshotError(f"{self._path}.{key} is not a list of at most {MAX_ITEMS}")
        return value

    def keys(self) -> list[str]:
        """Return the names of the fields. Raises SnapshotError if there are too many."""
        if len(self._value) > MAX_ITEMS:
            raise SnapshotError(f"{self._path} has more than {MAX_ITEMS} fields")
        return list(self._value)

    def text(self, key: str) -> str:
        """Return a string; control codes, which no honest file has, are shown as escapes."""
        return escape(self._string(key))

    def lines(self, key: str) -> str:
        """Return a string that may have several lines, each as `text` gives it."""
        return "\n".join(map(escape, self._string(key).split("\n")))

    def _string(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            raise SnapshotError(f"{self._path}.{key} is not a string")
        return value

    def number(self, key: str) -> int:
        """Return an integer."""
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise SnapshotError(f"{self._path}.{key} is not an integer")
        return value

    def flag(self, key: str) -> bool:
        """Return a truth value."""
        value = self.get(key)
        if not isinstance(value, bool):
            raise SnapshotError(f"{self._path}.{key} is neither true nor false")
        return value

    def hex(self, key: str) -> int:
        """Return a 64-bit number written in hex."""
        return _hex(self.get(key), f"{self._path}.{key}")


def _hex(value: object, path: str) -> int:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise SnapshotError(f"{path} is not a number of 64 bits in hex")
    return int(value, 16)


def _regime_out(regime: Regime) -> Mapping[str, object]:
    values = {name: getattr(regime, name) for name in field_names(Regime)}
    return values | {name: hex(values[name]) for name in _WIDE}


def _regime(fields: _Fields, cpus: Sequence[CpuState]) -> Regime:
    """Read the regime; indirect permissions that were not captured are in doubt if the CPU may have them."""
    known = set(fields.keys())
    values: dict[str, Any] = {}
    for name in field_names(Regime):
        if name not in known and hasattr(Regime, name):  # it has a default
            continue
        if name in _WIDE:
            values[name] = fields.hex(name)
        elif name in ("name", "doubt"):
            values[name] = fields.text(name)
        else:
            values[name] = (fields.flag if Regime.__annotations__[name] == "bool" else fields.number)(name)
    if cpus:
        values.setdefault("name", kernel_regime(cpus[0]))
    if values.get("name", "EL1&0") not in get_args(RegimeName):
        raise SnapshotError("document.regime.name is not a regime that is known")
    if "pie" not in known and (not cpus or may_be_indirect(cpus[0])):
        values["doubt"] = "permissions by the direct bits; TCR2_EL1 was not captured"
    if values["pa_bits"] not in _PA_BITS:
        raise SnapshotError(f"{values['pa_bits']}-bit physical addresses: not a size the architecture has")
    if not 0 <= values.get("sh", 0) <= 3:
        raise SnapshotError("document.regime.sh is not a shareability")
    try:
        return Regime(**values)
    except RegimeError as error:
        raise SnapshotError(f"document.regime: {error.message}") from error


def _cpu_out(state: CpuState) -> Mapping[str, object]:
    system = {**state.system, **dict.fromkeys(state.unwritten, UNWRITTEN)}
    return {
        "cpu": state.cpu,
        "x": [hex(value) for value in state.x],
        "sp": hex(state.sp),
        "pc": hex(state.pc),
        "pstate": hex(state.pstate),
        "system": {name: hex(value) for name, value in system.items()},
    }


def _cpu_in(fields: _Fields) -> CpuState:
    x = tuple(_hex(value, "document.cpus.x") for value in fields.entries("x"))
    if len(x) != 31:
        raise SnapshotError(f"a CPU with {len(x)} general registers, not 31")
    system = fields.fields("system")
    return CpuState(
        cpu=fields.number("cpu"),
        x=x,
        sp=fields.hex("sp"),
        pc=fields.hex("pc"),
        pstate=fields.hex("pstate"),
        system={escape(name): system.hex(name) for name in system.keys()},  # noqa: SIM118
    )


def _ram(fields: _Fields) -> RamBlock:
    return RamBlock(PhysAddr(fields.hex("start")), fields.hex("size"), fields.text("name"))


def _meta(fields: _Fields) -> Meta:
    extra = fields.fields("extra")
    texts = {name: fields.text(name) for name in field_names(Meta) if name != "extra"}
    return Meta(**texts, extra={escape(name): extra.lines(name) for name in extra.keys()})  # noqa: SIM118


def _range(value: object, regime: Regime) -> tuple[VirtAddr, VirtAddr] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise SnapshotError("document.va_range is not a pair")
    low, high = (VirtAddr(_hex(item, "document.va_range")) for item in value)
    if low > high or high < regime.va_min or low > regime.va_max:
        raise SnapshotError("document.va_range is not a part of the regime's half")
    return low, high
