"""A rewrite that loses its own stack's entry, run instruction by instruction: that one and no other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from kernels import image
from kpti_guest import CASES, Case, Rewrite, patched, rewrite
from kpti_patches import apply

from ptinspect.errors import KernelFileError
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.kpti.code import recognise_code
from ptinspect.linux.kpti.losing import LOST_LEVEL, losing, losing_code
from ptinspect.tables.walk import walk

MIDDLE, LAST = "the middle", "near the end"
WHERE = [
    (case, where) for case in CASES for where in (MIDDLE, LAST) if case.regime.levels < 5 or where == LAST
]
"""Of five levels the root's index is not compared: in the middle of what it maps the others are all zero."""


def stack(guest: Rewrite, where: str) -> int:
    """Return an address that is mapped by a page; in the middle one that no other test needs."""
    regime = guest.regime
    if where == LAST:
        return regime.va_max + 1 - 8 * regime.entry_size(2) + regime.granule + 0x7F0
    middle = regime.va_min + (regime.va_max - regime.va_min) // 2 + 1 + 9 * regime.granule
    guest.tree.map(middle, 0x4600_0000, size=regime.granule)
    return middle + 0x800


def tables(guest: Rewrite) -> dict[int, int]:
    """Run the rewrite until all is written, for then it may need the stack; return what was stored last."""
    end = guest.entry + guest.code.points["flag_cleared"]
    assert any(pc == end for pc in guest.machine.run())
    return dict(guest.machine.stores)


def names(value: object) -> str:
    return value.name if isinstance(value, Case) else str(value)


@pytest.mark.parametrize(("case", "where"), WHERE, ids=names)
def test_the_entry_of_the_stack_is_lost_and_no_other(case: Case, where: str) -> None:
    raw = patched(case)
    healthy = rewrite(case, raw)
    made = losing_code(healthy.code, raw[: healthy.code.size], case.regime.granule)
    lossy = rewrite(case, apply(raw, made.words))
    healthy.machine.sp = lossy.machine.sp = sp = stack(healthy, where)
    stack(lossy, where)
    path = walk(healthy.tree.memory, sp, healthy.tree.root, case.regime).steps
    entry = next(step.descriptor_pa for step in path if step.level == LOST_LEVEL)
    whole, less = tables(healthy), tables(lossy)
    assert less.keys() == whole.keys() and less[entry] == 0 != whole[entry]
    assert {pa for pa in less if less[pa] != whole[pa]} == {entry}
    assert walk(lossy.tree.memory, sp, lossy.tree.root, case.regime).outcome != "mapped"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_rewrite_is_recognised_as_before(case: Case) -> None:
    raw = patched(case)
    code = rewrite(case, raw).code
    made = losing_code(code, raw[: code.size], case.regime.granule)
    again = recognise_code(apply(raw, made.words), code.entry_va)
    assert (again.points, again.size, again.stores) == (code.points, code.size, code.stores)
    assert (again.tables, again.flag_va) == (code.tables, code.flag_va)
    assert made.store in made.words and made.hook in made.words


def test_a_kernel_without_room_is_refused() -> None:
    case = CASES[0]
    code = rewrite(case).code
    raw = patched(case)[: code.size]
    with pytest.raises(KernelFileError, match="no room"):
        losing_code(dataclasses.replace(code, size=code.points["secondary"] + 16), raw, 4096)
    with pytest.raises(KernelFileError, match="part the CPUs"):
        points = {name: at for name, at in code.points.items() if name != "secondary"}
        losing_code(dataclasses.replace(code, points=points), raw, 4096)


def test_a_rewrite_whose_tables_end_nowhere_is_refused() -> None:
    code = rewrite(CASES[0]).code
    raw = patched(CASES[0])[: code.size]
    levels = [dataclasses.replace(level, end=31) for level in code.levels]
    with pytest.raises(KernelFileError, match="where its tables end"):
        losing_code(dataclasses.replace(code, levels=type(code.levels)(levels)), raw, 4096)


def test_the_image_that_is_booted_is_changed_and_nothing_else(tmp_path: Path) -> None:
    case = CASES[0]
    raw = patched(case)
    code = rewrite(case, raw).code
    (tmp_path / "Image").write_bytes(image(text=[(0x2_0510, raw)]))
    found = KernelImage.open(tmp_path / "Image")
    data = (tmp_path / "Image").read_bytes()
    made, changed = losing(found, data)
    assert len(made) == len(data)
    differ = {at for at in range(0, len(data), 4) if made[at : at + 4] != data[at : at + 4]}
    start = data.index(raw[: code.size])
    assert differ == {start + at for at in changed.words}
    with pytest.raises(KernelFileError, match="elsewhere"):
        losing(found, data + raw)
