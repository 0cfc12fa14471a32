"""The form of a log changes nothing: prefixes, folds and coats of every real log give the same answers."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from oops_forms import COATS, FOLDS, PREFIXES, rows
from oops_logs import LOGS

from ptinspect.linux.oops.verdict import Panic, analyse

NAMES = sorted(path.stem for path in LOGS.glob("*.log"))
USUAL = ("console", "no stamps", "quoted", "journalctl")
"""Prefixes that are combined with every fold and every coat; of a log they take turns."""
TAGGED = ("printk.caller", "Android", "MediaTek", "Qualcomm", "Exynos", "Samsung", "RT", "kmsg, caller")
"""Prefixes that name the task or the CPU, here one for all lines: only a log of one CPU can have them."""
WHOLE = (
    "journalctl -o json-pretty",
    "one string of JSON",
    "table of a database",
    "YAML",
    "list of a program",
)
"""Forms whose quotes no fold may part."""
WIDEST = 50
"""Columns of a prefix with which lines are wrapped: beyond them nothing would be left beside it."""


def facts(panic: Panic) -> dict[str, object]:
    """Return what a death's report holds and what was concluded; where and when it was printed left out."""
    incident, found = panic.incident, panic.facts
    first = incident.first
    values = {**vars(first), "line": 0, "time": "", "headline": ""}
    return values | {
        "message": incident.message,
        "code": panic.verdict.code,
        "panic": incident.panic,
        "later": incident.later_count,
        "architecture": incident.architecture,
        "used": found.used,
        "recursion": found.recursion,
        "walk": found.path,
        "calls": found.chain,
    }


def read(text: list[str]) -> list[dict[str, object]]:
    return [facts(panic) for panic in analyse("\n".join(text).encode()).panics]


@functools.cache
def plain(name: str) -> list[dict[str, object]]:
    return read(PREFIXES["console"](rows(name)))


def width(prefix: str) -> int:
    return len(PREFIXES[prefix]([("0.1", "")])[0])


def different(name: str, fold: str, prefix: str, coat: str) -> dict[str, tuple[object, object]]:
    """Return what differs in one form of a log."""
    found = read(COATS[coat](FOLDS[fold](PREFIXES[prefix](rows(name)))))
    if len(found) != len(plain(name)):
        return {"deaths": (len(plain(name)), len(found))}
    return {
        key: (old[key], new[key])
        for old, new in zip(plain(name), found, strict=True)
        for key in old
        if old[key] != new[key]
    }


def possible(fold: str, prefix: str, coat: str) -> bool:
    """Tell whether a form leaves something to read: room beside the prefix, one fold, a mark of a cut."""
    if fold == "not folded" and coat == "as it is":
        return True
    twice = fold != "not folded" and coat == "quoted-printable"
    unmarked = fold.startswith("terminal") and "no stamps" in prefix
    if prefix in WHOLE and fold != "not folded":
        return False
    return width(prefix) <= WIDEST and not twice and not unmarked


def wrong(pairs: Iterable[tuple[str, tuple[str, str, str]]]) -> list[object]:
    """Return the logs and forms that do not give what the plain log gives."""
    return [
        (name, *form, what)
        for name, form in pairs
        if form != ("not folded", "console", "as it is")
        and possible(*form)
        and not ("cpus" in name and form[1].startswith(TAGGED))
        and (what := different(name, *form))
    ]


def turns(start: int) -> Iterator[tuple[str, str]]:
    """Return each log with one of the usual prefixes, another one for each `start`."""
    return ((name, USUAL[(start + index) % len(USUAL)]) for index, name in enumerate(NAMES))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_changes_nothing(prefix: str) -> None:
    assert wrong((name, ("not folded", prefix, "as it is")) for name in NAMES) == []


@pytest.mark.parametrize("fold", [fold for fold in FOLDS if fold != "not folded"])
def test_a_fold_changes_nothing(fold: str) -> None:
    assert wrong((name, (fold, prefix, "as it is")) for name, prefix in turns([*FOLDS].index(fold))) == []


@pytest.mark.parametrize("coat", [coat for coat in COATS if coat != "as it is"])
def test_a_coat_changes_nothing(coat: str) -> None:
    assert wrong((name, ("not folded", prefix, coat)) for name, prefix in turns([*COATS].index(coat))) == []


COMBINED = ("4.17-lkml-kpti", "6.12-recursion", "5.10-entry-reverted-8-cpus")
"""Logs among which every combination of a fold, a prefix and a coat is shared out."""


@pytest.mark.parametrize("fold", FOLDS)
def test_every_combination_changes_nothing(fold: str) -> None:
    forms = [
        (fold, prefix, coat)
        for prefix in PREFIXES
        for coat in COATS
        if (coat == "as it is" or prefix in USUAL) and (fold, coat) != ("not folded", "as it is")
    ]
    start = [*FOLDS].index(fold)
    assert wrong((COMBINED[(start + n) % len(COMBINED)], form) for n, form in enumerate(forms)) == []


DMESG = shutil.which("dmesg") or ""
OPTIONS = ["", "-T", "-H", "-x", "-x -T", "-d", "-e", "-r", "-t", "--time-format iso", "--color=always -x"]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_real_dmesg_changes_nothing(options: str, tmp_path: Path) -> None:
    """util-linux prints the logs itself, with each of its own forms."""
    version = subprocess.run([DMESG or "false", "--version"], capture_output=True, text=True, check=False)
    if "util-linux" not in version.stdout:
        pytest.skip("there is no dmesg of util-linux")
    file = tmp_path / "raw.log"
    raw = [f"<4>[{float(time):12.6f}] {text}\n" for name in NAMES for time, text in rows(name)]
    file.write_text("".join(raw))
    command = [DMESG, "-F", str(file), *options.split()]
    printed = subprocess.run(command, capture_output=True, check=True, env={"TZ": "UTC", "LC_ALL": "C.UTF-8"})
    lines = printed.stdout.splitlines(keepends=True)
    assert len(lines) == len(raw)
    for name in NAMES:
        own, lines = lines[: len(rows(name))], lines[len(rows(name)) :]
        found = [facts(panic) for panic in analyse(b"".join(own)).panics]
        assert found == plain(name), (name, own[:5])


DECODED: Callable[[str], str] = functools.partial(
    re.sub,
    r"\b([A-Za-z_][\w.]*)\+0x[0-9a-f]+/0x[0-9a-f]+",
    r"\1 (kernel/file.c:123 (discriminator 2))",
)


@pytest.mark.parametrize("name", NAMES)
def test_decode_stacktrace_keeps_the_verdict_and_the_functions(name: str) -> None:
    text = [DECODED(line) for line in PREFIXES["console"](rows(name))]
    found = read(text)
    for old, new in zip(plain(name), found, strict=True):
        assert [f.partition("+")[0] for f in old["trace"]] == list(new["trace"])  # type: ignore[attr-defined]
        if old["recursion"] is None:
            assert old["code"] == new["code"]
