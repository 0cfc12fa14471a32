"""Registers of the stopped CPUs, by GDB's register numbers of this connection."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property

from ptinspect.arch.bits import bit
from ptinspect.arch.sysregs import ALIASES, SYSTEM_REGISTERS, CpuState
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import TargetError
from ptinspect.link.gdb.agent import Agent
from ptinspect.link.gdb.mi import SECONDS, GdbLink, c_string, console

NAMES = "-data-list-register-names"
CORE = (*(f"x{n}" for n in range(31)), "sp", "pc", "cpsr")
_NAME = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_ROW = re.compile(r"^ ?(\S+) +\d+ +-?\d+ +\d+ +(\d+) .* (\d+) +(\d+)(?: +[a-z]+)? *$", re.MULTILINE)
"""A register of `maint print remote-registers`: name, bytes, the stub's number, place in its `g`."""
_VALUE = re.compile(rb'\{number="(\d+)",value="(0x[0-9a-f]+)"\}')


_CPU = re.compile(r"^CPU#(\d+)\s(.*?)(?=^CPU#|\Z)", re.MULTILINE | re.DOTALL)
_AARCH32 = re.compile(r"\bR(\d\d)=([0-9a-f]{8})|^PSR=([0-9a-f]{8})", re.MULTILINE)
"""A register of `info registers -a` where the CPU is in AArch32 (QEMU target/arm/cpu.c)."""


@dataclass(frozen=True)
class _Register:
    """Where the stub has a register."""

    size: int
    """Bytes."""
    number: int
    """The stub's own number."""
    offset: int
    """Its place in the packet of general registers, if it is one of them."""

    def within(self, general: str) -> str:
        """Return its hex in the packet of general registers."""
        return general[2 * self.offset : 2 * (self.offset + self.size)]


class RegisterReader:
    """Read registers in one round trip; vectors are left out."""

    def __init__(self, gdb: GdbLink, agent: Agent | None = None) -> None:
        """Ask for the names. Raises TargetError if they are not those of an aarch64 CPU.

        `agent`: asks the stub for all of them at once; None: GDB asks for one after another.
        """
        self._agent = agent
        self._gdb = gdb
        body = gdb.request(NAMES, SECONDS).line.body
        names = [c_string(name) for name in _NAME.findall(body)]
        self._number = {name: number for number, name in enumerate(names) if name}
        missing = [name for name in CORE if name not in self._number]
        if missing:
            raise TargetError(f"GDB shows no aarch64 registers ({missing[0]} is missing)")
        self._system = {
            name: self._number[spelled]
            for name in SYSTEM_REGISTERS
            for spelled in [next((s for s in ALIASES.get(name, (name,)) if s in self._number), "")]
            if spelled
        }
        self._core = [self._number[name] for name in CORE]

    def states(self, cpus: Sequence[int]) -> list[CpuState]:
        """Return the general and system registers of CPUs. Raises TargetError."""
        numbers = [*self._core, *self._system.values()]
        states = [self._state(cpu, row) for cpu, row in zip(cpus, self._values(cpus, numbers), strict=True)]
        if not any(bit(state.system.get(f"SPSR_EL{state.el}", 0), 4) for state in states):
            return states
        narrow = aarch32(console(self._gdb, "monitor info registers -a", SECONDS))
        return [_in_aarch32(state, narrow[state.cpu]) if state.cpu in narrow else state for state in states]

    def _state(self, cpu: int, found: Mapping[int, int]) -> CpuState:
        try:
            core = [found[number] for number in self._core]
        except KeyError as error:
            raise TargetError(f"GDB cannot read the registers of cpu {cpu}") from error
        system = {name: found[number] for name, number in self._system.items() if number in found}
        return CpuState(cpu, tuple(core[:31]), core[31], core[32], core[33], system)

    def all(self, cpu: int, only: Collection[str] = ()) -> Mapping[str, int]:
        """Return scalar registers of a CPU, all or `only` these, by the stub's names. Raises TargetError."""
        numbers = {name: number for name, number in self._number.items() if not only or name in only}
        (found,) = self._values([cpu], list(numbers.values()))
        return {name: found[number] for name, number in numbers.items() if number in found}

    def _values(self, cpus: Sequence[int], numbers: Sequence[int]) -> list[dict[int, int]]:
        """Return the registers of each CPU by GDB's number."""
        if self._agent is None:
            return [self._by_gdb(cpu, numbers) for cpu in cpus]
        remote = self._remote
        core, known = set(self._core), [n for n in numbers if n in remote]
        apart = [n for n in known if n not in core]
        rows = self._agent.registers([cpu + 1 for cpu in cpus], [remote[n].number for n in apart])
        found = []
        for general, *others in rows:
            values = {n: remote[n].within(general) for n in known if n in core}
            values |= zip(apart, others, strict=True)
            found.append({n: number for n, text in values.items() if (number := _number(text)) is not None})
        return found

    @cached_property
    def _remote(self) -> dict[int, _Register]:
        """Where the stub has the registers, by GDB's number of this connection; without vectors."""
        text = "" if self._agent is None else self._agent.layout()
        rows = {name: _Register(*map(int, where)) for name, *where in _ROW.findall(text)}
        return {n: rows[name] for name, n in self._number.items() if name in rows and rows[name].size <= 8}

    def _by_gdb(self, cpu: int, numbers: Iterable[int]) -> dict[int, int]:
        wanted = " ".join(str(number) for number in numbers)
        command = f"-data-list-register-values --thread {cpu + 1} --frame 0 x {wanted}"
        body = self._gdb.request(command, SECONDS).line.body
        return {int(number): int(value, 16) for number, value in _VALUE.findall(body)}


def aarch32(text: str) -> dict[int, list[int]]:
    """Return R0 to R15 and PSR of the CPUs in AArch32, by QEMU's monitor.

    Its stub shows the AArch64 registers as they were before (target/arm/gdbstub64.c): such a CPU seems to be
    where the kernel left for a 32-bit process.
    """
    found = {}
    for cpu, body in _CPU.findall(text.replace("\r", "")):
        values = [int(value or psr, 16) for _, value, psr in _AARCH32.findall(body)]
        if len(values) == 17:
            found[int(cpu)] = values
    return found


def _in_aarch32(state: CpuState, values: Sequence[int]) -> CpuState:
    *general, psr = values
    return replace(state, x=(*general[:15], *state.x[15:]), sp=general[13], pc=general[15], pstate=psr)


def _number(text: str) -> int | None:
    """Return a register from the stub's hex, lowest byte first; None for an error, or what is missing."""
    try:
        return int.from_bytes(bytes.fromhex(text), "little") if len(text) % 2 == 0 and text else None
    except ValueError:
        return None
