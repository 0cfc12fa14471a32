"""The line below the prompt: what the guest does and where it stands."""

from __future__ import annotations

from ptinspect.commands.context import Context
from ptinspect.commands.stack_highwater import watched
from ptinspect.commands.status import collect
from ptinspect.errors import PtinspectError
from ptinspect.output.model import escape


class Toolbar:
    """Say target, state, pc, CPU and MMU; the guest is asked once per stop."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._known: tuple[object, str] | None = None

    def __call__(self) -> str:
        """Return the text to show now."""
        session = self._ctx.session
        if session is None:
            names = len(self._ctx.snapshots)
            return f" no guest{f' · {names} snapshot(s)' if names else ''}"
        state = self._ctx.state
        key = (id(session), session.stop_token, state, session.current_cpu if state == "stopped" else 0)
        if self._known is None or self._known[0] != key:
            self._known = (key, self._stopped() if state == "stopped" else state)
        console = " · console" if self._ctx.follower is not None else ""
        return f" {self._known[1]} · {escape(session.address)}{console}"

    def _stopped(self) -> str:
        try:
            now = collect(self._ctx)
        except PtinspectError as error:
            return f"stopped · {escape(error.message)}"
        mmu = "" if now.mmu_on is None else f" · MMU {'on' if now.mmu_on else 'off'}"
        depth = watched(self._ctx)
        return f"stopped · cpu {now.cpu} EL{now.el}{mmu} · pc {now.place}{f' · {depth}' if depth else ''}"
