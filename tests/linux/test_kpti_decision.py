"""Whether the kernel has decided: from the code of real kernels, and a variable in memory."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import pytest

from ptinspect.errors import GuestError
from ptinspect.linux.kpti import decision as kpti_decision
from ptinspect.linux.kpti.decision import applied_variable, decision, exit_site

PATCHER_5_10 = """
d503201f d503201f d503233f a9bc7bfd d5384100 910003fd b0008581 f9429002 f9001fe2 d2800002 910df021 900086e0
911ad000 a90203e1 b0008a60 d538d081 91002000 b8616800 34000280 b000afa1 91248021 b9400820 350000a0 d503201f
d503203f b9400820 34ffffc0 d5033fdf d5384100 f9401fe1 f9429002 eb020021 d2800002 540002e1 52800000 a8c47bfd
d50323bf d65f03c0 b000afa0 f9000bf3 b000afb3 91248273 f9448000 b9400a61 aa2003e0 f9001be0 35000121 910083e0
9100c3e2 52800001 97ffff3a 52800020 b9000a60 f9400bf3 17ffffe6 d4210000 f9000bf3 94291ea7 d503201f d503201f
"""
PATCHER_6_1 = """
d503201f d503201f d503233f d10103ff d5384101 d000a480 91002000 a9027bfd 910083fd f942a822 f9000fe2 d2800002
d538d081 b8616800 340002a0 d000cec1 9116c021 b9401020 350000a0 d503201f d503203f b9401020 34ffffc0 d5033fdf
d5384100 f9400fe2 f942a801 eb010042 d2800001 54000361 a9427bfd 52800000 910103ff d50323bf d65f03c0 f9001bf3
d000ced3 9116c273 910023e0 d000cec1 52800aa2 91158021 a900ffff 94183e3d b9401260 35000140 910023e2 90005d80
52800001 91324000 97ffff3a 52800020 b9001260 f9401bf3 17ffffe2 d4210000 f9001bf3 942e0bcf d503201f d503201f
"""
PATCHER_6_12 = """
d503201f d503201f d503233f d10103ff d5384100 d5384101 a9027bfd 910083fd f9001bf3 b00026d3 910ca273 b9401021
f942b402 f9000fe2 d2800002 340000e1 b9401260 35000060 d503203f 17fffffd d5033fdf 14000011 910023e0 b00026c1
52800cc2 91096021 a900ffff 97bab641 b9401260 34000040 d4210000 910023e2 90000a20 52800001 9111a000 979e0163
52800020 b9001260 d5384100 f9400fe2 f942b401 eb010042 d2800001 54000040 97d4d028 f9401bf3 52800000 a9427bfd
910103ff d50323bf d65f03c0
"""
EXIT_5_10 = "d5034fdf f9400393 d503201f f9407bfe 910543ff d69f03e0 54000181 d518601d 92c0401e"
EXIT_6_12 = "f9400393 d503201f a94e77fc 1400000d d518601d f000cfde f9407bfe 910543ff d503201f d69f03e0"
KERNELS = {
    "5.10": (0xFFFF_8000_1002_8120, PATCHER_5_10, 0xFFFF_8000_1161_D928, EXIT_5_10, 5),
    "6.1": (0xFFFF_8000_0802_6040, PATCHER_6_1, 0xFFFF_8000_09A0_05C0, EXIT_5_10, 5),
    "6.12": (0xFFFF_8000_818A_5A30, PATCHER_6_12, 0xFFFF_8000_81D7_E338, EXIT_6_12, 3),
}
EXIT_AT = 0xFFFF_8000_1001_2870
NOP = 0xD503_201F


def code(text: str) -> bytes:
    return b"".join(struct.pack("<I", int(word, 16)) for word in text.split())


@dataclass
class File:
    """A kernel file of two functions."""

    functions: dict[int, bytes]
    symbols: dict[str, list[int]]

    def lookup(self, name: str) -> int:
        return self.symbols[name][0]

    def text_at(self, va: int, length: int) -> bytes:
        return self.functions[va][:length].ljust(length, b"\0")


@dataclass
class View:
    """Memory by link-time addresses."""

    image: Any
    words: dict[int, int] = field(default_factory=dict)

    @property
    def memory(self) -> Any:
        return self

    def pa_of_link(self, va: int) -> int:
        return va

    def read(self, pa: int, length: int) -> bytes:
        if pa not in self.words:
            raise GuestError("nothing there")
        return self.words[pa].to_bytes(length, "little")


def kernel(name: str) -> Any:
    at, patcher, _, leaving, _ = KERNELS[name]
    symbols = {kpti_decision.PATCHER: [at], kpti_decision.EXIT: [EXIT_AT]}
    return File({at: code(patcher), EXIT_AT: code(leaving)}, symbols)


@pytest.mark.parametrize("name", KERNELS)
def test_the_code_tells_where_to_look(name: str) -> None:
    _, _, variable, leaving, at = KERNELS[name]
    assert applied_variable(kernel(name)) == variable
    assert exit_site(kernel(name)) == (EXIT_AT + 4 * at, int(leaving.split()[at], 16))


@pytest.mark.parametrize("name", KERNELS)
def test_the_decision(name: str) -> None:
    file = kernel(name)
    variable, (site, original) = KERNELS[name][2], exit_site(file) or (0, 0)
    view: Any = View(file, {variable: 0, site: original})
    assert decision(view) == "open"
    view.words[variable] = 1
    assert decision(view) == "off"
    view.words[site] = NOP
    assert decision(view) == "on"
    view.words[site] = 0x1234_5678
    assert decision(view) == "unknown", "somebody else patched it"
    del view.words[variable]
    assert decision(view) == "unknown"


def test_code_of_another_kind_is_not_known() -> None:
    file = kernel("5.10")
    assert decision(View(None)) == "unknown"  # type: ignore[arg-type]
    at = KERNELS["5.10"][0]
    file.functions[at] = code(PATCHER_5_10.replace("350000a0", "d503201f"))
    assert applied_variable(file) is None, "it is not waited for"
    file.functions[EXIT_AT] = code(EXIT_5_10.replace("d69f03e0", "d503201f"))
    assert exit_site(file) is None
    del file.symbols[kpti_decision.EXIT], file.symbols[kpti_decision.PATCHER]
    assert exit_site(file) is None and applied_variable(file) is None
    assert decision(View(file)) == "unknown"  # type: ignore[arg-type]
