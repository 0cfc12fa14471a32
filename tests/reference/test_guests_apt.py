"""Debian's archive through the real apt, on an archive of our own; and where the archive is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from local_archive import TRUST, LocalArchive, quiet

from ptinspect.errors import TargetError
from ptinspect.reference import apt
from ptinspect.reference.apt import Package, Suite, SuiteUnavailable, by_nearness, main_archives


def stanza(address: str, release: str, *, origin: str = "", label: str = "", component: str = "main") -> str:
    lines = ["MetaKey: main/binary-amd64/Packages", f"URI: {address}dists/{release}/{component}/Packages"]
    lines += [f"Origin: {origin}", f"Label: {label or origin}"] if origin else []
    lines += [f"Component: {component}", "Created-By: Packages", f"Release: {release}"]
    lines += [f"Repo-URI: {address}", "Target-Of: deb"]
    return "\n".join(lines) + "\n"


MIRROR = "http://mirror.example/debian/"
SECURITY = "http://mirror.example/debian-security/"


def configured(*stanzas: str) -> str:
    return "\n".join(stanzas)


def test_the_main_archive_of_an_updated_machine() -> None:
    fetched = configured(
        stanza(SECURITY, "bookworm-security", origin="Debian", label="Debian-Security"),
        stanza("http://other.example/", "nodistro", origin=". nodistro"),
        stanza(MIRROR, "bookworm-updates", origin="Debian"),
        stanza(MIRROR, "bookworm", origin="Debian"),
    )
    bare = configured(
        stanza(SECURITY, "bookworm-security"),
        stanza("http://other.example/", "nodistro"),
        stanza(MIRROR, "bookworm-updates"),
        stanza(MIRROR, "bookworm"),
    )
    assert main_archives(fetched, bare) == (MIRROR,)


def test_the_main_archive_before_the_first_update() -> None:
    bare = configured(
        stanza("http://other.example/pgdg/", "bookworm-pgdg"),
        stanza("cdrom:[Debian]/", "bookworm"),
        stanza(SECURITY, "bookworm-security"),
        stanza("http://old.example/security/", "buster/updates"),
        stanza(MIRROR, "trixie"),
    )
    assert main_archives("", bare) == (MIRROR, "http://other.example/pgdg/")


def test_the_security_archive_under_another_name_is_told_apart() -> None:
    odd = "http://mirror.example/updates-for-debian/"
    fetched = stanza(odd, "stable", origin="Debian", label="Debian-Security")
    bare = configured(stanza(odd, "stable"), stanza(SECURITY, "stable"), stanza(MIRROR, "stable"))
    assert main_archives(fetched, bare) == (MIRROR,)


def test_other_distributions_and_components_are_not_the_main_archive() -> None:
    fetched = configured(
        stanza("http://mirror.example/ubuntu/", "noble", origin="Ubuntu"),
        stanza(MIRROR, "trixie", origin="Debian", component="non-free-firmware"),
    )
    bare = configured(
        stanza("http://mirror.example/ubuntu/", "noble"),
        stanza(MIRROR, "trixie", component="non-free-firmware"),
    )
    assert main_archives(fetched, bare) == ()


def test_a_mirror_list_keeps_its_method() -> None:
    address = "mirror+file:/etc/apt/mirrors/debian.list/"
    assert main_archives("", stanza(address, "bookworm")) == (address,)


def test_the_environment_names_another_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(apt.MIRROR_VARIABLE, MIRROR)
    assert apt.archive_addresses() == (MIRROR,)


def fake_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: str, extra: str = "") -> None:
    """Give apt a configuration of ours instead of the machine's."""
    for part in ("empty", "lists/partial", "cache"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "sources.list").write_text(sources)
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list"; Dir::Etc::sourceparts "{tmp_path}/empty";'
        f'Dir::State::lists "{tmp_path}/lists"; Dir::Cache "{tmp_path}/cache";'
        f'Dir::Etc::parts "{tmp_path}/empty"; Dir::Etc::main "/dev/null";\n{extra}\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    monkeypatch.delenv(apt.MIRROR_VARIABLE, raising=False)


def test_the_address_comes_from_apt_before_any_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LocalArchive(tmp_path / "archive")
    fake_system(tmp_path, monkeypatch, f"deb {SECURITY} x-security main\ndeb [arch=amd64] {MIRROR} x main\n")
    assert apt.archive_addresses() == (MIRROR,)


def test_a_machine_that_knows_no_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LocalArchive(tmp_path / "archive")
    fake_system(tmp_path, monkeypatch, "")
    with pytest.raises(TargetError, match="knows no Debian archive") as caught:
        apt.archive_addresses()
    assert apt.MIRROR_VARIABLE in caught.value.hint


def test_a_machine_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(apt.MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match="this machine has none"):
        apt.archive_addresses()


def test_missing_keys_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "KEYRINGS", (tmp_path / "no.gpg",))
    with pytest.raises(TargetError) as caught:
        Suite("s", tmp_path / "s").update(["file:/nowhere"], quiet)
    assert "debian-archive-keyring" in caught.value.hint


@pytest.fixture
def archive(tmp_path: Path) -> LocalArchive:
    made = LocalArchive(tmp_path / "archive")
    made.add("s", "kernel-1-a", "1.0-1", {"boot/k": b"one"})
    made.add("s", "kernel-2-a", "2.0-1", {"boot/k": b"two"})
    made.add("s", "kernel-2-b", "2.0-1", {"boot/k": b"other"})
    return made


def test_packages_are_found_and_downloaded(archive: LocalArchive, tmp_path: Path) -> None:
    suite = Suite("s", tmp_path / "apt", TRUST)
    suite.update([archive.address], quiet)
    found = suite.find("kernel-1-a", "1.0-1")
    assert found is not None
    assert suite.find("kernel-1-a") == found
    assert suite.find("kernel-1-a", "1.1-1") is None
    assert suite.find("kernel") is None
    assert [p.name for p in suite.matching(r"kernel-\d-a")] == ["kernel-1-a", "kernel-2-a"]
    place = tmp_path / "here"
    place.mkdir()
    (path,) = suite.download([found], place, quiet)
    assert path.parent == place
    assert path.stat().st_size == found.size


def test_a_file_that_is_not_what_the_index_says_is_refused(archive: LocalArchive, tmp_path: Path) -> None:
    suite = Suite("s", tmp_path / "apt", TRUST)
    suite.update([archive.address], quiet)
    deb = next((archive.directory / "pool").glob("*kernel-1-a*"))
    data = bytearray(deb.read_bytes())
    data[-100] ^= 1
    deb.write_bytes(data)
    package = suite.find("kernel-1-a")
    assert package is not None
    place = tmp_path / "here"
    place.mkdir()
    with pytest.raises(TargetError, match=r"cannot download kernel-1-a=1\.0-1"):
        suite.download([package], place, quiet)


def test_an_archive_that_nobody_signed_is_refused(
    archive: LocalArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lax = (
        'Acquire::AllowInsecureRepositories "true"; Acquire::AllowWeakRepositories "true";'
        'APT::Get::AllowUnauthenticated "true"; Acquire::Retries "1";'
    )
    fake_system(tmp_path, monkeypatch, "", lax)
    keys = tmp_path / "keys.gpg"
    keys.write_bytes(b"")
    monkeypatch.setattr(apt, "KEYRINGS", (keys,))
    with pytest.raises(SuiteUnavailable, match="not signed"):
        Suite("s", tmp_path / "apt").update([archive.address], quiet)


def test_the_machine_s_proxies_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LocalArchive(tmp_path / "archive")
    fake_system(
        tmp_path, monkeypatch, "", 'Acquire::http::Proxy "http://127.0.0.1:9/"; Acquire::Retries "0";'
    )
    with pytest.raises(SuiteUnavailable, match=r"127\.0\.0\.1:9"):
        Suite("s", tmp_path / "apt", TRUST).update([MIRROR], quiet)


def test_the_machine_s_hooks_are_not_read(archive: LocalArchive, tmp_path: Path) -> None:
    Suite("s", tmp_path / "apt", TRUST).update([archive.address], quiet)
    dump = subprocess.run(
        ["apt-config", "dump"],
        env={**os.environ, "APT_CONFIG": str(tmp_path / "apt" / "apt.conf")},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert f'Dir::Etc::parts "{tmp_path}/apt/empty";' in dump
    assert 'Dir::Etc::main "/dev/null";' in dump
    assert "Invoke" not in dump


def test_the_next_address_serves_when_one_lacks_the_suite(archive: LocalArchive, tmp_path: Path) -> None:
    suite = Suite("s", tmp_path / "apt", TRUST)
    suite.update([f"file:{tmp_path}/nothing", archive.address], quiet)
    assert suite.find("kernel-1-a") is not None


def test_a_suite_that_is_gone_says_so(archive: LocalArchive, tmp_path: Path) -> None:
    archive.drop("s")
    with pytest.raises(SuiteUnavailable, match="suite s cannot be used"):
        Suite("s", tmp_path / "apt", TRUST).update([archive.address], quiet)


@pytest.mark.parametrize(
    ("wanted", "order"),
    [
        ("5.10.223-1", ["5.10.218-1", "5.10.234-1", "5.10.9-1"]),
        ("5.10.226-1", ["5.10.234-1", "5.10.218-1", "5.10.9-1"]),
        ("5.10.1-1", ["5.10.9-1", "5.10.218-1", "5.10.234-1"]),
    ],
)
def test_the_nearest_version_comes_first(wanted: str, order: list[str]) -> None:
    packages = [Package("k", version, "", 1) for version in ("5.10.9-1", "5.10.234-1", "5.10.218-1")]
    assert [p.version for p in by_nearness(packages, wanted)] == order


def test_the_unsigned_image_comes_before_the_signed_one() -> None:
    packages = [Package("k", "1-1", "", 1), Package("k-unsigned", "1-1", "", 1)]
    assert by_nearness(packages, "1-1")[0].name == "k-unsigned"
