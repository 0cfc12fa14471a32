"""Opening a guest, without a command and without QEMU."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptinspect.errors import UserError
from ptinspect.guest.guest import Guest
from ptinspect.guest.opening import Machine, launch


@pytest.mark.parametrize("wrong", [{"smp": 0}, {"smp": -1}, {"memory": 0}])
def test_a_machine_has_a_cpu_and_memory(tmp_path: Path, wrong: dict[str, int]) -> None:
    kernel, initrd = tmp_path / "Image", tmp_path / "initrd"
    for file in (kernel, initrd):
        file.write_bytes(bytes(64))
    with pytest.raises(UserError, match="at least one CPU"):
        launch(Guest(), Machine(kernel, initrd=initrd, qemu="/none", **wrong))  # type: ignore[arg-type]
