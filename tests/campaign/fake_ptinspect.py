"""Stands for ptinspect in a campaign's tests: does what the variable `kind` says."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

OOPS = (
    b"[    1.0] Kernel panic - not syncing: No working init found.\r\n"
    b"[    1.1] CPU: 0 PID: 1 Comm: swapper/0 Not tainted 5.10.0\r\n"
)


def say(command: str, ok: bool = True, **fields: Any) -> None:
    """Print an answer, as --json does."""
    sys.stdout.write(json.dumps({"command": command, "ok": ok, **fields}) + "\n")
    sys.stdout.flush()


def launch(line: str) -> Path:
    """Answer as `launch` does: the socket in a private directory, the console too unless it is recorded."""
    folder = private = Path(tempfile.mkdtemp(prefix="ptinspect-"))
    if "--timeline boot" in line:
        folder = Path("boot")
        folder.mkdir()
        (folder / "timeline.json").write_text("{}")
    (folder / "console.log").write_bytes(b"[    0.0] Booting\r\n")
    files = {"console": str(folder.absolute() / "console.log"), "address": str(private / "gdb.sock")}
    say("launch", result={**files, "pid": os.getpid()}, line="launch")
    return folder


def main() -> int:
    """Play a run."""
    words = sys.argv[1:]
    given = dict(words[n + 1].split("=", 1) for n, word in enumerate(words) if word == "--var")
    kind, run = given["kind"], int(given["run"])
    Path("seen.json").write_text(
        json.dumps({"words": words, "cwd": str(Path.cwd()), "path": os.environ["PYTHONPATH"]})
    )
    if kind == "connect":
        say("launch", False, error={"kind": "connect", "message": "no QEMU", "hint": ""}, line="launch")
        return 4
    folder = launch(words[words.index("-c") + 1] if "-c" in words else "")
    say("stack", result={"used": 100 + run, "free": 5000, "kind": "task"}, line="stack", place="s.pti:1")
    say("regs", result={"x0": f"{run:#x}", "x1": "0x7"}, line="regs", place="s.pti:2")
    if kind == "flaky":
        kind = "pass" if given["attempt"] == "2" else "fail"
    return {**KINDS, "pass": lambda folder: 0}[kind](folder)


def fail(folder: Path) -> int:
    """Have another value, and a check that does not hold; then what runs after a failure."""
    say("regs", result={"x0": "0x0", "x1": "0x8"}, line="regs x1", place="s.pti:3")
    result = {"ok": False, "expectation": "stack free >= 8192", "left": 5000}
    say("expect", False, result=result, line="expect stack free >= 8192", place="s.pti:4")
    say("stack", result={"used": 9000, "free": 1}, line="stack --cpu all", place="on-failure")
    return 1


def unable(folder: Path) -> int:
    """Ask for something that this guest does not have."""
    say("expect", False, error={"kind": "usage", "message": "s.pti:3: no number"}, place="s.pti:3")
    return 2


def unsaved(folder: Path) -> int:
    """Have no room for a snapshot."""
    message = f"s.pti:3: cannot write s.npz: {os.strerror(errno.ENOSPC)}"
    say("save", False, error={"kind": "usage", "message": message}, place="s.pti:3")
    return 2


def crash(folder: Path) -> int:
    """Lose the guest; its console says why."""
    (folder / "console.log").write_bytes(OOPS)
    say("continue", False, error={"kind": "lost", "message": "s.pti:3: gone"}, place="s.pti:3")
    return 3


def wedged(folder: Path) -> int:
    """Panic and sit there, so that the script waits in vain."""
    (folder / "console.log").write_bytes(OOPS)
    return late(folder)


def late(folder: Path) -> int:
    """Wait in vain, and say so."""
    say("until", False, error={"kind": "timeout", "message": "s.pti:3: 8 s"}, place="s.pti:3")
    return 3


def hang(folder: Path) -> NoReturn:
    """Hear nothing."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


def die(folder: Path) -> NoReturn:
    """End by a signal from somewhere."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def ended(folder: Path) -> int:
    """Be asked to end by somebody else."""
    return 128 + signal.SIGTERM


def bug(folder: Path) -> int:
    """Have a bug."""
    sys.stderr.write("Traceback…\nZeroDivisionError: \x1b[31mno\n")
    return 70


def garbage(folder: Path) -> int:
    """Write what is no JSON, what is JSON of other shapes, and half a line."""
    sys.stdout.buffer.write(b"\xff\xfe\x00{]\n[1]\n" + b"[" * 100_000 + b'\n{"command": 3}\n{"command": "st')
    return 0


def huge(folder: Path) -> NoReturn:
    """Never stop writing."""
    while True:
        sys.stdout.write("x" * 65536)


def orphan(folder: Path) -> int:
    """Leave a process behind."""
    left = subprocess.Popen(["sleep", "600"])
    Path("orphan").write_text(str(left.pid))
    return 1


KINDS = {
    each.__name__: each
    for each in (fail, unable, unsaved, crash, wedged, late, hang, die, ended, bug, garbage, huge, orphan)
}

if __name__ == "__main__":
    sys.exit(main())
