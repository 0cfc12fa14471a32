"""A guest of ours, driven with the same command lines that a user types."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from conftest import missing
from fakes import wider

from ptinspect.commands.catalogue import build_registry
from ptinspect.commands.context import Context
from ptinspect.errors import TargetError
from ptinspect.guests import archive

GUESTS_OF_TESTS: dict[str, set[str]] = {}
"""Guests that a test has asked for, by its node id; what a shared fixture asks for counts for the first."""
KASLR_BOOT = "rdinit=/init console=ttyAMA0 earlycon=pl011,0x9000000"


class Live:
    """Run command lines against one context."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx

    def __call__(self, line: str) -> dict[str, Any]:
        """Run a line and return its result; what it says must be readable on 80 columns."""
        report = self.ctx.registry.run(self.ctx, line)
        assert wider(report, 80) == [], line
        return dict(report.result)

    def exit_code(self, line: str) -> int:
        """Run a line and return the exit code of its report."""
        return self.ctx.registry.run(self.ctx, line).exit_code


def need_guest(name: str) -> archive.Guest:
    """Return an installed guest; fail or skip where it is missing."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    GUESTS_OF_TESTS.setdefault(test, set()).add(name)
    try:
        guest = archive.guest(name)
    except TargetError:
        missing(f"the guest {name}")
    if guest.name != name:
        missing(f"the guest {name}")
    return guest


@contextmanager
def launched(guest: str, options: str = "") -> Iterator[Live]:
    """Launch a guest, stopped at reset, and end it afterwards."""
    need_guest(guest)
    ctx = Context(build_registry())
    live = Live(ctx)
    try:
        live(f"launch --guest {guest} {options}")
        yield live
    finally:
        ctx.close()
