"""Imports that leave out what is not used: some of a module's own imports take longer than the module."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def standing_in(modules: Mapping[str, Any]) -> Iterator[None]:
    """Have what is imported meanwhile take these for modules that are not imported yet; None for none."""
    early = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(early)
    try:
        yield
    finally:
        for name in early:
            del sys.modules[name]
