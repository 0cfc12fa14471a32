"""The deaths in a console log: which of the kernel's reports are one death, and which boot it was."""

from __future__ import annotations

from collections.abc import Iterator

from ptinspect.dataclass import dataclass, field
from ptinspect.linux.oops import messages
from ptinspect.linux.oops.draft import Draft
from ptinspect.linux.oops.incident import FaultKind, Incident
from ptinspect.linux.oops.lines import Line
from ptinspect.linux.oops.prefixes import begins
from ptinspect.linux.oops.reports import AFTERMATH, AFTERMATH_OF, REACH, Sorter, fits_panic, headless, sort

MAX_DEATHS = 2048
"""Deaths that are kept; those after them are counted."""
MAX_BOOTS = 4096
"""Banners of boots that are kept."""
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
    begun: set[int] = field(default_factory=set)
    """The boots whose banner is in the log."""
    architectures: dict[int, set[str]] = field(default_factory=dict)
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
    marks: dict[tuple[str, str], Death] = field(default_factory=dict)
    """Time and first line -> the death: the same log may stand in a mail twice."""
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
        begins = messages.triggers(line.text)
        if begins and self._banner(line):
            return
        self._time(line, begins=begins)
        if not begins and not self.stretch and (self.latest is not None or not headless(line.text)):
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
        return any(line.place - d.last <= (48 if d.ended else REACH) for d in self.sorter.drafts[:-9:-1])

    def finish(self) -> Iterator[Incident]:
        """Yield the deaths, in order."""
        self._close()
        for death in self.deaths:
            boot = death.first.boot
            shown = self.architectures.get(boot, set())
            names = ("arm64", *(name for name, _ in messages.FOREIGN))
            later = tuple(draft.fault() for draft in death.reports[1:])
            yield Incident(
                death.first.fault(),
                later,
                death.later,
                self.banners.get(boot, ""),
                next((name for name in names if name in shown), "unknown"),
                boot,
            )

    def _next_boot(self) -> None:
        self._close()
        self.boot += 1
        self.sorter = Sorter(self.boot)
        self.over, self.clock, self.warning = False, -1.0, None

    def _banner(self, line: Line) -> bool:
        match = messages.BOOT.search(line.text)
        if match is None or (match.start() and begins(line.text)):
            return False
        if line.place - self.boot_line > 8 or match[1] in self.banners.get(self.boot, ""):
            self._next_boot()
        self.boot_line = line.place
        self.begun.add(self.boot)
        if match[1].startswith("Linux"):
            self.banners[self.boot] = line.text[match.start() :][:200]
        else:
            self.banners.setdefault(self.boot, "")
        if len(self.banners) > MAX_BOOTS:
            self.banners.pop(min(self.banners))
        return True

    def _time(self, line: Line, *, begins: bool) -> None:
        """Notice that another boot begins: after the end marker, or where time goes back."""
        if begins and self.over:
            kind = next((kind for kind, pattern in messages.HEADLINES if pattern.search(line.text)), None)
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
        if "arm64" in self.architectures.get(self.boot, ()):
            return
        if messages.is_native(text):
            self.architectures.setdefault(self.boot, set()).add("arm64")
        for name, pattern in messages.FOREIGN:
            if pattern.search(text):
                self.architectures.setdefault(self.boot, set()).add(name)

    def _close(self) -> None:
        """End a stretch: its reports join the deaths."""
        lines, self.stretch = self.stretch, []
        drafts = self.sorter.drafts
        if self.sorter.returns:
            drafts = sort(lines, self.boot)
        self.sorter = Sorter(self.boot)
        for index, draft in enumerate(drafts):
            self._join(draft, drafts[index + 1 : index + 9], lines[0].place)

    def _join(self, draft: Draft, following: list[Draft], first_place: int) -> None:
        """Add a report to the death that it is of, or begin another death."""
        last = self.recent
        if draft.kind == "warning" and not draft.panic:
            self.warning = draft
            return
        before = [death for death in dict.fromkeys((self.latest, last)) if death is not None]
        known = self._copied(draft, first_place) or any(self._again(death, draft) for death in before)
        titled = next((death for death in before if not known and _title(death.first, draft)), None)
        if titled is not None:
            titled.reports[0] = draft
            self._mark(titled, draft)
            self.recent = titled if draft.kind in FATAL else self.recent
        if known or titled is not None or (draft.kind == "panic" and self._consequence(draft)):
            return
        if last is not None and (_inside(last, draft) or _cut_off(last, draft, following)):
            self._add(last, draft)
            return
        stalled = self._stall(draft) if draft.kind in STALLS and not draft.panic else None
        if stalled is not None:
            self._add(stalled, draft)
        else:
            self._begin(draft)

    def _copied(self, draft: Draft, first_place: int) -> bool:
        """Take a report of a log that stands in a mail twice: the same line with the same stamp."""
        marks = [mark for mark in ((draft.time, draft.headline), draft.error) if mark[0]]
        known = next((self.marks[mark] for mark in marks if mark in self.marks), None)
        if known is None:
            return False
        end = max(report.last for report in known.reports)
        if end >= (draft.place if known.first.ended else first_place):
            return False
        if {known.first.boot, draft.boot} <= self.begun:
            return False
        old = next((d for d in known.reports if d.headline == draft.headline), known.first)
        if "sp" in draft.slots and "sp" not in old.slots and old is known.first:
            draft.panic = draft.panic or old.panic
            known.reports[0] = draft
        else:
            _complete(old, draft)
        return True

    def _mark(self, death: Death, draft: Draft) -> None:
        for mark in ((draft.time, draft.headline), draft.error):
            if mark[0] and len(self.marks) < 4 * MAX_DEATHS:
                self.marks.setdefault(mark, death)

    def _add(self, death: Death, draft: Draft) -> None:
        death.add(draft)
        self._mark(death, draft)

    def _begin(self, draft: Draft) -> None:
        death = Death([draft])
        fatal = draft.kind in FATAL or bool(draft.panic)
        self.total += 1
        self.latest = death
        self._mark(death, draft)
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
            number = number and not _contradict(known, draft)
            title = draft.bare and draft.kind != "panic" and draft.headline == known.headline
            panic = draft.kind == "panic" and bool(draft.panic) and draft.panic == known.panic
            same = panic and (draft.bare or known.bare or draft.cpu == known.cpu) and draft.boot == known.boot
            if number or (title and not known.bare) or same:
                _complete(known, draft)
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
            self._add(last, draft)
            return True
        return False


def _contradict(known: Draft, other: Draft) -> bool:
    """Tell whether two reports contradict each other about the same fault."""
    names = {"esr", "far", "cpu", "sp", "pc"} & known.slots.keys() & other.slots.keys()
    return any(known.slots[name] != other.slots[name] for name in names)


def _complete(known: Draft, copy: Draft) -> None:
    """Take from another copy of a report what the first one does not hold."""
    if copy.slots.get("cpu", known.slots.get("cpu")) != known.slots.get("cpu", copy.slots.get("cpu")):
        return
    for name, value in copy.slots.items():
        known.slots.setdefault(name, value)
    known.trace = known.trace or copy.trace
    known.panic = known.panic or copy.panic
    known.number = known.number if known.number is not None else copy.number


def _title(first: Draft, draft: Draft) -> bool:
    """Tell whether `first` is no report but a title or an inlined line above this one."""
    if not first.bare or (first.kind == "panic" and first.panic != draft.panic):
        return False
    if first.kind == "panic":
        return draft.kind == "panic" and not draft.bare and not first.time and first.panic == draft.panic
    alike = first.kind == draft.kind or (first.kind in AFTERMATH_OF and draft.kind in AFTERMATH_OF)
    if not alike or (draft.bare and not messages.INLINE.search(first.headline)):
        return False
    if messages.INLINE.search(first.headline):
        return draft.place - first.place <= TITLE_GAP
    return not first.time and (bool(draft.time) or draft.place - first.place <= TITLE_GAP)


def _inside(last: Death, draft: Draft) -> bool:
    """Tell whether `draft` happened while the kernel was busy with a death."""
    first = last.first
    if draft.boot != first.boot or draft.kind == "panic" or draft.kind not in FATAL:
        return False
    if draft.kind == "bad-stack" and (draft.cpu is None or all(draft.cpu != d.cpu for d in last.reports)):
        return False
    if first.kind not in FATAL or draft.place - max(d.last for d in last.reports) > 4 * REACH:
        return False
    mixed = draft.mixed or any(report.mixed for report in last.reports)
    if mixed and (draft.cpu is None or draft.cpu not in {d.cpu for d in last.reports}):
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
    overflow = draft.kind == "bad-stack" or (draft.kind == "panic" and "kernel stack overflow" in draft.panic)
    if not overflow or draft.boot != last.first.boot or last.first.panic:
        return False
    cut = [d for d in last.reports if d.kind == "fault" and not d.internal and d.cpu is None and not d.bare]
    if len(cut) != len(last.reports) or any(d.kind in ("bad-stack", "fault") for d in following):
        return False
    if draft.place - last.reports[-1].last > 8 or draft.mixed:
        return False
    times = [float(d.time) for d in (last.reports[-1], draft) if d.time]
    return len(times) < 2 or 0 <= times[1] - times[0] <= TOGETHER
