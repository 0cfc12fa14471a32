"""The list of command files and of the commands in each, and the registry that they make."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import Registry

MODULES: Mapping[str, str] = {
    "session.help": "help=?, version",
    "session.history": "history",
    "session.setshow": "set, show",
    "look.decode": "decode",
    "target.target": "launch, attach, detach, status, quit=q=exit",
    "target.console": "console",
    "target.regs": "regs, regime, cpu=cpus",
    "tables.walk": "walk",
    "tables.snapshots": "snap, snaps, save, load, drop",
    "run.run": "break=b, delete=d, continue=c, interrupt, stepi=si=s, until=u=advance",
    "run.finish": "nexti=ni=n=next, finish=fin",
    "run.backtrace": "bt=backtrace=where",
    "look.info": "info=i",
    "look.evaluate": "print=p",
    "look.disassemble": "disassemble=disas",
    "look.memory": "x",
    "target.passthrough": "gdb, monitor",
    "target.kernel": "kernel, symbol=sym",
    "tables.tables": "map, summary, find",
    "tables.diff": "diff",
    "tables.report": "report",
    "tables.export": "export",
    "tables.importing": "import",
    "session.campaign": "campaign, campaign report",
    "tables.check": "check",
    "target.setup": "setup",
    "kpti.kpti": "kpti break, kpti run, kpti status",
    "kpti.kpti_writes": "kpti writes",
    "kpti.kpti_progress": "kpti progress, kpti until",
    "kpti.kpti_verdict": "kpti verdict",
    "target.demo": "demo",
    "stack.oops": "oops",
    "target.lane": "lane",
    "stack.stack": "stack, stack tasks",
    "stack.stack_guard": "stack guard",
    "stack.stack_trace": "stack trace, stack diff",
    "stack.stack_highwater": "stack highwater, stack watch",
    "stack.why": "why",
    "session.expect": "expect",
    "session.record": "record",
    "session.scripting": "scripts, var, repeat, on stop, on failure, source",
    "tables.poke": "poke descriptor, poke undo",
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
