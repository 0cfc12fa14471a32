"""Descriptors in files: every row against the descriptor in guest memory, in each form."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from builders import CONTIGUOUS, KERNEL_DATA, NG, OUTSIDE, REGIMES, TreeBuilder
from fakes import KERNEL, context, kernel_tree, run

from ptinspect.arch.descriptor import decode
from ptinspect.commands.framework.context import Context
from ptinspect.errors import UserError
from ptinspect.output.rows import ADDRESSES, BOOLEANS, COLUMNS, NUMBERS

SW = 1 << 55


def _tree(name: str = "4k-48") -> TreeBuilder:
    regime = REGIMES[name]
    tree = TreeBuilder(regime)
    top = int(regime.va_min)
    tree.map(top, 0x4010_0000, size=64 * regime.granule, attributes=KERNEL_DATA | NG | SW)
    tree.map(top + regime.entry_size(2), 0x4000_0000, level=2, attributes=KERNEL_DATA | CONTIGUOUS)
    tree.set(top + 3 * regime.entry_size(2), 2, 0xDEAD_0800)
    tree.point(top + 4 * regime.entry_size(2), 2, OUTSIDE)
    tree.share(top + 5 * regime.entry_size(2), 2, top)
    return tree


def _ctx(tree: TreeBuilder) -> Context:
    ctx = context()
    ctx.guest.snapshots["s"] = tree.snapshot("s")
    return ctx


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    """Read CSV back into what JSON lines hold."""
    found = []
    for row in csv.DictReader(io.StringIO(path.read_text(), newline="")):
        made: dict[str, Any] = dict(row)
        for name in (*BOOLEANS, *NUMBERS, "level", "index", "size"):
            made[name] = None if row[name] == "" else int(row[name])
        for name in BOOLEANS:
            made[name] = None if made[name] is None else bool(made[name])
        for name in ("memory_type", "output_address"):
            made[name] = row[name] or None
        found.append(made)
    return found


def _json_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    parquet = pytest.importorskip("pyarrow.parquet")
    found = parquet.read_table(path).to_pylist()
    for row in found:
        for name in ADDRESSES:
            row[name] = None if row[name] is None else f"{row[name]:#x}"
    return list(found)


READERS = {"csv": _csv_rows, "jsonl": _json_rows, "parquet": _parquet_rows}


@pytest.mark.parametrize("form", READERS)
@pytest.mark.parametrize("regime", REGIMES)
def test_each_row_is_a_descriptor_in_memory(form: str, regime: str, tmp_path: Path) -> None:
    """All entries that are not zero, once, at their own address in memory, decoded one by one."""
    if form == "parquet":
        pytest.importorskip("pyarrow")
    tree = _tree(regime)
    ctx = _ctx(tree)
    path = tmp_path / f"out.{form}"
    result = run(ctx, f"export s -o {path}").result
    rows = READERS[form](path)
    assert result["rows"] == len(rows) and result["format"] == form
    seen = {}
    for row in rows:
        assert tuple(row) == COLUMNS
        pa = int(row["table_pa"], 16) + 8 * row["index"]
        raw = int(row["raw"], 16)
        assert tree.word(pa) == raw != 0
        seen[pa] = row
        found = decode(raw, row["level"], tree.regime)
        a = found.attributes
        assert row["kind"] == str(found.kind)
        out = None if found.output_address is None else f"{found.output_address:#x}"
        assert row["output_address"] == out
        assert row["size"] == tree.regime.entry_size(row["level"])
        if found.is_leaf:
            assert a is not None
            for name in ("ng", "ap", "uxn", "pxn", "attr_index", "memory_type", "sh", "af", "contiguous"):
                assert row[name] == getattr(a, name), name
            assert row["mark"] is None and row["software"] == " ".join(a.software)
        elif a is not None:
            assert (row["mark"], row["ng"], row["ap_table"]) == (a.table_mark, None, a.apt)
        else:
            assert (row["bit11"], row["af"]) == (bool(raw >> 11 & 1), None)
    assert len(seen) == len(rows)
    tables = tree.snapshot().tables
    assert len(rows) == int((tables.raw[tables.readable] != 0).sum())
    assert [row["va"] for row in rows if row["level"] == 3] == [
        f"{int(tree.regime.va_min) + n * tree.regime.granule:#x}" for n in range(64)
    ]


@pytest.mark.parametrize(
    ("options", "accepts"),
    [
        ("--level pte", lambda row: row["level"] == 3),
        ("--level pmd --level 3", lambda row: row["level"] in (2, 3)),
        ("--kind leaf", lambda row: row["kind"] in ("block", "page")),
        ("--kind invalid", lambda row: row["kind"] == "invalid"),
        ("--ng", lambda row: row["bit11"]),
        ("--global", lambda row: not row["bit11"]),
        ("--cont", lambda row: row["contiguous"]),
        ("--type device", lambda row: "Device" in (row["memory_type"] or "")),
        (
            "--pa pa:0x40105000..pa:0x40107000",
            lambda row: (
                row["mark"] is None
                and row["output_address"]
                and int(row["output_address"], 16) < 0x4010_7000
                and int(row["output_address"], 16) + row["size"] > 0x4010_5000
            ),
        ),
        (
            "--range 0xffff000000003000+0x2000",
            lambda row: (
                int(row["va"], 16) < 0xFFFF_0000_0000_5000
                and int(row["va"], 16) + row["size"] > 0xFFFF_0000_0000_3000
            ),
        ),
    ],
)
def test_filters(options: str, accepts: Any, tmp_path: Path) -> None:
    ctx = _ctx(_tree())
    run(ctx, f"export s -o {tmp_path}/all.jsonl")
    run(ctx, f"export s -o {tmp_path}/some.jsonl {options}")
    everything, some = _json_rows(tmp_path / "all.jsonl"), _json_rows(tmp_path / "some.jsonl")
    assert some == [row for row in everything if accepts(row)]
    assert 0 < len(some) < len(everything) or "device" in options


def test_names_of_regions_are_quoted(tmp_path: Path) -> None:
    """A task may call itself anything."""
    ctx = context(kernel_tree())
    run(ctx, "snap s")
    evil = 'task stack (7 a",=b)'
    ctx.guest.snapshots["s"].meta.extra["linux.regions"] = f"{KERNEL:x}-{KERNEL + 0x1F_FFFF:x} {evil}"  # type: ignore[index]
    for form in ("csv", "jsonl"):
        run(ctx, f"export s -o {tmp_path}/x.{form} --kind block")
        rows = READERS[form](tmp_path / f"x.{form}")
        assert [row["region"] for row in rows] == [evil, "kernel"]


def test_a_file_is_replaced_only_when_all_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = _ctx(_tree())
    path = tmp_path / "old.csv"
    path.write_text("old")

    def broken(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("ptinspect.output.rows.WRITERS", {"csv": broken})
    with pytest.raises(KeyboardInterrupt):
        run(ctx, f"export s -o {path}")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = _ctx(_tree())
    with pytest.raises(UserError, match="suffix names no format"):
        run(ctx, f"export s -o {tmp_path}/x.dat")
    with pytest.raises(UserError, match="cannot write"):
        run(ctx, f"export s -o {tmp_path}/none/x.csv")
    with pytest.raises(UserError, match="no snapshot and no file"):
        run(ctx, f"export t -o {tmp_path}/x.csv")
    with pytest.raises(UserError, match="no address of"):
        run(ctx, f"export s -o {tmp_path}/x.csv --range 0x1000..0x2000")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match="pyarrow") as caught:
        run(ctx, f"export s -o {tmp_path}/x.parquet")
    assert "ptinspect[parquet]" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
