"""Descriptors as rows of a file: CSV, JSON lines, Parquet; written while they are read."""

from __future__ import annotations

import csv
import io
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

from ptinspect.analysis.descriptor_batches import Batch
from ptinspect.arch.descriptor import Descriptor
from ptinspect.arch.levels import level_name
from ptinspect.arch.regime import Regime
from ptinspect.errors import UserError

ADDRESSES = ("va", "table_pa", "raw", "output_address")
"""Columns that are hex texts in CSV and JSON lines, and unsigned 64-bit numbers in Parquet."""
FACTS = (
    "kind",
    "bit11",
    "ng",
    "mark",
    "ap",
    "uxn",
    "pxn",
    "attr_index",
    "memory_type",
    "sh",
    "af",
    "contiguous",
    "dbm",
    "gp",
    "ns",
    "software",
    "ap_table",
    "uxn_table",
    "pxn_table",
    "ns_table",
    "pi_index",
    "ndirty",
    "po_index",
)
"""Columns that are the same for all descriptors that differ in nothing but the address."""
COLUMNS = ("va", "level", "name", "table_pa", "index", "raw", "output_address", "size", *FACTS, "region")
"""All columns, in order: a version adds some, and never renames one."""
BOOLEANS = frozenset(
    {"bit11", "ng", "mark", "uxn", "pxn", "af", "contiguous", "dbm", "gp", "ns", "uxn_table", "pxn_table"}
    | {"ns_table", "ndirty"}
)
NUMBERS = frozenset({"ap", "attr_index", "sh", "ap_table", "pi_index", "po_index"})


def facts_of(found: Descriptor) -> dict[str, Any]:
    """Return the columns of FACTS; None where the descriptor has no such field."""
    a = found.attributes
    leaf = a if found.is_leaf else None
    table = a if a is not None and not found.is_leaf else None
    return {
        "kind": str(found.kind),
        "bit11": bool(found.raw >> 11 & 1),
        "ng": leaf and leaf.ng,
        "mark": table and table.table_mark,
        "ap": leaf and leaf.ap,
        "uxn": leaf and leaf.uxn,
        "pxn": leaf and leaf.pxn,
        "attr_index": leaf and leaf.attr_index,
        "memory_type": leaf and leaf.memory_type,
        "sh": leaf and leaf.sh,
        "af": None if a is None else a.af,
        "contiguous": leaf and leaf.contiguous,
        "dbm": leaf and leaf.dbm,
        "gp": leaf and leaf.gp,
        "ns": leaf and leaf.ns,
        "software": "" if a is None else " ".join(a.software),
        "ap_table": table and table.apt,
        "uxn_table": table and table.uxn_table,
        "pxn_table": table and table.pxn_table,
        "ns_table": table and table.ns_table,
        "pi_index": leaf and leaf.pi_index,
        "ndirty": leaf and leaf.ndirty,
        "po_index": leaf and leaf.po_index,
    }


class Regions:
    """Name the region of each of many addresses."""

    def __init__(self, edges: Sequence[int], name: Callable[[int], str], lowest: int) -> None:
        """Take the addresses at which another region begins, and what names one address."""
        self._edges = sorted({lowest, *edges})
        self.names = [name(edge) for edge in self._edges]
        """The names, in order of address; a name may stand more than once."""

    def at(self, va: int) -> int:
        """Return the position in `names` of the region that an address lies in."""
        return max(bisect_right(self._edges, va) - 1, 0)


def write_csv(file: IO[bytes], rows: Iterable[Batch], regime: Regime, regions: Regions) -> int:
    """Write CSV (RFC 4180, UTF-8) with a head; return the number of rows."""
    file.write((",".join(COLUMNS) + "\r\n").encode())

    def fixed(found: Descriptor) -> str:
        values = facts_of(found)
        return _csv([_csv_cell(values[name]) for name in FACTS])

    count = 0
    quoted = [_csv([name]) for name in regions.names]
    for batch in rows:
        tails = [fixed(found) for found in batch.facts]
        name = level_name(batch.level, regime)
        lines = [
            f"{va:#x},{batch.level},{name},{table:#x},{index},{raw:#x},{_output(oa, kind)},{batch.size},"
            f"{tails[fact]},{quoted[regions.at(va)]}\r\n"
            for va, table, index, raw, oa, fact, kind in _each(batch)
        ]
        file.write("".join(lines).encode())
        count += len(lines)
    return count


def write_jsonl(file: IO[bytes], rows: Iterable[Batch], regime: Regime, regions: Regions) -> int:
    """Write one JSON object a line; return the number of rows."""
    count = 0
    quoted = [json.dumps(name) for name in regions.names]
    for batch in rows:
        tails = [json.dumps(facts_of(found))[1:-1] for found in batch.facts]
        head = f'"level": {batch.level}, "name": "{level_name(batch.level, regime)}", '
        lines = [
            f'{{"va": "{va:#x}", {head}"table_pa": "{table:#x}", "index": {index}, "raw": "{raw:#x}", '
            f'"output_address": {_quoted(oa, kind)}, "size": {batch.size}, {tails[fact]}, '
            f'"region": {quoted[regions.at(va)]}}}\n'
            for va, table, index, raw, oa, fact, kind in _each(batch)
        ]
        file.write("".join(lines).encode())
        count += len(lines)
    return count


def write_parquet(file: IO[bytes], rows: Iterable[Batch], regime: Regime, regions: Regions) -> int:
    """Write Parquet, one row group for each batch; addresses are uint64. Return the number of rows.

    Raises UserError if pyarrow is not installed.
    """
    pa, parquet = pyarrow()
    text = pa.dictionary(pa.int32(), pa.string())
    kinds = {name: pa.uint64() for name in ADDRESSES}
    kinds |= {name: pa.bool_() for name in BOOLEANS} | {name: pa.uint8() for name in NUMBERS}
    kinds |= {"level": pa.int8(), "index": pa.uint32(), "size": pa.uint64()}
    schema = pa.schema([(name, kinds.get(name, text)) for name in COLUMNS])
    count = 0
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in rows:
            writer.write_table(pa.table(_columns(batch, regime, regions, pa, schema), schema=schema))
            count += len(batch)
    return count


def _columns(batch: Batch, regime: Regime, regions: Regions, pa: Any, schema: Any) -> list[Any]:
    """Return the columns of one batch as arrays of Arrow's."""
    facts = [facts_of(found) for found in batch.facts]
    valid = [found.output_address is not None for found in batch.facts]
    where = batch.fact.tolist()
    length = len(batch)
    columns: dict[str, Any] = {
        "va": batch.va,
        "level": [batch.level] * length,
        "name": [level_name(batch.level, regime)] * length,
        "table_pa": batch.table_pa,
        "index": batch.index,
        "raw": batch.raw,
        "output_address": [
            oa if valid[at] else None for oa, at in zip(batch.output.tolist(), where, strict=True)
        ],
        "size": [batch.size] * length,
        "region": [regions.names[regions.at(va)] for va in batch.va.tolist()],
    }
    for name in FACTS:
        values = [fact[name] for fact in facts]
        columns[name] = [values[at] for at in where]
    return [pa.array(columns[name], type=schema.field(name).type) for name in COLUMNS]


def pyarrow() -> tuple[Any, Any]:
    """Return the modules of pyarrow that are needed. Raises UserError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "Parquet files need pyarrow, which is not installed", "pip install 'ptinspect[parquet]'"
        ) from error
    return pyarrow, pyarrow.parquet


WRITERS: Mapping[str, Callable[[IO[bytes], Iterable[Batch], Regime, Regions], int]] = {
    "csv": write_csv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}
"""Name of a format -> what writes the rows in it."""


def _each(batch: Batch) -> Iterator[tuple[Any, ...]]:
    """Yield va, table, index, raw, output, sort and whether it is valid, of each row."""
    valid = [found.output_address is not None for found in batch.facts]
    facts = batch.fact.tolist()
    columns = (batch.va, batch.table_pa, batch.index, batch.raw, batch.output)
    lists = (column.tolist() for column in columns)
    yield from zip(*lists, facts, [valid[fact] for fact in facts], strict=True)


def _output(address: int, valid: bool) -> str:
    return f"{address:#x}" if valid else ""


def _quoted(address: int, valid: bool) -> str:
    return f'"{address:#x}"' if valid else "null"


def _csv(cells: Sequence[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(cells)
    return out.getvalue()


def _csv_cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return "" if value is None else str(value)
