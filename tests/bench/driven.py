"""A guest of the benchmark's, driven with the lines that a user types; nothing but ptinspect is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import build_registry


class Live:
    """Run command lines against one context."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx

    def __call__(self, line: str) -> Mapping[str, Any]:
        """Run a line and return its result."""
        return self.ctx.registry.run(self.ctx, line).result


@contextmanager
def launched(guest: str, options: str = "") -> Iterator[Live]:
    """Launch a reference guest, stopped at reset, and end it afterwards."""
    ctx = Context(build_registry())
    try:
        live = Live(ctx)
        live(f"launch --guest {guest} {options}")
        yield live
    finally:
        ctx.close()
