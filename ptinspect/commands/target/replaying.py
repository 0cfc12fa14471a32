"""`timeline open`: replay a recorded boot."""

from __future__ import annotations

from pathlib import Path

from ptinspect.commands.framework.command import argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.target.attaching import condition_table
from ptinspect.guest.condition import Condition, condition
from ptinspect.guest.recordings.timeline import open_recording
from ptinspect.output.model import Note, Report, escape


@command(
    "timeline open",
    group="Timeline",
    summary="Replay a recorded boot, from its start",
    example="timeline open boot.timeline",
    arguments=(
        argument("directory", type=Path, metavar="DIR", help="what launch --timeline has made"),
        argument("--qemu", metavar="Q", help="QEMU to start (default: one of the version that recorded)"),
        argument("--trust", action="store_true", help="start QEMU with the further arguments that it names"),
    ),
    result=Condition,
    details="Open those of people whom you trust: QEMU takes the machine's states from it. "
    "It must be the same version of QEMU. A recording that broke off is replayed as far as it goes.",
    not_in_gdb="start QEMU yourself with rr=replay, or use ptinspect without GDB",
)
def replay(ctx: Context, *, directory: Path, qemu: str | None = None, trust: bool = False) -> Report:
    """Start QEMU on a recording, and attach to it."""
    open_recording(ctx.guest, directory, qemu, ctx.options.number("timeout-attach"), trust=trust)
    found = condition(ctx.guest)
    head = Note(f"replaying {escape(str(directory))}, stopped at its start", "good")
    return Report(found, (head, condition_table(ctx.guest, found)))
