"""Snapshot files: what is saved is what is loaded, and nothing else is believed."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import OUTSIDE, REGIMES, TreeBuilder, cpu_state, regime_4k
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptinspect.arch.bits import VirtAddr
from ptinspect.errors import SnapshotError
from ptinspect.snapshot import store
from ptinspect.snapshot.model import Meta, Snapshot
from ptinspect.snapshot.store import load, save

Arrays = dict[str, np.ndarray[Any, Any]]


def sample(name: str = "4k-48") -> Snapshot:
    regime = REGIMES[name]
    tree = TreeBuilder(regime, top_down=True, tables_at=0x4100_0000)
    low = int(regime.va_min)
    tree.map(low, 0x8000_0000, size=regime.granule * 100)
    tree.point(low + 3 * regime.entry_size(2), 2, OUTSIDE)
    return dataclasses.replace(
        tree.snapshot("before"),
        cpus=(cpu_state(0, TTBR1_EL1=(1 << 64) - 1), cpu_state(1)),
        va_range=(VirtAddr(low), regime.va_max),
        truncated="why",
        meta=Meta(
            "2026-01-02T03:04:05+00:00", "1.2", "cpu 0", "Linux version", "gdbstub", "note é", {"a": "b"}
        ),
    )


def assert_same(a: Snapshot, b: Snapshot) -> None:
    for field in dataclasses.fields(Snapshot):
        if field.name != "tables":
            assert getattr(a, field.name) == getattr(b, field.name), field.name
    for field in dataclasses.fields(a.tables):
        left, right = getattr(a.tables, field.name), getattr(b.tables, field.name)
        assert left.dtype == right.dtype and np.array_equal(left, right), field.name


@pytest.mark.parametrize("name", REGIMES)
def test_what_is_saved_is_loaded(tmp_path: Path, name: str) -> None:
    snapshot = sample(name)
    path = tmp_path / "a.npz"
    save(snapshot, path)
    assert_same(snapshot, load(path))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_a_large_one_needs_little_more_memory_than_its_tables(tmp_path: Path) -> None:
    regime = REGIMES["4k-48"]
    tree = TreeBuilder(regime)
    tree.map(int(regime.va_min), 0x8000_0000, size=3001 << 21)
    snapshot = tree.snapshot()
    snapshot.tables.raw[-1000:] ^= np.random.default_rng(1).integers(0, 1 << 64, (1000, 512), dtype=np.uint64)
    path, size = tmp_path / "a.npz", snapshot.tables.raw.nbytes
    tracemalloc.start()
    try:
        save(snapshot, path)
        assert tracemalloc.get_traced_memory()[1] < size // 2
        tracemalloc.reset_peak()
        again = load(path)
        assert tracemalloc.get_traced_memory()[1] < size * 3 // 2
    finally:
        tracemalloc.stop()
    assert_same(snapshot, again)


def test_numpy_alone_reads_the_file_as_documented(tmp_path: Path) -> None:
    snapshot = sample()
    save(snapshot, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        raw = np.ascontiguousarray(np.moveaxis(file["planes"], 0, -1)).view("<u8")[..., 0]
        assert np.array_equal(raw, snapshot.tables.raw)
        document = json.loads(file["document"].tobytes())
    assert document["format"] == "ptinspect-snapshot" and document["version"] == 1
    assert document["cpus"][0]["system"]["TTBR1_EL1"] == "0xffffffffffffffff"


def test_a_failed_save_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.npz"
    save(sample(), path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SnapshotError, match="No space left"):
        save(dataclasses.replace(sample(), name="other"), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_saving_where_one_cannot_write_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "a.npz", tmp_path):
        with pytest.raises(SnapshotError, match="cannot write"):
            save(sample(), path)


def test_a_link_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.npz").symlink_to(tmp_path / "real.npz")
    save(sample(), tmp_path / "link.npz")
    assert (tmp_path / "link.npz").is_symlink()
    assert load(tmp_path / "real.npz").name == "before"


def test_too_large_is_refused_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = sample()
    path = tmp_path / "a.npz"
    save(snapshot, path)
    with pytest.raises(SnapshotError, match="too large"):
        load(path, max_file_bytes=100)
    with pytest.raises(SnapshotError, match="too large"):
        load(path, max_table_bytes=snapshot.tables.raw.nbytes // 2)
    monkeypatch.setattr(store, "MAX_TABLE_BYTES", snapshot.tables.raw.nbytes - 1)
    with pytest.raises(SnapshotError, match="MiB of tables"):
        save(snapshot, tmp_path / "b.npz")


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "empty", "text", "other zip", "other npz"])
def test_what_is_no_snapshot_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.npz"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind in ("empty", "text"):
        path.write_text("" if kind == "empty" else "hello" * 1000)
    elif kind == "other zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme", "x")
    elif kind == "other npz":
        np.savez(path, a=np.arange(3))
    with pytest.raises(SnapshotError) as caught:
        load(path)
    assert str(path) in caught.value.message


def test_every_truncation_and_many_flips_are_clear_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(sample(), path)
    whole = path.read_bytes()
    for length in range(0, len(whole), max(len(whole) // 97, 1)):
        path.write_bytes(whole[:length])
        with pytest.raises(SnapshotError):
            load(path)
    rng = np.random.default_rng(7)
    for _ in range(300):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), size=3):
            damaged[at] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            load(path)
        except SnapshotError:
            continue


def rewrite(path: Path, change: Callable[[Arrays], None]) -> None:
    """Change the arrays of a file behind its back."""
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    path.unlink()
    with path.open("wb") as out:
        np.savez_compressed(out, allow_pickle=True, **arrays)


def document_change(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        document = json.loads(arrays["document"].tobytes())
        edit(document)
        arrays["document"] = np.frombuffer(json.dumps(document).encode(), dtype=np.uint8)

    return change


def array_change(name: str, edit: Callable[[Any], Any]) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        array = arrays[name].copy()
        edited = edit(array)
        arrays[name] = array if edited is None else edited

    return change


def put(array: Any, at: int, value: Any) -> None:
    array[at] = value


DOCUMENT_DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "version": (lambda d: d.update(version=2), "version 2 is unknown"),
    "version type": (lambda d: d.update(version="1"), "version is not an integer"),
    "version bool": (lambda d: d.update(version=True), "version is not an integer"),
    "format": (lambda d: d.update(format="other"), "not a ptinspect snapshot"),
    "no name": (lambda d: d.pop("name"), "has no 'name'"),
    "name type": (lambda d: d.update(name=3), "name is not a string"),
    "nan": (lambda d: d.update(version=float("nan")), "NaN is not allowed"),
    "infinity": (lambda d: d["meta"].update(note=float("inf")), "Infinity is not allowed"),
    "float": (lambda d: d["regime"].update(va_bits=48.0), "va_bits is not an integer"),
    "geometry": (lambda d: d["regime"].update(va_bits=99), "99-bit"),
    "granule": (lambda d: d["regime"].update(granule_bits=13), "granule"),
    "pa bits": (lambda d: d["regime"].update(pa_bits=1 << 70), "physical addresses"),
    "flag": (lambda d: d["regime"].update(upper=1), "neither true nor false"),
    "regime type": (lambda d: d.update(regime=[]), "regime is not an object"),
    "regime name": (lambda d: d["regime"].update(name="EL9"), "regime.name"),
    "EL2's upper half": (lambda d: d["regime"].update(name="EL2"), "no upper half"),
    "PIR": (lambda d: d["regime"].update(pir=5), "regime.pir is not a number of 64 bits"),
    "doubt": (lambda d: d["regime"].update(doubt=5), "doubt is not a string"),
    "hex": (lambda d: d["root"].update(pa="41475000"), "in hex"),
    "long hex": (lambda d: d["root"].update(pa="0x1" + "0" * 16), "in hex"),
    "registers": (lambda d: d["cpus"][0].update(x=["0x0"] * 30), "30 general registers"),
    "cpus": (lambda d: d.update(cpus={}), "cpus is not a list"),
    "range": (lambda d: d.update(va_range=["0x2", "0x1"]), "va_range"),
    "range size": (lambda d: d.update(va_range=["0x2"]), "not a pair"),
    "root": (lambda d: d["root"].update(pa="0x1000"), "not the root"),
    "half": (lambda d: d.update(va_range=None) or d["regime"].update(upper=False), "half"),
    "other granule": (lambda d: d["regime"].update(granule_bits=14), "planes"),
    "list": (lambda d: d.update(extra=1) or d.update(ram=list(range(70_000))), "at most"),
}


@pytest.mark.parametrize("name", DOCUMENT_DAMAGE)
def test_a_document_that_is_wrong_is_refused(tmp_path: Path, name: str) -> None:
    edit, message = DOCUMENT_DAMAGE[name]
    path = tmp_path / "a.npz"
    save(sample(), path)
    rewrite(path, document_change(edit))
    with pytest.raises(SnapshotError, match=message):
        load(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "\xff", "null", "[]", '"x"', "1" * 5000])
def test_a_document_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.npz"
    save(sample(), path)
    data = text.encode("latin-1")
    rewrite(path, array_change("document", lambda _: np.frombuffer(data, dtype=np.uint8)))
    with pytest.raises(SnapshotError):
        load(path)


ARRAY_DAMAGE: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "level range": ("level", lambda a: put(a, -1, 4), "level that the regime"),
    "level order": ("level", lambda a: put(a, 1, 3), "sorted by level"),
    "two roots": ("level", lambda a: put(a, 1, 0), "one root"),
    "level type": ("level", lambda a: a.astype(np.int64), "level"),
    "level float": ("level", lambda a: a * np.nan, "level"),
    "pa twice": ("pa", lambda a: put(a, 3, a[4]), "twice"),
    "pa align": ("pa", lambda a: put(a, 2, a[2] + 8), "aligned"),
    "pa wide": ("pa", lambda a: put(a, 2, 1 << 60), "56 bits"),
    "pa short": ("pa", lambda a: a[:-1], "'pa'"),
    "va order": ("va", lambda a: put(a, 4, a[3]), "sorted by virtual"),
    "va align": ("va", lambda a: put(a, 4, a[4] + 0x1000), "not its first"),
    "va half": ("va", lambda a: put(a, 4, 0x1000 << 12), "sorted|half"),
    "root va": ("va", lambda a: put(a, 0, a[0] + 0x1000), "start of the half"),
    "readable": ("readable", lambda a: put(a, slice(None), False), "could not be read"),
    "readable type": ("readable", lambda a: a.astype(np.uint8), "readable"),
    "planes": ("planes", lambda a: a[:7], "planes"),
    "planes type": ("planes", lambda a: a.view(np.int8), "planes"),
    "planes fortran": ("planes", np.asfortranarray, "plain array"),
    "planes words": ("planes", lambda a: a[:, :, :-1], "planes"),
    "planes object": ("planes", lambda _: np.array([{}], dtype=object), "plain array"),
    "no tables": ("level", lambda a: a[:0], "planes"),
}


@pytest.mark.parametrize("name", ARRAY_DAMAGE)
def test_arrays_that_are_wrong_are_refused(tmp_path: Path, name: str) -> None:
    array, edit, message = ARRAY_DAMAGE[name]
    path = tmp_path / "a.npz"
    save(sample(), path)
    rewrite(path, array_change(array, edit))
    with pytest.raises(SnapshotError, match=message):
        load(path)


def test_descriptors_behind_a_short_root_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(sample("4k-36"), path)
    rewrite(path, array_change("planes", lambda a: put(a, (0, 0, 400), 1)))
    with pytest.raises(SnapshotError, match="past the end of the root"):
        load(path)


def test_an_empty_snapshot_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(sample(), path)

    def empty(arrays: Arrays) -> None:
        for name in ("level", "pa", "va", "readable"):
            arrays[name] = arrays[name][:0]
        arrays["planes"] = arrays["planes"][:, :0]

    rewrite(path, empty)
    with pytest.raises(SnapshotError, match="no table"):
        load(path)


def test_further_members_and_fields_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(sample(), path)
    rewrite(path, document_change(lambda d: d.update(later=[1, 2])))
    rewrite(path, lambda arrays: arrays.update(more=np.arange(4)))
    assert load(path).name == "before"


def test_control_codes_in_a_file_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(dataclasses.replace(sample(), name="\x1b]0;x\x07"), path)
    assert load(path).name == "\\x1b]0;x\\x07"


def bomb(path: Path, claimed: int) -> None:
    """Replace `planes` with a member of which the directory claims a size that is not its own."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (8, len(members["level.npy"]) - 128, 512)}
    )
    members["planes.npy"] = header.getvalue() + bytes(64 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    data = bytearray(path.read_bytes())
    size = len(members["planes.npy"]).to_bytes(4, "little")
    at = data.find(size)
    while at >= 0:
        data[at : at + 4] = claimed.to_bytes(4, "little")
        at = data.find(size, at + 4)
    path.write_bytes(data)


def test_a_member_larger_than_it_claims_is_not_inflated(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.npz"
    snapshot = sample()
    save(snapshot, path)
    bomb(path, snapshot.tables.raw.nbytes + 128)
    tracemalloc.start()
    with pytest.raises(SnapshotError, match=r"damaged|longer|size"):
        load(path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_rows_without_descriptors_take_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million rows are some KiB of a file, and would be 4 GiB of the disk."""
    path = tmp_path / "a.npz"
    save(sample(), path)
    rewrite(path, array_change("level", lambda a: np.zeros(1 << 20, a.dtype)))
    monkeypatch.setattr(store.storage, "zeros", lambda count, words: pytest.fail(f"{count} rows"))
    with pytest.raises(SnapshotError, match="planes"):
        load(path)


def test_a_header_that_claims_terabytes_is_not_allocated(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(sample(), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    shape = b"'shape': (%d,)" % (len(members["level.npy"]) - 128)
    assert shape in members["level.npy"]
    huge = shape.replace(b"(", b"(999999999999")
    pad = len(huge) - len(shape)
    members["level.npy"] = members["level.npy"].replace(shape, huge).replace(b" " * pad + b"\n", b"\n", 1)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(SnapshotError, match="size that its header gives"):
        load(path)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.text(), st.text(), st.dictionaries(st.text(), st.text(), max_size=3))
def test_any_text_survives_a_round(tmp_path: Path, name: str, note: str, extra: dict[str, str]) -> None:
    snapshot = TreeBuilder(regime_4k(39)).snapshot()
    meta = dataclasses.replace(snapshot.meta, note=note, extra=extra)
    save(dataclasses.replace(snapshot, name=name, meta=meta), tmp_path / "a.npz")
    found = load(tmp_path / "a.npz")
    printable = name.isprintable() and note.isprintable() and all(k.isprintable() for k in extra)
    if printable:
        assert (found.name, found.meta.note) == (name, note)
        assert set(found.meta.extra) == set(extra)


INDIRECT = {
    "name": "EL2&0", "pie": True, "pir": (1 << 64) - 1, "pire0": 0x5010_9080_7032_0000, "hpd": True,
    "poe": True, "e0poe": True, "por": 0x7 << 60, "por0": 0x1, "aie": True, "mair2": 0xFF, "pnch": True,
    "nv1": True, "doubt": "TCR2_EL2=0x2, but not readable: PIR_EL2",
}  # fmt: skip


def test_indirect_permissions_survive_a_round(tmp_path: Path) -> None:
    snapshot = sample()
    regime = dataclasses.replace(snapshot.regime, **INDIRECT)  # type: ignore[arg-type]
    save(dataclasses.replace(snapshot, regime=regime), tmp_path / "a.npz")
    assert load(tmp_path / "a.npz").regime == regime


@pytest.mark.parametrize(
    ("system", "doubt", "name"),
    [
        ({}, "permissions by the direct bits; TCR2_EL1 was not captured", "EL1&0"),
        ({"ID_AA64MMFR2_EL1": "0x1000000000000000"}, "TCR2_EL1 was not captured", "EL1&0"),
        ({"ID_AA64MMFR2_EL1": "0x0"}, "", "EL1&0"),
        ({"ID_AA64MMFR2_EL1": "0x0", "HCR_EL2": "0x408000000"}, "", "EL2&0"),
    ],
)
def test_a_file_from_before_tcr2_was_read_says_so(
    tmp_path: Path, system: dict[str, str], doubt: str, name: str
) -> None:
    """Files of earlier versions have none of these fields; the CPU's ID registers tell what they can."""

    def as_before(document: dict[str, Any]) -> None:
        for field in INDIRECT:
            if field != "hpd":
                document["regime"].pop(field)
        document["cpus"][0].update(system=system, pstate="0x3c9" if name == "EL2&0" else "0x3c5")

    save(sample(), tmp_path / "a.npz")
    rewrite(tmp_path / "a.npz", document_change(as_before))
    found = load(tmp_path / "a.npz").regime
    assert doubt in found.doubt and bool(doubt) == bool(found.doubt)
    assert (found.name, found.pie) == (name, False)
