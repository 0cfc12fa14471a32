"""The kernel's text of its page tables, read again and compared with snapshots."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import context, run, text

from ptinspect.errors import UserError
from ptinspect.linux.ptdump.kernel_text import compare, is_text, load, parse
from ptinspect.snapshot.store import load as load_snapshot
from ptinspect.snapshot.store import save

PAIRS = Path(__file__).parent.parent / "data" / "ptdump"
NAMES = sorted(path.stem for path in PAIRS.glob("*.txt"))
HEAD = "---[ Linear Mapping start ]---\n"


def line(start: int, end: int, rest: str) -> str:
    return f"0x{start:016x}-0x{end:016x}           4K {rest}\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_kernels_text_is_what_its_snapshot_maps(name: str) -> None:
    report = run(context(), f"diff {PAIRS / name}.txt {PAIRS / name}.npz")
    assert report.result["identical"] and report.result["differences"] == []
    assert "the same is mapped in both" in text(report) and "physical addresses" in text(report)


def test_a_changed_leaf_is_one_difference(tmp_path: Path) -> None:
    """One nG bit of one page of the linear map."""
    snapshot = load_snapshot(PAIRS / "6.1-39bit.npz")
    tables = snapshot.tables
    row = int((tables.level == 3).nonzero()[0][0])
    slot = int((tables.raw[row] & 3 == 3).nonzero()[0][7])
    tables.raw[row, slot] ^= 1 << 11
    save(snapshot, tmp_path / "changed.npz")
    va = int(tables.va[row]) + (slot << 12)
    report = run(context(), f"diff {PAIRS}/6.1-39bit.txt {tmp_path}/changed.npz")
    (found,) = report.result["differences"]
    assert (found["va_start"], found["size"]) == (hex(va), 4096)
    assert set(found["a"]["attributes"]) ^ set(found["b"]["attributes"]) == {"NG"}
    assert "1 ranges differ" in text(report)
    run(context(), f"diff {PAIRS}/6.1-39bit.txt {tmp_path}/changed.npz -o {tmp_path}/d.csv")
    assert "0x" in (tmp_path / "d.csv").read_text()
    with pytest.raises(UserError, match="bit 11"):
        run(context(), f"diff {PAIRS}/6.1-39bit.txt {tmp_path}/changed.npz --expect-only-bit11")


def test_import_lists_a_text_with_console_lines_in_it(tmp_path: Path) -> None:
    words = "PTE       RW NX SHD AF NG         UXN    MEM/NORMAL-TAGGED"
    body = "guest# cat kernel_page_tables\r\n" + HEAD + line(1 << 63, (1 << 63) + 4096, words)
    body += "[   12.5] random: crng init done\r\n" + line((1 << 63) + 4096, 0, "PGD")
    path = tmp_path / "console"
    path.write_text(body)
    assert is_text(path)
    report = run(context(), f"import {path}")
    assert report.result["runs"] == [
        {
            "va_start": "0x8000000000000000",
            "va_end": "0x8000000000000fff",
            "size": 4096,
            "level": "PTE",
            "attributes": words.split()[1:],
            "marker": "Linear Mapping start",
        }
    ]
    assert report.result["skipped"] == 2 and "2 lines" in text(report)


def test_holes_of_any_level_and_missing_lines_are_the_same() -> None:
    one = parse([line(0, 0x1000, "PTE"), line(0x1000, 0x2000, "PTE RW")], "a")
    two = parse([line(0x1000, 0x2000, "PTE RW"), line(0x2000, 0, "PGD")], "b")
    assert list(compare(one.runs, two.runs)) == []


def test_a_hole_is_nothing_in_a_difference() -> None:
    one = parse([line(0, 0x1000, "PTE RW")], "a")
    two = parse([line(0, 0, "PGD")], "b")
    assert [(d.a, d.b) for d in compare(one.runs, two.runs)] == [(one.runs[0], None)]


def test_differences_are_joined_where_they_are_the_same() -> None:
    one = parse([line(0, 0x1000, "PTE RW"), line(0x1000, 0x4000, "PTE ro")], "a")
    two = parse([line(0x2000, 0x3000, "PTE RW")], "b")
    found = [(d.start, d.end, d.a and d.a.what, d.b and d.b.what) for d in compare(one.runs, two.runs)]
    assert found == [
        (0, 0x1000, ("PTE", "RW"), None),
        (0x1000, 0x2000, ("PTE", "ro"), None),
        (0x2000, 0x3000, ("PTE", "ro"), ("PTE", "RW")),
        (0x3000, 0x4000, ("PTE", "ro"), None),
    ]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("hello\n", "no line of it"),
        (line(0x2000, 0x1000, "PTE RW"), "does not follow"),
        (line(0, 0x2000, "PTE RW") + line(0x1000, 0x3000, "PTE RW"), "does not follow"),
    ],
)
def test_what_makes_no_sense(body: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text(body)
    with pytest.raises(UserError, match=said):
        load(path)
