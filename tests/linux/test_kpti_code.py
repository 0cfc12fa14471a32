"""The rewrite is recognised from its instructions: real ones, and those of kernels that were changed."""

from __future__ import annotations

import pytest
from kpti_words import code

from ptinspect.arch import a64
from ptinspect.arch.regime import Regime
from ptinspect.errors import KernelFileError
from ptinspect.linux.kpti.code import KptiCode, recognise_code

ENTRY = 0xFFFF_8000_10A8_9510


def changed(kernel: str, *edits: tuple[int, int]) -> KptiCode:
    """Recognise the code after words at offsets were replaced."""
    words = list(a64.words(code(kernel)))
    for offset, word in edits:
        words[offset // 4] = word
    return recognise_code(b"".join(word.to_bytes(4, "little") for word in words), ENTRY)


def test_the_old_algorithm() -> None:
    found = recognise_code(code("5.10"), ENTRY)
    assert found.algorithm == "mmu-off-post-order"
    assert found.points == {
        "entry": 0, "before_first_write": 0x34, "after_writes": 0x70, "flag_cleared": 0x9C, "return": 0xA0,
        "parting": 0x8, "secondary": 0x160,
    }  # fmt: skip
    assert [(s.level, s.offset, s.register, s.base, s.displacement) for s in found.stores] == [
        (0, 0x58, 7, 5, 0), (1, 0xC8, 10, 8, 0), (2, 0x108, 13, 11, 0), (3, 0x144, 16, 14, 0),
    ]  # fmt: skip
    assert found.flag_va == ENTRY - 4
    assert (found.size, found.tables, found.toggles) == (0x1A8, "marked", False)
    pgd, pte = found.levels[0], found.levels[3]
    assert (pgd.begin, pgd.load, pgd.mark, pgd.advance, pgd.closing) == (0x3C, 0x44, 0x54, 0x64, 0x6C)
    assert (pgd.descend, pgd.skip, pgd.back) == (0xA4, 0x64, None)
    assert (pte.descend, pte.back, pte.end) == (None, 0x104, 15)


def test_the_new_algorithm() -> None:
    found = recognise_code(code("6.1"), 0xFFFF_8000_08BC_B5E0)
    assert found.algorithm == "temp-pgd-pre-order"
    assert [found.points[name] for name in ("before_first_write", "after_writes", "return", "secondary")] == [
        0x50, 0xB4, 0xE0, 0x200,
    ]  # fmt: skip
    assert [(s.level, s.offset) for s in found.stores] == [(0, 0xA0), (1, 0x12C), (2, 0x18C), (3, 0x1EC)]
    assert found.flag_va == 0xFFFF_8000_0981_E46C
    assert (found.size, found.tables) == (0x248, "marked")


def test_five_levels_and_cursors_that_are_advanced_by_the_load() -> None:
    found = recognise_code(code("6.12"), 0xFFFF_8000_8188_E620)
    assert [(s.level, s.offset, s.register, s.base, s.displacement) for s in found.stores] == [
        (-1, 0xD0, 7, 5, -8), (0, 0x170, 30, 19, -8), (1, 0x1D8, 10, 8, -8), (2, 0x240, 13, 11, -8),
        (3, 0x2A8, 16, 14, -8),
    ]  # fmt: skip
    assert (found.points["return"], found.size) == (0x118, 0x304)
    assert found.flag_va == 0xFFFF_8000_81AD_DAE4


def test_the_root_level_is_left_out_where_the_cpu_has_48_bits() -> None:
    found = recognise_code(code("6.12"), ENTRY)
    assert [level.register for level in found.levels_of(Regime(12, 48, 48, True))] == [30, 10, 13, 16]
    assert found.levels_of(Regime(12, 52, 52, True, ds=True))[0].register == 7
    wide = recognise_code(code("6.12-16k"), ENTRY)
    assert [level.register for level in wide.levels_of(Regime(14, 47, 48, True))] == [10, 13, 16]


def test_tables_that_are_not_tracked() -> None:
    """The first debug patch of the thread: `b next_X` becomes `b skip_X` at the end of each subtree."""
    to_skip = [
        (at, 0x14000000 | (to - at) // 4 & 0x3FFFFFF)
        for at, to in ((0xE0, 0x64), (0x120, 0xD4), (0x15C, 0x114))
    ]
    found = changed("5.10", *to_skip)
    assert found.tables == "never-written"
    assert changed("5.10", to_skip[2]).tables == "never-written"
    assert found.levels[1].back == 0x64


def test_a_subtree_that_ends_in_code_of_its_own_is_not_taken_for_untracked() -> None:
    away = [(at, 0x14000000 | (0x168 - at) // 4) for at in (0xE0, 0x120, 0x15C)]
    assert changed("5.10", *away).tables == "marked"


def test_toggling_instead_of_setting() -> None:
    """The second debug patch: `eor` for `orr`."""
    found = changed("5.10", (0x54, 0xD27500E7), (0xC4, 0xD275014A))
    assert [s.toggles for s in found.stores] == [True, True, False, False]
    assert found.toggles and found.tables == "written-back"


def test_a_level_that_is_never_written() -> None:
    found = changed("5.10", (0xC8, 0xD503201F))
    assert [s.level for s in found.stores] == [0, 2, 3]
    assert found.tables == "never-written"


def test_folded_levels() -> None:
    """Three levels as 4.16 to 5.15 have them: walk_puds copies pgd to pud and jumps on."""
    words = list(a64.words(code("5.10")))
    words[0xA4 // 4] = 0xAA0703EA  # mov x10, x7
    words[0xA8 // 4] = 0x14000000 | (0xE4 - 0xA8) // 4
    words[0xAC // 4] = 0x14000000 | ((0x54 - 0xAC) // 4 & 0x3FFFFFF)  # next_pud: b next_pgd
    words[0xB0 // 4 : 0xE4 // 4] = [0xD503201F] * ((0xE4 - 0xB0) // 4)
    words[0x120 // 4] = 0x14000000 | ((0xAC - 0x120) // 4 & 0x3FFFFFF)  # b next_pud
    found = recognise_code(b"".join(word.to_bytes(4, "little") for word in words), ENTRY)
    assert [(s.level, s.register) for s in found.stores] == [(1, 7), (2, 13), (3, 16)]
    assert found.levels[1].back == 0x54
    assert found.tables == "marked"


@pytest.mark.parametrize(
    "edits",
    [
        [(0x44, 0xD503201F)],  # the root is not loaded
        [(0x2C, 0xD503201F)],  # neither SCTLR nor TTBR1 is written
        [(0x15C - 4, 0xD503201F)],  # the last loop does not close
        [(0x68, 0xD503201F)],  # nothing is compared
        [(0x9C, 0xD503201F)],  # the flag is never cleared
        [(0x50, 0x37080007 | 0x1FFF << 5)],  # the root descends to where no loop is
        [(0x50, 0x37080007 | 0x3FFC << 5)],  # the root descends into itself
    ],
)
def test_code_that_is_something_else(edits: list[tuple[int, int]]) -> None:
    with pytest.raises(KernelFileError, match="not a rewrite that ptinspect knows"):
        changed("5.10", *edits)


def test_code_that_ends_early() -> None:
    whole = code("6.12")
    for size in range(0, len(whole) - 8, 20):
        with pytest.raises(KernelFileError):
            recognise_code(whole[:size], ENTRY)
