"""Registers of the stopped CPUs, by GDB's register numbers of this connection."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ptinspect.arch.sysregs import ALIASES, SYSTEM_REGISTERS, CpuState
from ptinspect.errors import TargetError
from ptinspect.link.gdb.mi import SECONDS, GdbLink, c_string

CORE = (*(f"x{n}" for n in range(31)), "sp", "pc", "cpsr")
_NAME = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_VALUE = re.compile(rb'\{number="(\d+)",value="(0x[0-9a-f]+)"\}')


class RegisterReader:
    """Read registers in one round trip; vectors are left out."""

    def __init__(self, gdb: GdbLink) -> None:
        """Ask for the names. Raises TargetError if they are not those of an aarch64 CPU."""
        self._gdb = gdb
        body = gdb.request("-data-list-register-names", SECONDS).line.body
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

    def state(self, cpu: int) -> CpuState:
        """Return the general and system registers of a CPU. Raises TargetError."""
        found = self._values(cpu, [*self._core, *self._system.values()])
        try:
            core = [found[number] for number in self._core]
        except KeyError as error:
            raise TargetError(f"GDB cannot read the registers of cpu {cpu}") from error
        system = {name: found[number] for name, number in self._system.items() if number in found}
        return CpuState(cpu, tuple(core[:31]), core[31], core[32], core[33], system)

    def all(self, cpu: int) -> Mapping[str, int]:
        """Return every scalar register of a CPU under the stub's own names. Raises TargetError."""
        found = self._values(cpu, self._number.values())
        return {name: found[number] for name, number in self._number.items() if number in found}

    def _values(self, cpu: int, numbers: Iterable[int]) -> dict[int, int]:
        wanted = " ".join(str(number) for number in numbers)
        command = f"-data-list-register-values --thread {cpu + 1} --frame 0 x {wanted}"
        body = self._gdb.request(command, SECONDS).line.body
        return {int(number): int(value, 16) for number, value in _VALUE.findall(body)}
