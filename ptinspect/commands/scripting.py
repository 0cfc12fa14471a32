"""`scripts`, and the words of the script language: `var`, `repeat`, `on stop`, `source`."""

from __future__ import annotations

import argparse

from ptinspect.commands.context import Context
from ptinspect.commands.registry import Registry
from ptinspect.errors import UserError
from ptinspect.output.model import Column, Note, Report, Styled, Table

WORDS = {
    "var": (
        "Give a variable of a script its default",
        "var mem = 1024",
        "--var NAME=VALUE on the command line wins. ${NAME} stands for the value wherever it is written, and "
        "is one word whatever is in it; ${NAME:-DEFAULT} needs no value; $${ is ${ itself.",
    ),
    "repeat": (
        "Run commands a number of times",
        "repeat 3 as n: stepi; regs pc",
        "The commands stand behind the colon, with semicolons between, or below it, indented. With `as NAME` "
        "a variable counts the rounds from 1.",
    ),
    "on stop": (
        "Run commands whenever the guest stops at a place",
        "on stop kpti_install_ng_mappings: snap here; continue",
        "The place is an address, the number of a breakpoint, or any; the breakpoint itself is set by break. "
        "It counts for stops of continue, until, finish and interrupt. `continue` as the last command goes "
        "on with what was interrupted, within the same time limit. `on stop PLACE: off` ends it.",
    ),
    "source": (
        "Run a script",
        "source @kpti-diff",
        "As -x does: @NAME is one of those that came with ptinspect ('scripts' lists them). It sees the "
        "variables of the script that calls it.",
    ),
}
"""Name -> summary, example, details."""


def register(registry: Registry) -> None:
    """Add the commands."""
    registry.command(
        "scripts", summary="List the scripts that come with ptinspect", example="scripts", details=LANGUAGE
    )(scripts)
    for name, (summary, example, details) in WORDS.items():
        registry.command(name, summary=summary, example=example, details=details, passthrough=True)(_word)


LANGUAGE = """\
ptinspect -x FILE (or -x @NAME for one of these) runs a script: one command a line; # begins a comment; a
line that ends with a backslash goes on in the next. help var, help repeat, help on stop and help source
explain the rest of the language; help expect how to fail. The first command that fails ends the script
with its exit code (--keep-going: the others still run). --timeout SECONDS limits the whole run; commands
that let the guest run have a limit of their own. --junit FILE writes a report."""


def scripts(ctx: Context, args: argparse.Namespace) -> Report:
    """List the scripts that come with ptinspect."""
    from ptinspect.script.ready import ready

    found = ready()
    rows = [
        (
            Styled(f"@{script.name}", "level"),
            script.summary,
            ", ".join(f"{name}={value}" for name, value in script.variables),
        )
        for script in found
    ]
    table = Table((Column("script"), Column("what it does"), Column("variables")), rows, "Scripts")
    result = {
        "scripts": [
            {"name": s.name, "path": str(s.path), "summary": s.summary, "variables": dict(s.variables)}
            for s in found
        ]
    }
    return Report(result, (table, Note("run one: ptinspect -x @NAME --var NAME=VALUE", "dim")))


def _word(ctx: Context, args: argparse.Namespace) -> Report:
    raise UserError(
        "this is a word of scripts and of the prompt, and cannot be used here",
        "help var, help repeat, help on stop, help source",
    )
