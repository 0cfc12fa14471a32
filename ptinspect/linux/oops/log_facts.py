"""The facts of one death by its log: the values as printed, and what is worked out from them."""

from __future__ import annotations

from ptinspect.arch.esr import Esr, decode_esr
from ptinspect.dataclass import dataclass
from ptinspect.linux.death import Calls
from ptinspect.linux.oops.depth import Recursion, chain, recursion, stack_at, used_before
from ptinspect.linux.oops.incident import Fault, Incident
from ptinspect.linux.oops.kpti_registers import KptiRegisters, in_kpti, kpti_registers
from ptinspect.linux.oops.printed_walk import Path, incident_regime, path_of
from ptinspect.linux.stack_range import StackRange


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


def facts_of(incident: Incident) -> Facts:
    """Work out what the log of one death holds."""
    about = incident.bad_stack or incident.first
    regime, _ = incident_regime(incident)
    esr = decode_esr(about.esr) if about.esr is not None else None
    stack = stack_at(about)
    nested = recursion(about, stack)
    return Facts(
        incident=incident,
        esr=esr,
        stack=stack,
        used=used_before(about, stack, nested),
        recursion=nested,
        chain=chain(about),
        path=_path(incident),
        kpti=kpti_registers(about, regime),
        kpti_place=in_kpti(about),
    )


def _path(incident: Incident) -> Path | None:
    """Return the printed walk that says most: one of an address in the dead CPU's stacks, else the first."""
    first = incident.first
    faults = (first, *incident.later)
    paths = [path for fault in faults if (path := path_of(fault, fault.release or first.release)) is not None]
    inside = [path for path in paths if first.stack_of(path.address) is not None]
    return next(iter([*inside, *paths]), None)
