"""The sessions of README.md and of `help TOPIC`: the prompt, files, a guest of one's own, Python, GDB.

The script of README.md runs in test_scripts_live.py, its examples of commands in test_examples.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import missing
from session import need_guest, of_somebody_else

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
GUEST = "5.10-cloud"
SECONDS = 300


def section(title: str) -> str:
    """Return a section of README.md."""
    return re.split(rf"^## {title}$", README, flags=re.M)[1].split("\n## ")[0]


def topic(name: str) -> str:
    """Return the text of `help NAME`."""
    return (ROOT / "ptinspect" / "topics" / f"{name}.txt").read_text("utf-8")


def typed(prompt: str, text: str) -> list[str]:
    """Return what follows `prompt` in the indented lines of a text."""
    return [line.strip() for line in re.findall(rf"^    {re.escape(prompt)}(.+)$", text, re.M)]


def environment() -> dict[str, str]:
    """Return the environment of a user of this tree: `ptinspect` is its command line."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PTINSPECT_PYTHON": sys.executable,
    }


def shell(line: str, folder: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command line of README.md."""
    line = re.sub(r"^(\S*/)?ptinspect\b", f"{sys.executable} -m ptinspect", line)
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=environment(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.fixture
def stub() -> Iterator[str]:
    """Return the socket of a guest that stands at reset, started by somebody else."""
    with of_somebody_else(GUEST, memory=256, smp=2) as qemu:
        yield str(qemu.gdb_socket)


def vmlinux(folder: Path) -> None:
    """Put the kernel file where README.md has it."""
    found = next(need_guest("5.10-cloud-dbg").kernel.parent.glob("vmlinux-*"), None)
    if found is None:
        missing("the symbols of 5.10-cloud-dbg")
    (folder / "vmlinux").symlink_to(found)
    boot = folder / "arch" / "arm64" / "boot"
    boot.mkdir(parents=True)
    (boot / "Image").symlink_to(need_guest(GUEST).kernel)


def test_the_first_screen(tmp_path: Path) -> None:
    """What README.md shows first is an excerpt of what `demo --timeline` prints, but for numbers."""
    need_guest(GUEST)
    done = shell("ptinspect demo --timeline", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = re.search(r"(?:^(?:    .*)\n)+", README.split("## Start")[0], re.M)
    assert shown is not None
    printed = like(done.stdout)
    parts = [like(part) for part in shown[0].split("    [...]\n") if part]
    assert len(parts) > 2
    for part in parts:
        assert part in printed, part + done.stdout
        printed = printed.partition(part)[2]


def like(text: str) -> str:
    """Return a text without its numbers, and with every line in one piece."""
    return re.sub(r"0x[0-9a-f]+|[0-9][0-9,]*", "#", " ".join(text.split()))


def test_the_first_session_and_what_is_done_with_its_files(tmp_path: Path) -> None:
    need_guest(GUEST)
    lines = typed("ptinspect> ", section("A first session"))
    assert lines[0].startswith("launch") and len(lines) >= 6
    done = shell("ptinspect", tmp_path, "\n".join(lines) + "\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "only bit 11 changed" in done.stdout and done.stderr == ""
    offline = [line for line in typed("$ ", topic("snapshots")) if ".npz" in line]
    assert len(offline) == 2
    for line in offline:
        done = shell(line, tmp_path)
        assert done.returncode == 0, line + done.stdout + done.stderr
    assert "only bit 11 changed" in (tmp_path / "diff.md").read_text("utf-8")
    assert (tmp_path / "tables.html").read_text("utf-8").startswith("<!DOCTYPE html>")


def test_a_guest_of_ones_own(tmp_path: Path, stub: str) -> None:
    vmlinux(tmp_path)
    lines = [line for line in typed("$ ", topic("guests")) if "--gdb" in line]
    assert len(lines) == 2
    for line in lines:
        typed_in = "until rcu_end_inkernel_boot --timeout 300\nstatus\n"
        done = shell(line.replace("--gdb :1234", f"--gdb {stub}"), tmp_path, typed_in)
        assert done.returncode == 0, line + done.stdout + done.stderr
    other = need_guest("6.1-cloud").kernel
    wrong = shell(f"ptinspect --gdb {stub} --kernel {other} -c status", tmp_path)
    assert re.search(r"^not used +.*another kernel|^not used +.*agree", wrong.stdout, re.M), wrong.stdout
    assert "after: the rewrite has finished" in done.stdout and "pgd 0" in done.stdout, done.stdout


def test_the_python_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_guest(GUEST)
    monkeypatch.chdir(tmp_path)
    text = section("Python")
    block = re.search(r"(?:^(?:    .*)?\n)+", text[text.index("    from") :], re.M)
    assert block is not None and "Guest.launch" in block[0]
    exec(compile(textwrap.dedent(block[0]), "README.md", "exec"), {})
    assert (tmp_path / "after.npz").is_file()


def test_the_session_inside_gdb(tmp_path: Path, stub: str) -> None:
    vmlinux(tmp_path)
    (tmp_path / "gdbscripts").symlink_to(ROOT / "gdbscripts")
    (start,) = typed("$ ", topic("inside-gdb"))
    if shutil.which(start.split()[0]) is None:
        missing(start.split()[0])
    lines = typed("(gdb) ", topic("inside-gdb"))
    assert lines[0].startswith("pt kernel")
    orders = "".join(f" -ex '{line}'" for line in [*lines, "echo done\\n"])
    done = shell(f"{start.replace(':1234', stub)} -nx -q -batch{orders}", tmp_path)
    assert done.stdout.rstrip().endswith(("done", "detached]")) and "\ndone" in done.stdout, done.stderr
    assert "mapped to pa:" in done.stdout and '{"command": "summary", "ok": true' in done.stdout
    assert "ptinspect:" not in done.stderr and "Error" not in done.stderr, done.stderr
