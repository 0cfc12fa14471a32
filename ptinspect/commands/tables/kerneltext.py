"""The kernel's text of its page tables: read, made from snapshots, and compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptinspect.commands.framework.context import Context
from ptinspect.errors import UserError
from ptinspect.output.model import Report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ptinspect.linux.ptdump.kernel_text import Text
    from ptinspect.snapshot.model import Snapshot

SHOWN = 200


def lines_of(snapshot: Snapshot, era_name: str | None) -> tuple[Iterator[str], dict[str, Any]]:
    """Return the lines that the kernel would print for a snapshot, and what to say about them.

    Raises UserError if the snapshot is of a part, of a lower half, or of an unknown kernel.
    """
    from ptinspect.linux.ptdump.columns import columns, mask_of
    from ptinspect.linux.ptdump.markers import frame_of
    from ptinspect.linux.ptdump.segments import segments
    from ptinspect.linux.releases import TEXT_FORMS
    from ptinspect.output.ptdump import lines

    regime = snapshot.regime
    if not regime.upper or snapshot.va_range is not None or snapshot.truncated:
        raise UserError(f"the kernel's text needs a whole capture of its half; {snapshot.name!r} is none")
    frame = frame_of(snapshot, TEXT_FORMS[era_name] if era_name else None)
    attributes = columns(frame.form, regime.mair)
    found = segments(snapshot, mask_of(attributes))
    made = lines(found, frame.markers, attributes, frame.form, regime)
    return made, {"era": frame.form.name, "assumed": list(frame.assumed)}


def is_kernel_text(ctx: Context, name: str) -> bool:
    """Tell whether a name is no snapshot in memory but a file with the kernel's text."""
    from ptinspect.linux.ptdump.kernel_text import is_text

    return name not in ctx.snapshots and Path(name).is_file() and is_text(Path(name))


def show(ctx: Context, path: Path) -> Report:
    """List what a text says is mapped."""
    from ptinspect.linux.ptdump.kernel_text import load
    from ptinspect.output.views.ptdumptext import text_report

    return text_report(str(path), load(path), ctx.rows(SHOWN))


def compare_texts(ctx: Context, a: str, b: str, limit: int | None) -> Report:
    """Compare two texts, or a text and a snapshot, run by run."""
    from ptinspect.linux.ptdump.kernel_text import compare
    from ptinspect.output.views.ptdumptext import differences_report

    first, second = _text(ctx, a), _text(ctx, b)
    found = list(compare(first.runs, second.runs))
    return differences_report((a, b), found, limit or ctx.rows(SHOWN), first.skipped + second.skipped)


def _text(ctx: Context, name: str) -> Text:
    from ptinspect.linux.ptdump.kernel_text import load, parse

    if is_kernel_text(ctx, name):
        return load(Path(name))
    made, _ = lines_of(ctx.snapshot_or_file(name), None)
    return parse(made, name)
