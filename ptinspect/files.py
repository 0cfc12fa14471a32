"""Files of the user: opened without waiting for a writer, and written whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from ptinspect.errors import UserError
from ptinspect.typed import IO, TYPE_CHECKING, BinaryIO, Literal

if TYPE_CHECKING:
    from pathlib import Path

CACHE_VARIABLE = "PTINSPECT_CACHE"
"""Environment variable with the directory to use instead of the user's cache directory."""


def cache_directory() -> Path:
    """Return the directory of everything that ptinspect keeps for the user; it may not exist yet."""
    from pathlib import Path

    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen or user_directory("cache")).absolute()


def user_directory(kind: Literal["cache", "config", "state"]) -> str:
    """Return the user's directory of one kind for ptinspect; it may not exist yet.

    XDG Base Directory Specification 0.8; without a home and HOME, as in some containers, those of HOME=/.
    """
    usual = {"cache": ".cache", "config": ".config", "state": ".local/state"}[kind]
    chosen = os.environ.get(f"XDG_{kind.upper()}_HOME", "")
    if not chosen.startswith("/"):
        home = os.path.expanduser("~")  # noqa: PTH111 (a start is over before pathlib is imported)
        chosen = f"{'' if home in ('~', '/') else home}/{usual}"
    return f"{chosen}/ptinspect"


def open_input(path: Path | str) -> BinaryIO:
    """Open a file for reading; a FIFO without a writer is empty. Raises OSError, ValueError."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISDIR(os.fstat(number).st_mode):
        os.close(number)
        raise IsADirectoryError(21, "Is a directory", str(path))
    os.set_blocking(number, True)
    return os.fdopen(number, "rb")


def need_file(path: Path, what: str = "", hint: str = "") -> None:
    """Raise UserError unless this is a file that can be read more than once; `what` names whose it is."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: it has a NUL
        raise UserError(f"{what}no file {path}", hint) from None
    except OSError as error:
        raise UserError(f"{what}cannot read {path}: {error.strerror or error}") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{what}{path} is a directory")
    if not stat.S_ISREG(mode):
        raise UserError(f"{what}{path} can be read only once", "write it to a file first")


@contextmanager
def replacing(path: Path, *, lasting: bool = True) -> Iterator[IO[bytes]]:
    """Open a temporary file that takes the place of `path` at the end, unless an error ends the block.

    A device or FIFO is not replaced, but written to. Not `lasting`: it need not outlive the machine, so that
    nobody waits for the disk. Raises UserError if it cannot be written.
    """
    import tempfile
    from pathlib import Path

    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            with path.open("wb") as file:
                yield file
            return
        target = path.resolve()
        with tempfile.NamedTemporaryFile(
            "wb", dir=target.parent, prefix=f".{target.name:.100}.", delete=False
        ) as file:
            temporary = Path(file.name)
            try:
                yield file
                file.flush()
                if lasting:
                    os.fsync(file.fileno())
                temporary.chmod(0o666 & ~_umask())
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def _umask() -> int:
    mask = os.umask(0o22)
    os.umask(mask)
    return mask
