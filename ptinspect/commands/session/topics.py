"""The texts of `help`: what is not about one command."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ptinspect.dataclass import dataclass
from ptinspect.output.encode import ABSENT, Absent
from ptinspect.output.model import Note, Report, Styled, Table, headings

FOLDER = os.path.join(os.path.dirname(__file__), "../../topics")  # noqa: PTH118, PTH120 (as in catalogue.py)
"""A file for each: its title, an empty line, paragraphs; indented lines stay as they are."""


@dataclass(frozen=True)
class TopicResult:
    """A text."""

    topic: str
    title: str
    text: str


@dataclass(frozen=True)
class FoundTopic:
    """A line of a text in which a word was found."""

    topic: str
    title: str
    line: str


@dataclass(frozen=True)
class FoundResult:
    """Where a word was found."""

    found: Sequence[FoundTopic]
    instead: str | Absent = ABSENT
    """What answers here what another debugger's command of that name does."""


def topic_names() -> list[str]:
    """Return the names of all texts, in order."""
    return sorted(name.removesuffix(".txt") for name in os.listdir(FOLDER) if name.endswith(".txt"))  # noqa: PTH208


def topic(name: str) -> TopicResult:
    """Return the text of a name."""
    with open(f"{FOLDER}/{name}.txt", encoding="utf-8") as file:  # noqa: PTH123
        title, _, text = file.read().partition("\n\n")
    return TopicResult(name, title, text.rstrip("\n"))


def topics() -> tuple[TopicResult, ...]:
    """Return all texts, by name."""
    return tuple(map(topic, topic_names()))


def topic_report(found: TopicResult) -> Report:
    """Show a text."""
    parts = [part.strip("\n") for part in found.text.split("\n\n")]
    body = [Note(found.title, "title")]
    for part in parts:
        body += [Note(_joined(part) if not part.startswith("    ") else part), Note("")]
    return Report(found, body[:-1])


def _joined(paragraph: str) -> str:
    """Make one line of a paragraph's, unless each is an entry of its own (`word: meaning`)."""
    lines = paragraph.split("\n")
    listed = all(": " in line or line.startswith(("|", "    ")) for line in lines)
    return paragraph if listed and len(lines) > 1 else " ".join(lines)


def search(words: Sequence[str], instead: str = "") -> Report | None:
    """Return lines of the texts that hold all of some words, two of each at most; None if none does.

    Parts of words count where no line has them whole. The glossary comes first, and in it what explains the
    first of them. `instead` is what answers here another debugger's command of that name: of such a word only
    the glossary counts, which has it whole.
    """
    import re

    rows, found = [], []
    texts = (topic("glossary"),) if instead else sorted(topics(), key=lambda each: each.topic != "glossary")
    for edges in (r"(?<!\w){}(?!\w)", "{}")[: 1 if instead else 2]:
        wanted = [re.compile(edges.format(re.escape(word)), re.IGNORECASE) for word in words]
        for one in texts:
            parts = [_joined(part) for part in one.text.split("\n\n")]
            lines = [line.strip() for part in parts for line in part.split("\n")]
            hits = [line for line in lines if all(word.search(line) for word in wanted)]
            if one.topic == "glossary":
                hits.sort(key=lambda line: not wanted[0].search(line.partition(": ")[0]))
            named = [one.title] if all(word.search(one.title) for word in wanted) else []
            for line in hits[:2] or named:
                found.append(FoundTopic(one.topic, one.title, line))
                hit = wanted[0].search(line)
                rows.append((Styled(f"help {one.topic}", "level"), _near(line, hit.start() if hit else 0)))
        if found:
            title = f"{' '.join(words)!r} is no command; it is spoken of in"
            also = [Note(f"another debugger's {words[0]!r} is here: {instead}")] if instead else []
            table = Table(headings("", ""), rows, title)
            return Report(FoundResult(found, instead or ABSENT), (table, *also))
    return None


def _near(line: str, at: int, room: int = 160) -> str:
    """Return the part of a line around a place."""
    if len(line) <= room:
        return line
    begin = max(0, min(at - room // 3, len(line) - room))
    return ("…" if begin else "") + line[begin : begin + room].strip() + "…"
