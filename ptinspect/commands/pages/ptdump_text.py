"""The kernel's own text of its page tables, as a page shows it beside what it draws."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from ptinspect.errors import PtinspectError

if TYPE_CHECKING:
    from ptinspect.snapshot.model import Snapshot

MAX_LINES = 3000
"""Lines of one snapshot's text that a page has room for; `export` writes all of them."""
_RANGE = re.compile(r"0x([0-9a-f]{16})-")
Place = tuple[int, bool]
"""Where a line belongs: the first address of its range or of the one below it, and whether it is a range."""


def ptdump_text(snapshot: Snapshot, before: Snapshot | None = None) -> dict[str, Any]:
    """Return the text, with that of the snapshot before it: lines of both, of it (-), of the later one (+).

    Where there is no such text, or too much of it, `lines` is empty and `notes` say why.
    """
    from ptinspect.linux.ptdump.kernel_lines import kernel_lines

    if not snapshot.regime.upper:
        return {"era": "", "notes": [], "lines": []}
    texts: list[dict[tuple[Place, int], str]] = []
    notes: list[str] = []
    era = ""
    for each in (snapshot,) if before is None else (before, snapshot):
        try:
            lines, frame = kernel_lines(each)
            found = list(islice(lines, MAX_LINES + 1))
        except PtinspectError as error:
            return {"era": "", "notes": [error.message], "lines": []}
        if len(found) > MAX_LINES:
            why = f"more than {MAX_LINES} lines: export {each.name} --format ptdump -o FILE writes them"
            return {"era": "", "notes": [why], "lines": []}
        era = frame.form.name
        notes += frame.assumed
        texts.append(_placed(found))
    shown = [(" ", text) for text in texts[0].values()] if before is None else list(_merged(*texts))
    return {"era": era, "notes": list(dict.fromkeys(notes)), "lines": shown}


def _placed(lines: Iterable[str]) -> dict[tuple[Place, int], str]:
    """Return the lines by where they belong; markers above one range are numbered."""
    placed: dict[tuple[Place, int], str] = {}
    waiting: list[str] = []
    for line in lines:
        found = _RANGE.match(line)
        if found is None:
            waiting.append(line)
            continue
        start = int(found[1], 16)
        placed |= {((start, False), n): text for n, text in enumerate(waiting)}
        placed[(start, True), 0] = line
        waiting = []
    return placed | {((1 << 64, False), n): text for n, text in enumerate(waiting)}


def _merged(a: dict[tuple[Place, int], str], b: dict[tuple[Place, int], str]) -> Iterator[tuple[str, str]]:
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) == b.get(key):
            yield " ", a[key]
            continue
        if key in a:
            yield "-", a[key]
        if key in b:
            yield "+", b[key]
