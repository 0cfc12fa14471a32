"""One report of the kernel's while its lines are read."""

from __future__ import annotations

from ptinspect.dataclass import dataclass, field
from ptinspect.linux.oops.incident import Fault, FaultKind
from ptinspect.linux.stack_range import StackRange
from ptinspect.typed import Any


@dataclass(eq=False)
class Draft:
    """A report while it is read."""

    kind: FaultKind
    headline: str
    line: int
    time: str = ""
    boot: int = 0
    place: int = 0
    """`Line.place` of its first line."""
    last: int = 0
    """`Line.place` of its last line."""
    slots: dict[str, Any] = field(default_factory=dict)
    trace: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    panic: str = ""
    headless: bool = False
    """True if the log begins inside of it; it is a warning's unless more of it shows that it is not."""
    ended: bool = False
    over: bool = False
    """True if the kernel was stopped before this report came to its end."""
    mixed: bool = False
    elided: bool = False
    internal: bool = False
    number: int | None = None
    error: tuple[str, str] = ("", "")
    """Time and text of `Internal error:`."""
    in_trace: int = 0
    """Lines without a frame that the trace may still hold; 0 outside of a trace."""
    callers: set[str] = field(default_factory=set)
    run: int = 0
    """Pieces that it was printed in, less one."""
    runs: dict[str, int] = field(default_factory=dict)
    """Value -> the piece that it stands in."""
    rank: int = -1
    """How far it is in the order in which the kernel prints."""

    @property
    def bare(self) -> bool:
        """True if nothing but the first line is there."""
        return not (self.slots.keys() - {"far"} or self.trace or self.internal or self.damaged)

    @property
    def cpu(self) -> int | None:
        """The CPU that printed it, if it says so."""
        found: int | None = self.slots.get("cpu", (None,))[0]
        return found

    def _doubtful(self) -> tuple[str, ...]:
        """Return the values that stand in other pieces than SP and pc: they may be another CPU's.

        None after `Internal error:`, which names ESR and is printed under a lock, as is what follows it.
        """
        if not self.mixed or self.internal:
            return ()
        pieces = {self.runs.get(name, 0) for name in ("sp", "pc", "cpu", "x29") if name in self.slots}
        return tuple(n for n, run in self.runs.items() if len(pieces) != 1 or run not in pieces)

    def fault(self) -> Fault:
        """Return what was read."""
        slots = self.slots
        cpu, pid, comm, release = slots.get("cpu", (None, None, "", ""))
        if pid is None and "process" in slots:
            pid, comm = slots["process"]
        path_address, path = slots.get("path", (None, ()))
        stacks = tuple(value for value in slots.values() if isinstance(value, StackRange))
        registers = {
            int(name[1:]): value for name, value in slots.items() if name[0] == "x" and name[1:].isdigit()
        }
        return Fault(
            kind=self.kind,
            headline=self.headline,
            line=self.line,
            time=self.time,
            esr=slots.get("esr"),
            far=slots.get("far"),
            stacks=stacks,
            cpu=cpu,
            pid=pid,
            comm=comm,
            release=release,
            pstate=slots.get("pstate"),
            pc=slots.get("pc", slots.get("pc:bare", "")),
            lr=slots.get("lr", slots.get("lr:bare", "")),
            sp=slots.get("sp"),
            registers=registers,
            path_address=path_address,
            path=path,
            pagetable=slots.get("pagetable"),
            trace=tuple(self.trace),
            panic=self.panic,
            ended=self.ended,
            damaged=tuple(dict.fromkeys(name for name in self.damaged if name not in slots)),
            mixed=self.mixed,
            doubtful=self._doubtful(),
            elided=self.elided,
            notes=tuple(self.notes),
            number=self.number,
        )
