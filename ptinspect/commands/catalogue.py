"""The list of command files, and the registry that they make."""

from __future__ import annotations

import importlib

from ptinspect.commands.registry import Registry

MODULES: tuple[str, ...] = (
    "help",
    "decode",
    "target",
    "regs",
    "walk",
    "snapshots",
    "run",
    "frames",
    "memory",
    "passthrough",
    "kernel",
    "tables",
    "diff",
    "report",
    "check",
    "setup",
    "kpti",
    "kpti_writes",
    "demo",
    "oops",
    "lane",
    "stack",
    "stack_guard",
    "why",
    "poke",
)
"""Modules of ptinspect.commands, each with `register(registry)`; imported when the registry is built.

Each must import cheaply: numpy, elftools, pygdbmi and prompt_toolkit only inside handlers.
"""


def build_registry() -> Registry:
    """Return a registry with every command."""
    registry = Registry()
    for name in MODULES:
        importlib.import_module(f"ptinspect.commands.{name}").register(registry)
    return registry
