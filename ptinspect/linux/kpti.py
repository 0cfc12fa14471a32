"""The kernel's rewrite of its own tables: its code, how far it is, and where the guest stands."""

from ptinspect.linux.kpti_code import (
    ENTRY,
    Algorithm,
    KptiCode,
    LevelCode,
    StoreSite,
    recognise,
    recognise_code,
)
from ptinspect.linux.kpti_frontier import (
    Cursor,
    Frontier,
    Position,
    Progress,
    agrees,
    cursors,
    frontier_of,
    position,
    progress,
)

__all__ = [
    "ENTRY",
    "Algorithm",
    "Cursor",
    "Frontier",
    "KptiCode",
    "LevelCode",
    "Position",
    "Progress",
    "StoreSite",
    "agrees",
    "cursors",
    "frontier_of",
    "position",
    "progress",
    "recognise",
    "recognise_code",
]
