"""How fast ptinspect is, in one table: medians, and ratios to baselines of the same run.

    python tests/bench/bench.py [--memory 1024 8192] [--json] [--gdb-pt-dump PATH] [--gef PATH]

Needs a guest (`ptinspect setup`), and nothing that the installation does not bring. The plain read asks the
same lane for the same tables, all addresses known, in as few calls as the lane can, and does nothing with
them; it keeps what it read, as a capture does, so both need fresh memory (`hot`: both may use the memory of
the round before). Whole processes run in turn with what they are compared with.
Quiet machines give better medians; ratios hold on busy ones too. Nothing is judged here.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "live"))  # the walker of drgn

import numpy as np
from captures import snapshots
from driven import Live, launched
from peers import with_drgn
from processes import compiled, launching, medians, on_stub, process, without_guest
from timing import Row, median_ms, show

from ptinspect.link.gdb.program import find_gdb
from ptinspect.reference import guests
from ptinspect.tables.capture import capture
from ptinspect.tables.walk import walk

MARKER = b"Run /init"
"""What the kernel writes when its boot is over (init/main.c)."""
BOOT_SECONDS = 120.0


def attaching(name: str, rounds: int) -> list[Row]:
    """Time attaching with a vmlinux that has debug information, and the first symbol in GDB."""
    vmlinux = guests.guest(name).vmlinux
    if vmlinux is None:
        return []
    reading = process(find_gdb().path, "-nx", "-q", "-batch", "-ex", f"file {vmlinux}")
    whole = medians({"": reading}, 3)[""]
    size = f"({vmlinux.stat().st_size >> 20} MiB)"
    times, firsts = [], []
    with launched(name) as live:
        for _ in range(rounds):
            live("detach --stop")
            start = time.perf_counter()
            live("attach")
            times.append(1000 * (time.perf_counter() - start))
            start = time.perf_counter()
            live("gdb info symbol start_kernel")
            live("gdb p &init_task")
            live("symbol start_kernel")
            firsts.append(1000 * (time.perf_counter() - start))
    middle = rounds // 2
    return [
        Row("attach with a vmlinux", sorted(times)[middle], "GDB reading it", whole, "≤ 1500 ms", size),
        Row("first symbols then", sorted(firsts)[middle]),
    ]


def _wait_for(console: Path) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    while MARKER not in console.read_bytes():
        assert time.monotonic() < deadline, "the guest did not boot"
        time.sleep(0.005)


def booting(guest: str, memory: int, rounds: int) -> list[Row]:
    """Time a boot with `kpti run` and its three captures against the same boot left alone, in pairs."""
    alone, ours = [], []
    for _ in range(rounds):
        for times, line in ((alone, ""), (ours, "kpti run")):
            with launched(guest, f"--memory {memory}") as live:
                assert live.ctx.guest.qemu is not None
                start = time.perf_counter()
                if line:
                    live(line)
                live("detach --resume")
                _wait_for(live.ctx.guest.qemu.console)
                times.append(1000 * (time.perf_counter() - start))
    middle = rounds // 2
    return [
        Row(
            f"{memory} MiB: boot with kpti run",
            sorted(ours)[middle],
            "the boot alone",
            sorted(alone)[middle],
            "≤ 1.5",
        )
    ]


def lane(live: Live, name: str, label: str, rounds: int) -> list[Row]:
    """Measure one lane at the stop at which the guest stands."""
    source = live.ctx.guest.stopped.memory
    source.choose(name)
    snapshot = live.ctx.guest.snapshots["after"]
    regime, root = snapshot.regime, snapshot.root.pa
    addresses = np.unique(snapshot.tables.pa)
    va = int(snapshot.tables.va[-1])
    rows = []

    def new_stop(work: Callable[[], object]) -> Callable[[], object]:
        """Forget the pages that the slower lanes keep for a stop."""
        return work if name == "host" else lambda: (_distrust(live), work())

    target = {"host": "≤ 3, < 30 ms at 1 GiB", "gdbstub": "≤ 1.2"}.get(name, "")
    for keep, how in ((True, ""), (False, ", hot"))[: 2 if name == "host" else 1]:
        plain = median_ms(new_stop(lambda: source.read_tables(addresses, regime.granule)), rounds, keep=keep)
        whole = median_ms(new_stop(lambda: capture(source, root, regime)), rounds, keep=keep)
        note = f"({1000 * whole / len(snapshot.tables):.2f} µs a table)"
        rows.append(Row(f"{label}, {name}: capture{how}", whole, f"plain read{how}", plain, target, note))
    if name == "host":
        first = median_ms(lambda: (_distrust(live), capture(source, root, regime)), rounds)
        rows.append(Row(f"{label}, {name}: first capture at a stop", first, "a later one, hot", whole))
    one = median_ms(new_stop(lambda: walk(source, va, root, regime)), rounds)
    target = {"host": "≤ 5 ms", "gdbstub": "≤ 15 ms"}.get(name, "")
    return [*rows, Row(f"{label}, {name}: walk", one, target=target)]


def _distrust(live: Live) -> None:
    """Have the lanes compared with the gdbstub again, as at a new stop."""
    live.ctx.guest.stopped._tracker.touch()


def _swapper_va(live: Live) -> int:
    """Return where the kernel image maps the root table."""
    return (live.ctx.guest.snapshots["after"].root.pa + live.ctx.guest.view.voffset) & (1 << 64) - 1


def on_guest(options: argparse.Namespace, memory: int) -> list[Row]:
    """Measure everything on one guest."""
    label, rows = f"{memory} MiB", []
    with launched(options.guest, f"--memory {memory}") as live:
        assert live("kpti run")["reached"]
        lanes = [one.name for one in live.ctx.guest.stopped.lanes.facts(measure=False) if not one.why_not]
        for name in lanes:
            rows += lane(live, name, label, options.rounds)
        live.ctx.guest.stopped.lanes.choose("auto")
        held = live.ctx.guest.snapshots
        rows += snapshots(held["before"], held["after"], label, options.rounds)
        if memory == options.memory[0]:
            rows += with_drgn(held["after"], _swapper_va(live))
            rows += whole(live, options)
    return rows


def whole(live: Live, options: argparse.Namespace) -> list[Row]:
    """Measure whole processes: on files, and on the gdbstub of this guest, which is left there."""
    scripts = {"gdb-pt-dump": (options.gdb_pt_dump, "pt"), "gef": (options.gef, "pagewalk")}
    scripts = {name: found for name, found in scripts.items() if found[0]}
    assert live.ctx.guest.qemu is not None
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.npz", Path(folder) / "after.npz"
        live(f"save before {before}")
        live(f"save after {after}")
        live("detach --resume")
        _wait_for(live.ctx.guest.qemu.console)  # from then on it has nothing to do
        rows = without_guest(before, after, options.processes)
    rows += on_stub(str(live.ctx.guest.qemu.gdb_socket), scripts, options.processes)
    return rows + launching(options.guest, options.processes)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--guest", default="5.10-cloud", help="reference guest whose kernel rewrites its tables")
    add("--debug-guest", default="5.10-cloud-dbg", help="reference guest with a vmlinux")
    add("--memory", type=int, nargs="+", default=[1024, 4096, 8192], metavar="MIB")
    add("--rounds", type=int, default=9, help="runs of which the median is taken")
    add("--processes", type=int, default=5, help="runs of whole processes, in turn")
    add("--boots", type=int, default=3, help="pairs of boots")
    add("--gdb-pt-dump", metavar="PATH", help="its pt.py")
    add("--gef", metavar="PATH", help="gef.py with the command pagewalk (bata24/gef)")
    add("--json", action="store_true")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    )
    compiled()
    rows: list[Row] = []
    if any(guest.name == options.debug_guest for guest in guests.installed_guests()):
        rows += attaching(options.debug_guest, options.rounds)
    for memory in options.memory:
        rows += on_guest(options, memory)
        rows += booting(options.guest, memory, options.boots)
    show(rows, options.json, guest=options.guest, gdb=find_gdb().version)


if __name__ == "__main__":
    main()
