"""The fault that a CPU stands at: the facts, and the verdict on them."""

from __future__ import annotations

import shlex

from ptinspect.analysis.classify import kinds_of
from ptinspect.arch.bits import PhysAddr
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import TargetTimeout
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import cpu_state
from ptinspect.guest.recordings.last_writes import last_writes, that_unmapped
from ptinspect.guest.recordings.timeline import recording_of
from ptinspect.guest.recordings.writers import Write
from ptinspect.guest.stacks.kernel_stacks import newest_first, open_stacks
from ptinspect.stack.depth import depth_of_cpu
from ptinspect.stack.verdict import Change, Facts, Why, explain, faulting, with_change
from ptinspect.stack.verdict_facts import collect
from ptinspect.text import escape

OF_A_STACK = ("reverted-entry", "lost-entry", "stack-mapping-lost", "deep-call-chain", "guard-page-hit")
"""Verdicts on a stack itself."""
SECONDS = 300.0
"""How long the write may be searched that lost an entry."""


@dataclass(frozen=True)
class Judged:
    """What one CPU stands at."""

    cpu: int
    facts: Facts
    why: Why
    written: Write | None = None
    """In a replay, the write that lost the entry which the verdict is about."""


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


def with_writer(guest: Guest, found: Judged) -> Judged:
    """Return a verdict on a lost entry with the write that lost it, which only a replay tells.

    Without a snapshot that has the entry as it was, that write shows what it held. Where the guest is in no
    recording, or no entry was lost, the verdict is returned as it is.
    """
    change, walk = found.why.change, faulting(found.facts)
    replay = guest.stopped.replay
    blamed = walk is not None and (found.facts.handling or found.why.code in OF_A_STACK)
    if replay is None or (change is None and not blamed):
        return found
    if replay.mode == "record":
        recording = recording_of(guest)
        folder = "DIR" if recording is None else shlex.quote(escape(str(recording.directory)))
        return _doubtful(
            found, f"who lost it: detach; timeline open {folder}; timeline goto {replay.position}; why"
        )
    guest.progress("searching who lost the entry")
    try:
        if change is not None:
            pa = PhysAddr(change.descriptor_pa)
            return replace(found, written=last_writes(guest, {pa: change.after}, None, 0, SECONDS).get(pa))
        assert walk is not None
        written = that_unmapped(guest, walk, guest.view.regime, SECONDS)
    except TargetTimeout:
        return _doubtful(found, f"who lost it was not found within {SECONDS:.0f} seconds")
    if written is None:
        return _doubtful(found, "the recording shows no write that took the mapping away")
    step = next(step for step in walk.steps if step.descriptor_pa == written.pa)
    kinds = kinds_of(written.before, written.after, step.level, guest.view.regime)
    values = written.before, written.after
    made = Change(step.level, step.name, written.pa, *values, "", kinds, written.position)
    facts = with_change(found.facts, made)
    return Judged(found.cpu, facts, explain(facts), written)


def _doubtful(found: Judged, text: str) -> Judged:
    return replace(found, why=replace(found.why, unknown=(*found.why.unknown, text)))


def _rank(found: Judged) -> int:
    return 0 if found.why.code in OF_A_STACK else 1 if found.why.code != "unknown" else 2
