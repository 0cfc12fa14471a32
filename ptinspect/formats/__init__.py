"""JSON Schemas of what commands answer: one file for each command, `stack-tasks.json` for `stack tasks`.

They describe `result` of a line that `--json` prints, and the files that `-o FILE.json` writes. Within a
version fields are added, never renamed or removed, and none changes its meaning; so a schema allows fields
that it does not know.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the commands that have a schema, in order."""
    return sorted(path.stem.replace("-", " ") for path in FOLDER.glob("*.json"))


def schema(command: str) -> dict[str, Any]:
    """Return the schema of a command's result. Raises FileNotFoundError if it has none."""
    found: dict[str, Any] = json.loads((FOLDER / f"{command.replace(' ', '-')}.json").read_text())
    return found
