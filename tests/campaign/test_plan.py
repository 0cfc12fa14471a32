from __future__ import annotations

import pytest

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


def test_every_run_is_in_one_shard_and_every_shard_sees_every_cell() -> None:
    plan = Plan("s.pti", "0", 48, cells_of(["a=1,2,3,4"]))
    shards = [plan.all_runs((i, 4)) for i in range(1, 5)]
    numbers = sorted(run.number for shard in shards for run in shard)
    assert numbers == list(range(1, 49))
    assert all({run.cell.get("a") for run in shard} == {"1", "2", "3", "4"} for shard in shards)
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
        {**plan.to_json(), "cells": []},
        {**plan.to_json(), "cells": [3]},
    ):
        with pytest.raises(UserError):
            Plan.from_json(wrong)
