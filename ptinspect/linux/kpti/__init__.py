"""The kernel's rewrite of its own tables: its code, how far it is, and where the guest stands."""

from ptinspect.linux.kpti.code import ENTRY, POST_ORDER, PRE_ORDER, KptiCode, recognise, recognise_code
from ptinspect.linux.kpti.evidence import boot_cpu, flag_of, past_boot, running_code
from ptinspect.linux.kpti.position import Frontier, Position, agrees, cursors, position, reached
from ptinspect.linux.kpti.state import KptiState, kpti_state, state_from_tables
from ptinspect.linux.kpti.verdict import Verdict, judge
from ptinspect.linux.kpti.work import Target, Work, work

__all__ = [
    "ENTRY",
    "POST_ORDER",
    "PRE_ORDER",
    "Frontier",
    "KptiCode",
    "KptiState",
    "Position",
    "Target",
    "Verdict",
    "Work",
    "agrees",
    "boot_cpu",
    "cursors",
    "flag_of",
    "judge",
    "kpti_state",
    "past_boot",
    "position",
    "reached",
    "recognise",
    "recognise_code",
    "running_code",
    "state_from_tables",
    "work",
]
