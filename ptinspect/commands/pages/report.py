"""`report`: snapshots, differences, stack traces and campaigns as one HTML page."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import REPEATED, SEARCH_LIMIT, SEARCH_SECONDS, switch
from ptinspect.commands.framework.command import argument, command
from ptinspect.commands.pages.campaign_report import add_to
from ptinspect.commands.pages.page_parts import add_snapshots
from ptinspect.commands.tables.diff import SHOWN
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.guest.guest import Guest
from ptinspect.output.files import write_text
from ptinspect.output.model import Note, Report, escape

if TYPE_CHECKING:
    from ptinspect.analysis.diff import Change
    from ptinspect.guest.recordings.writers import Write
    from ptinspect.output.html import Page
    from ptinspect.snapshot.model import Snapshot


@dataclass(frozen=True)
class PairResult:
    """Two snapshots whose difference the page shows."""

    a: str
    b: str


@dataclass(frozen=True)
class ReportResult:
    """The page that was written: the titles of what it shows."""

    file: str
    bytes: int
    maps: Sequence[str]
    unseen: Sequence[str]
    traces: Sequence[str]
    campaigns: Sequence[str]
    diffs: Sequence[PairResult]


@command(
    "report",
    group="Snapshots",
    summary="Draw snapshots and what lies between them as one HTML page",
    example="report tables.html before after",
    arguments=(
        argument("file", type=Path, written="file", metavar="FILE.html", help="the page to write"),
        argument(
            "names",
            nargs="*",
            default=[],
            type=arguments.snapshot,
            metavar="NAME",
            help="snapshots: names or files, in order",
        ),
        argument(
            "--trace", dest="traces", type=Path, metavar="FILE", help="a file of stack trace", **REPEATED
        ),
        argument(
            "--campaign",
            dest="campaigns",
            type=Path,
            metavar="DIR",
            help="a campaign's directory",
            **REPEATED,
        ),
        switch("--who", "name who wrote what changed: in a recorded boot"),
        SEARCH_LIMIT,
        argument("--title", metavar="TEXT", help="title of the page"),
    ),
    result=ReportResult,
    details="The page is one file that needs no network. Of each snapshot against the one named before "
    "it: the verdict, each unexpected change (a click opens its table), the address space by regions "
    "and in the kernel's own words (kernel_page_tables), and every table entry by entry, coloured by "
    "state, with the descriptor under the cursor decoded. Then the snapshots themselves, the depth of "
    "stacks over time, and campaigns (campaign report joins the shards of one). In a table the arrows "
    "go from entry to entry, Enter opens the next table, Backspace goes back up. "
    "Without names: all snapshots in memory. --who names the writers of the first "
    f"{SHOWN} unexpected changes of each pair, as diff --who does.",
)
def report(
    guest: Guest,
    *,
    file: Path,
    names: list[str],
    traces: list[Path],
    campaigns: list[Path],
    title: str | None,
    who: bool = False,
    timeout: float = SEARCH_SECONDS,
) -> Report:
    """Write the page."""
    from ptinspect.guest.recordings.last_writes import of_changes, searched
    from ptinspect.output.html import Page

    if who:
        searched(guest)
    if file.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{file}: the name of a page ends in .html")
    names = names or list(guest.snapshots)
    if not names and not traces and not campaigns:
        raise UserError("nothing to show: no snapshot is in memory", "snap NAME captures one")
    shown = [*names, *map(str, traces), *map(str, campaigns)]
    page = Page(title or f"ptinspect: {', '.join(Path(name).name for name in shown)}")
    for directory in campaigns:
        add_to(page, [directory], f"campaign {directory.name}")
    deadline = time.monotonic() + timeout

    def search(changes: Sequence[Change], a: Snapshot, b: Snapshot) -> Sequence[Write | None]:
        return of_changes(guest, changes[:SHOWN], a, b, max(deadline - time.monotonic(), 0.1))

    add_snapshots(page, _loaded(guest, names), who=search if who else None)
    _add_traces(page, traces)
    text = page.text()
    write_text(file, text)
    result = ReportResult(
        file=str(file),
        bytes=len(text.encode()),
        maps=[each["title"] for each in page.maps],
        unseen=list(dict.fromkeys(text for each in page.maps for text in each["unseen"])),
        traces=[each["title"] for each in page.traces],
        campaigns=[each["title"] for each in page.campaigns],
        diffs=[PairResult(each["a"], each["b"]) for each in page.diffs],
    )
    notes = [Note(escape(text), "bad") for text in result.unseen]
    return Report(result, (Note(f"written to {escape(str(file))}, {result.bytes / 1e6:.1f} MB"), *notes))


def _loaded(guest: Guest, names: Sequence[str]) -> Iterator[Snapshot]:
    for number, name in enumerate(names):
        guest.progress("drawing", number, len(names))
        yield guest.snapshot_or_file(name)


def _add_traces(page: Page, files: list[Path]) -> None:
    from ptinspect.commands.stack.trace import trace_report
    from ptinspect.commands.stack.trace_view import picture
    from ptinspect.stack.trace_file import load

    for file in files:
        trace = load(file)
        page.traces.append(picture(trace, trace_report(trace), file.name))
