"""A Slurm of one node on this machine, in a directory of its own, as whoever runs the test."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from conftest import missing

from ptinspect.processes import die_with_parent

SBIN = "/usr/sbin"
"""Where Debian has the daemons; an ordinary user's PATH does not name it."""
SECONDS = 120.0
"""What a daemon may take on a busy machine."""
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={socket},cred_expire=5
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
MpiDefault=none
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,builtin_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobRequeue=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus}
PartitionName=all Nodes=ALL Default=YES State=UP
"""
MARK = "PTINSPECT_TEST_NODE"
"""Environment variable of all that runs on the node."""


def program(name: str) -> str:
    """Return the path of a program of Slurm's; fail or skip where it is missing."""
    return shutil.which(name) or shutil.which(name, path=SBIN) or missing(f"{name} (setup --tests)")


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Slurm:
    """munged, slurmctld and slurmd, each a child of this process; they end with it, however it ends."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.host = socket.gethostname().partition(".")[0]
        self.environment = {**environment, "SLURM_CONF": str(folder / "slurm.conf"), MARK: str(folder)}
        self._short = tempfile.TemporaryDirectory(prefix="munge-")
        self._socket = Path(self._short.name) / "socket"
        """Its path has room for 107 bytes (unix(7)); the directory of a test may have more."""
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Begin, and wait until the node takes jobs."""
        for name in ("state", "spool"):
            (self.folder / name).mkdir(mode=0o755)
        (self.folder / "key").write_bytes(os.urandom(1024))
        (self.folder / "key").chmod(0o600)
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(
                host=self.host,
                user=pwd.getpwuid(os.geteuid()).pw_name,
                folder=self.folder,
                socket=self._socket,
                ports=free_ports(2),
                cpus=min(2, os.cpu_count() or 1),
            )
        )
        files = {"key-file": "key", "pid-file": "pid", "seed-file": "seed"}
        words = [f"--{option}={self.folder / name}" for option, name in files.items()]
        self._daemon("munged", "--foreground", "--force", f"--socket={self._socket}", *words)
        self._until(self._socket.exists, "munged answers")
        self._daemon("slurmctld", "-D", "-i")
        self.start_node()

    def start_node(self) -> None:
        """Start slurmd, and wait until the node takes jobs."""
        self._daemon("slurmd", "-D")
        self._until(lambda: self("sinfo", "-h", "-o", "%t").strip() in ("idle", "mix"), "the node is idle")

    def __call__(self, *words: str) -> str:
        """Run one of Slurm's programs; return what it prints, of one that fails what is wrong."""
        done = subprocess.run(
            [program(words[0]), *words[1:]],
            env=self.environment, capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        return done.stdout if done.returncode == 0 else f"failed: {done.stderr}"

    def jobs(self) -> list[str]:
        """Return the lines of the jobs that have not ended."""
        return self("squeue", "-h", "-r").splitlines()

    def on_node(self) -> set[int]:
        """Return the processes that run on the node."""
        found = set()
        mark = f"{MARK}={self.folder}".encode()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    found.add(int(path.name))
        for name in ("munged", "slurmctld"):
            if name in self._daemons:
                found.discard(self._daemons[name].pid)
        return found

    def lose_node(self) -> None:
        """Kill all that runs on the node at once, as a machine that loses its power does, and tell Slurm."""
        stopped: set[int] = set()
        while new := self.on_node() - stopped:  # all stand before one dies: who is left would tell of it
            self._kill(sorted(new), signal.SIGSTOP)
            stopped |= new
        self._kill(stopped, signal.SIGKILL)
        self._daemons.pop("slurmd").wait(SECONDS)
        self._until(lambda: not self.on_node(), "the node is dead")
        self("scontrol", "update", f"NodeName={self.host}", "State=DOWN", "Reason=died")

    def wait(self, seconds: float) -> None:
        """Wait until no job is left."""
        self._until(lambda: not self.jobs(), "the jobs have ended", seconds)

    def close(self) -> None:
        """End the daemons and whatever is left on the node."""
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._kill(self.on_node(), signal.SIGKILL)
        self._short.cleanup()

    def _kill(self, pids: Iterable[int], number: signal.Signals) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _daemon(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [program(name), *words],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call
            )  # fmt: skip

    def _until(self, ready: object, what: str, seconds: float = SECONDS) -> None:
        deadline = time.monotonic() + seconds
        assert callable(ready)
        while not ready():
            ended = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = {path.name: path.read_text()[-1500:] for path in self.folder.glob("*.log")}
                raise AssertionError(f"in vain waited until {what}; ended: {ended}; {logs}")
            time.sleep(0.1)


@contextlib.contextmanager
def slurm(folder: Path, environment: Mapping[str, str]) -> Iterator[Slurm]:
    """Give a Slurm that takes jobs."""
    needed: Sequence[str] = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scontrol")
    for name in needed:
        program(name)
    folder.mkdir()
    made = Slurm(folder, environment)
    try:
        made.start()
        yield made
    finally:
        made.close()
