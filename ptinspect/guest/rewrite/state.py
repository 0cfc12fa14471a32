"""Where a guest or a snapshot stands with respect to the rewrite, what the CPUs do, and how it has gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ptinspect.arch.bits import VirtAddr
from ptinspect.arch.sysregs import CpuState, mmu_on
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import GuestError, PtinspectError, UserError
from ptinspect.guest.capturing import capture_snapshot
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import cpu_state
from ptinspect.guest.roots import Source
from ptinspect.snapshot.fact_names import ALGORITHM, PHASE
from ptinspect.text import escape

if TYPE_CHECKING:
    from ptinspect.linux.kpti.code import KptiCode
    from ptinspect.linux.kpti.marks import Reached
    from ptinspect.linux.kpti.progress import Work
    from ptinspect.linux.kpti.state import KptiState
    from ptinspect.linux.kpti.stores import Recording
    from ptinspect.linux.kpti.verdict import Verdict
    from ptinspect.snapshot.model import Snapshot

TOTAL = "work of the rewrite"
"""Name in Guest.kept of how many descriptors the walk had to store when it stood before its first store."""
STORES = "stores of the rewrite"
"""Name in Guest.kept of the stores that were recorded last."""
LIVE = "the guest"
"""What the tables of the guest as it stands are called."""
HELD = ("multi_cpu_stop", "stop_machine_yield", "rcu_momentary_dyntick_idle", "rcu_momentary_eqs")
"""Functions in which CPUs wait for each other before and after the rewrite (kernel/stop_machine.c)."""
BOOT = {"before": "about to rewrite", "walking": "rewrites", "done": "has rewritten"}
"""What the boot CPU does in the function, by phase."""


@dataclass(frozen=True)
class Standing:
    """The kernel's tables as they are now, and where the guest stands."""

    state: KptiState
    snapshot: Snapshot | None
    """The tables; None if the kernel has none yet."""
    total: int | None
    """How many descriptors the walk has to store; None if it was not counted before its first store."""

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

    @property
    def marks(self) -> Reached:
        """How far the marks in the tables go. Raises GuestError if the kernel has no tables yet."""
        from ptinspect.linux.kpti.marks import algorithm_of, reached

        return reached(self.tables, algorithm_of(self.tables), tables=self.state.marks_tables)


@dataclass(frozen=True)
class CpuRole:
    """What a CPU does while the kernel rewrites its tables: one rewrites, the others wait."""

    cpu: int
    role: str
    """A phrase of BOOT, about to wait, waits for the flag, held by stop_machine, elsewhere, unknown."""
    pc: VirtAddr
    place: str
    """The same with its symbol."""
    ttbr1: str
    """Which table TTBR1 holds: swapper, trampoline, reserved, temporary, init, unknown."""
    mmu_on: bool | None
    """None where the stub does not tell."""


@dataclass(frozen=True)
class Judgement:
    """A verdict on the rewrite, and what it rests on."""

    verdict: Verdict
    before: str | None
    """Name of the tables before; None if there are none."""
    after: str
    recording: Recording | None
    code: KptiCode | None
    """The rewrite as the kernel has it."""


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
        snapshot = replace(snapshot, meta=replace(snapshot.meta, extra=noted))
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
    return state if code is None else replace(state, algorithm=code.algorithm)


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


def cpu_roles(guest: Guest, code: KptiCode | None, only: int | None = None) -> Sequence[CpuRole]:
    """Return what each CPU does, or CPU `only`. Raises UserError if there is no such CPU, GuestError."""
    chosen = range(guest.stopped.cpu_count) if only is None else [only]
    return [_in_rewrite(guest, code, cpu_state(guest, cpu)) for cpu in chosen]


def _in_rewrite(guest: Guest, code: KptiCode | None, state: CpuState) -> CpuRole:
    from ptinspect.linux.running.ttbr import ttbr1_role

    view = guest.view
    try:
        role = "unknown" if code is None else role_of(guest, code, state)
    except PtinspectError:
        role = "unknown"
    try:
        ttbr1 = str(ttbr1_role(view, state).name)
    except PtinspectError:
        ttbr1 = "unknown"
    return CpuRole(
        state.cpu, role, VirtAddr(state.pc), guest.place(state.pc, state=state), ttbr1, mmu_on(state)
    )


def role_of(guest: Guest, code: KptiCode, state: CpuState) -> str:
    """Return what a CPU does, by where it stands in the rewrite's code."""
    from ptinspect.linux.kpti.position import position

    view = guest.view
    entry = view.pa_of_link(code.entry_va)
    if not code.contains(state.pc, entry):
        near = guest.nearest(state.pc, state=state)
        return "held by stop_machine" if near is not None and near.symbol in HELD else "elsewhere"
    if code.secondary(state.pc, entry):
        return "waits for the flag"
    parted = state.pc - entry > code.points.get("parting", 0)
    if not parted and state.x[0] & 0xFFFF_FFFF:
        return "about to wait"
    return BOOT[position(state, code, view.regime, view.memory).phase]


def judgement(
    guest: Guest, before: str | None = None, after: str | None = None, *, live: bool = False
) -> Judgement:
    """Judge which way the rewrite has gone, by the tables before and after it, the stores and the code.

    `before` and `after` name snapshots, by default those of these names. The guest as it stands counts where
    there is none from after, after a recording, or if it is to be `live`. Raises UserError if there are no
    tables from after the rewrite.
    """
    from ptinspect.linux.kpti.verdict import Verdict, judge

    earlier = _snapshot(guest, before, "before")
    recording: Recording | None = guest.kept.get(STORES)
    later, state, finished = _after(guest, after, recording, live=live)
    if later is None:
        found = Verdict("not-run", (state.reason,))
    else:
        found = judge(earlier, later, state, recording, finished=finished)
    return Judgement(
        found,
        None if earlier is None else earlier.name,
        LIVE if later is None else later.name,
        recording,
        state.code,
    )


def _snapshot(guest: Guest, name: str | None, default: str) -> Snapshot | None:
    return guest.snapshots.get(default) if name is None else guest.snapshot_or_file(name)


def _after(
    guest: Guest, name: str | None, recording: Recording | None, *, live: bool
) -> tuple[Snapshot | None, KptiState, bool]:
    """Return the tables after the rewrite, where it stood then, and if it had just ended.

    No tables if the guest's kernel has none yet.
    """
    stopped = guest.state == "stopped"
    if live and not stopped:
        raise UserError("there is no stopped guest", "--after SNAP")
    if not live:
        recorded = name is None and recording is not None and stopped
        found = None if recorded else _snapshot(guest, name, "after")
        if found is not None:
            return found, snapshot_state(guest, found), found.meta.extra.get(PHASE) == "after"
    if not stopped:
        raise UserError("there are no tables from after the rewrite", "--after SNAP, or kpti run on a guest")
    if (wrong := guest.kernel_refused) is not None:
        raise wrong
    now = standing(guest, LIVE)
    where = now.state.position
    return now.snapshot, now.state, where is not None and where.phase == "done"
