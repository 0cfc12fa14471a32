"""Lines of a console log without what loggers and terminals put around them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from oops_logs import log

from ptinspect.linux.oops import messages
from ptinspect.linux.oops.lines import MAX_LINE, Line, Normaliser, rows
from ptinspect.linux.oops.logfile import CHUNK
from ptinspect.linux.oops.verdict import analyse

FAR = "FAR: 0xffff0000093a80e0"


def lines(text: str) -> Iterator[Line]:
    return Normaliser().lines(list(rows(text)))


def cleaned(text: str) -> list[str]:
    return [line.text for line in lines(text)]


@pytest.mark.parametrize(
    "raw",
    [
        FAR,
        f"[    0.043752] {FAR}",
        f"[ 0.043752] {FAR}",
        f"[12345.043752] {FAR}",
        f"<0>[    0.043752] {FAR}",
        f"[    0.043752][    T1] {FAR}",
        f"[    0.043752][   C12] {FAR}",
        f"[    0.043752] [ T12] {FAR}",
        f"<4>[    0.043752][  T12] {FAR}",
        f"Jun 22 18:26:01 turing kernel: [    0.043752] {FAR}",
        f"Jun 22 18:26:01 turing kernel: {FAR}",
        f"<6>Jun  2 18:26:01 turing kernel: {FAR}",
        f"2018-06-22T18:26:01+0800 turing kernel: {FAR}",
        f"2018-06-22T18:26:01.123456+08:00 turing kernel: [    0.043752] {FAR}",
        f"[2018-06-22 18:26:01] [    0.043752] {FAR}",
        f"[2018-06-22 18:26:01.123] {FAR}",
        f"0,1234,43752,-;{FAR}",
        f"4,1234,43752,-,caller=T12;{FAR}",
        f"> [    0.043752] {FAR}",
        f">> > [    0.043752] {FAR}",
        f"[   26.324660 / 09-26 13:22:37.704][2][662][ndroid.systemui] {FAR}",
        f"console: [    0.043752] {FAR}",
        f"\x1b[31m[    0.043752] {FAR}\x1b[0m",
    ],
)
def test_prefixes_are_removed(raw: str) -> None:
    assert cleaned(raw) == [FAR]


def test_a_walk_is_not_taken_for_a_prefix() -> None:
    walk = "[ffff0000093abce0] pgd=00000000411f8003, pud=00000000411f9003"
    assert cleaned(f"[ 0.26] {walk}\n[    0.261191] {walk}\n{walk}")[1:] == [walk, walk]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r\r\n", "\n\r", "\r", "\x00\n"])
def test_any_line_ending_will_do(ending: str) -> None:
    assert cleaned(f"a{ending}{ending}b{ending}") == ["a", "b"]


def test_lines_that_ran_together_are_parted_at_their_stamps() -> None:
    assert cleaned("[    0.1234] one[    0.1235] two [    0.1236] three") == ["one", "two", "three"]


def test_numbers_callers_and_times_are_kept() -> None:
    found = list(lines("\n\n[    1.250000][   C3] here\nthere\n"))
    assert found == [Line(3, "here", "C3", "1.250000"), Line(4, "there", place=1)]


def test_a_long_line_is_cut() -> None:
    (line,) = lines("x" * (3 * MAX_LINE))
    assert line.text == "x" * MAX_LINE


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("mark", ["\ufeff", ""])
def test_utf16_is_read(encoding: str, mark: str) -> None:
    (panic,) = analyse(
        mark.encode(encoding) + "\nKernel panic - not syncing: VFS: no root\n".encode(encoding)
    ).panics
    assert panic.incident.panic == "VFS: no root"


def test_utf16_behind_another_text_is_read() -> None:
    """Windows' shell appends it to any file."""
    (panic,) = analyse(
        b"a log\n" + "\r\nKernel panic - not syncing: VFS: no root\r\n".encode("utf-16-le")
    ).panics
    assert panic.incident.panic == "VFS: no root"


def test_bytes_that_are_no_text_do_no_harm() -> None:
    (panic,) = analyse(b"\xff\x00\xc3Kernel panic - not syncing: a\xff\x00b").panics
    assert panic.incident.panic == "a\ufffd"


def test_a_log_in_one_string_of_json_is_read_to_its_end() -> None:
    log = "[    1.000000] hello\n" * 20_000 + "[    2.000000] Kernel panic - not syncing: VFS: no root\n"
    (panic,) = analyse(json.dumps({"id": 7, "log": log}).encode()).panics
    assert (panic.incident.panic, panic.incident.first.line) == ("VFS: no root", 20_001)


def test_the_word_debug_begins_no_report() -> None:
    assert not messages.triggers("10:00:01 [DEBUG] a")
    assert not messages.triggers("10:00:01 DEBUG: a")
    assert messages.triggers("kernel BUG at mm/slub.c:1!")


@pytest.mark.parametrize("end", ["\n", "\r\r\n"])
@pytest.mark.parametrize("name", ["6.12-write-read-only", "6.12-recursion", "4.17-lkml-kpti"])
def test_a_log_with_the_newest_line_first_is_read_from_its_end(name: str, end: str) -> None:
    rows = [row for row in log(name).decode().splitlines() if row.startswith("[")]
    whole, found = (analyse(end.join(order).encode()).panics for order in (rows, rows[::-1]))
    assert [panic.verdict for panic in found] == [panic.verdict for panic in whole]
    for one, other in zip(whole, found, strict=True):
        assert len(rows) + 1 - other.incident.first.line == one.incident.first.line


@pytest.mark.parametrize("before", [0, 1, CHUNK // 8])
def test_parts_of_a_dump_of_pstore_are_read_from_the_oldest_on(before: int) -> None:
    rows = log("6.12-write-read-only").decode().splitlines()
    at = next(number for number, row in enumerate(rows) if "Call trace" in row)
    whole = analyse(log("6.12-write-read-only")).panics
    files = ["systemd"] * before + ["Panic#1 Part1", *rows[at:], "Panic#1 Part2", *rows[:at]]
    found = analyse("\n".join(files).encode()).panics
    assert [panic.verdict for panic in found] == [panic.verdict for panic in whole]
    assert found[0].incident.first.trace == whole[0].incident.first.trace
    assert files[found[0].incident.first.line - 1] == rows[whole[0].incident.first.line - 1]
