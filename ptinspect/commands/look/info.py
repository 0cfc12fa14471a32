"""`info`: the words that GDB's users type, as the commands that answer them here."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping

from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.command import ambiguous, argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import Words
from ptinspect.dataclass import replace
from ptinspect.errors import UserError
from ptinspect.output.model import Note, Report, Styled, Table, headings

WORDS: Mapping[str, str] = {
    "address": "symbol",
    "all-registers": "regs",
    "breakpoints": "break",
    "files": "kernel",
    "frame": "stack",
    "line": "symbol",
    "mem": "map",
    "registers": "regs",
    "stack": "bt",
    "symbol": "symbol",
    "target": "status",
    "threads": "cpu",
    "watchpoints": "break",
}
"""GDB's word -> our command."""


def info_word(text: str) -> str:
    """Read a word of GDB's."""
    return text


arguments.completes("info", info_word, WORDS)


@command(
    "info",
    aliases=("i",),
    group="Look",
    summary="Answer GDB's info: registers, breakpoints, threads, symbol …",
    example="info registers x0 sp",
    arguments=(
        argument("what", nargs="?", type=info_word, metavar="WHAT", help="none: list them"),
        argument("rest", nargs=argparse.REMAINDER, metavar="…", help="arguments of that command"),
    ),
    details="; ".join(f"{word}: {ours}" for word, ours in WORDS.items())
    + ". Words may be abbreviated (i r). What else there is, is GDB's: gdb info …",
)
def info(ctx: Context, *, what: str | None, rest: list[str]) -> Report:
    """Run the command that answers."""
    if what is None:
        rows = [(Styled(f"info {word}", "level"), ours) for word, ours in WORDS.items()]
        return Report({"words": dict(WORDS)}, (Table(headings("GDB", "here"), rows),))
    ours = find(what)
    typed = shlex.join(rest)
    report = ctx.registry.run(
        ctx, ctx.registry.bind(Words(ctx.registry.commands[(ours,)], tuple(rest), typed))
    )
    return replace(report, body=(*report.body, Note(f"({' '.join([ours, typed]).strip()})", "dim")))


def find(word: str) -> str:
    """Return our command for a word of GDB's, or for its beginning. Raises UserError."""
    if word in WORDS:
        return WORDS[word]
    short = {"r": "registers", "b": "breakpoints", "s": "stack", "f": "frame"}  # as in GDB
    begins = [name for name in WORDS if name.startswith(word)]
    if word in short or len({WORDS[name] for name in begins}) == 1:
        return WORDS[short.get(word) or begins[0]]
    if begins:
        raise ambiguous(f"info {word}", begins)
    raise UserError(f"info {word}: not answered here", f"one of: {', '.join(WORDS)}; or: gdb info {word}")
