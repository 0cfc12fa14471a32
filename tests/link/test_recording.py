"""The manifest of a recorded boot: what comes back as it was written, and what is none."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from ptinspect.errors import UserError
from ptinspect.guest.guest import Guest
from ptinspect.guest.recordings.timeline import open_recording
from ptinspect.link.qemu import recording
from ptinspect.link.qemu.machine import LaunchOptions
from ptinspect.link.qemu.recording import MANIFEST, STATES, Recording, create, empty_image, load


def written(folder: Path, **fields: object) -> Recording:
    made = Recording(
        folder,
        "QEMU 7.2",
        "/usr/bin/qemu",
        "virt",
        "max",
        512,
        "nokaslr",
        ("-s", "-S"),
        False,
        "",
        70,
        {"a": 5},
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
        ("files", [[1, "x", "../a"]]), ("files", [[9, "x", "file0"]]), ("files", "a"), ("end", "x"),
        ("end", -1),
        ("program", 5), ("extra", "abc"), ("extra", [1]), ("memory", "m"),
        ("memory", None), ("events", [1]), ("events", {"a": "b"}), ("symbols", 3), ("qemu", None),
        ("initrd", "no"), ("format", None), ("more", 1),
        ("append", "a\0b"), ("cpu", "\ud800"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_no_recording(tmp_path: Path, name: str, value: object) -> None:
    written(tmp_path, **{name: value})
    with pytest.raises(UserError):
        load(tmp_path)
    (tmp_path / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(UserError):
        load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"extra": ["-chardev", "file,id=a,path=/x"]}, "-chardev file,id=a,path=/x"),
        ({"extra": [], "machine": "virt,dumpdtb=/x"}, "virt,dumpdtb=/x"),
    ],
)
def test_what_may_name_files_is_not_started_unless_it_is_trusted(
    tmp_path: Path, fields: dict[str, object], words: str
) -> None:
    written(tmp_path, **fields)
    with pytest.raises(UserError, match="starts QEMU with") as caught:
        open_recording(Guest(), tmp_path, None)
    assert words in caught.value.message and "--trust" in caught.value.hint
    written(tmp_path, extra=[], machine="virt,gic-version=3")
    assert load(tmp_path).foreign == ()


def test_files_that_arguments_name_are_kept_and_named_where_the_directory_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "qemu_version", lambda program: "QEMU 7.2")
    monkeypatch.setattr(recording, "find_program", lambda program: program)
    comma, tree, kernel = tmp_path / "a,b", tmp_path / "tree.dtb", tmp_path / "Image"
    for file in (comma, tree, kernel):
        file.write_text(file.name)
    loaded = f"{tmp_path}/a,,b"
    words = (
        "-device",
        f"loader,file={loaded},addr=1",
        "-dtb",
        str(tree),
        "-bios",
        "none.bin",
        "-serial",
        f"file={tree}x",
    )
    options = LaunchOptions(kernel, extra=words, program="/usr/bin/qemu")
    _, started = create(tmp_path / "t", options, kernel)
    (tmp_path / "t").rename(tmp_path / "now,here")
    for file in (comma, tree, kernel):
        file.unlink()
    again = load(tmp_path / "now,here").replayed("/usr/bin/qemu")
    for found, folder in ((started, "t"), (again, "now,here")):
        place = f"{tmp_path}/{folder}"
        escaped = place.replace(",", ",,")
        assert found.extra[: len(words)] == (
            "-device", f"loader,file={escaped}/file0,addr=1", "-dtb", f"{place}/file1", *words[4:]
        )  # fmt: skip
    assert [(tmp_path / "now,here" / f"file{n}").read_text() for n in range(2)] == ["a,b", "tree.dtb"]
    assert again.kernel.read_text() == "Image"


@pytest.mark.parametrize(
    "words",
    [("-drive", "if=none,file=x"), ("-hda", "x"), ("--pflash", "x"), ("-blockdev", "driver=file,filename=x")],
)
def test_a_disk_is_refused_before_anything_is_made(tmp_path: Path, words: tuple[str, str]) -> None:
    options = LaunchOptions(tmp_path / "Image", extra=("-S", *words), program="/bin/true")
    with pytest.raises(UserError, match="cannot keep a disk: -"):
        create(tmp_path / "t", options, tmp_path / "Image")
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("at", [8, 72], ids=["backing file", "external data file"])
def test_states_that_lead_to_other_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(recording, "qemu_version", lambda program: "QEMU 7.2")
    monkeypatch.setattr(recording, "find_program", lambda program: program)
    made = written(tmp_path)
    (tmp_path / STATES).write_bytes(empty_image(1 << 20))
    assert made.replayed("/usr/bin/qemu").program == "/usr/bin/qemu"
    image = bytearray((tmp_path / STATES).read_bytes())
    image[at : at + 8] = struct.pack(">Q", 4)
    (tmp_path / STATES).write_bytes(image)
    with pytest.raises(UserError, match="other files"):
        made.replayed("/usr/bin/qemu")
    (tmp_path / STATES).write_bytes(b"QFI")
    with pytest.raises(UserError, match="no file of states"):
        made.replayed("/usr/bin/qemu")
