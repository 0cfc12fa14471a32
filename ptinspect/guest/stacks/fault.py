"""The fault that a CPU stands at: the facts, and the verdict on them."""

from __future__ import annotations

from ptinspect.dataclass import dataclass
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import cpu_state
from ptinspect.guest.stacks.kernel_stacks import newest_first, open_stacks
from ptinspect.stack.depth import depth_of_cpu
from ptinspect.stack.verdict import Facts, Why, explain
from ptinspect.stack.verdict_facts import collect

OF_A_STACK = ("reverted-entry", "lost-entry", "stack-mapping-lost", "deep-call-chain", "guard-page-hit")
"""Verdicts on a stack itself."""


@dataclass(frozen=True)
class Judged:
    """What one CPU stands at."""

    cpu: int
    """The CPU."""
    facts: Facts
    """What was read."""
    why: Why
    """The verdict."""


def judge_cpu(guest: Guest, cpu: int | None = None) -> Judged:
    """Judge what a CPU stands at (default: the one that stopped). Raises UserError, GuestError."""
    state = cpu_state(guest, cpu)
    stacks = open_stacks(guest)
    facts = collect(stacks, state, depth_of_cpu(stacks, state), newest_first(guest))
    return Judged(state.cpu, facts, explain(facts))


def judge(guest: Guest) -> Judged:
    """Judge the CPU that stopped; unless it has a verdict on its stack, the first CPU with more to report."""
    session = guest.stopped
    found = judge_cpu(guest)
    for cpu in range(session.cpu_count):
        if not _rank(found):
            break
        if cpu != session.current_cpu:
            found = min(found, judge_cpu(guest, cpu), key=_rank)
    return found


def _rank(found: Judged) -> int:
    return 0 if found.why.code in OF_A_STACK else 1 if found.why.code != "unknown" else 2
