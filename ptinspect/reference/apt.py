"""Debian's archive through apt, without root: a private state under a directory of ours.

apt checks the signature of the index with Debian's own keys and every file against the index. The
archive's address comes from apt's configuration of the machine, and so do proxies.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ptinspect.dataclass import dataclass
from ptinspect.errors import TargetError
from ptinspect.reference import deb
from ptinspect.reference.helper_program import Result, run

Progress = Callable[[str, int, int], None]
"""Called as (what, done, total); bytes where total is not 0."""

MIRROR_VARIABLE = "PTINSPECT_MIRROR"
"""Environment variable with the address of a Debian archive to use instead of the machine's own."""

KEYRINGS = tuple(
    Path("/usr/share/keyrings") / f"debian-archive-keyring{suffix}" for suffix in (".gpg", ".pgp")
)
"""Where the package debian-archive-keyring keeps the archive's keys."""

UPDATE_TIMEOUT = 180.0
DOWNLOAD_STALL = 90.0
QUERY_TIMEOUT = 60.0

_OURS = ("IndexTargets", "Languages", "Allow", "CompressionTypes", "GzipIndexes", "cdrom")
_COPY = re.compile(rf'Acquire::(?!{"|".join(_OURS)})[\w:./@*-]+ "[^"\n]*";')


class SuiteUnavailable(TargetError):
    """Report that a suite of the archive cannot be used: gone, unreachable, or not signed as it must be."""


@dataclass(frozen=True)
class Package:
    """Name a package that the archive holds."""

    name: str
    version: str
    """Debian version."""
    sha256: str
    """SHA-256 of the .deb, in hex, from the signed index."""
    size: int
    """Size of the .deb in bytes."""
    depends: tuple[str, ...] = ()
    """Names of the packages that it needs; the first of alternatives."""


def archive_addresses() -> tuple[str, ...]:
    """Return the addresses of Debian's archive that this machine's apt is configured with, best first.

    Works before `apt-get update` ever ran. Raises TargetError if there is none.
    """
    chosen = os.environ.get(MIRROR_VARIABLE)
    if chosen:
        return (chosen,)
    hint = f"set {MIRROR_VARIABLE} to the address of a Debian archive"
    listed = []
    for option in ("--release-info", "--no-release-info"):
        try:
            result = run(["apt-get", "indextargets", option], timeout=QUERY_TIMEOUT)
        except TargetError as error:
            raise TargetError("the guests come through apt, and this machine has none", hint) from error
        if result.code:
            raise TargetError(f"apt cannot list its sources: {result.last_words()}", hint)
        listed.append(result.output)
    found = main_archives(*listed)
    if not found:
        raise TargetError("apt on this machine knows no Debian archive; the guests come from there", hint)
    return found


def main_archives(fetched: str, configured: str) -> tuple[str, ...]:
    """Pick Debian's main archive out of what `apt-get indextargets` printed.

    `fetched` lists the indexes that are there, with Origin and Label, `configured` all of them,
    without (`--no-release-info`). Entries that apt knows to be Debian's come first; of those that
    it knows nothing of, the ones called `debian`.
    """
    known = list(_stanzas(fetched))
    seen = {fields.get("URI") for fields in known}
    unknown = [fields for fields in _stanzas(configured) if fields.get("URI") not in seen]
    sure = [_archive(fields) for fields in known if fields.get("Origin") == "Debian"]
    likely = [_archive(fields) for fields in unknown]
    likely.sort(key=lambda address: not address.rstrip("/").endswith("/debian"))
    return tuple(dict.fromkeys(address for address in (*sure, *likely) if address))


def _archive(fields: Mapping[str, str]) -> str:
    """Return the address that an index comes from if it may be of the main archive, else nothing."""
    address, release = fields.get("Repo-URI", ""), fields.get("Release", "")
    security = (
        fields.get("Label") == "Debian-Security"
        or re.search(r"(-security|/updates|/)$", release)
        or address.rstrip("/").endswith("-security")
    )
    if address.startswith("cdrom:") or security or fields.get("Component") != "main":
        return ""
    return address


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    for block in re.split(r"\n\s*\n", text):
        pairs = (line.partition(":") for line in block.splitlines() if not line.startswith(" "))
        fields = {key: value.strip() for key, colon, value in pairs if colon}
        if fields:
            yield fields


def find_keyring() -> Path:
    """Return the file with the archive's keys. Raises TargetError if the machine has none."""
    for path in KEYRINGS:
        if path.is_file():
            return path
    raise TargetError(
        "Debian's archive keys are not on this machine: the guests could not be checked",
        "install the package debian-archive-keyring",
    )


class Suite:
    """Use one suite of the archive, component main, with a private apt state in a directory."""

    def __init__(
        self,
        name: str,
        directory: Path,
        trust: str | None = None,
        *,
        architecture: str = "arm64",
        beneath: Sequence[str] = (),
    ) -> None:
        """Prepare; `trust` replaces the option that names the keys.

        `beneath` are suites that this one adds to, as backports do: their packages are here too.
        """
        self.name = name
        self.directory = directory
        self.architecture = architecture
        self._suites = (name, *beneath)
        self._trust = trust
        self._ready = False

    def update(self, addresses: Sequence[str], progress: Progress) -> None:
        """Fetch the signed index from the first address that has it. Raises SuiteUnavailable."""
        if self._ready:
            return
        trust = self._trust or f"signed-by={find_keyring()}"
        reasons = []
        for address in addresses:
            progress(f"reading the index of {self.name}", 0, 0)
            options = f"arch={self.architecture} {trust}"
            self._configure("".join(f"deb [{options}] {address} {suite} main\n" for suite in self._suites))
            reason = self._update()
            if not reason:
                self._ready = True
                return
            reasons.append(reason)
        raise SuiteUnavailable(f"the archive's suite {self.name} cannot be used: {'; '.join(reasons)}")

    def _configure(self, source: str) -> None:
        base = self.directory
        for part in ("lists/partial", "archives/partial", "empty"):
            (base / part).mkdir(parents=True, exist_ok=True)
        (base / "status").touch()
        (base / "sources.list").write_text(source, "utf-8")
        lines = [
            f'Dir::State "{base}"; Dir::State::Lists "{base}/lists"; Dir::State::status "{base}/status";',
            f'Dir::Cache "{base}"; Dir::Cache::archives "{base}/archives";',
            f'Dir::Etc::sourcelist "{base}/sources.list"; Dir::Etc::sourceparts "{base}/empty";',
            f'Dir::Etc::main "/dev/null"; Dir::Etc::parts "{base}/empty";',
            f'Dir::Etc::preferences "/dev/null"; Dir::Etc::preferencesparts "{base}/empty";',
            f'APT::Architecture "{self.architecture}"; APT::Architectures {{ "{self.architecture}"; }};',
            'APT::Sandbox::User ""; APT::Update::Error-Mode "any"; APT::Get::AllowUnauthenticated "false";',
            'Acquire::AllowInsecureRepositories "false"; Acquire::AllowWeakRepositories "false";',
            'Acquire::AllowDowngradeToInsecureRepositories "false"; Acquire::Languages "none";',
            'Acquire::Retries "2"; Acquire::http::Timeout "30"; Acquire::https::Timeout "30";',
            *_COPY.findall(run(["apt-config", "dump", "Acquire"], timeout=QUERY_TIMEOUT).output),
        ]
        (base / "apt.conf").write_text("\n".join(lines) + "\n", "utf-8")

    def _run(self, *command: str, timeout: float = QUERY_TIMEOUT) -> Result:
        return run(command, timeout=timeout, environment={"APT_CONFIG": str(self.directory / "apt.conf")})

    def _update(self) -> str:
        """Return why the index cannot be used, or nothing."""
        try:
            result = self._run("apt-get", "-q", "update", timeout=UPDATE_TIMEOUT)
        except TargetError as error:
            return error.message
        if result.code:
            return result.last_words()
        listed = self._run("apt-get", "indextargets", "Created-By: Packages", "--format", "$(FILENAME)")
        if not listed.output.strip():
            return f"it has no packages for {self.architecture}"
        return ""

    def find(self, name: str, version: str = "") -> Package | None:
        """Return the package of this name and version (the newest if none is given), or None."""
        held = [p for p in self._show([name]) if not version or p.version == version]
        return held[0] if held else None

    def newest(self, names: Sequence[str]) -> dict[str, Package]:
        """Return the newest version of each package that is there, by name, in the order of `names`."""
        found: dict[str, Package] = {}
        for package in self._show(names):
            found.setdefault(package.name, package)
        return {name: found[name] for name in names if name in found}

    def matching(self, pattern: str) -> list[Package]:
        """Return every version of the packages whose whole name matches the regular expression."""
        listed = self._run("apt-cache", "pkgnames")
        names = sorted(name for name in listed.output.split() if re.fullmatch(pattern, name))
        return self._show(names) if names else []

    def _show(self, names: Sequence[str]) -> list[Package]:
        found = []
        for fields in _stanzas(self._run("apt-cache", "show", *names).output):
            name, version, sha256 = (fields.get(key, "") for key in ("Package", "Version", "SHA256"))
            if name in names and version and re.fullmatch(r"[0-9a-f]{64}", sha256):
                depends = ",".join(fields.get(key, "") for key in ("Pre-Depends", "Depends"))
                needed = dict.fromkeys(re.findall(r"(?:^|,)\s*([a-z0-9][\w.+-]*)", depends))
                size = int(fields.get("Size", "0"))
                found.append(Package(name, version, sha256, size, tuple(needed)))
        return found

    def download(
        self, packages: Sequence[Package], directory: Path, progress: Progress, what: str = ""
    ) -> list[Path]:
        """Download packages into an empty directory, checked by apt, and return the .debs in that order.

        Raises TargetError if one cannot be had or is not what the index lists.
        """
        partial = self.directory / "archives" / "partial"
        total = sum(package.size for package in packages)

        def size() -> int:
            done = sum(f.stat().st_size for f in (*_files(partial), *_files(directory)))
            progress(f"downloading {what or packages[0].name}", min(done, total), total)
            return done

        wanted = [f"{package.name}={package.version}" for package in packages]
        result = run(
            ["apt-get", "-q", "download", *wanted],
            timeout=DOWNLOAD_STALL,
            cwd=directory,
            environment={"APT_CONFIG": str(self.directory / "apt.conf")},
            watch=size,
        )
        files = {path.name.partition("_")[0]: path for path in directory.iterdir() if path.suffix == ".deb"}
        if result.code or files.keys() != {package.name for package in packages}:
            raise TargetError(f"cannot download {what or wanted[0]}: {result.last_words()}")
        found = [files[package.name] for package in packages]
        for package, path in zip(packages, found, strict=True):
            digest = deb.sha256(path)
            if digest != package.sha256:
                raise TargetError(f"{path.name} is not what the archive's index lists: {digest}")
        return found


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.is_file()]


def by_nearness(packages: Sequence[Package], version: str) -> list[Package]:
    """Sort packages by the distance of their versions from `version`; of two as near, the newer first."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text)]

    wanted = numbers(version)

    def distance(package: Package) -> tuple[list[int], list[int], bool]:
        has = numbers(package.version)
        width = max(len(has), len(wanted))
        left, right = (part + [0] * (width - len(part)) for part in (has, wanted))
        gaps = [abs(a - b) for a, b in zip(left, right, strict=True)]
        return gaps, [-n for n in left], "-unsigned" not in package.name

    return sorted(packages, key=distance)
