"""`oops` as it is typed: files, standard input, and what it writes."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import build_registry
from ptinspect.commands.stack.oops import VERDICTS
from ptinspect.errors import UserError
from ptinspect.linux.death import CODES
from ptinspect.output.json import answer
from ptinspect.output.model import Report
from ptinspect.output.text import render

LOGS = Path(__file__).resolve().parent.parent / "data" / "oops"
REPORT = LOGS / "4.17-lkml-kpti.log"


def run(line: str, *, interactive: bool = False) -> Report:
    registry = build_registry()
    return registry.run(Context(registry, interactive=interactive), line)


def test_json_has_what_scripts_rely_on() -> None:
    result = json.loads(answer("oops", run(f"oops {REPORT}")))["result"]
    (panic,) = result["panics"]
    assert panic["message"] == "kernel stack overflow"
    assert {key: panic["esr"][key] for key in ("raw", "class", "wnr", "fault", "level")} == {
        "raw": "0x96000046",
        "class": "DABT (current EL)",
        "wnr": True,
        "fault": "translation fault",
        "level": 2,
    }
    assert panic["far"] == panic["sp"] == "0xffff0000093a80e0"
    assert panic["stack"] == {
        "kind": "task",
        "base": "0xffff0000093a8000",
        "top": "0xffff0000093ac000",
        "size": 16384,
    }
    assert panic["used_before_fault"] == 800
    assert (panic["recursion"]["count"], panic["recursion"]["frame_size"]) == (48, 320)
    assert [(s["level"], s["name"], s["raw"]) for s in panic["walk"]] == [
        (0, "pgd", "0x411f8003"),
        (1, "pud", "0x411f9003"),
        (2, "pmd", "0x0"),
    ]
    assert panic["kpti"]["complete"] is True
    assert panic["verdict"]["code"] == "reverted-entry"
    assert panic["verdict"]["evidence"] and panic["verdict"]["unknown"]


def test_json_explains_registers_by_role() -> None:
    (panic,) = run(f"oops {REPORT}").result["panics"]
    registers = panic["registers"]
    assert registers["x13"]["descriptor"] == {
        "level": 2,
        "name": "pmd",
        "kind": "block",
        "output_address": "0x7fe00000",
        "bit11": True,
        "ng": True,
    }
    assert registers["x16"]["descriptor"]["output_address"] == "0x40fff000"
    assert registers["x16"]["descriptor"]["kind"] == "page"
    assert registers["x16"]["descriptor"]["ng"] is True
    assert registers["x5"]["role"] == "cur_pgdp"
    assert registers["x19"] == {"value": "0xffff000009190000", "role": None, "meaning": None}


def test_text_says_the_verdict_and_why() -> None:
    text = render(run(f"oops {REPORT}"))
    for words in (
        "data abort from the current exception level, write, translation fault, level 2",
        "800 bytes",
        "48 nested exceptions of 320 bytes",
        "verdict: reverted-entry",
        "swapper_pg_dir + 0x1000",
        "what the log cannot tell",
        "cur_pmdp",
    ):
        assert words in text


@pytest.mark.parametrize("suffix", [".md", ".txt", ".json"])
def test_it_is_written_to_a_file_in_the_form_of_its_suffix(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"out{suffix}"
    report = run(f"oops {REPORT} -o {file}")
    assert report.result["written"] == str(file)
    text = file.read_text()
    assert "reverted-entry" in text
    if suffix == ".json":
        assert json.loads(text)["panics"][0]["used_before_fault"] == 800
    if suffix == ".md":
        assert text.startswith("## ") and "| --- |" in text


def test_an_unknown_suffix_is_refused_before_the_log_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="suffix"):
        run(f"oops {tmp_path / 'no-such-log'} -o {tmp_path / 'out.pdf'}")


class Stdin(io.StringIO):
    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.buffer = io.BytesIO(data)  # type: ignore[misc]


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Stdin(REPORT.read_bytes()))
    assert run("oops -").result["panics"][0]["verdict"]["code"] == "reverted-entry"


def test_standard_input_is_the_prompts_in_the_repl() -> None:
    with pytest.raises(UserError, match="prompt"):
        run("oops -", interactive=True)


def test_files_that_cannot_be_read_are_the_users_errors(tmp_path: Path) -> None:
    for name in (tmp_path / "none", tmp_path, "nul\x00"):
        with pytest.raises(UserError, match="cannot read"):
            run(f"oops '{name}'")


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress, zstandard.compress])
def test_compressed_logs_are_read(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "console.log.packed"
    file.write_bytes(pack(REPORT.read_bytes()))
    (panic,) = run(f"oops {file}").result["panics"]
    assert panic["verdict"]["code"] == "reverted-entry"


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress, zstandard.compress])
def test_a_compressed_log_that_ends_too_early_says_so(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "console.log.packed"
    file.write_bytes(pack(REPORT.read_bytes() + os.urandom(200_000))[:-50_000])
    report = run(f"oops {file}")
    assert report.result["complete"] is False
    assert "not read to its end" in render(report)


def test_a_log_of_more_than_64_mib_is_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "large.log"
    with file.open("wb") as out:
        for _ in range(66):
            out.write(b"[    1.000000] usb 1-1: new high-speed USB device number 2 using xhci\n" * (1 << 14))
        out.write(REPORT.read_bytes())
    (panic,) = run(f"oops {file}").result["panics"]
    assert panic["verdict"]["code"] == "reverted-entry"


def test_nothing_found_is_an_answer(tmp_path: Path) -> None:
    file = tmp_path / "good.log"
    file.write_text("[    1.0] all is well\n")
    report = run(f"oops {file}")
    assert report.result["panics"] == [] and report.exit_code == 0
    assert "no panic" in render(report)


def test_control_codes_of_the_log_stay_in_it(tmp_path: Path) -> None:
    file = tmp_path / "evil.log"
    file.write_bytes(b"Kernel panic - not syncing: \x1b]0;owned\x07 \xe2\x80\xae\n" + REPORT.read_bytes())
    report = run(f"oops {file}")
    for text in (render(report), json.dumps(report.result)):
        assert all(c.isprintable() or c == "\n" for c in text)


def test_help_names_every_verdict() -> None:
    assert VERDICTS.split(", ") == list(CODES)
