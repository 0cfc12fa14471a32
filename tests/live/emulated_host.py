"""An emulated arm64 host (TCG with EL2), whose KVM runs guests: see ptinspect/reference/kvm_host.py."""

from __future__ import annotations

import contextlib
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import missing
from session import BOOT_SECONDS, need_guest

from ptinspect.errors import TargetError
from ptinspect.processes import die_with_parent
from ptinspect.reference import kvm_host
from ptinspect.reference.guests import Guest
from ptinspect.reference.initrd import Entry, cpio

CPU = "max,pauth=off,sve=off,sme=off"
"""Of the host, and of its guests: with LPA2."""
APPEND = "rdinit=/init console=ttyAMA0 nokaslr kpti=off mitigations=off quiet"
GUEST_APPEND = "rdinit=/init console=ttyAMA0 nokaslr kpti=on"
PORTS = 2
"""Of each guest: the gdbstub, and its console."""


class Line:
    """Somebody's serial line, as a socket; it is read all the time, for a guest waits where nobody does."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.text = sock, ""
        self._changed, self._ended = threading.Condition(), False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        data = b" "
        while data:
            data = b""
            with contextlib.suppress(OSError):
                data = self.sock.recv(65536)
            with self._changed:
                self.text += data.decode("utf-8", "replace")
                self._ended = not data
                self._changed.notify_all()

    def send(self, text: str) -> None:
        """Type a line."""
        self.sock.sendall(text.encode() + b"\n")

    def has(self, text: str) -> bool:
        """Tell whether this has come already."""
        with self._changed:
            return text in self.text

    def expect(self, text: str, seconds: float = BOOT_SECONDS) -> str:
        """Return what came up to this text, which is used up by that."""
        with self._changed:
            self._changed.wait_for(lambda: text in self.text or self._ended, seconds)
            if text not in self.text:
                pytest.fail(f"no {text!r} on the console: {self.text[-2000:]}")
            found, _, self.text = self.text.partition(text)
            return found

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


@dataclass
class KvmGuest:
    """A guest that the host runs by KVM, stopped at reset."""

    host: Host
    stub: str
    """Address of its gdbstub, here."""
    port: int
    """Of its console, here."""
    console: Line

    def end(self) -> None:
        """End its QEMU, the only one of the host."""
        self.console.close()
        self.host.line.send("kill -9 $!; wait; echo ended")
        self.host.line.expect("ended")


class Host:
    """The host, and the ports of it that can be reached here."""

    def __init__(self, line: Line, ports: Sequence[int]) -> None:
        self.line, self._ports = line, list(ports)

    def start(self, name: str, *, smp: int = 1, append: str = GUEST_APPEND) -> KvmGuest:
        """Start a guest."""
        stub, console = self._ports.pop(0), self._ports.pop(0)
        words = ["qemu-system-aarch64", "-accel kvm -cpu host -M virt,gic-version=3 -m 384", f"-smp {smp}"]
        words += [
            "-display none -nic none -monitor none -no-reboot",
            f"-serial tcp:0.0.0.0:{console},server,nowait",
        ]
        words += [f"-kernel /guests/{name}.kernel -initrd /guests/{name}.initrd", f"-append '{append}'"]
        words += [f"-S -gdb tcp:0.0.0.0:{stub}"]
        self.line.send(f"LD_LIBRARY_PATH=/lib {' '.join(words)} -L /share > /tmp/qemu.log 2>&1 &")
        self.line.send(f"until netstat -lnt | grep -q :{stub}; do sleep 0.2; done; echo started")
        self.line.expect("started")
        return KvmGuest(self, f"127.0.0.1:{stub}", console, Line(_connect(console)))


def _connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), 60)
    sock.settimeout(None)
    return sock


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on at this moment."""
    with contextlib.ExitStack() as held:
        found = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in found]


def initrd_with(guests: Sequence[Guest], folder: Path, host: kvm_host.KvmHost) -> Path:
    """Return the host's RAM disk with the files of guests."""
    files = {"kernel": lambda guest: guest.kernel, "initrd": lambda guest: guest.initrd}
    path = folder / "host.cpio"
    with path.open("wb") as out, host.initrd.open("rb") as own:
        shutil.copyfileobj(own, out)
        entries = [
            Entry(f"guests/{guest.name}.{use}", stat.S_IFREG | 0o644, where(guest).read_bytes())
            for guest in guests
            for use, where in files.items()
        ]
        out.write(cpio(entries))
    return path


@contextmanager
def emulated_host(names: Sequence[str], folder: Path) -> Iterator[Host]:
    """Boot the host with these guests in it; end it afterwards."""
    qemu = shutil.which("qemu-system-aarch64")
    if qemu is None:
        missing("qemu-system-aarch64")
    guests = [need_guest(name) for name in names]
    try:
        host = kvm_host.find()
    except TargetError:
        missing("the host for KVM guests (setup --tests)")
    initrd = initrd_with(guests, folder, host)
    ports = free_ports(PORTS * len(names))
    serial = folder / "serial"
    forwarded = "".join(f",hostfwd=tcp:127.0.0.1:{port}-:{port}" for port in ports)
    words = [qemu, "-M", "virt,virtualization=on,gic-version=3", "-cpu", CPU, "-smp", "2", "-m", "2560"]
    words += ["-accel", "tcg,thread=multi", "-kernel", str(host.kernel), "-initrd", str(initrd)]
    words += ["-append", APPEND, "-display", "none", "-monitor", "none", "-no-reboot"]
    words += ["-serial", f"unix:{serial},server=on,wait=off"]
    words += ["-netdev", f"user,id=net{forwarded}", "-device", "virtio-net-pci,netdev=net,romfile="]
    with (folder / "qemu.log").open("wb") as log:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - calls prctl only
        )
    try:
        yield Host(_up(serial, process), ports)
    finally:
        process.kill()
        process.wait(30)


def _up(serial: Path, process: subprocess.Popen[bytes]) -> Line:
    deadline = time.monotonic() + BOOT_SECONDS
    sock = socket.socket(socket.AF_UNIX)
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            sock.connect(str(serial))
            line = Line(sock)
            line.expect(kvm_host.READY)
            return line
        time.sleep(0.05)
    pytest.fail("QEMU did not start the host")
