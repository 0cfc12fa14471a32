from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import FakeKernel, context, kernel_tree, run
from module_guest import ModuleGuest
from prompt_toolkit.completion import CompleteEvent, Completion
from prompt_toolkit.document import Document

from ptinspect.commands.framework.registry import RESULTS, Command, build_registry
from ptinspect.linux.running.modules import Modules
from ptinspect.output.model import Report
from ptinspect.repl.completer import LIMIT, CommandCompleter, SymbolIndex, Typed, typed


def offered(line: str, ctx: Any = None) -> list[Completion]:
    completer = CommandCompleter(ctx or context())
    return list(completer.get_completions(Document(line, len(line)), CompleteEvent()))


def complete(line: str, ctx: Any = None) -> list[str]:
    """The lines that may come out."""
    return [line[: len(line) + c.start_position] + c.text for c in offered(line, ctx)]


def meaning(line: str, ctx: Any = None) -> str:
    (only,) = offered(line, ctx)
    return only.display_meta_text


def with_kernel() -> Any:
    return context(kernel_tree(), FakeKernel())


def test_commands() -> None:
    assert complete("sna") == ["snap", "snaps"]
    assert set(complete("")) >= {"walk", "decode", "help"}
    assert complete("zzz") == []
    assert complete("kp st") == ["kp status"]
    assert "kpti" in complete("k")
    assert "status" in next(c.display_meta_text for c in offered("k") if c.text == "kpti")


@pytest.mark.parametrize(
    "line", ["", "walk ", "walk --", "kpti ", "map --", "walk --root ", "regs ", "walk $"]
)
def test_every_entry_has_a_word_of_help(line: str) -> None:
    ctx = with_kernel()
    found = offered(line, ctx)
    assert found
    assert [c.text for c in found if not c.display_meta_text] == []


@pytest.mark.parametrize("command", list(build_registry()), ids=lambda c: c.name)
def test_every_argument_has_a_word_of_help(command: Command) -> None:
    if not command.passthrough:
        assert [a.dest for a in command.parser().actions() if not a.help] == []


def test_options_have_a_word_of_help() -> None:
    assert complete("walk --ro") == ["walk --root"]
    assert "swapper" in meaning("walk --ro")


def test_an_option_is_offered_once_unless_it_may_be_repeated() -> None:
    assert complete("walk 0x1 --root ttbr1 --ro") == []
    assert complete("map --level 1 --lev") == ["map --level 1 --level"]


def test_values_of_options() -> None:
    assert complete("walk --root sw", context()) == ["walk --root swapper"]
    assert complete("walk --root=sw") == ["walk --root=swapper"]
    assert complete("stack trace --method la") == ["stack trace --method ladder"]
    assert complete("map --level pm") == ["map --level pmd"]
    assert complete("walk --cpu ", context(kernel_tree())) == ["walk --cpu 0"]
    assert complete("lane g") == ["lane gdbstub"]


def test_tasks_that_were_listed_at_this_stop() -> None:
    ctx = context(kernel_tree())
    assert complete("walk --root task:", ctx) == ["walk --root task:"]
    tasks = {"tasks": [{"pid": 1, "comm": "init\x1b"}, {"pid": 12, "comm": "sh"}]}
    ctx.guest.kept[RESULTS] = {"stack tasks": (ctx.guest.stop_token, Report(tasks))}
    assert complete("walk --root task:1", ctx) == ["walk --root task:1", "walk --root task:12"]
    assert offered("walk --root task:1", ctx)[0].display_meta_text == "init\\x1b"
    ctx.guest.session.stop_token += 1  # type: ignore[union-attr]
    assert complete("walk --root task:1", ctx) == []


def test_paths_of_expect() -> None:
    ctx = context(kernel_tree())
    assert "expect summary" in complete("expect s", ctx)
    levels = [{"level": 3, "leaves": 7}, {"level": 2}]
    ctx.guest.kept[RESULTS] = {
        "summary": (ctx.guest.stop_token, Report({"levels": levels, "total": 9, "name": "x\x1b"}))
    }
    assert complete("expect summary l", ctx) == ["expect summary levels"]
    assert complete("expect summary levels l", ctx) == [
        f"expect summary levels {n}" for n in ("level", "leaves")
    ]
    assert complete("expect summary levels 1 l", ctx) == ["expect summary levels 1 level"]
    assert complete("expect summary total >", ctx) == [
        "expect summary total >",
        "expect summary total >=",
    ]
    assert meaning("expect summary n", ctx) == "x\\x1b"
    assert complete("expect summary nothing x", ctx) == []
    assert "expect kpti status" in complete("expect kpti ", ctx)
    assert complete("expect summary --sn", ctx) == ["expect summary --snap"]
    assert complete("expect save --", ctx) == []


def test_words_of_help() -> None:
    assert "help walk" in complete("help w")
    assert complete("help kpti ru") == ["help kpti run"]


def test_symbols_by_prefix() -> None:
    ctx = with_kernel()
    assert complete("walk st", ctx) == ["walk start_kernel"]
    assert complete("walk swapper_pg_dir+_t", ctx) == ["walk swapper_pg_dir+_text"]
    assert complete("walk $sp-_t", ctx) == ["walk $sp-_text"]
    assert complete("walk pa:sw", ctx) == ["walk pa:swapper_pg_dir"]
    assert complete('walk "_text + sw', ctx) == ['walk "_text + swapper_pg_dir']
    assert complete("x/8gx sw", ctx) == ["x/8gx swapper_pg_dir"]
    assert complete("walk 0x10 st", ctx) == []
    assert meaning("walk st", ctx) == "code, linked at 0xffff800010001000"


def test_symbols_of_modules_once_they_are_known() -> None:
    ctx = with_kernel()
    loaded = ModuleGuest()
    loaded.add("one", {"start_one": 0x40, "start_kernel": 0x80})
    ctx.guest.view.modules = Modules(loaded, known=ctx.guest.module_symbols)  # type: ignore
    assert complete("walk start_", ctx) == ["walk start_kernel"], "the guest is not asked"
    run(ctx, "symbol start_one")
    names = ["walk start_kernel", "walk start_kernel [one]", "walk start_one"]
    assert complete("walk start_", ctx) == names
    assert meaning("walk start_o", ctx) == "of module one"
    ctx.guest.forget_stop()
    assert complete("walk start_", ctx) == names, "at the next stop too"
    ctx.guest.use_kernel(Path("other"))
    assert not ctx.guest.module_symbols


class Counting(list[str]):
    """Names that know how often one was looked at."""

    looked = 0

    def __getitem__(self, at: Any) -> Any:
        Counting.looked += len(range(*at.indices(len(self)))) if isinstance(at, slice) else 1
        return super().__getitem__(at)


class ManySymbols(FakeKernel):
    listed = 0

    def __init__(self) -> None:
        names = {f"{letter}{n:05}": [n] for letter in "abcd" for n in range(30_000)}

        class Names(dict[str, list[int]]):
            def __iter__(inner) -> Any:  # noqa: N805
                self.listed += 1
                return super().__iter__()

        self.symbols = Names(names)  # type: ignore[misc]


def test_a_hundred_thousand_symbols_are_sorted_once_and_bisected() -> None:
    ctx = context(kernel_tree())
    kernel = ManySymbols()
    ctx.guest._kernel = kernel  # type: ignore[assignment]
    completer = CommandCompleter(ctx)
    for prefix in ("b", "b1", "c29999", "zzz"):
        line = f"walk {prefix}"
        list(completer.get_completions(Document(line, len(line)), CompleteEvent()))
    assert kernel.listed == 1
    index = SymbolIndex(kernel.symbols)
    index._names = Counting(index._names)
    assert index.with_prefix("b1", LIMIT) == ([f"b1{n:04}" for n in range(LIMIT)], 10_000 - LIMIT)
    assert 0 < Counting.looked <= 2 * 17 + LIMIT


def test_more_symbols_than_shown_are_counted_and_not_taken_for_all() -> None:
    ctx = context(kernel_tree(), ManySymbols())
    found = offered("walk b", ctx)
    assert len(found) == LIMIT + 1
    assert (found[-1].text, found[-1].display_meta_text) == ("b", f"{30_000 - LIMIT} more: type on")


def test_registers() -> None:
    assert "walk $x0" in complete("walk $x")
    assert complete("walk $TTBR1_EL1", context(kernel_tree())) == ["walk $TTBR1_EL1"]
    assert "upper half" in meaning("walk $TTBR1_EL1", context(kernel_tree()))
    assert complete("walk $far_el1", context(kernel_tree())) == ["walk $FAR_EL1"]
    assert complete("regs x3") == ["regs x3", "regs x30"]


def test_snapshots_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = context()
    ctx.guest.snapshots["before"] = ctx.guest.snapshots["after"] = None  # type: ignore[assignment]
    for name in ("bench.npz", "bench.txt", ".hidden", "an odd 'name"):
        (tmp_path / name).touch()
    (tmp_path / "big dir").mkdir()
    (tmp_path / "big dir" / "x.npz").touch()
    monkeypatch.chdir(tmp_path)
    assert complete("walk 0x10 --snap be", ctx) == ["walk 0x10 --snap before", "walk 0x10 --snap bench.npz"]
    assert complete("drop before af", ctx) == ["drop before after"]
    assert complete("load be", ctx) == ["load bench.npz", "load bench.txt"]
    assert complete("load bi") == ["load 'big dir/"]
    assert complete("load 'big dir/") == ["load 'big dir/x.npz'"]
    assert complete('load "big dir/x') == ['load "big dir/x.npz"']
    assert complete("load an") == ['load "an odd \'name"']
    assert complete("load big\\ dir/") == ["load 'big dir/x.npz'"]
    assert complete("load .h") == ["load .hidden"]
    assert complete("load nowhere/") == []


def test_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pti").touch()
    (tmp_path / "mine.txt").touch()
    assert complete("source m") == ["source mine.pti"]
    assert complete("source @kpti-d") == ["source @kpti-diff"]
    assert "only bit 11" in meaning("source @kpti-diff")


@pytest.mark.parametrize(
    ("line", "words", "raw", "text", "quote"),
    [
        ("", (), "", "", ""),
        ("wal", (), "wal", "wal", ""),
        ("walk ", ("walk",), "", "", ""),
        ("  walk   0x1", ("walk",), "0x1", "0x1", ""),
        ('save a "b c', ("save", "a"), '"b c', "b c", '"'),
        ("save 'a b' c", ("save", "a b"), "c", "c", ""),
        ('load "" ', ("load", ""), "", "", ""),
        (r"load a\ b", ("load",), r"a\ b", "a b", ""),
        ("load 'a\\", ("load",), "'a\\", "a\\", "'"),
        ('load "a"b', ("load",), '"a"b', "ab", ""),
    ],
)
def test_split(line: str, words: tuple[str, ...], raw: str, text: str, quote: str) -> None:
    assert typed(line) == Typed(words, raw, text, quote)
