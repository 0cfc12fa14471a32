from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptinspect.campaign.plan import Cell, Plan, cells_of, shard_of
from ptinspect.errors import UserError


def test_cells_are_the_combinations_of_the_values() -> None:
    cells = cells_of(["cpu=a57,max", "mem=512,1024"])
    assert [cell.name for cell in cells] == [
        "cpu=cortex-a57 mem=512",
        "cpu=cortex-a57 mem=1024",
        "cpu=max mem=512",
        "cpu=max mem=1024",
    ]
    assert cells_of([]) == (Cell(()),)
    for wrong in (["cpu"], ["=1"], ["a=1", "a=2"], ["a=1,1"]):
        with pytest.raises(UserError):
            cells_of(wrong)


@given(st.integers(1, 300), st.integers(1, 12), st.integers(1, 20))
def test_every_run_is_in_one_shard_and_shards_are_alike(runs: int, cells: int, count: int) -> None:
    plan = Plan("s.pti", "0", runs, cells_of([f"a={','.join(map(str, range(cells)))}"]))
    whole = plan.all_runs()
    assert [run.number for run in whole] == list(range(1, runs + 1))
    shards = [plan.all_runs((i, count)) for i in range(1, count + 1)]
    assert sorted((run for shard in shards for run in shard), key=lambda run: run.number) == whole
    for chosen in (None, *plan.cells):
        sizes = [sum(chosen in (None, run.cell) for run in shard) for shard in shards]
        assert max(sizes) - min(sizes) <= 1, (chosen, sizes)


def test_a_shard_is_a_number_of_how_many() -> None:
    assert shard_of("2/4") == (2, 4)
    for wrong in ("0/4", "5/4", "1", "a/b", "1/0"):
        with pytest.raises(UserError):
            shard_of(wrong)


def test_a_plan_survives_json_and_nonsense_is_refused() -> None:
    plan = Plan("s.pti", "0", 3, cells_of(["a=1,2"]), (("x", "y"),), 60.0, 1)
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json({**plan.to_json(), "later": "1"}).extra == {"later": "1"}
    for wrong in (
        [],
        {},
        {**plan.to_json(), "runs": "many"},
        {**plan.to_json(), "runs": float("inf")},
        {**plan.to_json(), "cells": []},
        {**plan.to_json(), "cells": [3]},
    ):
        with pytest.raises(UserError):
            Plan.from_json(wrong)
