"""Fixtures for everybody: what a live test needs, and what happens when it is missing.

With PTINSPECT_LIVE=1 (or CI=true) a missing guest or tool fails the test; otherwise it skips it.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from browser import Browser

    from ptinspect.link.gdb.program import Gdb
    from ptinspect.linux.image.image import KernelImage

os.environ["PTINSPECT_CONFIG"] = os.devnull  # the tests are not about the user's own choices

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background job
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

collect_ignore = [] if os.environ.get("PTINSPECT_EXTRA_KERNELS") else ["live/test_extra_kernels.py"]
LIVE = os.environ.get("PTINSPECT_LIVE") == "1" or os.environ.get("CI") == "true"


def missing(what: str) -> NoReturn:
    """Fail where live tests must run, skip elsewhere."""
    if LIVE:
        pytest.fail(f"{what} is missing; run 'ptinspect setup --yes'")
    pytest.skip(f"{what} is missing; 'ptinspect setup --yes' installs it")


def newer_qemu() -> str:
    """Return the path of a QEMU that is newer than the system's; fail or skip where it is missing."""
    from ptinspect.errors import TargetError
    from ptinspect.reference import emulator

    try:
        return str(emulator.find("newer").program)
    except TargetError:
        missing("the newer QEMU (setup --tests)")


def need_qemu() -> None:
    """Fail or skip where there is no QEMU."""
    from ptinspect.errors import TargetError
    from ptinspect.link.qemu.machine import find_program

    try:
        find_program()
    except TargetError as error:
        missing(error.message)


def need_gdb() -> Gdb:
    """Return a GDB that knows aarch64; fail or skip where there is none."""
    from ptinspect.errors import TargetError
    from ptinspect.link.gdb.program import find_gdb

    try:
        return find_gdb()
    except TargetError:
        missing("a GDB that knows aarch64")


@pytest.fixture(params=["system", "newer"])
def each_qemu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test twice: what it launches is started by the system's QEMU, then by the newer one."""
    if request.param == "newer":
        monkeypatch.setenv("PTINSPECT_QEMU", newer_qemu())
    return str(request.param)


# A busy machine is no fault of what is tested. A run that lets work in or not repeats the same examples, one
# at a desk looks for new ones.
settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=LIVE
)
settings.load_profile("patient")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests of the folders that are named like a mark."""
    if item.path.parent.name in ("live", "gdb"):
        item.add_marker(item.path.parent.name)


@pytest.fixture(autouse=True, scope="session")
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what ptinspect remembers of gdbstubs out of the user's own directory."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Return a browser: one for all tests of pages, started when the first one asks for it."""
    from browser import browser

    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="session")
def opened_once() -> Callable[[Path], KernelImage]:
    """Return KernelImage.open, which reads each file once: those of the reference guests never change."""
    from ptinspect.linux.image.image import KernelImage

    return functools.lru_cache(maxsize=8)(KernelImage.open)


@pytest.fixture(autouse=True, scope="module")
def _live_tests_share_kernel_files(request: pytest.FixtureRequest) -> Iterator[None]:
    from ptinspect.linux.image.image import KernelImage

    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name == "live":
            patch.setattr(KernelImage, "open", request.getfixturevalue("opened_once"))
        yield


GUESTS = "guests"
"""Property of a report: the guests that a live test asked for."""
_passed: dict[str, list[str]] = {}
"""Live tests that passed, by node id, and the guests that each asked for."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note in the report which guests the test asked for: with pytest-xdist another process reads it."""
    report = yield
    session = sys.modules.get("session")  # tests/live/session.py, if a live test ran
    if session is not None and report.when == "call":
        report.user_properties.append((GUESTS, sorted(session.GUESTS_OF_TESTS.get(item.nodeid, ()))))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what passed."""
    if report.when == "call" and report.passed and report.nodeid.startswith("tests/live/"):
        _passed[report.nodeid] = dict(report.user_properties).get(GUESTS, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print which live tests passed on which guest: files against guests, numbers of tests."""
    if not _passed:
        return
    from ptinspect.output.model import Column, Report, Table
    from ptinspect.output.text import render
    from ptinspect.reference import pins

    guests = [spec.name for spec in pins.load().guests]
    cells: Counter[tuple[str, str]] = Counter()
    for node, asked in _passed.items():
        parameters = node.partition("[")[2]
        # the longest name that stands in the parameters; else what the test itself asked for
        named = {max((g for g in guests if g in parameters), key=len, default="")} - {""}
        for guest in named or asked:
            cells[node.partition("::")[0].rpartition("/")[2], guest] += 1
    files = sorted({file for file, _ in cells})
    rows = [[file, *(str(cells[file, guest] or "") for guest in guests)] for file in files]
    if rows:
        terminalreporter.section("live tests passed, by guest")
        columns = [Column(""), *(Column(guest, "right") for guest in guests)]
        terminalreporter.write(render(Report(rows, [Table(columns, rows)])))
