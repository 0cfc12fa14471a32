"""From the lines of a console log to the kernel's reports in it: which lines belong together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ptinspect.dataclass import dataclass, field
from ptinspect.linux.oops import messages
from ptinspect.linux.oops.draft import Draft
from ptinspect.linux.oops.incident import FaultKind
from ptinspect.linux.oops.lines import Line, stands_for_more
from ptinspect.linux.oops.prefixes import begins
from ptinspect.linux.stack_range import StackRange
from ptinspect.text import Pattern, holds
from ptinspect.typed import Any

MAX_FRAMES = 2048
"""Lines of a call trace that are kept."""
MAX_NOTES = 8
"""Lines of KASAN's that are kept."""
REACH = 400
"""Lines after the last one of a report after which a line cannot belong to it."""
NEAR = 64 << 10
"""Bytes around SP in which its frame record lies."""
TRACE_GAP = 8
"""Lines without a frame after which a call trace is over."""

CONSEQUENCES: Mapping[str, str] = {
    "bad-stack": r"[Kk]ernel stack overflow",
    "serror": r"Asynchronous SError|[Bb]ad mode|Unhandled exception",
    "lockup": r"softlockup|soft lockup|LOCKUP|lockup",
    "rcu-stall": r"RCU Stall",
    "hung-task": r"hung_task",
    "kasan": r"panic_on_warn|KASAN|kasan",
    "warning": r"panic_on_warn|WARNING",
}
"""Kind of a report -> the panics that are its consequence, besides those of AFTERMATH."""
AFTERMATH = Pattern(
    r"(?:[\w ,'()/-]{1,60}: )?(?:Fatal exception|Fatal hardware error)|Oops|Attempted to kill the idle|"
    r"[Bb]ad mode|Unhandled exception|Aiee, killing interrupt handler|HYP panic|"
    r"Attempted to kill init! exitcode=0x000000[08][4-9a-f]\b|Unrecoverable exception"
)
"""Panics that an oops, a BUG or a fault ends in (kernel/exit.c, arm64 traps.c: die, arm64_notify_die)."""
AFTERMATH_OF: frozenset[FaultKind] = frozenset({"fault", "oops", "bug", "serror"})

_NO_CODE: tuple[FaultKind, ...] = ("bad-stack", "serror")
"""Kinds whose report shows registers, and no instructions as an oops does, before the panic."""
_SEQUENCE = (
    ("esr", "far", "stack:task", "stack:irq", "stack:overflow", "pagetable", "path", "cpu", "pstate"),
    ("pc", "lr", "sp"),
)
_ORDER: Mapping[str, int] = {name: rank for rank, name in enumerate(n for part in _SEQUENCE for n in part)}
_BEFORE_DIE = {"esr", "far", "pagetable", "path"}
"""Values of a fault's report before `Internal error:`. What follows that line is printed under die_lock
(arch/arm64/kernel/traps.c, die): by one CPU alone, until the end of its trace."""
_ABORT_INFO = Pattern(r"ESR = 0x|pgtable:|\] \*?pgd ?=", "ESR = 0x", "pgtable:", "pgd")
_BAD_STACK_INFO = Pattern(r"ESR: ?0x|FAR: ?0x|stack: *\[0x", "ESR:", "FAR:", "stack:")
_FAULT_WORDS = (
    "Mem abort info", "Data abort info", "EC = ", "Exception class", "SET = ", "EA = ", "FSC = ", "ISV = ",
    "CM = ", "GCS = ",
)  # fmt: skip


@dataclass
class Sorter:
    """Sort the lines of one stretch of a log into reports.

    Where several CPUs print at the same time a line goes to the report that its values fit. Where they
    fit several, it is the one that printed last, or, with `in_turn`, the one that waits for longest.
    """

    boot: int = 0
    in_turn: bool = False
    drafts: list[Draft] = field(default_factory=list)
    current: Draft | None = None
    """The report that the last line went to."""
    broadcast: int = -REACH
    """The last line that announces a copy, for everybody who is logged in."""
    returns: int = 0
    """How often a line went back to a report after another one had been printed in between."""

    def feed(self, line: Line) -> None:
        """Take one line."""
        if messages.triggers(line.text) and self._opening(line):
            return
        if messages.BROADCAST.match(line.text):
            self.broadcast = line.place
        self._body(line)

    def alive(self, line: Line) -> list[Draft]:
        """Return the reports that a line may belong to, the one that printed last at the end."""
        found = [d for d in self.drafts[-64:] if not (d.ended or d.over) and line.place - d.last <= REACH]
        return sorted((d for d in found if _heard(d, line.caller)), key=lambda d: d.last)

    def score(self) -> int:
        """Return how well the values of each report fit together."""
        total = 0
        for draft in self.drafts:
            total += sum(_fit(draft, {name: value}) for name, value in draft.slots.items())
            total += sum(name in draft.slots for name in ("cpu", "sp", "pc"))
        return total

    def _opening(self, line: Line) -> bool:
        """Take a line that begins a report or ends the kernel."""
        if messages.SOURCE_CODE.search(line.text) is not None:
            return False
        panic = messages.PANIC.search(line.text)
        if panic is not None:
            if "end Kernel panic" in line.text:
                if not self.drafts:
                    self._panic(line, panic[1].removesuffix("]---").strip(), line.text[panic.start() :])
                self._end(line, every=True)
            else:
                self._panic(line, panic[1].strip(), line.text[panic.start() :])
            return True
        internal = messages.INTERNAL.search(line.text)
        if internal is not None:
            self._internal(line, internal[1] or internal[2], line.text[internal.start() :])
            return True
        for kind, pattern in messages.HEADLINES:
            match = pattern.search(line.text)
            if match is None:
                continue
            headline = line.text[match.start() :]
            if line.place - self.broadcast <= 2 and any(d.headline == headline for d in self.drafts[-8:]):
                return True
            draft = self._begin(kind, line, headline)
            if kind == "fault" and match.groups() and match[1] and len(match[1]) in (8, 16):
                draft.slots["far"] = int(match[1], 16)
            self._store(draft, line)
            return True
        return False

    def _begin(self, kind: FaultKind, line: Line, headline: str) -> Draft:
        for other in self.drafts[-64:]:
            if other.in_trace and _heard(other, line.caller):
                other.in_trace, other.elided = 0, True
            other.over = other.over or other.headless
        draft = Draft(kind, headline[:300], line.number, line.time, self.boot, line.place, line.place)
        self.drafts.append(draft)
        self._fed(draft, line)
        return draft

    def _fed(self, draft: Draft, line: Line) -> None:
        if self.current is not None and self.current is not draft and draft.rank >= 0:
            self.returns += 1
            draft.mixed = draft.mixed or not line.caller
            draft.run += 1
        self.current, draft.last = draft, line.place
        draft.rank = max(draft.rank, 0)
        if line.caller:
            draft.callers.add(line.caller)

    def _internal(self, line: Line, reason: str, headline: str) -> None:
        esr, number = messages.oops_esr(reason), messages.NUMBER.search(reason)
        count = int(number[1]) if number is not None else None
        for draft in self.drafts[-64:]:
            if count is not None and draft.number == count and _same(draft.slots.get("esr"), esr):
                draft.last = max(draft.last, line.place) if not draft.ended else draft.last
                return
        alive = self.alive(line)
        order = alive if self.in_turn else alive[::-1]
        for draft in sorted(order, key=lambda d: d is not self.current):
            fits = draft.kind in AFTERMATH_OF or (
                draft.kind == "bad-stack" and reason.startswith("kernel stack overflow")
            )
            if fits and not draft.internal and not draft.panic and _same(draft.slots.get("esr"), esr):
                break
        else:
            draft = self._begin("oops", line, headline)
        draft.error = (line.time, headline[:300])
        draft.internal, draft.number = count is not None or esr is not None, count
        self._fed(draft, line)
        if esr is not None:
            draft.slots.setdefault("esr", esr)

    def _panic(self, line: Line, text: str, headline: str) -> None:
        alive = [d for d in self.drafts[-64:] if line.place - d.last <= REACH and _heard(d, line.caller)]
        for draft in sorted(alive, key=lambda d: (d is self.current, d.last), reverse=True):
            if draft.headless and "pstate" in draft.slots:
                ends = (kind for kind in _NO_CODE if re.search(CONSEQUENCES[kind], text) is not None)
                draft.kind = next(ends, draft.kind)
            if draft.panic and draft.panic == text:
                return
            if not draft.panic and fits_panic(draft, text):
                draft.panic, draft.in_trace = text, 0
                if draft.ended:
                    self.current, draft.last = draft, line.place
                else:
                    self._fed(draft, line)
                return
        self._begin("panic", line, headline).panic = text

    def _end(self, line: Line, *, every: bool = False) -> None:
        alive = self.alive(line)
        current = self.current if self.current in alive else None
        for draft in alive if every else [current] if current is not None else alive[-1:]:
            draft.in_trace = 0
            draft.over, draft.ended = every, not every

    def _body(self, line: Line) -> None:
        alive, text = self._headless(line) or self.alive(line), line.text
        if not alive:
            return
        if alive[-1].headless and messages.DIED.match(text) is not None:
            alive[-1].kind = "oops"
        if messages.END.search(text):
            self._end(line)
        elif holds(text, messages.CALL_TRACE):
            if self._of_the_panic(line):
                return
            fresh = [d for d in alive if not d.trace and not d.in_trace]
            if fresh:
                draft = self.current if self.current in fresh else fresh[-1]
                for other in alive:
                    if other.in_trace:
                        other.mixed = other.elided = draft.mixed = draft.elided = True
                draft.in_trace = TRACE_GAP
                self._fed(draft, line)
        elif not self._values(line, alive) and not self._frames(line, alive):
            note = messages.NOTES.search(text)
            target = self.current if self.current in alive else None
            if target is not None and (note is not None or begins(text)):
                if note is not None and len(target.notes) < MAX_NOTES and note[0] not in target.notes:
                    target.notes.append(note[0])
                if not text.startswith(_FAULT_WORDS) or target.kind != "bad-stack":
                    target.last = line.place

    def _headless(self, line: Line) -> list[Draft]:
        """Begin a report whose first lines are not in the log, at the first of its lines that is known."""
        if self.drafts or not headless(line.text):
            return []
        draft = self._begin("warning", line, f"(its first lines are missing) {line.text}")
        draft.headless, draft.in_trace = True, TRACE_GAP
        return [draft]

    def _of_the_panic(self, line: Line) -> bool:
        """Take the calls that panic() prints: they are the dead report's, if it has none of its own."""
        draft = self.current
        if draft is None or not draft.panic or line.place - draft.last > TRACE_GAP:
            return False
        if not draft.trace and not draft.ended:
            draft.in_trace = TRACE_GAP
        return True

    def _frames(self, line: Line, alive: list[Draft]) -> bool:
        """Take a line of a call trace."""
        tracing = [d for d in alive if d.in_trace]
        if not tracing:
            return False
        draft = tracing[-1]
        symbol = messages.frame(line.text)
        if symbol is not None:
            if len(draft.trace) < MAX_FRAMES:
                draft.trace.append(symbol)
            else:
                draft.elided = True
        elif stands_for_more(line.text) or messages.DROPPED.search(line.text):
            draft.elided = True
        elif not (messages.INLINE.search(line.text) or messages.EXCEPTION_STACK.match(line.text)):
            over = begins(line.text) or line.text.startswith("Code:")
            draft.in_trace = 0 if over else draft.in_trace - 1
            return False
        draft.in_trace = TRACE_GAP
        self._fed(draft, line)
        return True

    def _repeated(self, found: Mapping[str, Any]) -> bool:
        """Tell whether the report that printed last is repeated: a panic names CPU and task again."""
        known = self.current
        return known is not None and bool(known.panic) and known.slots.get("cpu") == found.get("cpu", "")

    def _store(self, draft: Draft, line: Line) -> None:
        found, damaged = messages.values(line.text)
        draft.damaged.extend(damaged)
        for name, value in found.items():
            draft.slots.setdefault(name, value)

    def _values(self, line: Line, alive: list[Draft]) -> bool:
        """Give the values of a line to the report that they fit; False if there are none."""
        found, damaged = messages.values(line.text)
        if not found and not damaged:
            return False
        if found and self.current is not None and self._repeated(found):
            self._fed(self.current, line)
            return True
        takers = [d for d in alive if _takes(d, line.text, found, damaged)]
        if any(d.internal and not d.ended for d in alive) and not _BEFORE_DIE.issuperset(found):
            takers = [d for d in takers if d.internal or d.kind not in AFTERMATH_OF or d.kind == "serror"]
        rank = min((_rank(name) for name in (*found, *damaged)), default=0)
        waiting = [d for d in takers if d.rank <= rank or d is self.current]
        takers = waiting or takers
        if not takers:
            known = any(d.slots.get(name) == value for d in alive for name, value in found.items())
            return known or bool(found)
        if len(takers) > 1:
            fits = [_fit(d, found) for d in takers]
            takers = [d for d, fit in zip(takers, fits, strict=True) if fit == max(fits)]
        draft = takers[0] if self.in_turn else takers[-1]
        self._fed(draft, line)
        draft.rank = max(draft.rank, rank)
        draft.damaged.extend(damaged)
        for name, value in found.items():
            draft.slots.setdefault(name, value)
            draft.runs.setdefault(name, draft.run)
        return True


def sort(lines: Iterable[Line], boot: int = 0) -> list[Draft]:
    """Return the reports in a stretch of a log: whichever way of sorting makes their values fit."""
    kept = list(lines)
    found = Sorter(boot)
    for line in kept:
        found.feed(line)
    if found.returns:
        turns = Sorter(boot, in_turn=True)
        for line in kept:
            turns.feed(line)
        alternating = found.returns > 4 * len(found.drafts)
        better = turns.score() - found.score()
        found = turns if better > 0 or (alternating and better == 0) else found
    return found.drafts


def headless(text: str) -> bool:
    """Tell whether a log whose first lines were cut off begins inside of a report with this line."""
    trace = text.startswith(messages.CALL_TRACE) or messages.FRAME_LINE.match(text) is not None
    return trace or messages.STATE.match(text) is not None


def fits_panic(draft: Draft, text: str) -> bool:
    """Tell whether a panic with this text is what a report ended in."""
    special = CONSEQUENCES.get(draft.kind)
    if special is not None and re.search(special, text):
        return True
    if draft.kind not in AFTERMATH_OF or AFTERMATH.match(text) is None:
        return False
    return not (text.startswith("Attempted to kill init") and draft.slots.get("cpu", (0, 1))[1] != 1)


def _heard(draft: Draft, caller: str) -> bool:
    """Tell whether a line with this caller's mark may be of a report."""
    if not caller:
        return True
    if any(known[0] == caller[0] and known != caller for known in draft.callers):
        return False
    cpu, pid = draft.slots.get("cpu", (None, None))[:2]
    owner = cpu if caller[0] == "C" else pid
    return caller in draft.callers or owner is None or int(caller[1:]) == owner


def _same(known: int | None, new: int | None) -> bool:
    return known is None or new is None or known == new


def _rank(name: str) -> int:
    if name in _ORDER:
        return _ORDER[name]
    if name[0] == "x" and name[1:].isdigit():
        return 50 - int(name[1:])
    return 8


def _takes(draft: Draft, text: str, found: Mapping[str, Any], damaged: Iterable[str]) -> bool:
    """Tell whether a report has no other values yet for those of a line."""
    if draft.kind == "bad-stack" and _ABORT_INFO.search(text) is not None:
        return False
    if draft.kind == "fault" and _BAD_STACK_INFO.search(text) is not None:
        return False
    if any(name in draft.slots and draft.slots[name] != value for name, value in found.items()):
        return False
    new = any(name not in draft.slots for name in found)
    return new or any(name not in draft.slots for name in damaged)


_PLACES = frozenset({"sp", "far", "stack:task", "stack:irq", "stack:overflow", "x29"})
"""Values that lie in a report's stacks, or are their bounds."""
_FITTING = _PLACES | {"path", "cpu"}
"""Values that can speak for a report."""


def _fit(draft: Draft, found: Mapping[str, Any]) -> int:
    """Count what speaks for values being a report's: SP, FAR and x29 in its stacks, the CPU's number."""
    if _FITTING.isdisjoint(found):
        return 0
    slots = {**draft.slots, **found}
    stacks = [value for value in slots.values() if isinstance(value, StackRange) and value.base]
    sp, far, x29 = slots.get("sp"), slots.get("far"), slots.get("x29")
    total = 0
    if not _PLACES.isdisjoint(found):
        for value in (sp, far, x29):
            if value is not None and any(s.near(value) for s in stacks):
                total += 2
        for value in (far, x29):
            if value is not None and sp is not None and abs(value - sp) < NEAR:
                total += 1
    if "path" in found and far is not None:
        total += 3 if slots["path"][0] == far else -6
    if "cpu" in found and f"C{slots['cpu'][0]}" in draft.callers:
        total += 2
    return total
