"""Facts that a snapshot keeps by name (Meta.extra), and their names."""

from __future__ import annotations

from collections.abc import Mapping

KERNEL_OFFSET = "kernel.offset"
"""What to add to a link-time address to get the run-time one, in hex."""
PHASE = "kpti.phase"
"""Where in the rewrite it was captured by `kpti run`: before, during, after."""
ALGORITHM = "kpti.algorithm"
"""The order of the rewrite's walk."""
LAYOUT = "linux.layout"
"""The variant of the address space's arithmetic."""
REGIONS = "linux.regions"
"""The regions that are not arithmetic, one a line: `first-last name`, hex."""
LOWER = "linux.lower"
"""What the lower half is, where the tables are those of a lower half: user, identity map."""
AREAS = "linux.areas"
"""The areas of a user address space, as REGIONS has them."""
POSITION = "timeline.position"
"""Where in a recorded boot it was captured: instructions executed since the start, decimal."""
RECORDING = "timeline.recording"
"""Which recorded boot that is: the name that it gave itself."""
WRITERS = "timeline.writers"
"""The writes that made its descriptors what they are, as far as they were searched (JSON)."""


def position(extra: Mapping[str, str]) -> int | None:
    """Return where in a recorded boot a snapshot was captured; None if in none."""
    text = extra.get(POSITION, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def kernel_offset(extra: Mapping[str, str]) -> int:
    """Return what to add to a link-time address to get that of a snapshot; 0 where it is not recorded."""
    try:
        return int(extra.get(KERNEL_OFFSET, "0"), 16)
    except ValueError:
        return 0
