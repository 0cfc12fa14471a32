"""One judge: a log and a live guest that hold the same facts get the same verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest
from oops_logs import bad_stack, text

from ptinspect.arch.esr import decode_esr
from ptinspect.linux import death
from ptinspect.linux.oops.verdict import analyse
from ptinspect.linux.running.stacks import Stack
from ptinspect.linux.stack_range import holding
from ptinspect.stack import verdict

BASE = 0xFFFF_8000_1188_0000
STACK = Stack("task", BASE, BASE + 0x4000)
IRQ = Stack("irq", 0xFFFF_8000_0800_0000, 0xFFFF_8000_0800_4000)
BELOW = BASE - 16
FULL = death.Facts(
    sp=BASE + 0x20,
    stacks=(STACK,),
    stack=STACK,
    esr=decode_esr(0x96000047),
    far=BELOW,
    frame=0x150,
    no_room=True,
    used=0x3FE0,
)


def calls(*names: str, size: int = 0, whole: bool = True) -> death.Calls:
    return death.Calls(names, [size] * len(names) if size else (), whole)


LAYERS = tuple(f"layer_{n}" for n in range(60))


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        (FULL, "guard-page-hit"),
        (replace(FULL, calls=calls(*LAYERS)), "deep-call-chain"),
        (replace(FULL, calls=calls(*LAYERS[:20])), "guard-page-hit"),
        (replace(FULL, calls=calls(*LAYERS, whole=False)), "guard-page-hit"),
        (replace(FULL, calls=calls("a", "b", "a", "b", "a", "b", "a", whole=False)), "deep-call-chain"),
        (replace(FULL, calls=calls(*LAYERS[:20], size=0x300)), "deep-call-chain"),
        (replace(FULL, calls=calls(*LAYERS[:20], size=0x40)), "guard-page-hit"),
        (replace(FULL, calls=calls(*LAYERS), x29=BASE + 0x2000), "guard-page-hit"),
        (replace(FULL, no_room=False, far=None, esr=None), "unknown"),
        (replace(FULL, no_room=False, far=None, esr=None, calls=calls(*LAYERS)), "deep-call-chain"),
        (replace(FULL, sp=BASE + 0x2000, far=8, used=0x2000), "unknown"),
        (replace(FULL, sp=BASE + 0x2000, far=8, used=0x2000, ordinary="room"), "not-a-stack-problem"),
        (replace(FULL, in_entry=True, far=BASE + 0x20), "unknown"),
        (replace(FULL, gone=death.Verdict("lost-entry")), "lost-entry"),
        (replace(FULL, stack=None, sp=8), "sp-corrupted"),
        (replace(FULL, stack=None, sp=8, no_room=False), "unknown"),
        (replace(FULL, sp=BASE + 0x28, esr=decode_esr(0x9A000000), far=None), "sp-corrupted"),
        (death.Facts(canary=True), "stack-corruption"),
        (death.Facts(end_mark=False), "stack-corruption"),
        (death.Facts(zeros=True), "stack-corruption"),
        (death.Facts(damage="a write"), "stack-corruption"),
        (death.Facts(), "unknown"),
        (death.Facts(no_room=True, calls=death.Calls(recursion="again")), "deep-call-chain"),
    ],
)
def test_each_code_has_its_facts(facts: death.Facts, code: str) -> None:
    found = death.judge(facts)
    assert found.code == code and found.code in death.CODES


def of_log(far: int, sp: int, trace: tuple[str, ...], x29: int) -> str:
    frames = tuple(f"{name}+0x10/0x40" for name in trace)
    esr = "ESR: 0x0000000096000047 -- DABT (current EL)"
    (panic,) = analyse(
        text(bad_stack(esr=esr, far=far, sp=sp, x29=x29, pc="f+0x4/0x40", trace=frames))
    ).panics
    return panic.verdict.code


def of_guest(far: int, sp: int, chain: list[tuple[str, int]], used: int) -> str:
    facts = verdict.Facts(
        decode_esr(0x96000047), far, False, True, STACK, sp, 0x150, used, 0, len(chain), chain=chain
    )
    known = holding(sp, (STACK, IRQ))
    return verdict.explain(replace(facts, stacks=() if known else (STACK, IRQ))).code


@pytest.mark.parametrize(
    ("far", "sp", "names", "size", "x29"),
    [
        (BELOW, BASE + 0x20, ("timer_fixup", "debug_init") * 30, 0x100, BASE + 0x20),
        (BELOW, BASE + 0x20, LAYERS, 0x100, BASE + 0x20),
        (BELOW, BASE + 0x20, LAYERS[:8], 0x80, BASE + 0x20),
        (BASE + 0x20_0000, BASE + 0x20_0000, LAYERS[:8], 0x80, 8),
        (BELOW, BASE - 0x40, ("f",) * 40, 0x190, BASE),
    ],
)
def test_a_log_and_a_guest_are_judged_alike(
    far: int, sp: int, names: tuple[str, ...], size: int, x29: int
) -> None:
    chain = [(name, size) for name in names]
    assert of_log(far, sp, names, x29) == of_guest(far, sp, chain, 0x3FE0) != "unknown"
