"""What is typed or pasted at the prompt: prompts that came along, several commands, where output goes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.script.parse import outside_quotes

_PROMPTS = re.compile(r"(?:\s*(?:\(gdb\)|ptinspect>|pwndbg>|gef➤)(?=\s|$))+\s*")
"""Prompts of this and of other debuggers, as they come along with a line that is pasted."""
_FILE = re.compile(r"(?:^|(?<=\s))(>>?)\s*([^\s<>|]+|'[^']+'|\"[^\"]+\")\s*$")


_CONDITION = re.compile(r"\sif[\s(]")
_OPERAND = re.compile(r"[\d$(\-!*&']|~[\d$(]")
EXPRESSION = "expression"


@dataclass(frozen=True)
class Typed:
    """One command of a line, and where its output goes."""

    text: str
    """The command."""
    shell: str = ""
    """The shell's command that gets its output; empty if none does."""
    file: str = ""
    """The file that gets it; empty if none does."""
    append: bool = False
    """The file keeps what it holds."""


def without_prompt(line: str) -> str:
    """Return a line without the prompts in front of it."""
    found = _PROMPTS.match(line)
    return line[found.end() :] if found else line


def commands(line: str, own: Callable[[str], str]) -> Iterator[Typed]:
    """Yield the commands of a line, one after the other.

    `own` returns which of the signs `;`, `|` and `>` a command takes as part of its arguments, or EXPRESSION
    where they are the operators of C that stand before an operand or in parentheses. Raises UserError for a
    pipe or a file without a command before it or a name after it.
    """
    rest = line.strip()
    while rest:
        if rest.startswith("|"):  # GDB's `| COMMAND | SHELL`: whatever the command takes
            text, _, shell = _cut(rest[1:], "|")
            yield _piped(text, shell)
            return
        signs = own(rest)
        text, _, rest = (rest, "", "") if ";" in signs else _cut(rest, ";")
        text, rest = text.strip(), rest.strip()
        if signs == EXPRESSION:
            text, pipe, shell = _cut(text, "|", _of_c(text))
            signs = ">" if (_file_at(text), ">") in _of_c(text) else ""
        else:
            text, pipe, shell = (text, "", "") if "|" in signs else _cut(text, "|")
        if pipe:
            yield _piped(text, shell)
            continue
        found = None if ">" in signs else _FILE.search(text)
        if found and (found.start(), ">") in outside_quotes(text):
            name = found[2].strip("'\"")
            yield Typed(text[: found.start()].strip(), file=name, append=found[1] == ">>")
        elif ">" not in signs and (len(text) - 1, ">") in outside_quotes(text):
            raise UserError("> has the name of a file behind it", "summary > FILE")
        elif text:
            yield Typed(text)


def _file_at(text: str) -> int:
    found = _FILE.search(text)
    return found.start() if found else -1


def _of_c(text: str) -> list[tuple[int, str]]:
    """Return where `|` and `>` are operators: in parentheses, in `->` and `>=`, before operands, after if."""
    found, depth = [], 0
    condition = _CONDITION.search(text)
    for at, char in outside_quotes(text):
        depth += (char in "([") - (char in ")]")
        if char in "|>":
            after = text[at + 1 :].lstrip("|>=").lstrip()
            joined = (
                text[at - 1 : at] == "-"
                or text[at + 1 : at + 2] == "="
                or "||" in text[max(at - 1, 0) : at + 2]
            )
            if depth > 0 or joined or _OPERAND.match(after) or (condition and at > condition.start()):
                found.append((at, char))
    return found


def _piped(text: str, shell: str) -> Typed:
    if not text.strip() or not shell.strip():
        raise UserError("a pipe has a command on both of its sides", "regs | grep TTBR")
    return Typed(text.strip(), shell=shell.strip())


def _cut(line: str, sign: str, but: Sequence[tuple[int, str]] = ()) -> tuple[str, str, str]:
    """Part a line at the first `sign` outside quotes, and not one of those, as str.partition does."""
    for at, char in outside_quotes(line):
        if char == sign and (at, char) not in but:
            return line[:at], sign, line[at + 1 :]
    return line, "", ""
