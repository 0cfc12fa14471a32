"""What prologues and epilogues do to SP, instruction by instruction."""

from __future__ import annotations

import pytest
import stack_guest as sg

from ptinspect.stack.kernel_code import Epilogue, Prologue, epilogue, prologue

PACIASP, AUTIASP = 0xD503233F, 0xD50323BF
STP_X19_AT_16, LDP_X19_AT_16 = 0xA90153F3, 0xA94153F3
STR_X19_PUSH, LDR_X19_POP = 0xF81F0FF3, 0xF84107F3
CBZ, BLR, BRK, MOV_SP_FP = 0xB4000000, 0xD63F0020, 0xD4200020, 0x910003BF
SUB_SP_4K, SUB_SP_X16, ADD_SP_X16, MOV_X16 = 0xD14007FF, 0xCB3063FF, 0x8B3063FF, 0xD2821010


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], Prologue(0, None)),
        ([sg.NOP, sg.NOP, PACIASP], Prologue(0, None)),
        ([sg.push_record(80)], Prologue(80, None)),
        ([sg.push_record(80), sg.MOV_FP_SP], Prologue(80, 80)),
        ([sg.push_record(80), sg.MOV_FP_SP, STP_X19_AT_16, sg.sub_sp(64)], Prologue(80, 80)),
        ([sg.sub_sp(0x60), 0xA9047BFD, sg.add(29, 31, 0x40)], Prologue(0x60, 0x20)),
        ([STR_X19_PUSH], Prologue(16, None)),
        ([SUB_SP_4K, sg.sub_sp(0x10), sg.MOV_FP_SP], Prologue(0x1010, 0x1010)),
        ([MOV_X16, SUB_SP_X16, sg.MOV_FP_SP], Prologue(0x1080, 0x1080)),
        (
            [CBZ, sg.sub_sp(32), sg.add(31, 31, 32), sg.RET, sg.push_record(48), sg.MOV_FP_SP],
            Prologue(48, 48),
        ),
        ([sg.push_record(80), sg.MOV_FP_SP, sg.pop_record(80), sg.RET, sg.NOP], Prologue(80, 80)),
        ([sg.sub_sp(32), sg.add(31, 31, 48), sg.RET], Prologue(0, None)),
    ],
)
def test_prologues(words: list[int], expected: Prologue) -> None:
    assert prologue(words) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([sg.RET], Epilogue(0, False)),
        ([AUTIASP, sg.RET], Epilogue(0, False)),
        ([0xD65F0BFF], Epilogue(0, False)),
        ([LDP_X19_AT_16, sg.pop_record(80), sg.RET], Epilogue(80, True)),
        ([0xA9447BFD, sg.add(31, 31, 0x60), sg.RET], Epilogue(0x60, True)),
        ([LDR_X19_POP, sg.RET], Epilogue(16, False)),
        ([MOV_X16, ADD_SP_X16, sg.RET], Epilogue(0x1080, False)),
        ([ADD_SP_X16, sg.RET], None),
        ([CBZ, sg.RET], None),
        ([BLR, sg.RET], None),
        ([BRK, sg.RET], None),
        ([sg.b(0, 8), sg.RET], None),
        ([sg.bl(0, 8), sg.RET], None),
        ([sg.b_ne(0, 8), sg.RET], None),
        ([sg.tbnz(0, 8, 1, 40), sg.RET], None),
        ([MOV_SP_FP, sg.RET], None),
        ([sg.sub_sp(16), sg.RET], None),
        ([sg.NOP] * 40 + [sg.RET], None),
        ([], None),
    ],
)
def test_epilogues(words: list[int], expected: Epilogue | None) -> None:
    assert epilogue(words) == expected
