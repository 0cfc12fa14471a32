"""`setup`: say which tools and reference guests are there, and install what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptinspect.commands.framework.arguments import REPEATED, switch
from ptinspect.commands.framework.command import argument, command
from ptinspect.dataclass import dataclass
from ptinspect.errors import EXIT_CHECK, EXIT_OK, EXIT_TARGET, PtinspectError
from ptinspect.guest.guest import Guest
from ptinspect.output.encode import filled
from ptinspect.output.model import Note, Report, Styled, Table, headings

if TYPE_CHECKING:
    from ptinspect.reference.guests import Guest as ReferenceGuest
    from ptinspect.reference.install import Installer
    from ptinspect.reference.pins import GuestSpec
    from ptinspect.reference.system_tools import Probe, Tool


@dataclass(frozen=True)
class _State:
    """Say how one guest stands."""

    spec: GuestSpec
    chosen: bool
    guest: ReferenceGuest | None
    problem: str
    hint: str = ""

    @property
    def missing(self) -> bool:
        return self.chosen and (self.guest is None or bool(self.problem))


@dataclass(frozen=True)
class ToolResult:
    """A tool, and whether it is there."""

    name: str
    found: bool
    path: str
    version: str
    problem: str
    needed_command: str


@dataclass(frozen=True)
class GuestResult:
    """A reference guest, and whether it is installed."""

    name: str
    description: str
    chosen: bool
    installed: bool
    version: str
    release: str
    kernel: str
    initrd: str
    vmlinux: str
    cpu: str
    serves: str
    note: str


@dataclass(frozen=True)
class SetupResult:
    """What is there, and whether that is all that was chosen."""

    tools: list[ToolResult]
    guests: list[GuestResult]
    complete: bool


@command(
    "setup",
    group="Guest",
    summary="Check for QEMU, GDB and the reference guests, and install what is missing",
    example="setup --yes --guest 6.1-cloud",
    arguments=(
        switch("--yes", "install what is missing", "-y"),
        argument(
            "--guest",
            "-g",
            dest="names",
            metavar="NAME",
            help="a reference guest, instead of the default one; may be repeated",
            **REPEATED,
        ),
        switch("--all", "every reference guest but the large ones (debug symbols)", dest="every"),
        argument(
            "--qemu",
            metavar="NAME",
            help="also a QEMU beside the system's: newer (as --tests does)",
            **REPEATED,
        ),
        switch("--tests", "also what the project's own tests need"),
        switch("--check", "compare the guests' files with their hashes"),
        switch("--list", "only list the reference guests", dest="only_list"),
    ),
    result=SetupResult,
    details="Without --yes nothing is changed; exit code 1: something is missing. QEMU and GDB "
    "come through apt, with sudo where that is needed. Guests come from Debian's archive for "
    "arm64, through the mirror that apt uses here ($PTINSPECT_MIRROR names another), without "
    "root, into the user's cache directory ($PTINSPECT_CACHE names another). So does a newer "
    "QEMU, with its own loader and libraries: `launch --qemu newer` starts it. The tests also want an "
    "emulated arm64 host, whose KVM runs guests. With --yes the modules of ptinspect are compiled too, where "
    "the installer has not done that.",
)
def setup(
    guest: Guest,
    *,
    yes: bool = False,
    names: Sequence[str] = (),
    every: bool = False,
    qemu: Sequence[str] = (),
    tests: bool = False,
    check: bool = False,
    only_list: bool = False,
) -> Report:
    """Check, and with `--yes` install."""
    from ptinspect.reference import pins, system_tools

    table = pins.load()
    chosen = {table.guest(name).name for name in names}
    if every:
        chosen |= {spec.name for spec in table.guests if not spec.large}
    chosen = chosen or {pins.DEFAULT_GUEST}
    if only_list:
        return _report([], [_look(spec, spec.name in chosen, check) for spec in table.guests])
    tools = system_tools.check_tools(_find_gdb(guest), _find_qemu, tests=tests)
    trouble: list[PtinspectError] = []
    lacking = [t.packages for t in tools if not t.found and t.packages]
    if yes and lacking:
        trouble += _install_packages(guest, lacking)
        tools = system_tools.check_tools(_find_gdb(guest), _find_qemu, tests=tests)
    wanted = {table.emulator(name).name for name in qemu}
    if tests:
        wanted |= {spec.name for spec in table.emulators}
    tools += _emulators(guest, wanted, trouble, yes=yes, check=check)
    states = [_look(spec, spec.name in chosen, check) for spec in table.guests]
    if yes:
        states = _install_all(guest, states)
    tools += _kvm_hosts(guest, trouble, tests=tests, yes=yes, check=check)
    if yes:
        _compile()
        trouble.extend(PtinspectError(s.problem, s.hint) for s in states if s.missing)
    return _report(tools, states, trouble, installing=yes)


def _install_packages(guest: Guest, groups: Sequence[Sequence[str]]) -> list[PtinspectError]:
    """Install the packages of several tools, each tool's alone where apt refuses them together."""
    from ptinspect.reference import system_tools

    try:
        system_tools.install_packages([name for group in groups for name in group], guest.progress)
    except system_tools.AptFailed as error:
        if len(groups) == 1:
            return [error]
        return [problem for group in groups for problem in _install_packages(guest, [group])]
    except PtinspectError as error:
        return [error]
    return []


def _compile() -> None:
    """Compile the modules of ptinspect once, where the installer has not: else each start does.

    That is so after `pip install -e` where PYTHONDONTWRITEBYTECODE is set.
    """
    import compileall

    from ptinspect import __path__ as folders

    compileall.compile_dir(folders[0], quiet=2)


def _find_gdb(guest: Guest) -> Probe:
    def probe() -> tuple[str, str]:
        from ptinspect.link.gdb.program import find_gdb

        gdb = find_gdb(guest.gdb)
        return gdb.path, gdb.version

    return probe


def _find_qemu() -> tuple[str, str]:
    from ptinspect.link.qemu.machine import find_program
    from ptinspect.reference import system_tools

    return system_tools.find_program(find_program())


def _emulators(
    guest: Guest, wanted: set[str], trouble: list[PtinspectError], *, yes: bool, check: bool
) -> list[Tool]:
    """Look for the QEMUs beside the system's that are wanted or there; install what is wanted."""
    from ptinspect.reference import emulator, pins, system_tools

    found = []
    for spec in pins.load().emulators:
        tool = system_tools.check_emulator(spec.name, thoroughly=check)
        if yes and spec.name in wanted and not tool.found:
            try:
                emulator.install(spec.name, guest.progress, again=True)
            except PtinspectError as error:
                trouble.append(error)
            tool = system_tools.check_emulator(spec.name)
        if spec.name in wanted or tool.path:
            found.append(tool)
    return found


def _kvm_hosts(
    guest: Guest, trouble: list[PtinspectError], *, tests: bool, yes: bool, check: bool
) -> list[Tool]:
    """Look for the host of KVM guests, which only tests want; install it if they do."""
    from ptinspect.reference import kvm_host, pins, system_tools

    found = []
    for spec in pins.load().kvm_hosts if tests else ():
        tool = system_tools.check_kvm_host(thoroughly=check)
        if yes and not tool.found:
            try:
                with_kernel = pins.load().guest(spec.guest)
                _install_all(guest, [_look(with_kernel, True, False)])
                kvm_host.install(guest.progress, again=True)
            except PtinspectError as error:
                trouble.append(error)
            tool = system_tools.check_kvm_host()
        found.append(tool)
    return found


def _look(spec: GuestSpec, chosen: bool, check: bool) -> _State:
    from ptinspect.reference import guests

    try:
        guest = guests.guest(spec.name)
    except PtinspectError as error:
        return _State(spec, chosen, None, error.message, error.hint)
    return _State(spec, chosen, guest, guests.damage(guest.name) if check else "")


def _wanted(state: _State) -> bool:
    """Tell whether to install: missing, damaged, or only a stand-in for what was chosen."""
    return state.missing or (state.chosen and state.guest is not None and state.guest.name != state.spec.name)


def _install_all(guest: Guest, states: list[_State]) -> list[_State]:
    from ptinspect.reference.install import Installer

    if not any(_wanted(state) for state in states):
        return states
    with Installer(guest.progress) as installer:
        return [_install(installer, state) if _wanted(state) else state for state in states]


def _install(installer: Installer, state: _State) -> _State:
    try:
        guest = installer.install(state.spec.name, again=bool(state.guest and state.problem))
    except PtinspectError as error:
        return _State(state.spec, state.chosen, state.guest, error.message, error.hint)
    return _State(state.spec, state.chosen, guest, "")


def _report(
    tools: list[Tool],
    states: list[_State],
    trouble: list[PtinspectError] | None = None,
    *,
    installing: bool = False,
) -> Report:
    missing = any(not tool.found for tool in tools) or any(state.missing for state in states)
    result = SetupResult(
        tools=[filled(ToolResult, tool) for tool in tools],
        guests=[_guest(state) for state in states],
        complete=not missing,
    )
    body: list[Table | Note] = []
    if tools:
        body.append(_tool_table(tools))
    body.append(_guest_table(states))
    for error in trouble or ():
        body.append(Note(error.message, "bad"))
        if error.hint:
            body.append(Note(f"  {error.hint}", "dim"))
    if not tools:
        return Report(result, body)
    if missing and not installing:
        body.extend(_advice(tools))
    code = EXIT_OK if not missing else EXIT_TARGET if installing else EXIT_CHECK
    return Report(result, body, code)


def _guest(state: _State) -> GuestResult:
    guest = state.guest
    return GuestResult(
        name=state.spec.name,
        description=state.spec.description,
        chosen=state.chosen,
        installed=guest is not None and not state.problem,
        version=guest.version if guest else "",
        release=guest.release if guest else "",
        kernel=str(guest.kernel) if guest else "",
        initrd=str(guest.initrd) if guest else "",
        vmlinux=str(guest.vmlinux) if guest and guest.vmlinux else "",
        cpu=state.spec.cpu if guest is None else guest.cpu,
        serves=guest.name if guest else "",
        note=guest.note if guest and not state.problem else state.problem,
    )


def _tool_table(tools: list[Tool]) -> Table:
    rows = [
        (
            tool.name,
            Styled(tool.version, "good") if tool.found else Styled("missing", "bad"),
            tool.path or tool.problem,
        )
        for tool in tools
    ]
    return Table(headings("tool", "version", "where"), rows)


def _guest_table(states: list[_State]) -> Table:
    rows = []
    for state in states:
        guest = state.guest
        if guest is not None and not state.problem:
            status = Styled(guest.version, "good" if not guest.note else "changed")
            about = guest.note or f"{state.spec.description}; {guest.kernel}"
        else:
            status = Styled("missing", "bad") if state.chosen else Styled("-", "dim")
            about = state.problem if guest is not None else state.spec.description
        rows.append((state.spec.name, status, about))
    return Table(headings("guest", "version", ""), rows)


def _advice(tools: list[Tool]) -> list[Note]:
    notes = [Note("setup --yes installs what is missing", "dim")]
    commands = [tool.needed_command for tool in tools if tool.needed_command]
    notes.extend(Note(f"  or run: {command}", "dim") for command in commands)
    if any(tool.name == "gdb" and not tool.found for tool in tools):
        notes.append(Note("  a GDB comes from PyPI too: pip install 'ptinspect[gdb]'", "dim"))
    return notes
