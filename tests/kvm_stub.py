"""A gdbstub that keeps QEMU's rules under KVM (target/arm/kvm64.c), without a machine or a KVM."""

from __future__ import annotations

import re
from pathlib import Path

from fake_stub import ARM64_XML, RAM_START, FakeStub

DFR0_XML = (
    '<feature name="org.qemu.gdb.arm.sys.regs">'
    '<reg name="ID_AA64DFR0_EL1" bitsize="64" regnum="34"/></feature>'
)


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
        self.pc = RAM_START
        self.route: list[int] = []
        """Addresses that the guest comes by, in order; it stops at those that have a breakpoint."""
        super().__init__(where)

    def _reply(self, body: str) -> str:
        return self._known(body) or super()._reply(body)

    def _known(self, body: str) -> str:
        """Answer what this stub answers in another way; empty: as every stub."""
        if body[:1] in "MX" and not self.physical:
            self.wrong.append(body)
        if body[:1] in "Zz" and body[1:2].isdigit():
            return self._point(body)
        if body.startswith("vCont;c"):
            return self._run()
        if self.dfr0 is not None and body.startswith("p"):
            return self.dfr0.to_bytes(8, "little").hex() if body == "p22" else "0" * 16
        if self.dfr0 is not None and body.startswith("qXfer:features:read:target.xml:"):
            start, size = (int(n, 16) for n in body.rpartition(":")[2].split(","))
            xml = ARM64_XML.replace("</target>", DFR0_XML + "</target>")
            return ("m" if start + size < len(xml) else "l") + xml[start : start + size]
        at = self.pc.to_bytes(8, "little").hex()
        return {"qqemu.sstepbits": "ENABLE=1", "g": "0" * (32 * 16) + at + "0" * 8}.get(body, "")

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

    def _run(self) -> str:
        while self.route:
            self.pc = self.route.pop(0)
            if f"1,{self.pc:x},4" in self.set:
                return "T05thread:01;"
        return "T02thread:01;"

    def _monitor(self, command: str) -> str:
        if command == "info kvm":
            return "kvm support: enabled\r\n"
        return super()._monitor(command)
