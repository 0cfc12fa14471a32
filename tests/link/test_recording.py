"""The manifest of a recorded boot: what comes back as it was written, and what is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ptinspect.errors import UserError
from ptinspect.link.qemu.recording import MANIFEST, Recording, load


def written(folder: Path, **fields: object) -> Recording:
    made = Recording(
        folder, "QEMU 7.2", "/usr/bin/qemu", "virt", "max", 512, "nokaslr", ("-s",), False, "", 70, {"a": 5}
    )
    made.save()
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **fields}))
    return made


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert written(tmp_path) == load(tmp_path)
    written(tmp_path, end=None)
    assert load(tmp_path).end is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("end", "x"), ("end", -1), ("program", 5), ("extra", "abc"), ("extra", [1]), ("memory", "m"),
        ("memory", None), ("events", [1]), ("events", {"a": "b"}), ("symbols", 3), ("qemu", None),
        ("initrd", "no"), ("format", None), ("more", 1),
    ],
)  # fmt: skip
def test_what_is_damaged_is_no_recording(tmp_path: Path, name: str, value: object) -> None:
    written(tmp_path, **{name: value})
    with pytest.raises(UserError):
        load(tmp_path)
