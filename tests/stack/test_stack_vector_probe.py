"""The code that the guard puts into the padding of the vectors, word by word and as it runs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import stack_guest as sg

from ptinspect.arch import a64
from ptinspect.stack.vector_probe import TRAP, Probe, plan, traps_at

AT = sg.VECTORS + 0x200
FAULT, NET = sg.KERNEL + 0x8_0000, sg.KERNEL + 0x8_0080
FRAME = 0x150


UDF, BTI_C, BRK = 0, 0xD503245F, 0xD4200020


def vector(label: int = sg.EL1_SYNC, frame: int = FRAME, fill: int = UDF) -> list[int]:
    words = sg.vector(AT, label, sg.OVERFLOW + 0x1000, frame=frame)
    return words + [fill] * (32 - len(words))


def patched(words: list[int], probe: Probe) -> list[int]:
    out = list(words)
    for at, old, new in probe.patches:
        assert out[at // 4] == old
        out[at // 4] = new
    return out


@dataclass
class Cpu:
    """A CPU that knows the instructions of the probe, decoded from their fields."""

    x0: int
    sp: int
    far: int
    par: int = 0
    equal: bool = False

    def run(self, words: list[int], offset: int) -> int:
        """Run from an offset in the vector until it is left; return the address."""
        for _ in range(64):
            pc, word = AT + offset, words[offset // 4]
            target = a64.branch(word, pc)
            if target is not None:
                if not AT <= target < AT + 0x80:
                    return target
                offset = target - AT
                continue
            offset += 4
            conditional = word >> 24 == 0x54
            if conditional and (word & 0xF == 0) == self.equal:  # b.eq taken if equal, b.ne if not
                offset += 4 * (word >> 5 & 0x7FFFF) - 4
            elif not conditional:
                self.step(word)
        raise AssertionError("it does not leave the vector")

    def step(self, word: int) -> None:
        read, written, added = a64.system_read(word), a64.system_write(word), word & 0xFF8003FF
        par, far = 0x187400, 0x186000
        if written == (par, 0):
            self.par = self.x0
        elif read == (par, 0):
            self.x0 = self.par
        elif read == (far, 0):
            self.x0 = self.far
        elif added == 0xD1000000:
            self.x0 -= word >> 10 & 0xFFF
        elif word == 0xEB2063FF:
            self.equal = self.sp == self.x0
        else:
            raise AssertionError(f"{word:#x} is not expected here")


@pytest.mark.parametrize("fill", [UDF, sg.NOP, BTI_C, BRK])
@pytest.mark.parametrize("frame", [0x130, 0x140, 0x150])
@pytest.mark.parametrize(
    ("offset", "end"), [(0, FAULT), (8, sg.EL1_SYNC), (-16, sg.EL1_SYNC), (1 << 40, sg.EL1_SYNC)]
)
def test_only_a_fault_of_the_entrys_own_store_is_led_away(
    fill: int, frame: int, offset: int, end: int
) -> None:
    words = vector(frame=frame, fill=fill)
    probe = plan(words, AT, FAULT, NET)
    assert probe is not None
    before = 0xFFFF_8000_1200_3000
    cpu = Cpu(x0=0x1234, sp=before - frame, far=before + offset)
    assert cpu.run(patched(words, probe), probe.branch) == end
    assert cpu.par == 0x1234
    assert cpu.sp == before - frame
    if end != FAULT:
        assert cpu.x0 == 0x1234


def test_a_fault_of_somebody_elses_at_sp_is_led_past_the_test() -> None:
    """The first access to a stack that is lost: mostly a function's end, by `ldp x29, x30, [sp], #N`."""
    words = vector()
    probe = plan(words, AT, FAULT, NET)
    assert probe is not None
    before = 0xFFFF_8000_1200_3000
    cpu = Cpu(x0=0x1234, sp=before - FRAME, far=before)
    assert cpu.run(patched(words, probe), probe.branch) == FAULT
    assert cpu.run(patched(words, probe), probe.past) == sg.EL1_SYNC
    assert (cpu.x0, cpu.sp) == (0x1234, before - FRAME)


@pytest.mark.parametrize("fault", [FAULT, None])
def test_a_stack_that_is_used_up_is_led_to_the_net(fault: int | None) -> None:
    words = vector()
    probe = plan(words, AT, fault, NET)
    assert probe is not None
    failed = next(i for i, word in enumerate(words) if a64.branch_ne(word, 0) is not None)
    cpu = Cpu(x0=7, sp=0, far=0, equal=False)
    assert cpu.run(patched(words, probe), 4 * failed) == NET
    assert cpu.x0 == 7


def test_the_branch_to_the_label_is_changed_last() -> None:
    probe = plan(vector(), AT, FAULT, NET)
    assert probe is not None
    assert probe.patches[-1][0] == probe.branch == 0x18
    assert all(probe.first <= at < probe.end for at, _, _ in probe.patches[:-2])
    assert probe.end - probe.first == 36


def test_the_vectors_of_interrupts_keep_their_branch() -> None:
    probe = plan(vector(sg.EL1_IRQ), AT, None, NET)
    assert probe is not None
    assert [at for at, _, _ in probe.patches] == [probe.first, 0x44]


def test_a_trap_loads_itself_and_stays_behind_the_probe_of_a_vector_of_interrupts() -> None:
    words = vector(sg.EL1_IRQ)
    fault, net = traps_at(words)
    probe = plan(words, AT, None, AT + net, 2 * TRAP)
    assert probe is not None and probe.end == fault
    after = patched(words, probe)
    assert a64.branch(after[fault // 4 - 1], fault - 4) == net
    for at in (fault, net):
        assert after[at // 4] == 0x1800_001F, "a literal of 32 bits, no words away, to the zero register"
        assert a64.branch(after[at // 4 + 1], at + 4) == at
    assert plan([*words[:-9], *[sg.NOP] * 9], AT, None, AT + net, 2 * TRAP) is not None
    full = [*words[:21], *[words[20]] * 8, *[UDF] * 3]
    assert plan(full, AT, None, AT + net, 2 * TRAP) is None


@pytest.mark.parametrize(
    "words",
    [
        [0] * 32,
        [sg.NOP] * 32,
        [*vector()[:20], *[sg.NOP] * 12],
        [*vector()[:20], sg.bl(0x50, 0), *[sg.NOP] * 11],
        [*vector()[:16], 0x54000001 | 8 << 5, *vector()[17:21], *[sg.NOP] * 11],
        [*vector()[:21], *[sg.movz(1, 1)] * 3, *[0] * 8],
        [sg.sub_sp(FRAME), sg.b(AT + 4, sg.EL1_SYNC), *[0] * 30],
        [sg.NOP, *vector()[1:]],
    ],
)
def test_a_vector_that_is_not_as_expected_is_left_alone(words: list[int]) -> None:
    assert plan(words, AT, FAULT, NET) is None


def test_the_padding_of_a_kernel_before_5_17_is_nops() -> None:
    """GNU as fills `.align 7` with them."""
    words = vector(fill=sg.NOP)
    probe = plan(words, AT, FAULT, NET)
    assert probe is not None
    assert {old for at, old, _ in probe.patches if at >= probe.first} == {sg.NOP}
    assert probe.first == 4 * 21
