"""The command `ptinspect` of a GDB of the user's: see ptinspect.py, which loads this.

Nothing but the standard library and `gdb` is imported here.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gdb
import ptinspect_mi

HERE = Path(__file__).resolve().parent
MODULE = "ptinspect.gdbhost"
POLL_SECONDS = 0.2
"""How often Ctrl-C is checked while ptinspect works."""
CANCEL_SECONDS = 10.0
"""How long ptinspect may take to give a command up."""


def candidates():
    """Return the Pythons that may have ptinspect, best first."""
    named = os.environ.get("PTINSPECT_PYTHON")
    if named:
        return [Path(named)]
    found = [HERE.parent / ".venv" / "bin" / "python"]
    found += [folder / "bin" / "python" for folder in HERE.parents if (folder / "pyvenv.cfg").is_file()]
    program = shutil.which("ptinspect")
    if program:
        found += [Path(program).resolve().parent / "python", Path(program).parent / "python"]
    return [path for path in found if path.is_file()]


def environment():
    """Return the environment for another Python: GDB may have changed its own."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME",)}
    return {**kept, "PYTHONUNBUFFERED": "1"}


def one_line(error):
    """Return an error's last line."""
    return (str(error).strip().splitlines() or ["?"])[-1]


class Server:
    """The process that does the work."""

    def __init__(self):
        self.process = None
        self.buffer = b""
        self.number = 0

    def start(self):
        """Start it, unless it runs."""
        if self.process is not None and self.process.poll() is None:
            return
        tried = []
        for python in candidates():
            check = subprocess.run(
                [str(python), "-c", "import ptinspect.gdbhost"],
                env=environment(), capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
            if check.returncode == 0:
                self.process = subprocess.Popen(
                    [str(python), "-m", MODULE],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(),
                    start_new_session=True, bufsize=0,
                )  # fmt: skip
                self.buffer = b""
                return
            tried.append(f"{python}: {one_line(check.stderr)}")
        raise gdb.GdbError(
            "ptinspect: no Python with ptinspect was found"
            + "".join(f"\n  {line}" for line in tried)
            + "\n  name it: python import os; os.environ['PTINSPECT_PYTHON'] = '.../.venv/bin/python'"
        )

    def send(self, message):
        """Send one message."""
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
        except OSError as error:
            self.gone(error)

    def receive(self):
        """Return the next message; Ctrl-C makes ptinspect give up what it does."""
        while b"\n" not in self.buffer:
            if signal.sigtimedwait([signal.SIGINT], 0) is not None:
                os.kill(self.process.pid, signal.SIGINT)
            if not select.select([self.process.stdout], [], [], POLL_SECONDS)[0]:
                if self.process.poll() is not None:
                    self.gone("it ended")
                continue
            data = os.read(self.process.stdout.fileno(), 1 << 20)
            if not data:
                self.gone("it ended")
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def gone(self, why):
        """Forget a process that has ended."""
        process, self.process = self.process, None
        process.kill()
        process.wait(10)
        raise gdb.GdbError(f"ptinspect's process has ended ({one_line(why)}), and its snapshots with it")

    def converse(self, message, from_tty):
        """Send a command and serve what it asks until it ends; return its last message."""
        self.start()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self.send(message)
            while True:
                said = self.receive()
                if "end" in said:
                    return said
                self.serve(said, from_tty)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def serve(self, said, from_tty):
        """Do one thing that ptinspect asks for."""
        number = said.get("number")
        if "text" in said:
            gdb.write(said["text"])
        elif "error" in said:
            gdb.write(said["error"], gdb.STDERR)
        elif "mi" in said:
            self.send({"number": number, "out": ptinspect_mi.answer(said["mi"])})
        elif "go" in said:
            self.send({"number": number, **go(said["go"])})
        elif "peer" in said:
            self.send({"number": number, "pid": peer()})
        elif "question" in said:
            self.send({"number": number, "yes": from_tty and confirmed(said["question"])})


class Stops:
    """Remember how the guest stopped last, and whether it may have changed."""

    def __init__(self):
        self.serial = 0
        self.fields = None
        events = gdb.events
        events.stop.connect(self.stopped)
        for name in ("cont", "memory_changed", "register_changed", "inferior_call", "exited"):
            getattr(events, name).connect(self.changed)

    def changed(self, event):
        """Count a change."""
        self.serial += 1

    def stopped(self, event):
        """Keep MI's fields of a stop; a temporary breakpoint is gone once the guest has stopped."""
        self.serial += 1
        self.fields = {"reason": "end-stepping-range"}
        with contextlib.suppress(gdb.error, AttributeError):
            self.fields["thread-id"] = str(gdb.selected_thread().num)
            self.fields["frame"] = {"addr": hex(gdb.newest_frame().pc())}
        if isinstance(event, gdb.BreakpointEvent):
            kinds = (gdb.BP_BREAKPOINT, getattr(gdb, "BP_HARDWARE_BREAKPOINT", gdb.BP_BREAKPOINT))
            watch = event.breakpoint.type not in kinds
            self.fields["reason"] = "watchpoint-trigger" if watch else "breakpoint-hit"
            self.fields["bkptno"] = str(event.breakpoint.number)
        elif isinstance(event, gdb.SignalEvent):
            self.fields["reason"] = "signal-received"
            self.fields["signal-name"] = event.stop_signal


def go(commands):
    """Make the guest run and wait until it stops; SIGINT stops it. Returns MI's fields of the stop."""
    stops.fields = None
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    try:
        with quiet():
            for command in commands:
                gdb.execute(command, False, True)
    except gdb.error as error:
        return {"error": one_line(error)}
    except KeyboardInterrupt:
        pass
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    thread = gdb.selected_thread()
    if thread is None:
        return {"error": "the guest or QEMU has ended"}
    fields = stops.fields or {"reason": "signal-received", "signal-name": "SIGINT"}
    frame = {"addr": hex(int(gdb.parse_and_eval("(unsigned long)$pc")))}
    return {"stop": {**fields, "thread-id": str(thread.num), "frame": frame}}


@contextlib.contextmanager
def quiet():
    """Drop what GDB and others print at each stop on the way; no command of the user's runs then."""
    gdb.flush()
    shown, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        gdb.flush()
        os.dup2(shown, 1)
        os.close(shown)
        os.close(nothing)


def peer():
    """Return the process at the other end of GDB's Unix socket, or None."""
    agent = sys.modules.get("ptinspect_agent")
    wire = getattr(agent, "wire", None)
    lane = wire() if wire is not None else None
    return None if lane is None else lane.stub


def confirmed(question):
    """Ask a yes-or-no question at the prompt."""
    gdb.write(f"{question} [y/N] ")
    gdb.flush()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        return False
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])


def situation():
    """Return what ptinspect must know of the state of this GDB."""
    inferior = gdb.selected_inferior()
    connection = getattr(inferior, "connection", None)
    remote = connection is not None and hasattr(connection, "send_packet")
    thread = gdb.selected_thread()
    return {
        "connection": connection.num if remote else None,
        "details": connection.details if remote else None,
        "thread": thread.num if thread is not None else None,
        "program": gdb.current_progspace().filename,
        "serial": stops.serial,
        "stop": stops.fields,
        "version": gdb.VERSION,
        "cwd": str(Path.cwd()),
    }


class Place:
    """What the user of GDB has selected: thread and frame, which reading other CPUs' registers changes."""

    def __init__(self):
        self.serial = stops.serial
        self.thread = gdb.selected_thread()
        self.level = 0
        with contextlib.suppress(gdb.error):
            self.level = gdb.selected_frame().level()

    def go_back(self, cpu):
        """Choose the thread of a CPU again (None: of none), and the frame if the guest did not run."""
        thread = gdb.selected_thread()
        if cpu is None or thread is None:
            return
        if thread.num != cpu + 1:
            ptinspect_mi.thread_select([str(cpu + 1)])
        same = self.thread is not None and self.thread.num == cpu + 1
        if same and self.level and self.serial == stops.serial:
            with contextlib.suppress(gdb.error):
                if gdb.selected_frame().level() != self.level:
                    gdb.execute(f"frame {self.level}", False, True)


class PtCommand(gdb.Command):
    """ptinspect: look at the translation tables and kernel stacks of an arm64 Linux guest.

    ptinspect help             lists the commands, ptinspect help walk explains one
    ptinspect --json walk $pc  answers as JSON
    """

    def __init__(self, name):
        super().__init__(name, gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        """Run one command line."""
        self.dont_repeat()
        short.check()
        words = argument.split()
        as_json = words[:1] == ["--json"]
        line = argument.strip()[len("--json") :].strip() if as_json else argument.strip()
        tty = os.isatty(1)
        message = {"run": line or "help", "json": as_json, "tty": tty, **situation()}
        message["width"] = gdb.parameter("width") or 0
        message["asks"] = from_tty and tty and os.isatty(0) and gdb.parameter("confirm")
        place = Place()
        end = server.converse(message, from_tty)
        place.go_back(end.get("cpu"))
        gdb.set_convenience_variable("pt_exit", end["end"])

    def complete(self, text, word):
        """Complete the words of commands."""
        try:
            return server.converse({"complete": text}, False).get("words", [])
        except gdb.GdbError:
            return []


class ShortName:
    """The command `pt`, where no other script has one of that name: gdb-pt-dump, pwndbg and a gef do."""

    OURS = "ptinspect: for short pt, as pt walk $pc (GDB's ptype needs its y)\n"
    TAKEN = "ptinspect: the command pt is another script's: type ptinspect walk $pc, and so on\n"

    def __init__(self):
        self.ours = "pt" not in gdb.execute("complete pt", False, True).splitlines()
        if self.ours:
            PtCommand("pt")
        gdb.write(self.OURS if self.ours else self.TAKEN)

    def check(self):
        """Say once that another script, sourced later, has taken the name."""
        if self.ours and PtCommand.__doc__.splitlines()[0] not in gdb.execute("help pt", False, True):
            self.ours = False
            gdb.write(self.TAKEN, gdb.STDERR)


stops = Stops()
server = Server()
PtCommand("ptinspect")
short = ShortName()
