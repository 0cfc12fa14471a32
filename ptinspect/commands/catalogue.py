"""The list of command files and of the commands in each, and the registry that they make."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from ptinspect.commands.context import Context
from ptinspect.commands.registry import Registry

MODULES: Mapping[str, str] = {
    "help": "help=?, version",
    "history": "history",
    "setshow": "set, show",
    "decode": "decode",
    "target": "launch, attach, detach, status, quit=q=exit",
    "console": "console",
    "regs": "regs, regime, cpu=cpus",
    "walk": "walk",
    "snapshots": "snap, snaps, save, load, drop",
    "run": "break=b, delete=d, continue=c, interrupt, stepi=si=s, until=u=advance",
    "finish": "nexti=ni=n=next, finish=fin",
    "backtrace": "bt=backtrace=where",
    "info": "info=i",
    "evaluate": "print=p",
    "disassemble": "disassemble=disas",
    "memory": "x",
    "passthrough": "gdb, monitor",
    "kernel": "kernel, symbol=sym",
    "tables": "map, summary, find",
    "diff": "diff",
    "report": "report",
    "export": "export",
    "importing": "import",
    "campaign": "campaign, campaign report",
    "check": "check",
    "setup": "setup",
    "kpti": "kpti break, kpti run, kpti status",
    "kpti_writes": "kpti writes",
    "kpti_progress": "kpti progress, kpti until",
    "kpti_verdict": "kpti verdict",
    "demo": "demo",
    "oops": "oops",
    "lane": "lane",
    "stack": "stack, stack tasks",
    "stack_guard": "stack guard",
    "stack_trace": "stack trace, stack diff",
    "stack_highwater": "stack highwater, stack watch",
    "why": "why",
    "expect": "expect",
    "record": "record",
    "scripting": "scripts, var, repeat, on stop, on failure, source",
    "poke": "poke descriptor, poke undo",
}
"""Modules of ptinspect.commands, each with `register(registry)`, and the names that it registers.

Aliases stand behind `=`. A module is imported when one of its commands is wanted, or all are listed.
Each must import cheaply: numpy, elftools, pygdbmi and prompt_toolkit only inside handlers.
"""


def build_registry() -> Registry[Context]:
    """Return a registry with every command; its modules are imported as they are needed."""
    registry: Registry[Context] = Registry()
    for module, names in MODULES.items():
        registry.declare(names, Load(registry, module))
    return registry


class Load:
    """Import a module and have it register its commands; the second time does nothing."""

    def __init__(self, registry: Registry[Context], module: str) -> None:
        self._registry, self._module = registry, module
        self._done = False

    def __call__(self) -> None:
        """Do it."""
        if not self._done:
            self._done = True
            importlib.import_module(f"ptinspect.commands.{self._module}").register(self._registry)
