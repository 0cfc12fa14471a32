"""The deaths in a console log: which of the kernel's reports are one death, and which boot it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ptinspect.linux.oops import messages as say
from ptinspect.linux.oops.draft import Draft
from ptinspect.linux.oops.lines import Line
from ptinspect.linux.oops.model import FaultKind, Incident
from ptinspect.linux.oops.reports import AFTERMATH, AFTERMATH_OF, REACH, Sorter, fits_panic, sort

MAX_DEATHS = 2048
"""Deaths that are kept; those after them are counted."""
MAX_STALLS = 256
"""Stalls, lockups and sanitizer reports that are kept beside them."""
MAX_LATER = 16
"""Faults inside of a death that are kept."""
MAX_STRETCH = 1 << 14
"""Lines that are sorted together at most."""
TITLE_GAP = 250
"""Lines between a title and the log that it is of."""
BACKWARDS = 2.0
"""Seconds that time has to go back to show another boot; CPUs and loggers mix less than that."""
TOGETHER = 1.0
"""Seconds within which a fault that was cut off and a stack without room are one death."""
STALLS: frozenset[FaultKind] = frozenset({"lockup", "rcu-stall", "hung-task"})
"""Kinds in which nothing died."""
FATAL: frozenset[FaultKind] = frozenset({"bad-stack", "fault", "oops", "bug", "panic", "serror"})
"""Kinds whose report means that the kernel, or a task in it, died."""


@dataclass(eq=False)
class Death:
    """The reports of one death."""

    reports: list[Draft]
    later: int = 0

    @property
    def first(self) -> Draft:
        return self.reports[0]

    def add(self, draft: Draft) -> None:
        """Take a fault inside of it."""
        self.later += 1
        if len(self.reports) <= MAX_LATER:
            self.reports.append(draft)


@dataclass
class Reader:
    """Find the deaths in lines that come one at a time."""

    deaths: list[Death] = field(default_factory=list)
    total: int = 0
    """How many there were, the kept ones included."""
    boot: int = 0
    banners: dict[int, str] = field(default_factory=dict)
    seen: dict[int, set[str]] = field(default_factory=dict)
    """Boot -> architectures whose registers its lines show."""
    stretch: list[Line] = field(default_factory=list)
    """Lines since the last moment when no report was open."""
    sorter: Sorter = field(default_factory=Sorter)
    kept: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    boot_line: int = -REACH
    clock: float = -1.0
    over: bool = False
    """True after the end marker of a panic: what follows is another boot."""
    warning: Draft | None = None
    """The last warning: it is a death only if a panic follows from it."""
    recent: Death | None = None
    """The last death, kept or not."""
    latest: Death | None = None
    """The last report of any kind."""

    @property
    def idle(self) -> bool:
        """True if no report is open: the next lines matter only from the next first line on."""
        return not self.stretch

    def feed(self, line: Line) -> None:
        """Take one line."""
        begins = say.TRIGGERS.search(line.text) is not None
        if begins and self._banner(line):
            return
        self._time(line, begins=begins)
        if not begins and not self.stretch:
            return
        self._architecture(line.text)
        self.stretch.append(line)
        self.sorter.feed(line)
        if "---[ end Kernel panic" in line.text:
            self._close()
            self.over = True
        elif len(self.stretch) >= MAX_STRETCH or not (begins or self._open(line)):
            self._close()

    def _open(self, line: Line) -> bool:
        return any(line.number - d.last <= (48 if d.ended else REACH) for d in self.sorter.drafts[-64:])

    def finish(self) -> Iterator[Incident]:
        """Go through the deaths, in order."""
        self._close()
        for death in self.deaths:
            boot = death.first.boot
            seen = self.seen.get(boot, set())
            native = "arm64" in seen
            other = next((name for name, _ in say.FOREIGN if name in seen), "unknown")
            later = tuple(draft.fault() for draft in death.reports[1:])
            yield Incident(
                death.first.fault(),
                later,
                death.later,
                self.banners.get(boot, ""),
                "arm64" if native else other,
            )

    def _next_boot(self) -> None:
        self._close()
        self.boot += 1
        self.sorter = Sorter(self.boot)
        self.over, self.clock, self.warning = False, -1.0, None

    def _banner(self, line: Line) -> bool:
        match = say.BOOT.search(line.text)
        if match is None:
            return False
        if line.number - self.boot_line > 8 or match[1] in self.banners.get(self.boot, ""):
            self._next_boot()
        self.boot_line = line.number
        if match[1].startswith("Linux"):
            self.banners[self.boot] = line.text[match.start() :][:200]
        else:
            self.banners.setdefault(self.boot, "")
        if len(self.banners) > MAX_DEATHS:
            self.banners.pop(min(self.banners))
        return True

    def _time(self, line: Line, *, begins: bool) -> None:
        """See another boot begin: after the end marker, or where time goes back."""
        if begins and self.over:
            kind = next((kind for kind, pattern in say.HEADLINES if pattern.search(line.text)), None)
            ends = "end Kernel panic" in line.text or kind in STALLS or kind == "warning"
            again = self.recent is not None and self.recent.first.panic in line.text and "panic" in line.text
            if not ends and not again:
                self._next_boot()
        if line.time:
            now = float(line.time)
            if now < self.clock - BACKWARDS and not self._printed_before(line):
                self._next_boot()
            self.clock = max(self.clock, now)

    def _printed_before(self, line: Line) -> bool:
        return any(old.text == line.text and old.time == line.time for old in self.stretch[-REACH:])

    def _architecture(self, text: str) -> None:
        if say.NATIVE.search(text):
            self.seen.setdefault(self.boot, set()).add("arm64")
        for name, pattern in say.FOREIGN:
            if pattern.search(text):
                self.seen.setdefault(self.boot, set()).add(name)

    def _close(self) -> None:
        """End a stretch: its reports join the deaths."""
        lines, self.stretch = self.stretch, []
        drafts = self.sorter.drafts
        if self.sorter.returns:
            drafts = sort(lines, self.boot)
        self.sorter = Sorter(self.boot)
        for index, draft in enumerate(drafts):
            self._join(draft, drafts[index + 1 :])

    def _join(self, draft: Draft, following: list[Draft]) -> None:
        """Add a report to the death that it is of, or begin another death."""
        last = self.recent
        if draft.kind == "warning" and not draft.panic:
            self.warning = draft
            return
        before = [death for death in dict.fromkeys((self.latest, last)) if death is not None]
        if any(self._again(death, draft) for death in before):
            return
        titled = next((death for death in before if _title(death.first, draft)), None)
        if titled is not None:
            titled.reports[0] = draft
            self.recent = titled if draft.kind in FATAL else self.recent
            return
        if draft.kind == "panic" and self._consequence(draft):
            return
        if last is not None and (_inside(last, draft) or _cut_off(last, draft, following)):
            last.add(draft)
            return
        stalled = draft.kind in STALLS and not draft.panic
        if stalled and (known := self._stall(draft)) is not None:
            known.add(draft)
            return
        self._begin(draft)

    def _begin(self, draft: Draft) -> None:
        death = Death([draft])
        fatal = draft.kind in FATAL or bool(draft.panic)
        self.total += 1
        self.latest = death
        self.recent = death if fatal else self.recent
        if self.kept[fatal] < (MAX_DEATHS if fatal else MAX_STALLS):
            self.kept[fatal] += 1
            self.deaths.append(death)

    def _stall(self, draft: Draft) -> Death | None:
        """Return what a stall is a repetition or a consequence of."""
        if self.recent is not None and self.recent.first.boot == draft.boot and self.recent.first.panic:
            return self.recent
        for death in reversed(self.deaths[-64:]):
            if death.first.boot == draft.boot and death.first.kind == draft.kind and not death.first.panic:
                return death
        return None

    def _again(self, last: Death, draft: Draft) -> bool:
        """Take a report that was printed twice: by syslogd's broadcast, on two consoles, quoted below."""
        for known in last.reports:
            number = draft.number is not None and draft.number == known.number and draft.boot == known.boot
            title = draft.bare and draft.kind != "panic" and draft.headline == known.headline
            panic = draft.kind == "panic" and bool(draft.panic) and draft.panic == known.panic
            same = panic and (draft.bare or known.bare or draft.cpu == known.cpu) and draft.boot == known.boot
            if number or (title and not known.bare) or same:
                for name, value in draft.slots.items():
                    known.slots.setdefault(name, value)
                known.trace = known.trace or draft.trace
                known.panic = known.panic or draft.panic
                return True
        return False

    def _consequence(self, draft: Draft) -> bool:
        """Take a panic that an earlier report ended in."""
        text, last = draft.panic, self.recent
        if self.warning is not None and self.warning.boot == draft.boot and fits_panic(self.warning, text):
            self.warning.panic = text
            self._begin(self.warning)
            return True
        for death in reversed(self.deaths[-8:]):
            first = death.first
            if first.boot == draft.boot and not first.panic and fits_panic(first, text):
                first.panic = text
                first.trace = first.trace or draft.trace
                self.recent = death
                return True
        busy = last is not None and last.first.boot == draft.boot and bool(last.first.panic)
        if last is not None and busy and last.first.kind in FATAL and AFTERMATH.match(text):
            last.add(draft)
            return True
        return False


def _title(first: Draft, draft: Draft) -> bool:
    """Tell whether `first` is no report but a title or an inlined line above this one."""
    if not first.bare or (first.kind == "panic" and first.panic != draft.panic):
        return False
    if first.kind == "panic":
        return draft.kind == "panic" and not draft.bare and not first.time and first.panic == draft.panic
    alike = first.kind == draft.kind or (first.kind in AFTERMATH_OF and draft.kind in AFTERMATH_OF)
    if not alike or (draft.bare and not say.INLINE.search(first.headline)):
        return False
    if say.INLINE.search(first.headline):
        return draft.line - first.line <= TITLE_GAP
    return not first.time and (bool(draft.time) or draft.line - first.line <= TITLE_GAP)


def _inside(last: Death, draft: Draft) -> bool:
    """Tell whether `draft` happened while the kernel was busy with a death."""
    first = last.first
    if draft.boot != first.boot or draft.kind in ("bad-stack", "panic") or draft.kind not in FATAL:
        return False
    if first.kind not in FATAL or draft.line - max(d.last for d in last.reports) > 4 * REACH:
        return False
    cpus = {d.cpu for d in (*last.reports, draft)} - {None}
    pids = {d.slots["cpu"][1] for d in (*last.reports, draft) if "cpu" in d.slots}
    callers = {c for d in (*last.reports, draft) for c in d.callers}
    busy = bool(first.panic) or not any(d.ended for d in last.reports)
    marks = [{c for c in callers if c[0] == letter} for letter in "CT"]
    return busy and len(cpus) < 2 and len(pids) < 2 and all(len(mark) < 2 for mark in marks)


def _cut_off(last: Death, draft: Draft, following: list[Draft]) -> bool:
    """Tell whether the report of a fault was cut off because its own printing used the stack up.

    The stack that has no room is then the same task's: nobody else died at that moment, and the report
    before it never came to name its CPU.
    """
    if draft.kind != "bad-stack" or draft.boot != last.first.boot or last.first.panic:
        return False
    cut = [d for d in last.reports if d.kind == "fault" and not d.internal and d.cpu is None and not d.bare]
    if len(cut) != len(last.reports) or any(d.kind in ("bad-stack", "fault") for d in following):
        return False
    if draft.line - last.reports[-1].last > 8 or draft.mixed:
        return False
    times = [float(d.time) for d in (last.reports[-1], draft) if d.time]
    return len(times) < 2 or 0 <= times[1] - times[0] <= TOGETHER
