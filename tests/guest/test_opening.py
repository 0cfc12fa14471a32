"""Opening a guest, without a command and without QEMU."""

from __future__ import annotations

import gzip
import shlex
from pathlib import Path

import pytest
from kernels import TEXT_VA, image, vmlinux, zboot

from ptinspect.errors import KernelFileError, TargetError, UserError
from ptinspect.guest.guest import Guest
from ptinspect.guest.opening import Machine, boots_by_firmware, elf_file, launch
from ptinspect.linux.image.unpacking import plain


@pytest.mark.parametrize("wrong", [{"smp": 0}, {"smp": -1}, {"memory": 0}])
def test_a_machine_has_a_cpu_and_memory(tmp_path: Path, wrong: dict[str, int]) -> None:
    kernel, initrd = tmp_path / "Image", tmp_path / "initrd"
    for file in (kernel, initrd):
        file.write_bytes(bytes(64))
    with pytest.raises(UserError, match="at least one CPU"):
        launch(Guest(), Machine(kernel, initrd=initrd, qemu="/none", **wrong))  # type: ignore[arg-type]


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A program that ends at once: the error then tells how it was started."""
    monkeypatch.setenv("PTINSPECT_CACHE", str(tmp_path / "cache"))
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    return str(program)


def kernel_given(qemu: str, file: Path, *extra: str) -> Path:
    with pytest.raises(TargetError) as caught:
        launch(Guest(), Machine(file, no_initrd=True, qemu=qemu, extra=extra))
    words = shlex.split(caught.value.hint.partition(": ")[2])
    return Path(words[words.index("-kernel") + 1])


def test_qemu_gets_an_image_whatever_it_is_in(tmp_path: Path, qemu: str) -> None:
    for name, data in {
        "zboot": zboot(gzip.compress(image()), b"gzip"),
        "Image.gz": gzip.compress(image()),
        "vmlinux": vmlinux(symbols=[("_text", TEXT_VA, 0x10, 1)]),
        "vmlinux.gz": gzip.compress(vmlinux()),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert kernel_given(qemu, tmp_path / name).read_bytes() == image(), name
    (tmp_path / "Image").write_bytes(image())
    assert kernel_given(qemu, tmp_path / "Image") == tmp_path / "Image"


def test_a_recording_that_did_not_begin_leaves_nothing(tmp_path: Path, qemu: str) -> None:
    (tmp_path / "Image").write_bytes(image())
    machine = Machine(tmp_path / "Image", no_initrd=True, qemu=qemu, timeline=tmp_path / "boot")
    for _ in range(2):
        with pytest.raises(TargetError, match="ended with exit code 1"):
            launch(Guest(), machine)
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/mine").touch()
    with pytest.raises(UserError, match="not empty"):
        launch(Guest(), machine)
    assert (tmp_path / "boot/mine").exists()


def test_a_firmware_gets_the_efi_file_as_it_is(tmp_path: Path, qemu: str) -> None:
    file = tmp_path / "vmlinuz.efi"
    file.write_bytes(zboot(gzip.compress(image()), b"gzip"))
    assert kernel_given(qemu, file, "-bios", "QEMU_EFI.fd") == file
    assert kernel_given(qemu, file) != file


def test_what_is_no_known_kernel_is_given_as_it_is_but_not_what_is_damaged(tmp_path: Path, qemu: str) -> None:
    file = tmp_path / "bare"
    file.write_bytes(bytes(4096))
    assert kernel_given(qemu, file) == file
    assert elf_file(file) is None
    file.write_bytes(gzip.compress(image())[:-20])
    for use in (lambda: kernel_given(qemu, file), lambda: elf_file(file)):
        with pytest.raises(KernelFileError, match="the gzip data is truncated"):
            use()


def test_gdb_gets_the_vmlinux_that_is_packed(tmp_path: Path, qemu: str) -> None:
    file = tmp_path / "vmlinux.gz"
    file.write_bytes(gzip.compress(vmlinux()))
    assert elf_file(file) == plain(file) != file
    file.write_bytes(gzip.compress(image()))
    assert elf_file(file) is elf_file(None) is None


@pytest.mark.parametrize(
    ("words", "firmware"),
    [
        (["-bios", "x"], True),
        (["-drive", "if=pflash,file=x"], True),
        (["virt,pflash0=x"], True),
        (["-pflash", "x"], True),
        (["-d", "int"], False),
        ([], False),
    ],
)
def test_whether_a_firmware_boots(words: list[str], firmware: bool) -> None:
    assert boots_by_firmware(words) == firmware
