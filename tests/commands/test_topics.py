"""The texts of `help`: every column of every table is explained, and words are found."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from fakes import context, run, text

import ptinspect
from ptinspect.commands.session.topics import topics
from ptinspect.errors import UserError

PLAIN = {
    "", "address", "after", "argument", "at", "before", "bits", "byte", "bytes", "cpu", "created (UTC)",
    "field", "format", "from", "function", "function, innermost first", "guest", "here", "how", "level",
    "marker", "meaning", "name", "no.", "observed", "of", "ok", "option", "pc", "region", "register", "role",
    "run", "runs", "script", "seen as", "size", "snapshot", "sum", "task", "tool", "value", "version", "what",
    "what it does", "what it does, and its variables", "what it is", "what should hold", "where",
    "where runs passed (how many)", "at (step)", "GDB", "MMU", "EL0", "cell", "memory type", "attributes",
    "EL", "instruction", "stack used", "va",
}  # fmt: skip
"""Heads of columns that are English, or the name of what the command is about."""


def columns() -> set[str]:
    """Return the heads of all columns that are written out in the code."""
    found = set()
    for path in Path(ptinspect.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Column", "headings"):
                heads = node.args if getattr(node.func, "id", "") == "headings" else node.args[:1]
                texts = [head.value for head in heads if isinstance(head, ast.Constant)]
                found |= {text.removeprefix(">") for text in texts if isinstance(text, str)}
    return found


@pytest.mark.parametrize("head", sorted(columns() - PLAIN))
def test_every_column_is_in_the_glossary(head: str) -> None:
    (glossary,) = [topic.text for topic in topics() if topic.topic == "glossary"]
    entries = [line.split(": ", 1)[0] for line in glossary.splitlines() if ": " in line]
    names = {name.strip() for name in re.split("[,()]", ",".join(entries))}
    assert head in names, f"explain {head!r} in ptinspect/topics/glossary.txt"


@pytest.mark.parametrize("topic", topics(), ids=lambda topic: topic.topic)
def test_a_topic(topic: object) -> None:
    name = topic.topic  # type: ignore[attr-defined]
    report = run(context(), f"help {name}")
    assert report.result["title"] and len(report.result["text"]) > 200
    assert name in text(run(context(), "help")).rsplit("Topics", 1)[1]


def test_the_words_of_a_name_may_be_quoted_together() -> None:
    assert run(context(), "help 'stack guard'").result == run(context(), "help stack guard").result


def test_a_word_is_found_in_the_topics() -> None:
    found = run(context(), "help retarg").result["found"]
    assert [(each["topic"], "leads elsewhere" in each["line"]) for each in found] == [("glossary", True)]
    found = run(context(), "help nG").result["found"]
    assert found[0]["line"].startswith("nG, leaves nG:")
    assert all(re.search(r"\bnG\b", each["line"], re.I) for each in found), "not in 'nothing'"
    with pytest.raises(UserError, match="no command"):
        run(context(), "help xyzzy")
    for line in ("help stack t", "help st"):
        with pytest.raises(UserError, match="is ambiguous"):
            run(context(), line)
    with pytest.raises(UserError, match="no command 'vtop'") as caught:
        run(context(), "help vtop")
    assert caught.value.hint == "walk ADDR"
    report = run(context(), "help leaf")
    assert report.result["found"][0]["line"].startswith("leaf:"), "what explains it comes first"
    assert "instead" not in report.result


@pytest.mark.parametrize(
    ("word", "explained", "instead"),
    [
        ("pte", "Linux's pgd, p4d, pud, pmd, pte", "walk ADDR"),
        ("frame", "number of the frame", "bt lists the frames"),
        ("struct", "of a struct of the kernel's", "ptype struct NAME"),
        ("run", "run: neighbouring leaves", "continue lets it run"),
        ("task", "#, pid, task, stack", "stack task:NAME"),
    ],
)
def test_a_word_of_ours_that_is_another_debuggers_command(word: str, explained: str, instead: str) -> None:
    report = run(context(), f"help {word}")
    found = report.result["found"]
    assert {each["topic"] for each in found} == {"glossary"} and explained in found[0]["line"]
    assert instead in report.result["instead"]
    assert f"another debugger's '{word}' is here: {report.result['instead']}" in text(report)
