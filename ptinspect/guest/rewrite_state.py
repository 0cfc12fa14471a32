"""Where the guest, or a snapshot, stands with respect to the rewrite: what every command about it asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptinspect.errors import GuestError, PtinspectError
from ptinspect.guest.capturing import capture_snapshot
from ptinspect.guest.guest import Guest
from ptinspect.guest.source import Source
from ptinspect.snapshot.fact_names import ALGORITHM
from ptinspect.text import escape

if TYPE_CHECKING:
    from ptinspect.linux.kpti.code import KptiCode
    from ptinspect.linux.kpti.progress import Work
    from ptinspect.linux.kpti.state import KptiState
    from ptinspect.snapshot.model import Snapshot

TOTAL = "work of the rewrite"
"""Name in Guest.kept of how many descriptors the walk had to store when it stood before its first store."""


@dataclass(frozen=True)
class Standing:
    """Join the kernel's tables as they are now and where the guest stands."""

    state: KptiState
    """Where it stands."""
    snapshot: Snapshot | None
    """The tables; None if the kernel has none yet."""
    total: int | None
    """How many descriptors the walk has to store; None if it was not seen before its first store."""

    @property
    def tables(self) -> Snapshot:
        """The tables. Raises GuestError if the kernel has none yet."""
        if self.snapshot is None:
            raise GuestError(self.state.reason, "kpti until, or kpti run")
        return self.snapshot

    @property
    def work(self) -> Work:
        """What the walk has to do and what is left. Raises GuestError if the kernel has no tables yet."""
        from ptinspect.linux.kpti.progress import work

        return work(self.tables, self.state, self.total)


def standing(guest: Guest, name: str, extra: Mapping[str, str] | None = None) -> Standing:
    """Capture the kernel's tables, whole, and judge. Raises TargetError if the link to the guest failed."""
    from ptinspect.analysis.summary import Summary
    from ptinspect.linux.kpti.progress import work
    from ptinspect.linux.kpti.state import KptiState, kpti_state

    view = guest.view
    try:
        root = view.swapper()
    except GuestError as error:
        why = f"the kernel has no tables yet: {error.message}"
        return Standing(KptiState("before", why, Summary(())), None, None)
    source = Source(guest.stopped.memory, root, view.regime, "guest")
    snapshot = capture_snapshot(guest, source, name, extra=extra)
    state = kpti_state(view, snapshot)
    if state.algorithm:
        noted = {**snapshot.meta.extra, ALGORITHM: state.algorithm}
        snapshot = dataclasses.replace(snapshot, meta=dataclasses.replace(snapshot.meta, extra=noted))
    if state.position is not None and state.position.phase == "before":
        guest.kept[TOTAL] = work(snapshot, state).total
    elif state.position is None:
        guest.kept.pop(TOTAL, None)
    return Standing(state, snapshot, guest.kept.get(TOTAL))


def snapshot_state(guest: Guest, snapshot: Snapshot) -> KptiState:
    """Judge a snapshot from its tables, and the kernel's code where it is known."""
    from ptinspect.linux.kpti.state import state_from_tables

    code = code_of(guest, snapshot)
    state = state_from_tables(snapshot, code)
    return state if code is None else dataclasses.replace(state, algorithm=code.algorithm)


def code_of(guest: Guest, snapshot: Snapshot) -> KptiCode | None:
    """Return the rewrite as the kernel of a snapshot has it; None if that is not known.

    It is read from the guest if it runs that kernel, else from the kernel file. A snapshot that names no
    kernel is taken to be of the one at hand.
    """
    from ptinspect.linux.kpti.code import recognise
    from ptinspect.linux.kpti.running_code import running_code

    theirs = snapshot.meta.kernel
    try:
        if guest.state == "stopped":
            view = guest.view
            if theirs in ("", view.banner()):
                return running_code(view)
        kernel = guest.kernel
        if kernel is None or (theirs and kernel.banner and escape(kernel.banner) != theirs):
            return None
        return recognise(kernel)
    except PtinspectError:
        return None
