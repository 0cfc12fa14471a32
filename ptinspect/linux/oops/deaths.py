"""The deaths in a console log: reports that belong to one another."""

from __future__ import annotations

from collections.abc import Iterator

from ptinspect.linux.oops import messages as say
from ptinspect.linux.oops.lines import MAX_LINE, lines
from ptinspect.linux.oops.model import FaultKind, Incident
from ptinspect.linux.oops.reports import Draft, Reader

MAX_LATER = 16
"""Faults inside of a death that are kept."""
WINDOW = 256 << 10
"""Characters behind a first line that may belong to its report."""
LISTED: frozenset[FaultKind] = frozenset(
    {"bad-stack", "fault", "oops", "bug", "panic", "serror", "lockup", "rcu-stall", "hung-task", "kasan"}
)
"""Kinds that are reported; the others only if they ended in a panic."""
FATAL: frozenset[FaultKind] = frozenset({"bad-stack", "fault", "oops", "bug", "panic", "serror"})
"""Kinds whose report means that the kernel, or a task in it, died."""


def read(text: str) -> tuple[list[Incident], bool]:
    """Return the deaths in a console log, in order, and whether the log was read to its end.

    Reading stops behind MAX_FAULTS reports. Never fails, whatever the text is.
    """
    reader = Reader()
    for line in lines(text, _spans(text)):
        reader.feed(line)
        if reader.full:
            break
    return _group(reader), not reader.full


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Go through the parts of `text` that may belong to a report."""
    start = end = -1
    for match in say.TRIGGERS.finditer(text):
        at = match.start()
        reach = 2048 if match[0].startswith(("Booting", "Linux")) else WINDOW
        last = min(len(text), match.end() + reach)
        if start >= 0 and at <= end:
            end = max(end, last)
            continue
        if start >= 0:
            yield start, end
        low = max(end, at - MAX_LINE, 0)
        start, end = max(text.rfind("\n", low, at), text.rfind("\r", low, at), low - 1) + 1, last
    if start >= 0:
        yield start, end


def _group(reader: Reader) -> list[Incident]:
    """Join the faults inside of the handling of another one to it."""
    groups: list[list[Draft]] = []
    for draft in reader.drafts:
        if draft.kind not in LISTED and not draft.panic:
            continue
        if groups and _inside(groups[-1], draft):
            groups[-1].append(draft)
        else:
            groups.append([draft])
    incidents = []
    for group in groups:
        boot = group[0].boot
        seen = reader.foreign.get(boot, set())
        architecture = (
            "arm64" if "arm64" in seen else next((name for name, _ in say.FOREIGN if name in seen), "unknown")
        )
        later = tuple(draft.fault() for draft in group[1 : 1 + MAX_LATER])
        incidents.append(
            Incident(group[0].fault(), later, len(group) - 1, reader.banners.get(boot, ""), architecture)
        )
    return incidents


def _inside(group: list[Draft], draft: Draft) -> bool:
    """Tell whether `draft` happened while the kernel was busy with the death that `group` is."""
    first = group[0]
    if draft.boot != first.boot or draft.kind in ("bad-stack", "panic") or draft.caller != first.caller:
        return False
    if draft.kind in ("lockup", "rcu-stall", "hung-task"):
        return draft.kind == first.kind and not first.panic
    cpus = {d.slots["cpu"][0] for d in (*group, draft) if "cpu" in d.slots}
    busy = bool(first.panic) or not any(d.ended for d in group)
    return busy and len(cpus) < 2 and draft.kind in FATAL and first.kind in FATAL and not first.mixed
