"""Every command's example, as `help` and README.md show it, runs on a real guest.

A session is a list of lines: `*NAME` stands for the example of that command, everything else is typed as
it is, to bring the guest to where the example makes sense. A command that is in no session fails the test.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from session import need_guest, of_somebody_else

from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import build_registry
from ptinspect.output import json as json_output
from ptinspect.output.model import Report
from ptinspect.repl.player import Player
from ptinspect.repl.printer import Printer
from ptinspect.script.parse import parse_line

GUEST = "5.10-cloud"
LOG = Path(__file__).parents[1] / "data" / "oops"

WITHOUT_A_GUEST = """
*help *version *scripts *set *show *history *decode *var *on failure *snaps *oops *setup *kernel *shell
"""
THE_MAIN_JOB = """
*record *launch *kernel *symbol *status *regime *regs *cpu *lane *gdb *monitor *kpti status *kpti run
*save *drop *load *export *snaps *diff *check *report *summary *map *find *walk *x *print *info *disassemble
*kpti verdict *modules
break multi_cpu_stop
*continue *stepi *nexti *repeat *bt *stack *finish *expect *poke descriptor *poke undo
*stack watch
*stack trace
stack trace --steps 500 -o before.trace
stack trace --steps 500 -o after.trace
*stack diff
monitor dump-guest-memory guest.elf
continue --background
*interrupt *modules *stack tasks *stack highwater *stack guard *console *why *detach *import
"""
BEFORE_THE_REWRITE = """
launch --guest 5.10-cloud --memory 512
*until *snap *on stop *kpti break
delete all
*kpti until *kpti progress *kpti writes *kpti verdict
"""
A_SCRIPT = """
*source *quit
"""
A_CAMPAIGN = """
*campaign *campaign report
"""
A_DUMP = """
launch --guest 5.10-cloud --memory 256
until rest_init
monitor dump-guest-memory guest.elf
detach
*import
walk vectors
snap imported
"""
A_RECORDING = """
launch --guest 5.10-cloud --memory 256 --timeline boot.timeline
until driver_init
detach
*timeline open *timeline goto *timeline *reverse-stepi *who
break kpti_install_ng_mappings
*reverse-continue
*reverse-finish
"""
ATTACHED = """
*attach *kernel *break *condition *ignore *disable *enable *delete *tbreak
continue
*watch *rwatch *awatch *watch table *whatis *ptype
"""


def lines(session: str) -> list[str]:
    """Return the lines of a session, a `*NAME` each a line of its own."""
    found = []
    for line in session.split("\n"):
        head, *examples = line.split("*")
        found += [text for text in (head, *(f"*{name}" for name in examples)) if text.strip()]
    return [line.strip() for line in found]


SESSIONS = {
    "without a guest": lines(WITHOUT_A_GUEST),
    "the main job": lines(THE_MAIN_JOB),
    "before the rewrite": lines(BEFORE_THE_REWRITE),
    "demo": ["*demo"],
    "a script": lines(A_SCRIPT),
    "a campaign": lines(A_CAMPAIGN),
    "a dump": lines(A_DUMP),
    "a recording": lines(A_RECORDING),
    "attached": lines(ATTACHED),
}


class Teller(Printer):
    """Print answers as text, and see to it that each can be printed as JSON."""

    def _report(self, name: str, report: Report, line: str, place: str, page: bool) -> None:
        answer = json.loads(json_output.answer(name, report, line, place))
        assert answer["ok"] is (report.exit_code == 0)
        super()._report(name, report, line, place, page)


class Typist:
    """Type lines into ptinspect."""

    def __init__(self) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        printer = Teller(colour=False, out=self.out, err=self.err)
        self.ctx = Context(build_registry(), interaction=printer, options=printer.options)
        self.player = Player(self.ctx, printer)

    def types(self, line: str) -> tuple[int, str, str]:
        """Run a line; return its exit code and what it said on both streams."""
        for stream in (self.out, self.err):
            stream.seek(0)
            stream.truncate()
        code = self.player.play([parse_line(line)])
        return code, self.out.getvalue(), self.err.getvalue()


@pytest.fixture
def typist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Typist]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vmlinux").symlink_to(next(need_guest("5.10-cloud-dbg").kernel.parent.glob("vmlinux-*")))
    shutil.copy(LOG / "4.17-lkml-kpti.log", "console.log")
    typist = Typist()
    yield typist
    typist.ctx.close()


SILENT = {"var", "on stop", "on failure", "quit"}
"""Commands that answer nothing."""


def run(
    typist: Typist, session: Sequence[str], replacing: Mapping[str, tuple[str, str]] | None = None
) -> None:
    """Run a session to its end, and then say all that was wrong."""
    wrong, replacing = [], replacing or {}
    for line in session:
        name = line.removeprefix("*")
        example = line if name == line else typist.ctx.registry.resolve(name.split())[0].example
        code, out, err = typist.types(example.replace(*replacing.get(name, ("", ""))))
        if code != 0 or "Traceback" in err or (name != line and name not in SILENT and not out.strip()):
            wrong.append(f"{example}: exit code {code}\n{out[-600:]}{err}")
    assert not wrong, "\n".join(wrong)


def test_every_command_is_in_a_session() -> None:
    tried = {line[1:] for session in SESSIONS.values() for line in session if line.startswith("*")}
    assert tried == {command.name for command in build_registry()}


@pytest.mark.parametrize("name", [name for name in SESSIONS if name != "attached"])
def test_the_examples_do_what_they_say(typist: Typist, name: str) -> None:
    run(typist, SESSIONS[name])


def test_the_example_of_attach(typist: Typist) -> None:
    with of_somebody_else(GUEST, memory=256) as qemu:
        run(typist, SESSIONS["attached"], {"attach": (":1234", str(qemu.gdb_socket))})
        typist.ctx.close()
