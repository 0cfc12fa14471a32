"""Whole processes, from the first key to the last line, in turn with what they are compared with."""

from __future__ import annotations

import compileall
import os
import pty
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from timing import Row

import ptinspect
from ptinspect.link.gdb.program import find_gdb
from ptinspect.link.qemu.machine import LaunchOptions, launch
from ptinspect.reference import guests

PACKAGE = Path(ptinspect.__file__).parent
SCRIPT = Path(sys.executable).with_name("ptinspect")
OURS = (str(SCRIPT),) if SCRIPT.exists() else (sys.executable, "-m", "ptinspect")
"""The program as it is installed, if it is."""
LOG = Path(__file__).parents[1] / "data/oops/4.17-lkml-kpti.log"
PROMPT = b"ptinspect>"
SECONDS = 60.0
"""Longest wait for a prompt or a stub."""
PASS, NUMPY, GDB, QEMU = "python -c pass", "python -c 'import numpy'", "gdb: attach, detach", "QEMU alone"
JUDGE = "python that imports what judges a log"
FLOORS = {"ptinspect oops": JUDGE, "ptinspect --gdb SOCKET map": NUMPY}
"""Run -> what it cannot do without, which is shown beside it."""

PEERS = {"gef": "≥ 5", "gdb-pt-dump": "≥ 7"}
"""What does the same job -> how many times as long it is to take at least."""

Run = Callable[[], float]
"""Does something once and returns the milliseconds that it took."""


def compiled() -> None:
    """Compile the package as pip does when it installs one; what is run from its source may not be."""
    compileall.compile_dir(PACKAGE, quiet=2)


def process(*words: str) -> Run:
    """Run a program to its end."""

    def once() -> float:
        start = time.perf_counter()
        subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
        return 1000 * (time.perf_counter() - start)

    return once


def prompt(line: str = "", answer: bytes = b"") -> Run:
    """Run ptinspect on a terminal until its prompt stands; or from a line typed there until it stands again.

    `answer` is in what the line prints.
    """

    def once() -> float:
        start = time.perf_counter()
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(OURS[0], OURS)
        try:
            _shown(terminal, b"")
            if line:
                start = time.perf_counter()
                os.write(terminal, f"{line}\r".encode())
                _shown(terminal, answer)
            return 1000 * (time.perf_counter() - start)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.close(terminal)
            os.waitpid(pid, 0)

    return once


def _shown(terminal: int, answer: bytes) -> None:
    """Wait for an answer and a prompt after it, and say where the cursor is when that is asked."""
    seen, deadline = b"", time.monotonic() + SECONDS
    while PROMPT not in seen.partition(answer)[2] if answer else PROMPT not in seen:
        left = deadline - time.monotonic()
        assert left > 0 and select.select([terminal], [], [], left)[0], "no prompt"
        data = os.read(terminal, 1 << 16)
        seen += data
        os.write(terminal, b"\x1b[1;1R" * data.count(b"\x1b[6n"))


def qemu_alone(guest: str) -> Run:
    """Start QEMU as `launch` does, until its gdbstub listens, and end it."""
    found = guests.guest(guest)

    def once() -> float:
        start = time.perf_counter()
        qemu = launch(LaunchOptions(found.kernel, found.initrd))
        taken = 1000 * (time.perf_counter() - start)
        qemu.close()
        return taken

    return once


def medians(runs: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """Return the median of each, run in turn; the first round does not count."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            taken = run()
            if number:
                found[name].append(taken)
    return {name: statistics.median(times) for name, times in found.items()}


Compared = tuple[Run, str, str]
"""What is run, the name of the baseline that it is compared with, and the target."""


def compared(runs: Mapping[str, Compared], baselines: Mapping[str, Run], rounds: int) -> list[Row]:
    """Return a row for each run."""
    found = medians({**baselines, **{name: run for name, (run, _, _) in runs.items()}}, rounds)
    return [
        Row(name, found[name], base, found[base], target, _floor(name, found))
        for name, (_, base, target) in runs.items()
    ]


def _floor(name: str, found: Mapping[str, float]) -> str:
    floor = FLOORS.get(name)
    return "" if floor is None else f"({floor}: {found[floor]:.0f} ms)"


def without_guest(before: Path, after: Path, rounds: int) -> list[Row]:
    """Time what needs no guest, on two snapshot files."""
    python = sys.executable
    small = ("--version", "--help", "help walk", "decode 0x00680000411f7f03 --level 3", f"oops {LOG}")
    runs = {f"ptinspect {line.split('/', 1)[0].strip()}": (line.split(), PASS, "≤ 4") for line in small}
    files = {
        "ptinspect diff BEFORE AFTER": ["diff", str(before), str(after)],
        "ptinspect walk VA --snap AFTER": ["walk", "0xffff800010081000", "--snap", str(after)],
        "ptinspect summary --snap AFTER": ["summary", "--snap", str(after)],
    }
    runs |= {name: (words, NUMPY, "≤ 1.6") for name, words in files.items()}
    timed = {name: (process(*OURS, *words), base, target) for name, (words, base, target) in runs.items()}
    timed["prompt of the REPL"] = (prompt(), PASS, "≤ 250 ms")
    codes = {PASS: "pass", NUMPY: "import numpy", JUDGE: "import ptinspect.linux.oops.verdict"}
    baselines = {name: process(python, "-c", code) for name, code in codes.items()}
    return compared(timed, baselines, rounds)


def on_stub(socket_path: str, scripts: Mapping[str, tuple[str, str]], rounds: int) -> list[Row]:
    """Time `ptinspect --gdb SOCKET map` and the same job by scripts in GDB: name -> (file, command)."""
    gdb = find_gdb().path
    attach = ["-ex", f"target remote {socket_path}"]
    ours = "ptinspect --gdb SOCKET map"
    quiet = [gdb, "-nx", "-q", "-batch", "-ex", "set pagination off"]
    words = {  # gef learns what it debugs when that stops: it has to be there before
        name: [*quiet, "-ex", f"source {file}", *attach, "-ex", command]
        for name, (file, command) in scripts.items()
    }
    for name, line in words.items():
        shown = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, check=False).stdout
        assert shown.count(b"0xffff") > 9, f"{name} lists no mappings"
    peers = {name: process(*line) for name, line in words.items()}
    baselines = {GDB: process(gdb, "-nx", "-batch", *attach, "-ex", "detach"), **peers}
    baselines[NUMPY] = process(sys.executable, "-c", "import numpy")
    found = medians({**baselines, ours: process(*OURS, "--gdb", socket_path, "map")}, rounds)
    rows = [Row(ours, found[ours], GDB, found[GDB], "≤ 2", _floor(ours, found))]
    return rows + [Row(f"the same by {name}", found[name], ours, found[ours], PEERS[name]) for name in peers]


def launching(guest: str, rounds: int) -> list[Row]:
    """Time `launch` until the prompt stands again."""
    again = prompt(f"launch --guest {guest}", b"launched"), QEMU, "≤ it + 300 ms"
    return compared({"launch until the prompt": again}, {QEMU: qemu_alone(guest)}, rounds)
