"""The arguments of a command: argparse without its ways out of the process, and the words it gets."""

from __future__ import annotations

import argparse
from typing import NoReturn

from ptinspect.errors import UserError

PROGRAM = "ptinspect"
"""The program's own parser: its name stands in front of every error anyway."""


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UserError instead of leaving the process."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the usage as hint; for a misspelt option, with those that are meant."""
        named = "" if self.prog == PROGRAM else f"{self.prog}: "
        raise UserError(f"{named}{message}", self._meant(message) or " ".join(self.format_usage().split()))

    def _meant(self, message: str) -> str:
        import difflib

        wrong = message.removeprefix("unrecognized arguments: ").split()
        if wrong and wrong[0].startswith("--") and not message.startswith(wrong[0]):
            options = [name for action in self._actions for name in action.option_strings]
            close = difflib.get_close_matches(wrong[0], options, 2)
            lists = "ptinspect --help" if self.prog == PROGRAM else f"'help {self.prog}'"
            return f"did you mean {' or '.join(close)}? {lists} lists the options" if close else ""
        return ""

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Raise UserError: no argument ends the process."""
        raise UserError((message or f"{self.prog}: exit {status}").strip())

    def actions(self) -> list[argparse.Action]:
        """Return the arguments in the order of their declaration, for help and completion."""
        return list(self._actions)


def joined(arguments: list[str]) -> list[str]:
    """Join what stands around a + or - of its own: `$sp - 16` is one expression."""
    found: list[str] = []
    for word in arguments:
        after_sign = len(found) > 1 and found[-1] in ("+", "-") and not found[-2].startswith("-")
        if after_sign and not word.startswith("-"):
            found[-2:] = [f"{found[-2]}{found[-1]}{word}"]
        else:
            found.append(word)
    return found


def divide(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before and after the first `--`."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:cut], arguments[cut + 1 :]
