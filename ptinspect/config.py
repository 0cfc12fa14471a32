"""The user's configuration file: TOML, a value for each name; read at the start, written by `set --save`."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ptinspect.errors import UserError
from ptinspect.files import replacing, user_directory
from ptinspect.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

VARIABLE = "PTINSPECT_CONFIG"
"""Environment variable that names another file."""
MAX_BYTES = 1 << 20
"""A larger file is not a configuration."""


def location() -> str:
    """Return where the configuration file is, which need not be there."""
    chosen = os.environ.get(VARIABLE)
    return os.path.expanduser(chosen) if chosen else f"{user_directory('config')}/config.toml"  # noqa: PTH111


def config_file() -> Path:
    """Return the path of the configuration file, which need not be there."""
    from pathlib import Path

    return Path(location())


def read(path: Path | str) -> Mapping[str, object]:
    """Return the values in the file; none if there is no file. Raises UserError if it cannot be used."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (a start is over before pathlib is imported)
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"{path} is too large for a configuration file")
    import tomllib

    try:
        return tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not a TOML file: {error}") from error


def write(path: Path, values: Mapping[str, object]) -> None:
    """Put values into the file in one step; what else stands there, comments too, stays.

    Raises UserError if the file cannot be read, is not TOML, or cannot be written.
    """
    read(path)
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {path}: it is not a regular file")
    import tomlkit

    try:
        document = tomlkit.parse(path.read_text("utf-8")) if path.exists() else tomlkit.document()
        for name, value in values.items():
            document[name] = value
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    with replacing(path) as file:
        file.write(tomlkit.dumps(document).encode())
