"""What the guard watches, and which stops are alarms."""

from __future__ import annotations

import pytest

from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import UserError
from ptinspect.linux.running.stacks import Stack
from ptinspect.stack.guard import (
    BURST,
    PER_SECOND,
    Budget,
    Wires,
    in_danger,
    judge,
    margin_bytes,
    watched,
)

BASE, SIZE, MARGIN = 0xFFFF_8000_1200_0000, 0x4000, 2048
STACK = Stack("task", BASE, BASE + SIZE)
ENTRY = [(0xFFFF_8000_1001_1AC0, 0xFFFF_8000_1001_1B40)]
WRITE_FAULT, SVC, WATCHPOINT = 0x9600_0046, 0x5600_0000, 0xD600_0000


def state(sp: int, elr: int = 0, esr: int = WRITE_FAULT) -> CpuState:
    return CpuState(0, (0,) * 31, sp, 0, 0x3C5, {"ELR_EL1": elr, "ESR_EL1": esr})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2048", 2048), ("2K", 2048), ("33", 33), ("25%", 4096), ("93%", 15237), ("15360", 15360)],
)
def test_margins(text: str, expected: int) -> None:
    assert margin_bytes(text, SIZE) == expected


@pytest.mark.parametrize("text", ["", "0", "32", "100%", "15361", "-5", "1k", "x"])
def test_margins_that_leave_no_room(text: str) -> None:
    with pytest.raises(UserError, match="margin"):
        margin_bytes(text, SIZE)


def test_the_margin_is_watched_to_the_byte_and_the_end_mark_is_left_out() -> None:
    assert watched(STACK, MARGIN) == (BASE + 32, BASE + MARGIN)


@pytest.mark.parametrize(
    ("offset", "danger"),
    [
        (MARGIN - 16, True),
        (MARGIN, False),
        (0, True),
        (-16, True),
        (-SIZE, True),
        (-SIZE - 16, False),
    ],
)
def test_where_sp_is_in_danger(offset: int, danger: bool) -> None:
    assert in_danger(STACK, BASE + offset, MARGIN) is danger


@pytest.mark.parametrize(
    ("number", "cpu", "way"),
    [
        (7, state(BASE + 0x700), "margin"),
        (7, state(BASE + 0x3000), None),
        (7, state(BASE + 2 * SIZE + 0x700), None),
        (1, state(BASE + 0x3000, ENTRY[0][0]), "recursive-fault"),
        (1, state(BASE + 0x3000, ENTRY[0][1] - 4), "recursive-fault"),
        (1, state(BASE + 0x3000, ENTRY[0][1]), None),
        (1, state(BASE + 0x3000, 0xFFFF_8000_1060_3E44), None),
        (1, state(BASE + 0x3000, ENTRY[0][0], SVC), None),
        (2, state(BASE + 0x3000), "bad-stack"),
        (3, state(BASE + 0x700), "other"),
        (None, state(BASE + 0x700), "other"),
    ],
)
def test_stops_are_told_apart(number: int | None, cpu: CpuState, way: str | None) -> None:
    wires = Wires(ways={1: "recursive-fault", 2: "bad-stack"}, stacks={7: STACK})
    assert judge(wires, number, cpu, MARGIN, ENTRY) == way


def test_a_budget_is_spent_and_comes_back_with_time() -> None:
    now = [100.0]
    budget = Budget(clock=lambda: now[0])
    budget.refill()
    spent = 1
    while budget.spend():
        spent += 1
    assert spent == BURST
    assert not budget.spend() or budget.left < 1
    now[0] += 3 / PER_SECOND
    assert budget.refill() >= 2
    now[0] += 1e6
    assert budget.refill() == BURST
