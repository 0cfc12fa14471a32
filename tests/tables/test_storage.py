"""Where many descriptors are kept, and what is said where there is no room for them."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from builders import REGIMES, TreeBuilder

from ptinspect.errors import UserError
from ptinspect.files import CACHE_VARIABLE
from ptinspect.snapshot.store import load, save
from ptinspect.tables import storage
from ptinspect.tables.capture import capture


@pytest.fixture
def tree() -> TreeBuilder:
    made = TreeBuilder(REGIMES["4k-48"])
    made.map(int(made.regime.va_min), 0x8000_0000, size=40 << 21)
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep more than sixteen tables in a file, in the directory that is returned."""
    monkeypatch.setattr(storage, "IN_MEMORY", 16 * 4096)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_capture_in_a_file_is_the_same_and_leaves_no_file(
    tree: TreeBuilder, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    allocate = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", lambda *all_: (made.append(all_[2]), allocate(*all_)))
    snapshot = tree.snapshot()
    assert made == [43 * 4096] and list(folder.iterdir()) == []
    monkeypatch.setattr(storage, "IN_MEMORY", 1 << 30)
    again = tree.snapshot()
    assert np.array_equal(snapshot.tables.raw, again.tables.raw) and not snapshot.truncated
    assert type(snapshot.tables.raw) is np.ndarray and snapshot.tables.raw.flags.writeable
    monkeypatch.setattr(storage, "IN_MEMORY", 1 << 12)
    save(again, tmp_path / "a.npz")
    assert np.array_equal(load(tmp_path / "a.npz").tables.raw, again.tables.raw)
    assert len(made) == 2


def test_what_there_is_no_room_for_is_cut_and_said(
    tree: TreeBuilder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=40, f_frsize=4096))
    tables, truncated = capture(tree.memory, tree.root, tree.regime)
    assert len(tables) == 20 and truncated == "more than 20 tables: stopped at level 3"


def test_a_full_disk_is_an_error_with_a_hint(
    tree: TreeBuilder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"no room for 0 MiB of tables in .*: No space left") as caught:
        capture(tree.memory, tree.root, tree.regime)
    assert "--range" in caught.value.hint and list(folder.iterdir()) == []
