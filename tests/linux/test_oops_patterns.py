"""The patterns of the kernel's messages: no text that a word of theirs is not in has a match."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from re import _constants as kinds  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import pytest
from oops_logs import LOGS

from ptinspect.text import Pattern

ROOM = "ptinspect.linux.oops"
MODULES = ("depth", "fault_verdict", "lines", "messages", "prefixes", "reports")
TEXTS = sorted({line for log in LOGS.glob("*.log") for line in log.read_text(errors="replace").split("\n")})


def patterns(value: object) -> Iterator[Pattern]:
    if isinstance(value, Pattern):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from patterns(each)


WORDED = {
    f"{module}.{name} {found.pattern[:20]}": found
    for module in MODULES
    for name, value in vars(import_module(f"{ROOM}.{module}")).items()
    for found in patterns(value)
    if found.words != ("",)
}


def needs(parsed: Iterable[tuple[Any, Any]], words: tuple[str, ...], run: str = "") -> bool:
    """Tell by Python's own parse of an expression that each match holds one of the words, `run` before it."""
    rest = list(parsed)
    while rest:
        (kind, value), *rest = rest
        if kind is kinds.SUBPATTERN:
            return needs([*value[3], *rest], words, run)
        if kind is kinds.BRANCH:
            return all(needs([*each, *rest], words, run) for each in value[1])
        if kind is kinds.IN and all(one is kinds.LITERAL for one, _ in value):
            return all(needs([each, *rest], words, run) for each in value)
        repeated = kind in (kinds.MAX_REPEAT, kinds.MIN_REPEAT) and value[0]
        inside = value[2] if repeated else value[1] if kind is kinds.ASSERT and value[0] == 1 else ()
        if needs(inside, words, run):
            return True
        if kind is not kinds.AT:
            run = run + chr(value) if kind is kinds.LITERAL else ""
        if any(word in run for word in words):
            return True
    return False


@pytest.mark.parametrize("found", WORDED.values(), ids=lambda p: p.pattern[:40])
def test_each_match_needs_a_word(found: Pattern) -> None:
    assert needs(parser.parse(found.pattern), found.words)


def test_the_test_knows_what_is_needed() -> None:
    for pattern, word, needed in (
        (r"a(?:bc)? d", "bc", False),
        (r"a(?:bc)+ d", "bc", True),
        (r"ab|cd", "ab", False),
        (r"\b(?:xab|yab)c", "ab", True),
        (r"a.b", "ab", False),
        (r"[ab]c", "ac", False),
        (r"[ab]cd", "cd", True),
        (r"[a-z]c", "c", True),
    ):
        assert needs(parser.parse(pattern), (word,)) is needed, pattern


def test_each_match_in_the_logs_has_a_word() -> None:
    for found in WORDED.values():
        bare = re.compile(found.pattern)
        for text in TEXTS:
            assert bare.search(text) is None or any(word in text for word in found.words)


def test_a_pattern_is_compiled_when_a_text_may_match() -> None:
    found = Pattern(r"\bFAR: (\d+)", "FAR")
    assert found.search("ESR: 1") is None
    assert "compiled" not in vars(found)
    assert found.search("FAR: x") is None
    assert "compiled" in vars(found)
    for text in ("FAR: 12", "the FAR: 1", "ESR: 1"):
        fresh, bare = Pattern(found.pattern, *found.words), re.compile(found.pattern)
        for each in (found, fresh):
            assert str(each.search(text)) == str(bare.search(text))
            assert str(each.match(text)) == str(bare.match(text))
            assert [*map(str, each.finditer(text))] == [*map(str, bare.finditer(text))]
