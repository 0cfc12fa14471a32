"""The line as far as it is typed: whole words, and the one at the cursor with its quotes."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PLAIN = re.compile(r"[^\s'\"\\#]+")


@dataclass(frozen=True)
class Typed:
    """What stands before the cursor."""

    words: tuple[str, ...]
    """The whole words before the one at the cursor, their quotes removed."""
    raw: str
    """The piece at the cursor as typed."""
    text: str
    """What the piece means: quotes and backslashes removed."""
    quote: str
    """The quote that is still open, or nothing."""

    def written(self, text: str, *, whole: bool = True) -> str:
        """Return `text` as it is to be typed instead of the piece; `whole` closes its quote."""
        quote = self.quote or ("" if _PLAIN.fullmatch(text) else "'" if "'" not in text else '"')
        if quote == "'" and "'" in text:
            quote = '"'
        if quote == '"':
            text = text.replace("\\", "\\\\").replace('"', '\\"')
        return quote + text + (quote if whole else "")


def typed(line: str) -> Typed:
    """Split the text before the cursor the way a shell does, with the last word as it stands."""
    words: list[str] = []
    start, text, quote, inside = 0, "", "", False
    position = 0
    while position < len(line):
        letter = line[position]
        position += 1
        if not inside and letter.isspace():
            start = position
            continue
        inside = True
        if letter == "\\" and quote != "'":
            text += line[position : position + 1]
            position += 1
        elif quote:
            quote, text = ("", text) if letter == quote else (quote, text + letter)
        elif letter in "'\"":
            quote = letter
        elif letter.isspace():
            words.append(text)
            start, text, inside = position, "", False
        else:
            text += letter
    return Typed(tuple(words), line[start:], text, quote)
