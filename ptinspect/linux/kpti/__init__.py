"""The kernel's rewrite of its own tables: its code, how far it is, and where the guest stands."""

from ptinspect.linux.kpti.code import (
    ENTRY,
    Algorithm,
    KptiCode,
    LevelCode,
    StoreSite,
    recognise,
    recognise_code,
)
from ptinspect.linux.kpti.judge import boot_cpu, flag_value, kpti_state, running_code
from ptinspect.linux.kpti.position import (
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
from ptinspect.linux.kpti.state import KptiState, state_from_tables

__all__ = [
    "ENTRY",
    "Algorithm",
    "Cursor",
    "Frontier",
    "KptiCode",
    "KptiState",
    "LevelCode",
    "Position",
    "Progress",
    "StoreSite",
    "agrees",
    "boot_cpu",
    "cursors",
    "flag_value",
    "frontier_of",
    "kpti_state",
    "position",
    "progress",
    "recognise",
    "recognise_code",
    "running_code",
    "state_from_tables",
]
