"""The line below the prompt: what the guest does and where it stands."""

from __future__ import annotations

from ptinspect.commands.framework.context import Context
from ptinspect.commands.stack.watch import watched
from ptinspect.errors import PtinspectError
from ptinspect.guest.condition import condition
from ptinspect.output.model import escape


class Toolbar:
    """Say target, state, pc, CPU and MMU; the guest is asked once per stop."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._known: tuple[object, str] | None = None

    def __call__(self) -> str:
        """Return the text to show now."""
        session = self._ctx.guest.session
        if session is None:
            names = len(self._ctx.guest.snapshots)
            return f" no guest{f' · {names} snapshot(s)' if names else ''}"
        state = self._ctx.guest.state
        key = (id(session), session.stop_token, state, session.current_cpu if state == "stopped" else 0)
        if self._known is None or self._known[0] != key:
            self._known = (key, self._stopped() if state == "stopped" else state)
        qemu = self._ctx.guest.qemu
        ours = qemu is not None and session.address == str(qemu.gdb_socket)
        parts = [self._known[1], "" if ours else escape(session.address)]
        if self._ctx.follower is not None:
            parts.append("console")
        return " " + " · ".join(part for part in parts if part)

    def _stopped(self) -> str:
        try:
            now = condition(self._ctx.guest)
        except PtinspectError as error:
            return f"stopped · {escape(error.message)}"
        place = "" if now.pc is None else self._ctx.guest.place(now.pc).replace(" (", " ").removesuffix(")")
        mmu = "" if now.mmu_on is None else f" · MMU {'on' if now.mmu_on else 'off'}"
        depth = watched(self._ctx.guest)
        return f"stopped · cpu {now.cpu} EL{now.el}{mmu} · {place}{f' · {depth}' if depth else ''}"
