"""Answers about the types of one kernel, kept in the user's cache: finding them in DWARF is slow."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from ptinspect.linux.kallsyms import cache_directory

VERSION = 2
"""Version of the file's format."""
MAX_ANSWERS = 4096
MAX_BYTES = 1 << 20
_LENGTHS = {"size": 1, "field": 2, "bits": 2, "has": 1}
"""Kind of question -> numbers of its answer."""


class Answers:
    """Keep what was answered about one kernel in the user's cache, a JSON file; it may fail silently."""

    def __init__(self, key: str) -> None:
        """Begin with what was kept under this key."""
        self._file = cache_directory("types") / f"{key}.json"
        self._known: dict[str, list[int]] = {}
        try:
            stored = json.loads(self._file.read_bytes()[:MAX_BYTES])
            if stored["version"] == VERSION:
                answers = {str(k): [int(n) for n in v] for k, v in stored["answers"].items()}
                self._known = {k: v for k, v in answers.items() if len(v) == _LENGTHS.get(k.split(" ")[0])}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return

    def get(self, question: str, ask: Callable[[], list[int]]) -> list[int]:
        """Return the answer, asking if it is not known; what asking raises is not kept."""
        if question not in self._known:
            answer = ask()
            if len(self._known) >= MAX_ANSWERS:
                return answer
            self._known[question] = answer
            self._save()
        return self._known[question]

    def _save(self) -> None:
        text = json.dumps({"version": VERSION, "answers": self._known})
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._file.parent, suffix=".tmp", delete=False) as file:
                file.write(text)
            Path(file.name).replace(self._file)
        except OSError:
            return
