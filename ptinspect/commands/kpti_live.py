"""Where a live guest stands with respect to the rewrite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptinspect.commands.capturing import capture_snapshot
from ptinspect.commands.context import Context
from ptinspect.commands.sources import Source
from ptinspect.errors import GuestError

if TYPE_CHECKING:
    from ptinspect.linux.kpti.state import KptiState


def live_state(ctx: Context) -> KptiState:
    """Capture the kernel's tables and judge. Raises GuestError, TargetError."""
    from ptinspect.linux.kpti.judge import kpti_state
    from ptinspect.linux.kpti.state import Census, KptiState

    view = ctx.view()
    try:
        root = view.swapper()
    except GuestError as error:
        return KptiState("before", f"the kernel has no tables yet ({error.message})", Census(0, 0, 0, 0))
    source = Source(ctx.stopped.memory, root, view.regime, "guest")
    return kpti_state(view, capture_snapshot(ctx, source, "(kpti status)"))
