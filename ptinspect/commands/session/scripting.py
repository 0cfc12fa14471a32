"""`scripts`, and the words of the script language: `var`, `repeat`, `on stop`, `on failure`, `source`."""

from __future__ import annotations

import argparse
import textwrap

from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import Registry, no_arguments
from ptinspect.errors import UserError
from ptinspect.output.model import Cell, Column, Note, Report, Styled, Table
from ptinspect.script.shipped import ready

WORDS = {
    "var": (
        "Give a variable of a script its default",
        "var mem = 1024",
        """\
var NAME = VALUE
--var NAME=VALUE on the command line wins. ${NAME} stands for the value wherever it is written, and is one
word whatever is in it; ${NAME:-DEFAULT} needs no value; $${ is ${ itself.""",
    ),
    "repeat": (
        "Run commands a number of times",
        "repeat 3 as n: stepi; regs pc",
        """\
repeat COUNT [as NAME]: COMMAND; …
The commands stand behind the colon, with semicolons between, or below it, indented. With `as NAME` a
variable counts the rounds from 1.""",
    ),
    "on stop": (
        "Run commands whenever the guest stops at a place",
        "on stop kpti_install_ng_mappings: snap here; continue",
        """\
on stop PLACE: COMMAND; …
The commands may stand below, indented. PLACE is an address, the number of a breakpoint, or any; the
breakpoint itself is set by break. It counts for stops of continue, until, finish and interrupt. `continue`
as the last command goes on with what was interrupted, within the same time limit (finish cannot go on).
`on stop PLACE: off` ends it.""",
    ),
    "on failure": (
        "Run commands once when the script fails",
        "on failure: console -n 30; status",
        """\
on failure: COMMAND; …
The commands may stand below, indented. They run right after the first command that failed, each of them
even if one fails, and do not change the exit code; not at the prompt, and not when the time limit of the
whole run is over. The last `on failure` counts; `on failure: off` ends it.""",
    ),
    "source": (
        "Run a script",
        "source @kpti-diff",
        """\
As -x does: @NAME is one of those that came with ptinspect ('scripts' lists them); a file is looked for from
the current directory. It sees the variables of the script that calls it, and the other way round.""",
    ),
}
"""Name -> summary, example, details."""


def register(registry: Registry[Context]) -> None:
    """Add the commands."""
    registry.command(
        "scripts", summary="List the scripts that come with ptinspect", example="scripts", details=LANGUAGE
    )(scripts)
    for name, (summary, example, details) in WORDS.items():
        takes_file = name == "source"
        registry.command(
            name,
            summary=summary,
            example=example,
            details=details,
            configure=_configure_source if takes_file else no_arguments,
            passthrough=not takes_file,
        )(_word)


EXAMPLE = """\
# a comment
var mem = 1024                        # a default: --var mem=2048 wins
launch --unless-attached \\
    --memory ${mem} --smp ${smp:-1}   # a backslash continues the line
on failure: console -n 30; status     # once, after the first failure
break start_kernel
on stop any:                          # whenever the guest stops
    regs pc sp
continue
repeat 3 as n: stepi; regs pc         # or the commands below, indented
expect stack free >= 4K               # ends the script unless it holds
"""
"""A script that shows the language."""

LANGUAGE = f"""\
ptinspect -x FILE, or -x @NAME for one of these, runs a script:

{textwrap.indent(EXAMPLE, "    ")}
help var, help repeat, help on stop, help on failure, help source and help expect say more.

The whole script is looked at before it runs: unknown commands, variables without a value and wrong blocks
end it with exit code 2. The first command that fails ends it with its exit code, and FILE:LINE in front of
what went wrong; --keep-going runs the others still, and the first failure's code counts. Exit codes:
0 done, 1 a check or an expectation failed, 2 wrong usage, 3 target or guest error, 4 could not attach,
130 Ctrl-C.

Commands that let the guest run have a limit, --timeout; ptinspect --timeout SECONDS limits the whole run
(exit code 3). --json prints one line for each command, with its place; --junit FILE writes a report;
record FILE makes a script of what is typed."""


def scripts(ctx: Context, args: argparse.Namespace) -> Report:
    """List the scripts that come with ptinspect."""
    found = ready()
    rows: list[tuple[Cell, ...]] = []
    for script in found:
        rows.append((Styled(f"@{script.name}", "level"), script.summary))
        said = ", ".join(f"{name}={value}" if value else name for name, value in script.variables)
        rows.append(("", Styled(said, "dim")))
    table = Table((Column("script"), Column("what it does, and its variables")), rows, "Scripts")
    result = {
        "scripts": [
            {"name": s.name, "path": str(s.path), "summary": s.summary, "variables": dict(s.variables)}
            for s in found
        ]
    }
    return Report(result, (table, Note("run one: ptinspect -x @NAME --var NAME=VALUE", "dim")))


def script_file(text: str) -> str:
    """Read the name of a script: a file, or `@NAME` for one that came along."""
    return text


def _configure_source(parser: argparse.ArgumentParser) -> None:
    kind = argtypes.completes("script", script_file)
    parser.add_argument("file", type=kind, metavar="FILE|@NAME", help="the script")


def _word(ctx: Context, args: argparse.Namespace) -> Report:
    raise UserError(
        "this is a word of scripts and of the prompt, and cannot be used here",
        "help scripts",
    )
