"""Arguments that many commands have: which CPU, which snapshot, which tables."""

from __future__ import annotations

from typing import Any

from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.command import Argument, argument
from ptinspect.guest.expression import ADDRESS_HELP, address, address_range
from ptinspect.guest.roots import ROOT_HELP, RULES, RULES_HELP, root_choice

CPU_NUMBER = argtypes.completes("cpu", argtypes.whole(0, 1023))
"""The type of `--cpu`."""


CPU_OR_ALL = argtypes.completes("cpu", argtypes.either("all", other=argtypes.whole(0, 1023)))
"""The same, where all of them may be shown."""
argtypes.completes("root", root_choice)


def cpu_argument(meaning: str = "whose registers count (default: the one that stopped)") -> Argument:
    """Declare `--cpu`, the one way to choose a CPU for one command."""
    return argument("--cpu", type=CPU_NUMBER, metavar="N", help=meaning)


def cpu_or_all_argument(meaning: str) -> Argument:
    """Declare `--cpu` for a command that may show all of them."""
    return argument("--cpu", type=CPU_OR_ALL, metavar="N|all", help=meaning)


CPU = cpu_argument()
SNAP = argument(
    "--snap",
    type=argtypes.snapshot,
    metavar="SNAP",
    help="use this snapshot (a name, or a file) instead of the guest",
)
ROOT = argument("--root", type=root_choice, metavar="ROOT", help=ROOT_HELP)
RULE = argument("--regime", choices=RULES, help=RULES_HELP)
TABLES = (ROOT, RULE, CPU, SNAP)
"""Which tables: the handler takes `root`, `regime`, `cpu`, `snap` (`guest.source.Tables`)."""
PART = argument(
    "--range",
    dest="part",
    type=address_range,
    metavar="RANGE",
    help=f"only a part; {argtypes.RANGE_HELP}",
)
"""Which addresses: the handler takes `part`."""
LEAVES = (
    argument(
        "--type",
        dest="memory_type",
        default="",
        metavar="TYPE",
        help="part of the memory type: device, normal, nc",
    ),
    argument("--cont", action="store_true", default=None, help="only leaves with the contiguous hint"),
    argument("--pa", type=address_range, metavar="RANGE", help="only leaves that lead into this range"),
)
"""Which leaves: the handler takes `memory_type`, `cont`, `pa`."""


def levels_argument(meaning: str) -> Argument:
    """Declare `--level`, which may be repeated: the handler takes `levels`."""
    more: dict[str, Any] = {"dest": "levels", "action": "append", "default": []}
    return argument("--level", "-l", type=argtypes.level, metavar="L", help=meaning, **more)


WHERE = argument("where", nargs="*", type=address, metavar="WHERE", help=f"end here; {ADDRESS_HELP}")
"""Addresses that end a run."""


def address_argument(name: str, *, more: str = "", **options: Any) -> Argument:
    """Declare an address; `more` follows how addresses are written."""
    return argument(name, type=address, help=f"{ADDRESS_HELP}{more}", **options)
