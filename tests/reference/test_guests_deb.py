"""Single files out of a Debian package."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from local_archive import LocalArchive

from ptinspect.errors import TargetError
from ptinspect.reference import deb


@pytest.fixture
def package(tmp_path: Path) -> Path:
    archive = LocalArchive(tmp_path / "archive")
    files: dict[str, bytes | str] = {
        "boot/config-1": b"CONFIG\n",
        "boot/vmlinuz-1": b"kernel" * 1000,
        "boot/vmlinuz-2": b"another" * 20_000,
        "boot/vmlinuz-0": "/etc/passwd",
    }
    archive.add("s", "p", "1", files)
    return next((archive.directory / "pool").iterdir())


def test_only_what_matches_is_unpacked(package: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    found = deb.extract(package, ["boot/vmlinuz-1", "boot/System.map-*"], lambda name: out / Path(name).name)
    assert found == {"boot/vmlinuz-1": out / "vmlinuz-1"}
    assert (out / "vmlinuz-1").read_bytes() == b"kernel" * 1000
    assert list(out.iterdir()) == [out / "vmlinuz-1"]


def test_links_are_not_taken_for_files(package: Path, tmp_path: Path) -> None:
    assert deb.extract(package, ["boot/vmlinuz-0"], lambda name: tmp_path / "x") == {}
    assert not (tmp_path / "x").exists()


def test_one_file_serves_one_pattern(package: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    found = deb.extract(package, ["boot/vmlinuz-[12]"], lambda name: out / Path(name).name)
    assert list(found.values()) == list(out.iterdir())


def test_a_truncated_package_is_refused(package: Path, tmp_path: Path) -> None:
    package.write_bytes(package.read_bytes()[:-60_000])
    with pytest.raises(TargetError, match="cannot unpack"):
        deb.extract(package, ["boot/vmlinuz-2"], lambda name: tmp_path / Path(name).name)


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.deb"
    path.write_bytes(b"hello")
    with pytest.raises(TargetError, match=r"cannot unpack no\.deb"):
        deb.extract(path, ["*"], lambda name: tmp_path / "x")


def test_a_file_larger_than_any_kernel_is_refused(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deb, "MAX_FILE", 100)
    with pytest.raises(TargetError, match="larger than any kernel"):
        deb.extract(package, ["boot/vmlinuz-1"], lambda name: tmp_path / "x")


def test_progress_ends_at_the_size(package: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    deb.extract(package, ["boot/vmlinuz-1"], lambda name: tmp_path / "k", lambda *step: seen.append(step))
    assert seen[-1] == (6000, 6000)


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    assert deb.sha256(path) == hashlib.sha256(b"abc").hexdigest()
