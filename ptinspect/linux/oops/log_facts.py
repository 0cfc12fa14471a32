"""The facts of one death by its log: the values as printed, and what is worked out from them."""

from __future__ import annotations

from ptinspect.arch.esr import EC_DABT, Esr, decode_esr
from ptinspect.dataclass import dataclass
from ptinspect.linux.death import Calls
from ptinspect.linux.oops.depth import Recursion, chain, recursion, stack_at, used_before
from ptinspect.linux.oops.incident import Fault, Incident
from ptinspect.linux.stack_range import StackRange
from ptinspect.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from ptinspect.linux.oops.kpti_registers import KptiRegisters
    from ptinspect.linux.oops.printed_walk import Path


@dataclass(frozen=True)
class Facts:
    """All that was worked out from one death's log."""

    incident: Incident
    """The values as printed."""
    esr: Esr | None
    """The first fault's ESR, decoded."""
    stack: StackRange | None
    """The stack SP is on, or has run off."""
    used: int | None
    """Bytes of it in use before the first fault."""
    recursion: Recursion | None
    """The recursing fault, if it is proved."""
    chain: Calls
    """The calls in the trace."""
    path: Path | None
    """The printed walk of an address in the stack, or of the faulting address."""
    kpti: KptiRegisters | None
    """The rewrite's walk in the registers, if it is there."""
    kpti_place: str
    """The symbol that places the fault in the rewrite or right after it, or empty."""
    other_path: tuple[Path, Fault] | None = None
    """A walk through the entry at which this death's fault ended, and the other CPU's report that has it."""
    other_kpti: tuple[KptiRegisters, Fault] | None = None
    """The rewrite's walk in the registers of the CPU that did it, if another one, and its report."""

    @property
    def lost(self) -> tuple[int, int, StackRange] | None:
        """An address inside of a stack that did not translate, the fault's level and the stack.

        The FAR of the report of the stack, or of a fault inside of its handling; None if there is none.
        """
        bad = self.incident.bad_stack
        if bad is None:
            return None
        reports: list[tuple[Fault, Esr | None]] = [(bad, self.esr)]
        reports += [(fault, _decoded(fault)) for fault in self.incident.later]
        for fault, esr in reports:
            if fault.far is None or esr is None or esr.ec != EC_DABT or esr.level is None:
                continue
            stack = bad.stack_of(fault.far)
            if stack is not None and stack.base and esr.fault == "translation fault":
                return fault.far, esr.level, stack
        return None


def _decoded(fault: Fault) -> Esr | None:
    return decode_esr(fault.esr) if fault.esr is not None else None


def facts_of(incident: Incident) -> Facts:
    """Work out what the log of one death holds."""
    about = incident.bad_stack or incident.first
    stack = stack_at(about)
    nested = recursion(about, stack)
    return Facts(
        incident=incident,
        esr=_decoded(about),
        stack=stack,
        used=used_before(about, stack, nested),
        recursion=nested,
        chain=chain(about),
        path=_path(incident),
        kpti=_rewrite(about, incident) if about.may_rewrite else None,
        kpti_place=about.rewrite_place,
    )


def _rewrite(about: Fault, incident: Incident) -> KptiRegisters | None:
    from ptinspect.linux.oops.kpti_registers import kpti_registers
    from ptinspect.linux.oops.printed_walk import incident_regime

    return kpti_registers(about, incident_regime(incident)[0])


def _path(incident: Incident) -> Path | None:
    """Return the printed walk that says most: one of an address in the dead CPU's stacks, else the first."""
    first = incident.first
    faults = [fault for fault in (first, *incident.later) if fault.path]
    if not faults:
        return None
    from ptinspect.linux.oops.printed_walk import path_of

    paths = [path for fault in faults if (path := path_of(fault, fault.release or first.release)) is not None]
    inside = [path for path in paths if first.stack_of(path.address) is not None]
    return next(iter([*inside, *paths]), None)
