"""Raw images of RAM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import RAM, TABLES_AT, TreeBuilder, regime_4k

from ptinspect.errors import MemoryReadError, UserError
from ptinspect.memory.dumpfile import DumpFile
from ptinspect.tables.capture import capture


def test_tables_in_an_image_are_those_of_the_guest(tmp_path: Path) -> None:
    tree = TreeBuilder(regime_4k(48))
    tree.map(int(tree.regime.va_min), 0x8000_0000, size=4 << 20)
    tree.point(int(tree.regime.va_min) + (8 << 20), 2, TABLES_AT + 0x2_0000)
    image = tmp_path / "ram.bin"
    image.write_bytes(tree.memory.read(TABLES_AT, 0x2_0000))
    with DumpFile(image, TABLES_AT) as memory:
        tables, _ = capture(memory, tree.root, tree.regime)
        assert tables.readable.tolist() == [True] * 5 + [False]
        expected = tree.capture()
        assert np.array_equal(tables.raw[:5], expected.raw[:5])
        assert memory.read(TABLES_AT + 5, 9) == tree.memory.read(TABLES_AT + 5, 9)
        assert memory.read(TABLES_AT, 0) == b"" and "ram.bin" in memory.label
        for pa, length in ((TABLES_AT - 1, 2), (TABLES_AT + 0x1_FFFF, 2), (RAM.end, 8), (-1, 1)):
            with pytest.raises(MemoryReadError):
                memory.read(pa, length)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("empty", "missing", "."):
        with pytest.raises(UserError):
            DumpFile(tmp_path / name, 0)
