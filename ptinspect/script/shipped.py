"""The scripts that come with ptinspect."""

from __future__ import annotations

from pathlib import Path

from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.script.parse import parse, read_script
from ptinspect.script.statements import Statement, Var
from ptinspect.script.variables import words
from ptinspect.text import similar

FOLDER = Path(__file__).resolve().parent.parent / "scripts"
SUFFIX = ".pti"


@dataclass(frozen=True)
class ShippedScript:
    """Describe a script that comes with ptinspect."""

    name: str
    """What follows the `@`."""
    path: Path
    summary: str
    """The first line of the comment at its top."""
    variables: tuple[tuple[str, str], ...]
    """Its variables and their defaults."""


def find(name: str) -> Path:
    """Return the file of a script. Raises UserError if there is none of that name."""
    path = FOLDER / f"{name}{SUFFIX}"
    names = sorted(file.stem for file in FOLDER.glob(f"*{SUFFIX}"))
    if name not in names:
        close = similar(name, names)
        raise UserError(
            f"no script @{name}", f"did you mean @{close[0]}?" if close else "'scripts' lists those there are"
        )
    return path


def path_of(script: str) -> Path:
    """Return the file of a script: a path, or `@NAME`, one of ptinspect's own. Raises UserError."""
    return find(script[1:]) if script.startswith("@") else Path(script)


def open_script(script: str) -> tuple[Statement, ...]:
    """Return the statements of a file, or of `@NAME`, a script of ptinspect's own. Raises UserError."""
    try:
        path = path_of(script).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UserError(f"{script}: {error}") from error
    return read_script(path, script if script.startswith("@") else "")


def shipped_scripts() -> tuple[ShippedScript, ...]:
    """Return all scripts by name."""
    return tuple(_read(path) for path in sorted(FOLDER.glob(f"*{SUFFIX}")))


def _read(path: Path) -> ShippedScript:
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next((line.lstrip("# ").strip() for line in lines if line.startswith("#")), "")
    given = tuple(
        (s.name, " ".join(words(s.value, {}))) for s in parse(path.name, lines) if isinstance(s, Var)
    )
    return ShippedScript(path.stem, path, first, given)
