"""`demo --timeline`: a kernel that loses an entry by its own code, recorded, and walked back to the store."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptinspect.commands.framework.context import Context
from ptinspect.commands.run.run import until
from ptinspect.commands.run.timeline import SECONDS, goto
from ptinspect.commands.stack.why import why
from ptinspect.commands.tables.who import who
from ptinspect.commands.target.attaching import detach, launch, replay
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.guest.expression import address
from ptinspect.guest.injection import LosingKernel, losing_kernel
from ptinspect.guest.opening import Machine
from ptinspect.guest.recordings.timeline import discard
from ptinspect.guest.stacks.stack_guard import BAD_STACK
from ptinspect.guest.table_choice import Tables
from ptinspect.output.model import Note, Report, escape

KERNEL, RECORDING = "losing-kernel", "boot"
"""What is written: the kernel, and the directory of the recording."""
BOOTED = "rcu_end_inkernel_boot"
"""Where a boot that has lost nothing gets to."""
EXPECTED = "lost-entry"
"""What `why` has to call it."""


@dataclass(frozen=True, kw_only=True)
class LostResult:
    """A boot that lost an entry, and whether its recording shows which, and by which store."""

    ok: bool
    kernel: str
    """The file that was booted."""
    recording: str
    """What `timeline open` takes."""
    changed: int
    """Instructions of the kernel that are others than in the original."""
    store: str
    """The one that clears the entry."""
    why: Mapping[str, object]
    """What `why` tells at the end."""
    who: Mapping[str, object]
    """The descriptor, and all writes to it."""


@dataclass(frozen=True)
class NotShown:
    """A demo on a kernel that does not rewrite its tables, or does not lose anything."""

    ok: bool
    reason: str


def lost_in_recording(ctx: Context, directory: Path, machine: Machine, timeout: float) -> Report:
    """Boot such a kernel, and find in its recording which entry it lost, and which store did it."""
    folder = directory / RECORDING
    kernel = losing_kernel(ctx.guest, machine, directory / KERNEL)
    changed = f"{kernel.changed} instructions of {kernel.file} are others"
    ctx.step(f"# {changed}: {kernel.place} loses the entry of its own stack", Report({}))
    _launch(ctx, kernel, folder, machine.memory)
    names = _ends(ctx)
    line = shlex.join(["until", *names, "--timeout", f"{timeout:g}"])
    died = ctx.step(line, until(ctx, addresses=[*map(address, names)], timeout=timeout))
    if BOOTED in died["place"]:
        text = "the kernel came through: it did not lose its stack on this machine"
        return Report(NotShown(False, text), (Note(text, "bad"),), 1)
    ctx.step("detach", detach(ctx.guest))
    ctx.step(shlex.join(["timeline", "open", str(folder)]), replay(ctx, directory=folder))
    ctx.step("timeline goto end", goto(ctx, position="end", timeout=SECONDS))
    cause = ctx.step("why", why(ctx.guest))
    written = _writers(ctx, cause["far"])
    store = ctx.guest.view.pa_of_link(kernel.store)
    return judged(kernel, store, folder, cause, written)


def _launch(ctx: Context, kernel: LosingKernel, folder: Path, memory: int | None) -> None:
    """Launch the kernel, recorded; what an earlier demo has recorded there is removed."""
    discard(folder)
    given = {"--symbols": kernel.symbols, "--cpu": kernel.cpu or None, "--memory": memory}
    words = [f"{word}" for pair in given.items() if pair[1] is not None for word in pair]
    line = shlex.join(["launch", str(kernel.file), "--timeline", str(folder), *words])
    machine = Machine(
        kernel.file, symbols=kernel.symbols, timeline=folder, cpu=kernel.cpu or None, memory=memory
    )
    ctx.step(line, launch(ctx, machine=machine))


def _ends(ctx: Context) -> list[str]:
    """Return where the kernel finds that its stack cannot be used, and where a boot without that gets to."""
    image = ctx.guest.view.image
    known = {} if image is None else image.symbols
    bad = next((name for name in BAD_STACK if name in known), None)
    if bad is None:
        raise UserError("the kernel's symbols do not tell where it reports a bad stack", "--guest NAME")
    return [bad, *([BOOTED] if BOOTED in known else [])]


def _writers(ctx: Context, far: str) -> Mapping[str, Any]:
    """Ask who ever wrote the entry that the fault at an address lacks."""
    far_at = address(far)
    report = who(ctx.guest, address=far_at, level="pmd", every=True, timeout=SECONDS, tables=Tables())
    found: Mapping[str, Any] = ctx.step(f"who {far} --level pmd --all", report)["descriptors"][0]
    return found


def judged(
    kernel: LosingKernel, store: int, folder: Path, cause: Mapping[str, Any], written: Mapping[str, Any]
) -> Report:
    """Compare what was found with what was put into the kernel: a store at the physical address `store`."""
    last: Mapping[str, Any] = written["writes"][-1] if written["writes"] else {"pc": "", "changes": ()}
    named = (cause.get("written") or {}).get("pc")
    ok = cause["code"] == EXPECTED and "lost" in last["changes"] and last["pc"] == named == f"{store:#x}"
    text = "The recording does not show the store that was put there."
    if ok:
        text = f"The store that was put there lost it, at position {last['position']:,}."
    result = LostResult(
        ok=ok, kernel=str(kernel.file), recording=str(folder), changed=kernel.changed, store=kernel.place,
        why=cause, who=written,
    )  # fmt: skip
    again = Note(f"timeline open {escape(str(folder))} leads there again", "dim")
    return Report(result, (Note(text, "good" if ok else "bad"), again), 0 if ok else 1)
