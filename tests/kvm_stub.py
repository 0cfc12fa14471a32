"""A gdbstub that keeps QEMU's rules under KVM (target/arm/kvm64.c), without a machine or a KVM.

Its one CPU executes a few instructions. An interrupt is pending whenever it is let run or step, as on a slow
machine whose timer has ticked meanwhile; its handler does nothing but return.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from fake_stub import ARM64_XML, RAM_START, FakeStub
from kvm_cpu import ERET, STR_X0_X1, VECTORS, ModelCpu

from ptinspect.arch.sysregs import UNWRITTEN

SYSTEM = {34: "ID_AA64DFR0_EL1", 35: "VBAR", 36: "ELR_EL1", 37: "SPSR_EL1", 38: "TPIDR_EL1", 39: "FAR_EL1"}
"""System registers by number, as QEMU 7.2 spells them."""
SPELLED = {"VBAR": "VBAR_EL1"}
LONGEST_RUN = 10_000
"""Instructions after which somebody interrupts the guest."""


class KvmStub(FakeStub):
    """Take a few hardware breakpoints and watchpoints; note whatever would write into the guest."""

    def __init__(
        self,
        where: Path | None = None,
        *,
        breakpoints: int = 6,
        watchpoints: int = 4,
        dfr0: int | None = None,
    ) -> None:
        self.total = {"breakpoint": breakpoints, "watchpoint": watchpoints}
        self.set: dict[str, str] = {}
        """Packet without its Z -> breakpoint or watchpoint."""
        self.most = 0
        """The most breakpoints that were set at once."""
        self.wrong: list[str] = []
        """Packets that would write into guest memory, or that KVM does not know."""
        self.dfr0 = dfr0
        self.cpu = ModelCpu.make(0, 0x3C5, pending=False, PC=RAM_START, FAR_EL1=UNWRITTEN)
        self.cpu.words = {VECTORS + 0x280: ERET, VECTORS + 0x480: ERET}
        self.route: list[int] = []
        """Addresses that the guest comes by, in order; it stops at those that have a breakpoint."""
        self.hold = False
        """Answer no step as long as this is set."""
        super().__init__(where)

    def _reply(self, body: str) -> str:
        return self._known(body) or super()._reply(body)

    def _known(self, body: str) -> str:
        """Answer what this stub answers in another way; empty: as every stub."""
        if body[:1] in "MX" and not self.physical:
            self.wrong.append(body)
        if body[:1] in "Zz" and body[1:2].isdigit():
            return self._point(body)
        if body.startswith("vCont;"):
            return self._run() if body[6] == "c" else self._step()
        if body[:1] in "gpP":
            return self._registers(body)
        if match := re.fullmatch(r"m(\w+),(\w+)", body) if not self.physical else None:
            return self._as_seen(int(match[1], 16), int(match[2], 16))
        if body.startswith("qXfer:features:read:target.xml:"):
            start, size = (int(n, 16) for n in body.rpartition(":")[2].split(","))
            xml = ARM64_XML.replace("</target>", self._system_xml() + "</target>")
            return ("m" if start + size < len(xml) else "l") + xml[start : start + size]
        return {"qqemu.sstepbits": "ENABLE=1"}.get(body, "")

    def _system_xml(self) -> str:
        named = {n: name for n, name in SYSTEM.items() if n != 34 or self.dfr0 is not None}
        rows = "".join(f'<reg name="{name}" bitsize="64" regnum="{n}"/>' for n, name in named.items())
        return f'<feature name="org.qemu.gdb.arm.sys.regs">{rows}</feature>'

    def _registers(self, body: str) -> str:
        regs = self.cpu.regs
        core = [f"X{n}" for n in range(31)] + ["SP", "PC", "CPSR"]
        if body == "g":
            return "".join(regs[name].to_bytes(4 if name == "CPSR" else 8, "little").hex() for name in core)
        number, _, value = body[1:].partition("=")
        n = int(number, 16)
        name = core[n] if n < len(core) else SPELLED.get(SYSTEM[n], SYSTEM[n])
        if body[:1] == "P":
            if n < len(core):  # no system register can be written (target/arm/gdbstub.c)
                regs[name] = int.from_bytes(bytes.fromhex(value), "little")
            return "OK"
        found = self.dfr0 or 0 if n == 34 else regs[name]
        return found.to_bytes(4 if name == "CPSR" else 8, "little").hex()

    def _as_seen(self, address: int, size: int) -> str:
        """What the CPU sees at a virtual address: its code, and what it stored."""
        found = self.cpu.code(address, size & ~3)
        words = [self.cpu.stored.get(address + n, int.from_bytes(found[n : n + 8], "little"))
                 for n in range(0, size & ~7, 8)]  # fmt: skip
        data = b"".join(word.to_bytes(8, "little") for word in words)
        return (data + found[len(data) :]).hex() or "E14"

    def _point(self, body: str) -> str:
        """Insert or remove as kvm64.c does, one too many is refused."""
        if body[1] == "0":
            self.wrong.append(body)
            return "OK"
        kind = "breakpoint" if body[1] == "1" else "watchpoint"
        if body[0] == "z":
            return "OK" if self.set.pop(body[1:], None) else "E22"
        _, address, length = (int(n, 16) for n in re.split("[,;]", body[1:])[:3])
        narrow = length <= 8 and address % 8 + length <= 8
        exact = narrow or (length & (length - 1) == 0 and address % length == 0)
        if kind == "watchpoint" and not exact:
            self.wrong.append(body)
        if list(self.set.values()).count(kind) >= self.total[kind]:
            return "E22"
        self.set[body[1:]] = kind
        self.most = max(self.most, list(self.set.values()).count("breakpoint"))
        return "OK"

    def _stopped(self, signal: str = "05", more: str = "") -> str:
        return f"T{signal}thread:{self._cpu};{more}"

    def _watched(self) -> str:
        """The watchpoint that the next instruction would hit: it is reported before the access."""
        regs = self.cpu.regs
        if self.cpu.words.get(regs["PC"]) != STR_X0_X1 or self.cpu.interrupted():
            return ""
        for point in self.set:
            kind, address, size = (int(n, 16) for n in re.split("[,;]", point)[:3])
            if kind > 1 and address <= regs["X1"] < address + size:
                return self._stopped(more=f"watch:{address:x};")
        return ""

    def _is_point(self) -> bool:
        return f"1,{self.cpu.regs['PC']:x},4" in self.set

    def _step(self) -> str:
        while self.hold:
            time.sleep(0.01)
        self.cpu.pending = True
        if not self._is_point() and not self._watched():
            self.cpu.step()
        return self._watched() or self._stopped()

    def _run(self) -> str:
        while self.route:
            self.cpu.regs["PC"] = self.route.pop(0)
            if self._is_point():
                return self._stopped()
        self.cpu.pending = True
        for _ in range(LONGEST_RUN if self.cpu.words.get(self.cpu.regs["PC"]) else 0):
            if self._is_point():
                return self._stopped()
            if watched := self._watched():
                return watched
            self.cpu.step()
            if self.cpu.regs["PC"] in (VECTORS + 0x280, VECTORS + 0x480):
                self.cpu.pending = False
        return self._stopped("02")

    def _monitor(self, command: str) -> str:
        if command == "info kvm":
            return "kvm support: enabled\r\n"
        return super()._monitor(command)
