"""Scripts: files of command lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ptinspect.errors import UserError
from ptinspect.repl.runner import Line


def read_script(path: Path) -> Iterator[Line]:
    """Return the commands of a script: one a line; empty lines and those that begin with # are skipped.

    Raises UserError if the file cannot be read as text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the script {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text file (UTF-8)") from error
    return lines_of(str(path), text.splitlines())


def lines_of(name: str, lines: Iterable[str]) -> Iterator[Line]:
    """Return the commands among `lines`, each with its place `name:number`."""
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield Line(stripped, f"{name}:{number}")
