"""No text makes the analysis fail, and no damage makes it claim what is not there."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oops_logs import LOGS, bad_stack, lines, paging_request

from ptinspect.commands.stack.oops import explained
from ptinspect.linux.death import CODES
from ptinspect.linux.oops.verdict import Analysis, analyse
from ptinspect.output.files import to_csv, to_markdown
from ptinspect.output.json import answer
from ptinspect.output.text import render

FUZZ = settings(max_examples=150, suppress_health_check=list(HealthCheck))
NAMES = sorted(path.stem for path in LOGS.glob("*.log"))
PIECES = [line for name in ("4.17-lkml-kpti", "6.12-bug", "6.1-sp-lowered") for line in lines(name)] + [
    *bad_stack(),
    *paging_request(0xFFFF800011883CC0, "pgd=0000000000000003, p4d=ffffffffffffffff, pud=1"),
    "swapper pgtable: 64k pages, 99-bit VAs, pgdp=0",
    "swapper pgtable: 16k pages, 11-bit VAs, pgdp=ffffffffffffffff",
    "swapper pgtable: 4k pages, 52-bit VAs, pgdp=zzz",
    "Task stack:     [0xffffffffffffffff..0x0000000000000000]",
    "Task stack:     [0x0000000000000000..0xffffffffffffffff]",
    "sp : 0000000000000000",
    "x29: ffffffffffffffff x5 : 0000000000000008",
    "Linux version 999.999999999",
    "Booting Linux on physical CPU",
    "Call trace:",
    "---[ end trace",
    "Kernel panic - not syncing: \x1b]0;owned\x07\u202e",
]


def survives(data: bytes) -> Analysis:
    analysis = analyse(data)
    report = explained(analysis, "a log")
    outputs = (answer("oops", report), render(report), to_markdown(report), to_csv(report))
    for output in outputs:
        assert all(c.isprintable() or c in "\r\n" for c in output)
    for panic in analysis.panics:
        assert panic.verdict.code in CODES
        assert panic.verdict.evidence
    return analysis


@FUZZ
@given(st.binary(max_size=4096))
def test_arbitrary_bytes(data: bytes) -> None:
    survives(data)


@FUZZ
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=80)), max_size=120))
def test_lines_in_any_order(chosen: list[str]) -> None:
    survives("\n".join(chosen).encode("utf-8", "surrogatepass"))


@FUZZ
@given(st.sampled_from(NAMES), st.data())
def test_real_logs_with_lost_and_changed_characters(name: str, data: st.DataObject) -> None:
    raw = bytearray((LOGS / f"{name}.log").read_bytes())
    for _ in range(data.draw(st.integers(1, 40))):
        at = data.draw(st.integers(0, len(raw) - 1))
        what = data.draw(st.sampled_from(["drop", "change", "insert", "cut"]))
        if what == "drop":
            del raw[at : at + data.draw(st.integers(1, 5))]
        elif what == "change":
            raw[at] = data.draw(st.integers(0, 255))
        elif what == "insert":
            raw[at:at] = data.draw(st.binary(max_size=6))
        else:
            del raw[at : at + data.draw(st.integers(1, 400))]
        if not raw:
            break
    survives(bytes(raw))


def test_a_damaged_time_stamp_prints_no_control_code() -> None:
    raw = (LOGS / "6.12-null-dereference.log").read_bytes()
    damaged = re.sub(rb"(\[ +\d+\.\d\d\d)\d", lambda found: found[1] + b"\x01", raw)
    assert damaged != raw
    assert survives(damaged).panics


@FUZZ
@given(st.sampled_from(NAMES), st.sampled_from(NAMES), st.randoms(use_true_random=False))
def test_two_real_logs_interleaved(one: str, other: str, random: object) -> None:
    import random as module

    assert isinstance(random, module.Random)
    left, right = lines(one), lines(other)
    mixed = []
    while left or right:
        source = left if left and (not right or random.random() < 0.5) else right
        mixed.append(source.pop(0))
    survives("\n".join(mixed).encode())


NO_STACK = [
    n for n in NAMES if any(w in n for w in ("null", "rootfs", "brk", "bug", "oom", "exit", "lockup", "wild"))
]
CLAIMS = {
    "reverted-entry",
    "lost-entry",
    "stack-mapping-lost",
    "deep-call-chain",
    "guard-page-hit",
    "sp-corrupted",
}


@FUZZ
@given(st.sampled_from(NO_STACK), st.data())
def test_damage_never_turns_another_death_into_a_stack_problem(name: str, data: st.DataObject) -> None:
    raw = bytearray((LOGS / f"{name}.log").read_bytes())
    for _ in range(data.draw(st.integers(1, 30))):
        at = data.draw(st.integers(0, len(raw) - 2))
        del raw[at : at + data.draw(st.integers(1, 60))]
        if len(raw) < 3:
            break
    assert not {panic.verdict.code for panic in survives(bytes(raw)).panics} & CLAIMS


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b"[ " * 100_000 + b"1.0000] Kernel panic - not syncing: x",
        b"Kernel panic - not syncing: " * 20_000,
        b"Unable to handle kernel " * 20_000,
        b"Insufficient stack space to handle exception!\n" * 20_000,
        b"BUG\n" + b"CPU: 0 PID: 1 Comm: " + b"a " * 50_000,
        b"Internal error: " + b"Oops " * 50_000,
        b"INFO: rcu" + b"u" * 100_000,
        b"BUG\n[ffff000000000000] pgd=" + b"pgd=1, " * 50_000,
        b"Call trace:\n" + b" foo+0x0/0x1\n" * 100_000,
        b"\x1b[" * 100_000 + b"BUG",
        b">" * 100_000 + b"BUG",
    ],
)
def test_hostile_texts_end(data: bytes) -> None:
    survives(data)
