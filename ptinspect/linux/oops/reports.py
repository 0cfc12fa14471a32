"""From the lines of a console log to the kernel's reports in it: which lines belong together."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ptinspect.linux.oops import messages as say
from ptinspect.linux.oops.lines import Line
from ptinspect.linux.oops.model import Fault, FaultKind, StackRange

MAX_FAULTS = 2048
"""Reports that are read from one log; what comes after them is left out."""
MAX_FRAMES = 2048
"""Lines of a call trace that are kept."""
REACH = 400
"""Lines behind the last one of a report after which a line cannot belong to it."""
BURST = 12
"""Values that a report may have while another one that interleaves with it begins."""

_GENERIC = re.compile(
    r"Fatal exception|Oops|Attempted to kill init! exitcode=0x000000[08][4-9a-f]\b|Attempted to kill the idle"
)
_FITS: dict[FaultKind, str] = {
    "bad-stack": r"[Kk]ernel stack overflow",
    "serror": r"Asynchronous SError|bad mode",
    "lockup": r"softlockup|soft lockup|LOCKUP|lockup",
    "rcu-stall": r"RCU Stall",
    "hung-task": r"hung_task",
    "kasan": r"panic_on_warn|KASAN|kasan",
    "warning": r"panic_on_warn|WARNING|kernel: panic_on_warn",
}
"""Kind of a report -> the panics that are its consequence."""


@dataclass(eq=False)
class Draft:
    """A report while it is read."""

    kind: FaultKind
    headline: str
    line: int
    time: str
    boot: int
    last: int
    slots: dict[str, Any] = field(default_factory=dict)
    trace: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    panic: str = ""
    ended: bool = False
    mixed: bool = False
    internal: bool = False
    in_trace: int = 0
    """Lines without a frame that the trace may still hold; 0 outside of a trace."""
    caller: str = ""
    seen: set[str] = field(default_factory=set)

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
        )


@dataclass
class Reader:
    """Sort lines into reports; reports of one printing context at a time, several where they interleave."""

    drafts: list[Draft] = field(default_factory=list)
    open: dict[str, list[Draft]] = field(default_factory=dict)
    deaths: dict[str, list[Draft]] = field(default_factory=dict)
    """The last report of each context that was more than a warning."""
    full: bool = False
    """Set when a report began that is one too many."""
    boot: int = 0
    banners: dict[int, str] = field(default_factory=dict)
    boot_line: int = -REACH
    foreign: dict[int, set[str]] = field(default_factory=dict)

    def feed(self, line: Line) -> None:
        """Take one line."""
        interesting = say.TRIGGERS.search(line.text) is not None
        if interesting and self._boot(line):
            return
        self._architecture(line.text)
        if interesting and self._opening(line):
            return
        self._body(line)

    def _boot(self, line: Line) -> bool:
        match = say.BOOT.search(line.text)
        if match is None:
            return False
        if line.number - self.boot_line > 8 or match[1] in self.banners.get(self.boot, ""):
            self.boot += 1
            self.open.clear()
            self.deaths.clear()
        self.boot_line = line.number
        if match[1].startswith("Linux"):
            self.banners[self.boot] = line.text[match.start() :][:200]
        else:
            self.banners.setdefault(self.boot, "")
        return True

    def _architecture(self, text: str) -> None:
        if say.NATIVE.search(text):
            self.foreign.setdefault(self.boot, set()).add("arm64")
        for name, pattern in say.FOREIGN:
            if pattern.search(text):
                self.foreign.setdefault(self.boot, set()).add(name)

    def _opening(self, line: Line) -> bool:
        """Take a line that begins a report or says that the kernel gives up."""
        panic = say.PANIC.search(line.text)
        if panic is not None and "end Kernel panic" not in line.text:
            self._panic(line, panic[1].strip(), line.text[panic.start() :])
            return True
        internal = say.INTERNAL.search(line.text)
        if internal is not None:
            self._internal(line, internal[1], line.text[internal.start() :])
            return True
        for kind, pattern in say.HEADLINES:
            match = pattern.search(line.text)
            if match is not None:
                draft = self._begin(kind, line, line.text[match.start() :])
                if (
                    draft is not None
                    and kind == "fault"
                    and match.groups()
                    and match[1]
                    and len(match[1]) in (8, 16)
                ):
                    draft.slots["far"] = int(match[1], 16)
                if draft is not None:
                    self._store(draft, line)
                return True
        return False

    def _begin(self, kind: FaultKind, line: Line, headline: str) -> Draft | None:
        if len(self.drafts) >= MAX_FAULTS:
            self.full = True
            return None
        draft = Draft(
            kind, headline[:300], line.number, line.time, self.boot, line.number, caller=line.caller
        )
        self.drafts.append(draft)
        if kind != "warning":
            self.deaths[line.caller] = [draft]
        others = [
            other
            for other in self._alive(line)
            if other.kind == kind and not other.panic and len(other.slots) < BURST
        ]
        if others and kind in ("bad-stack", "fault"):
            for other in (*others, draft):
                other.mixed = True
            self.open[line.caller] = [*others, draft]
        else:
            self.open[line.caller] = [draft]
        return draft

    def _alive(self, line: Line) -> list[Draft]:
        return [d for d in self.open.get(line.caller, []) if line.number - d.last <= REACH and not d.ended]

    def _internal(self, line: Line, reason: str, headline: str) -> None:
        esr = say.oops_esr(reason)
        for draft in self._alive(line):
            fits = draft.kind in ("fault", "oops", "bug", "serror") or (
                draft.kind == "bad-stack" and reason.startswith("kernel stack overflow")
            )
            if fits and not draft.internal and not draft.panic:
                draft.internal, draft.last = True, line.number
                if esr is not None:
                    draft.slots.setdefault("esr", esr)
                return
        new = self._begin("oops", line, headline)
        if new is not None:
            new.internal = True
            if esr is not None:
                new.slots["esr"] = esr

    def _panic(self, line: Line, text: str, headline: str) -> None:
        generic = _GENERIC.match(text) is not None
        known = [*self.open.get(line.caller, []), *self.deaths.get(line.caller, [])]
        alive = [d for d in known if line.number - d.last <= REACH and not d.panic]
        for draft in alive:
            fits = re.search(_FITS[draft.kind], text) is not None if draft.kind in _FITS else generic
            if fits and not (
                text.startswith("Attempted to kill init") and draft.slots.get("cpu", (0, 1))[1] != 1
            ):
                draft.panic, draft.last, draft.in_trace = text, line.number, 0
                return
        draft_or_none = self._begin("panic", line, headline)
        if draft_or_none is not None:
            draft_or_none.panic = text

    def _body(self, line: Line) -> None:
        alive = self._alive(line)
        if not alive:
            return
        if say.END.search(line.text):
            for draft in alive[:1]:
                draft.ended, draft.in_trace = True, 0
            return
        if say.CALL_TRACE.search(line.text):
            fresh = [d for d in alive if not d.trace]
            for draft in fresh[:1] or alive[:1]:
                draft.in_trace = 4 if not draft.trace else 0
                draft.last = line.number
            return
        tracing = [d for d in alive if d.in_trace]
        frame = say.FRAME.match(line.text)
        if tracing and frame is not None:
            for draft in tracing[:1] if not tracing[0].mixed else tracing:
                if len(draft.trace) < MAX_FRAMES:
                    draft.trace.append(frame[1])
                draft.last, draft.in_trace = line.number, 4
            return
        for draft in tracing:
            draft.in_trace = 0 if line.text.startswith("Code:") else draft.in_trace - 1
        self._values(line, alive)

    def _store(self, draft: Draft, line: Line) -> None:
        for name, value in say.values(line.text, draft.damaged).items():
            draft.slots.setdefault(name, value)

    def _values(self, line: Line, alive: list[Draft]) -> None:
        damaged: list[str] = []
        found = say.values(line.text, damaged)
        if not found and not damaged:
            return
        names = set(found) | set(damaged)
        taker = next((d for d in alive if not names & d.seen), alive[0] if len(alive) == 1 else None)
        if taker is None:
            return
        taker.last = line.number
        taker.seen |= names
        taker.damaged.extend(damaged)
        for name, value in found.items():
            taker.slots.setdefault(name, value)
