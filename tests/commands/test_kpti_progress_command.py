"""What `kpti progress` says of the flag and of the CPUs, by where the rewrite is."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "linux"))
from kpti_guest import CASES, rewrite

from ptinspect.analysis.summary import Summary
from ptinspect.commands.kpti.standing import flag_text
from ptinspect.guest.rewrite.state import role_of
from ptinspect.linux.kpti.position import Phase, Position
from ptinspect.linux.kpti.running_code import Flag
from ptinspect.linux.kpti.state import KptiState, State


@pytest.mark.parametrize(
    ("state", "phase", "value", "cpus", "said"),
    [
        ("before", None, 1, 1, "1, as before the rewrite"),
        ("before", "before", 1, 1, "1, no other CPU takes part"),
        ("before", "before", 1, 4, "1, no other CPU is ready yet"),
        ("before", "before", 3, 4, "3 CPUs are ready"),
        ("in-progress", "walking", 1, 1, "1, no other CPU takes part"),
        ("in-progress", "walking", 4, 4, "all 4 CPUs that take part are ready"),
        ("after", "done", 1, 1, "1, no other CPU takes part"),
        ("after", None, 0, 1, "0, the rewrite has finished"),
        ("before", None, 0, 4, "0, it is not in use"),
        ("unknown", None, None, 4, "unknown"),
    ],
)
def test_the_flag_is_read_by_where_the_rewrite_is(
    state: State, phase: Phase | None, value: int | None, cpus: int, said: str
) -> None:
    position = None if phase is None else Position(phase, None)
    found = KptiState(state, "", Summary(()), flag=Flag(value, 1), position=position)
    assert flag_text(found, cpus) == said


@pytest.mark.parametrize("case", [CASES[0], CASES[1]], ids=lambda case: case.name)
def test_the_boot_cpu_rewrites_only_while_it_does(case: Any) -> None:
    guest = rewrite(case)
    view: Any = SimpleNamespace(
        pa_of_link=lambda va: va, regime=guest.regime, memory=guest.tree.memory, states=()
    )
    held: Any = SimpleNamespace(view=view, nearest=lambda pc: None)
    roles = []
    for _ in guest.machine.run():
        role = role_of(held, guest.code, guest.machine.state())
        if not roles or roles[-1] != role:
            roles.append(role)
    assert roles == ["about to rewrite", "rewrites", "has rewritten"]
    other = dataclasses.replace(guest.machine.state(), pc=guest.entry + 4, x=(2, *range(1, 31)))
    assert role_of(held, guest.code, other) == "about to wait"
