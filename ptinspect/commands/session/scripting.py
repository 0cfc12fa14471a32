"""`scripts`, and the words of the script language: `var`, `repeat`, `on stop`, `on failure`, `source`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.command import argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.output.model import Cell, Note, Report, Styled, Table, headings

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


@dataclass(frozen=True)
class ScriptResult:
    """A script that came with ptinspect."""

    name: str
    path: str
    summary: str
    variables: Mapping[str, str]


@dataclass(frozen=True)
class ScriptsResult:
    """The scripts that came with ptinspect."""

    scripts: Sequence[ScriptResult]


@command(
    "scripts",
    group="Session",
    summary="List the scripts that come with ptinspect",
    example="scripts",
    result=ScriptsResult,
    details=LANGUAGE,
)
def scripts(ctx: Context) -> Report:
    """List the scripts that come with ptinspect."""
    from ptinspect.script.shipped import shipped_scripts

    found = shipped_scripts()
    rows: list[tuple[Cell, ...]] = []
    for script in found:
        rows.append((Styled(f"@{script.name}", "level"), script.summary))
        given = ", ".join(f"{name}={value}" if value else name for name, value in script.variables)
        rows.append(("", Styled(given, "dim")))
    table = Table(headings("script", "what it does, and its variables"), rows, "Scripts")
    listed = [ScriptResult(s.name, str(s.path), s.summary, dict(s.variables)) for s in found]
    return Report(ScriptsResult(listed), (table, Note("run one: ptinspect -x @NAME --var NAME=VALUE", "dim")))


def script_file(text: str) -> str:
    """Read the name of a script: a file, or `@NAME` for one that came along."""
    return text


arguments.completes("script", script_file)


@command(
    "var",
    group="Session",
    summary="Give a variable of a script its default",
    example="var mem = 1024",
    details="""\
var NAME = VALUE
--var NAME=VALUE on the command line wins. ${NAME} stands for the value wherever it is written, and is one
word whatever is in it; ${NAME:-DEFAULT} needs no value; $${ is ${ itself.""",
    passthrough=True,
)
def var(ctx: Context, *, line: str) -> Report:
    """Raise UserError: the player takes this word before it comes to a command."""
    raise _word()


@command(
    "repeat",
    group="Session",
    summary="Run commands a number of times",
    example="repeat 3 as n: stepi; regs pc",
    details="""\
repeat COUNT [as NAME]: COMMAND; …
The commands stand after the colon, with semicolons between, or below it, indented. With `as NAME` a
variable counts the rounds from 1.""",
    passthrough=True,
)
def repeat(ctx: Context, *, line: str) -> Report:
    """Raise UserError: the player takes this word before it comes to a command."""
    raise _word()


@command(
    "on stop",
    group="Session",
    summary="Run commands whenever the guest stops at a place",
    example="on stop kpti_install_ng_mappings: snap here; continue",
    details="""\
on stop PLACE: COMMAND; …
The commands may stand below, indented. PLACE is an address, the number of a breakpoint, or any; the
breakpoint itself is set by break. It counts for stops of continue, until, finish and interrupt. `continue`
as the last command goes on with what was interrupted, within the same time limit (finish cannot go on); an
until that has arrived is over, and the script goes on.
Stops that say the same as the last one there, but for CPU and number of hits, are counted instead of shown:
`set fold off` shows all, --json always does. `on stop PLACE: off` ends it.""",
    passthrough=True,
)
def on_stop(ctx: Context, *, line: str) -> Report:
    """Raise UserError: the player takes this word before it comes to a command."""
    raise _word()


@command(
    "on failure",
    group="Session",
    summary="Run commands once when the script fails",
    example="on failure: console -n 30; status",
    details="""\
on failure: COMMAND; …
The commands may stand below, indented. They run right after the first command that failed, each of them
even if one fails, and do not change the exit code; not at the prompt, and not when the time limit of the
whole run is over. The last `on failure` counts; `on failure: off` ends it.""",
    passthrough=True,
)
def on_failure(ctx: Context, *, line: str) -> Report:
    """Raise UserError: the player takes this word before it comes to a command."""
    raise _word()


@command(
    "source",
    group="Session",
    summary="Run a script",
    example="source @kpti-diff",
    arguments=(argument("file", type=script_file, metavar="FILE|@NAME", help="the script"),),
    details="""\
As -x does: @NAME is one of those that came with ptinspect ('scripts' lists them); a file is looked for from
the current directory. It sees the variables of the script that calls it, and the other way round.""",
)
def source(ctx: Context, *, file: str) -> Report:
    """Raise UserError: the player takes this word before it comes to a command."""
    raise _word()


def _word() -> UserError:
    return UserError("this is a word of scripts and of the prompt, and cannot be used here", "help scripts")
