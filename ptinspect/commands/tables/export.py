"""`export`: a snapshot's descriptors in files that other programs read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ptinspect.arch.levels import level_number
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.command import argument, command
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.files import replacing
from ptinspect.guest.expression import Range
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import range_of
from ptinspect.guest.regions import names_of
from ptinspect.linux.releases import TEXT_FORMS
from ptinspect.output.encode import ABSENT, Absent
from ptinspect.output.model import Note, Report, escape
from ptinspect.output.table_heads import warnings

if TYPE_CHECKING:
    from ptinspect.analysis.descriptor_batches import RowFilter
    from ptinspect.snapshot.model import Snapshot

FORMATS = ("csv", "jsonl", "parquet", "ptdump")
"""What --format takes, and the suffixes of files that name it."""
KINDS = ("table", "block", "page", "invalid", "reserved", "leaf", "valid")
GROUPS = {"leaf": {"block", "page"}, "valid": {"table", "block", "page"}}


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """The file that was written."""

    file: str
    format: str
    rows: int
    era: str | Absent = ABSENT
    """The release whose form the kernel's text has."""
    assumed: Sequence[str] | Absent = ABSENT
    """What had to be assumed for it."""
    bytes: int
    snapshot: str
    complete: bool
    unseen: Sequence[str]


@command(
    "export",
    group="Snapshots",
    summary="Write a snapshot as CSV, JSON lines, Parquet, or the kernel's own text",
    example="export before -o before.csv --level pmd",
    arguments=(
        argument("name", type=arguments.snapshot, metavar="NAME", help="a snapshot in memory, or its file"),
        arguments.output_argument("file to write, in one step", "-o", "--output", required=True),
        argument("--format", dest="form", choices=FORMATS, help="default: by FILE's suffix"),
        arguments.PART,
        arguments.levels_argument("only tables of this level"),
        argument(
            "--kind",
            dest="kinds",
            choices=KINDS,
            help="only these; leaf: block and page; valid: no faults",
            **arguments.REPEATED,
        ),
        arguments.switch("--ng", "only with bit 11 (nG, the mark)", one_of="ng", default=None),
        argument("--global", one_of="ng", dest="ng", action="store_false", help="only without bit 11"),
        *arguments.LEAVES,
        argument(
            "--era",
            choices=tuple(TEXT_FORMS),
            help="ptdump: the release whose form it is (default: the snapshot's kernel)",
        ),
    ),
    result=ExportResult,
    details="One row for each descriptor that is not zero, a shared table once, at its lowest address. "
    "Parquet needs pyarrow: pip install 'ptinspect[parquet]'. ptdump is the text of the kernel's own "
    "/sys/kernel/debug/kernel_page_tables, to be compared with it by diff.",
)
def export(
    guest: Guest,
    *,
    name: str,
    output: Path,
    form: str | None,
    part: Range | None,
    levels: list[int | str],
    kinds: list[str],
    ng: bool | None,
    memory_type: str,
    cont: bool | None,
    pa: Range | None,
    era: str | None,
) -> Report:
    """Write the file."""
    from ptinspect.analysis.descriptor_batches import RowFilter
    from ptinspect.snapshot.coverage import unseen

    form = form or _form_of(output)
    snapshot = guest.snapshot_or_file(name)
    era_used: str | Absent = ABSENT
    assumed: Sequence[str] | Absent = ABSENT
    if form == "ptdump":
        if any((part, levels, kinds, ng is not None, memory_type, cont, pa)):
            raise UserError("the kernel's text is of all its tables: no filters with --format ptdump")
        rows, era_used, assumed = _write_text(guest, snapshot, output, era)
    else:
        start = snapshot.regime.start_level
        wanted = RowFilter(
            levels=frozenset(level_number(level, start) for level in levels) or None,
            kinds=frozenset().union(*(GROUPS.get(kind, {kind}) for kind in kinds)) or None,
            bit11=ng,
            memory_type=memory_type,
            contiguous=cont,
            va_range=range_of(guest, part, snap=name),
            pa_range=range_of(guest, pa, snap=name),
        )
        rows = _write_rows(guest, snapshot, output, form, wanted)
    missing = unseen(snapshot)
    result = ExportResult(
        file=str(output),
        format=form,
        rows=rows,
        era=era_used,
        assumed=assumed,
        bytes=output.stat().st_size,
        snapshot=snapshot.name,
        complete=not missing,
        unseen=missing,
    )
    what = "lines" if form == "ptdump" else "descriptors"
    to = f"{escape(str(output))}, {result.bytes / 1e6:.1f} MB"
    notes = [Note(text, "changed") for text in assumed] if assumed is not ABSENT else []
    said = Note(f"{rows} {what} of {escape(snapshot.name)} written to {to}")
    return Report(result, (said, *notes, *warnings(snapshot)))


def _form_of(path: Path) -> str:
    """Return the format that a file's suffix names. Raises UserError."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise UserError(f"{path}: its suffix names no format", f"--format, one of: {', '.join(FORMATS)}")
    return suffix


def _write_rows(guest: Guest, snapshot: Snapshot, path: Path, form: str, wanted: RowFilter) -> int:
    """Write one row for each descriptor; return how many."""
    from ptinspect.analysis.descriptor_batches import batches
    from ptinspect.output.rows import WRITERS, Regions, pyarrow

    if form == "parquet":
        pyarrow()
    namer, layout = names_of(snapshot)
    regions = Regions(layout.edges, namer, snapshot.regime.va_min)

    def progress(done: int, total: int) -> None:
        guest.progress("writing tables", done, total)

    with replacing(path) as file:
        return WRITERS[form](file, batches(snapshot, wanted, progress), snapshot.regime, regions)


def _write_text(
    guest: Guest, snapshot: Snapshot, path: Path, era: str | None
) -> tuple[int, str, Sequence[str]]:
    """Write the kernel's own text; return the number of lines, whose form it is, and what was assumed."""
    from ptinspect.linux.ptdump.kernel_lines import kernel_lines

    guest.progress("writing lines")
    lines, frame = kernel_lines(snapshot, TEXT_FORMS[era] if era else None)
    count = 0
    with replacing(path) as file:
        for count, line in enumerate(lines, 1):  # noqa: B007 - how many there were
            file.write(f"{line}\n".encode())
    return count, frame.form.name, frame.assumed
