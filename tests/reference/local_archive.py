"""A Debian archive of a few small packages in a directory, for the real apt to read through file:."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from conftest import missing

TRUST = "trusted=yes"
"""The option of sources.list that lets apt read an archive that nobody signed."""


def quiet(what: str, done: int, total: int) -> None:
    """Take no notice of progress."""


class LocalArchive:
    """Hold suites of packages for one architecture, component main."""

    def __init__(self, directory: Path, architecture: str = "arm64") -> None:
        """Start an empty archive."""
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            missing("apt")
        self.directory = directory
        self.architecture = architecture
        self.address = f"file:{directory}"
        (directory / "pool").mkdir(parents=True)
        self._entries: dict[str, list[str]] = {}

    def add(
        self, suite: str, package: str, version: str, files: Mapping[str, bytes | str], depends: str = ""
    ) -> str:
        """Put a package in; a `str` makes a symbolic link. Returns the SHA-256 of the .deb."""
        tree = self.directory / "tree"
        for path, content in files.items():
            place = tree / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                place.symlink_to(content)
            else:
                place.write_bytes(content)
                place.chmod(0o755)
        control = (
            f"Package: {package}\nVersion: {version}\nArchitecture: {self.architecture}\n"
            + (f"Depends: {depends}\n" if depends else "")
            + "Maintainer: Nobody <nobody@localhost>\nDescription: for tests\n"
        )
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text(control)
        deb = (
            self.directory / "pool" / f"{suite}_{package}_{version.replace(':', '.')}_{self.architecture}.deb"
        )
        command = ["dpkg-deb", "-Znone", "--root-owner-group", "-b", str(tree), str(deb)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(tree)
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        entry = f"{control}Filename: pool/{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n"
        self._entries.setdefault(suite, []).append(entry)
        self._publish(suite)
        return digest

    def remove(self, suite: str, package: str) -> None:
        """Take every version of a package out."""
        self._entries[suite] = [e for e in self._entries[suite] if not e.startswith(f"Package: {package}\n")]
        self._publish(suite)

    def drop(self, suite: str) -> None:
        """Make a suite vanish."""
        del self._entries[suite]
        shutil.rmtree(self.directory / "dists" / suite)

    def _publish(self, suite: str) -> None:
        place = self.directory / "dists" / suite
        index = place / "main" / f"binary-{self.architecture}" / "Packages"
        index.parent.mkdir(parents=True, exist_ok=True)
        data = "\n".join(self._entries[suite]).encode()
        index.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        (place / "Release").write_text(
            f"Origin: Debian\nLabel: Debian\nSuite: {suite}\nCodename: {suite}\n"
            "Date: Mon, 01 Jan 2024 00:00:00 UTC\nArchitectures: {self.architecture}\nComponents: main\n"
            f"SHA256:\n {digest} {len(data)} main/binary-{self.architecture}/Packages\n"
        )
