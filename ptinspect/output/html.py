"""One self-contained HTML page: snapshots as maps, differences, stack depth and campaigns.

The page holds its data and a script of its own that draws them; it needs no network.
Numbers that a double cannot hold travel as hex text or as packed 64-bit words.
"""

from __future__ import annotations

import base64
import html
import json
import zlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from ptinspect.analysis.atlas import STATES, Atlas, Pattern, delta_planes
from ptinspect.arch.levels import level_name, levels_of
from ptinspect.dataclass import dataclass, field
from ptinspect.output.model import Table, escape
from ptinspect.output.text import brief
from ptinspect.snapshot.coverage import unseen
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.kinds import KIND_NAMES

PAGE_VERSION = 4
"""Version of the data in the page."""
CSP = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
"""Nothing is fetched, whatever the data contain."""
SCRIPTS = ("parts", "maps", "pairs", "charts", "campaigns", "main")
"""The parts of the page's script, in order; all of them stand in one function."""


@dataclass
class Page:
    """Collect what a page shows."""

    title: str
    """Title of the page."""
    maps: list[dict[str, Any]] = field(default_factory=list)
    """Snapshots, and pairs of them."""
    diffs: list[dict[str, Any]] = field(default_factory=list)
    """Results of `diff`."""
    spaces: list[dict[str, Any]] = field(default_factory=list)
    """Address spaces by regions, of a snapshot or a pair."""
    traces: list[dict[str, Any]] = field(default_factory=list)
    """Stack depth over time."""
    campaigns: list[dict[str, Any]] = field(default_factory=list)
    """What came of campaigns."""
    _fields: dict[tuple[str, str, str], int] = field(default_factory=dict)
    """Every field of a descriptor that occurs, with its meaning, and its number."""
    _plain: list[int] = field(default_factory=list)
    """The maps of snapshots alone, in order."""
    _last: dict[str, bytes] = field(default_factory=dict)
    """The columns of the map that was added last."""

    def add_map(self, snapshot: Snapshot, shown: Atlas, title: str, *, diff: bool = False) -> None:
        """Add a map: the states of a snapshot's descriptors, or what changed (the `diff` added last)
        between the snapshots added last."""
        regime = snapshot.regime
        if not diff:
            self._plain.append(len(self.maps))
        self.maps.append(
            {
                "title": title,
                "earlier": self._plain[-2] if diff else None,
                "diff": len(self.diffs) - 1 if diff else None,
                "root": f"{snapshot.root.pa:#x}",
                "provenance": snapshot.root.provenance,
                "where": brief(snapshot.meta.where),
                "kernel": snapshot.meta.kernel,
                "created": snapshot.meta.created,
                "regime": {
                    "start_level": regime.start_level,
                    "shifts": {str(n): regime.shift(n) for n in levels_of(regime)},
                },
                "names": level_names(snapshot),
                "level": shown.level.tolist(),
                "pa": self._planes("pa", delta_planes(shown.pa)),
                "va": self._planes("va", delta_planes(shown.va)),
                "entries": int(shown.raw.shape[1]),
                "raw": self._planes("raw", delta_planes(shown.raw)),
                "decoded": self._planes("decoded", delta_planes(shown.decoded)),
                "links": self._planes("links", delta_planes(shown.links)),
                "states": self._planes("states", shown.states.tobytes()),
                "counts": {str(level): dict(counts) for level, counts in shown.counts.items()},
                "patterns": [*({"kind": name} for name in KIND_NAMES), *map(self._pattern, shown.patterns)],
                "left_out": shown.left_out,
                "hidden": self._planes("hidden", delta_planes(shown.hidden)),
                "unseen": [*unseen(snapshot), *shown.notes],
            }
        )

    def _planes(self, name: str, data: bytes) -> dict[str, Any]:
        """Return packed data; where that is shorter, what differs (by exclusive or) from the last map's."""
        last, self._last[name] = self._last.get(name, b""), data
        alone = packed(data)
        if len(last) != len(data):
            return {"packed": alone, "differs": False}
        differing = int.from_bytes(data, "little") ^ int.from_bytes(last, "little")
        other = packed(differing.to_bytes(len(data), "little"))
        return {"packed": min(alone, other, key=len), "differs": len(other) < len(alone)}

    def _pattern(self, pattern: Pattern) -> dict[str, Any]:
        """Return the numbers of its fields among all, and its distance from an address as text."""
        fields = [self._fields.setdefault(field, len(self._fields)) for field in pattern.fields]
        return {"kind": pattern.kind, "distance": f"{pattern.distance:#x}", "fields": fields}

    def add_diff(self, result: Mapping[str, Any], verdict: str, words: Sequence[str]) -> None:
        """Add the answer of `diff`, its verdict, and each of its changes in words and where it is."""
        changes = [
            {key: change[key] for key in ("va_start", "level", "kinds")} for change in result["changes"]
        ]
        self.diffs.append({**result, "changes": changes, "verdict": verdict, "words": words})

    def text(self) -> str:
        """Return the page."""
        folder = resources.files("ptinspect.output") / "page"
        data = {
            "version": PAGE_VERSION,
            "states": state_names(),
            "fields": list(self._fields),
            "spaces": self.spaces,
            "maps": self.maps,
            "diffs": self.diffs,
            "traces": self.traces,
            "campaigns": self.campaigns,
        }
        parts = {
            "CSP": CSP,
            "TITLE": html.escape(escape(self.title)),
            "STYLE": (folder / "page.css").read_text("utf-8"),
            "DATA": as_script(data),
            "SCRIPT": "".join((folder / f"{name}.js").read_text("utf-8") for name in SCRIPTS),
        }
        out = []
        for piece in (folder / "page.html").read_text("utf-8").split("@@"):
            out.append(parts.get(piece, piece))
        return "".join(out)


def as_script(data: Mapping[str, Any]) -> str:
    """Return JSON that may stand inside a script element, whatever strings it holds."""
    text = json.dumps(_shown(data), ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _shown(value: Any) -> Any:
    """Escape what is not printable in all strings: guests and files name things as they like."""
    if isinstance(value, str):
        return value if value.isprintable() else "\n".join(escape(line) for line in value.split("\n"))
    if isinstance(value, Mapping):
        return {key: _shown(item) for key, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, (list, tuple)) else value


def packed(data: bytes) -> str:
    """Return bytes as base64 of a zlib stream."""
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")


def state_names() -> Sequence[str]:
    """Return the names of the states, by code."""
    return STATES


def level_names(snapshot: Snapshot) -> dict[str, str]:
    """Return Linux's name of each level."""
    return {str(n): level_name(n, snapshot.regime) for n in levels_of(snapshot.regime)}


def table_of(table: Table) -> dict[str, Any]:
    """Return a table as the page draws it."""
    return {
        "title": table.title,
        "heads": [column.title for column in table.columns],
        "rows": [[str(cell) for cell in row] for row in table.rows],
        "numeric": [n for n, column in enumerate(table.columns) if column.align == "right"],
    }
