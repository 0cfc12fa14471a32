"""The Python API on a session that is none."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeSession, context, kernel_tree

from ptinspect.api import Guest
from ptinspect.commands.framework.registry import build_registry
from ptinspect.commands.target import attaching
from ptinspect.errors import UserError
from ptinspect.guest import opening
from ptinspect.guest.opening import Machine


def test_what_somebody_else_changed_is_captured_as_it_is_now() -> None:
    tree = kernel_tree()
    guest = Guest(context(tree))
    fake = guest.context.guest.session
    assert isinstance(fake, FakeSession)

    def look() -> str:
        fake.stop_token += 1
        return "the guest is not where it stopped"

    fake.look = look  # type: ignore[method-assign]
    guest.context.guest.kept["stores of the rewrite"] = ()
    assert guest.snap("now").name == "now"
    assert fake.stop_token == 2 and not guest.context.guest.kept


LAUNCHED: dict[str, Any] = {
    "kernel": Path("/k/Image"), "symbols": Path("/k/vmlinux"), "modules": Path(__file__).parent,
    "guest": "6.1", "initrd": Path("/i"), "no_initrd": True, "qemu": "newer", "machine": "virt",
    "cpu": "max", "smp": 3, "memory": 512, "append": "a b", "append_more": "c", "keep": True,
    "timeline": Path("/t"), "extra": ["-d", "int"],
}  # fmt: skip
"""A value for each argument of launch."""


def test_launch_takes_what_the_command_takes_and_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    method = inspect.signature(Guest.launch).parameters
    assert set(method) - {"modules"} == {each.name for each in fields(Machine)}  # type: ignore[arg-type]
    assert set(method) == set(LAUNCHED)
    for name, parameter in method.items():
        assert parameter.default == getattr(Machine(), name, None), name
    seen: list[Machine] = []

    def launch(held: Any, machine: Machine, timeout: float = 10.0) -> None:
        assert held.module_files.directory == LAUNCHED["modules"]
        seen.append(machine)
        raise KeyboardInterrupt

    monkeypatch.setattr(opening, "launch", launch)
    words = ["launch", str(LAUNCHED["kernel"])]
    for name, value in LAUNCHED.items():
        if name not in ("kernel", "extra"):
            option = f"--{name.replace('_', '-')}"
            words += [option] if value is True else [option, f"'{value}'"]
    with pytest.raises(KeyboardInterrupt):
        Guest.launch(**{name: str(v) if isinstance(v, Path) else v for name, v in LAUNCHED.items()})
    with pytest.raises(KeyboardInterrupt):
        build_registry().run(context(), " ".join([*words, "--", *LAUNCHED["extra"]]))
    assert seen[0] == seen[1] == Machine(**{n: v for n, v in LAUNCHED.items() if n != "modules"})


def test_attach_takes_what_the_command_takes() -> None:
    method = set(inspect.signature(Guest.attach).parameters)
    assert method - {"kernel"} == set(list(inspect.signature(attaching.attach).parameters)[1:])


def test_a_guest_that_is_no_replay_goes_forwards_only() -> None:
    guest = Guest(context(kernel_tree()))
    for use in (
        guest.timeline, guest.step_back, guest.go_back, lambda: guest.goto("end"),
        lambda: guest.who("vectors"), lambda: guest.who(0x1000, every=True),
    ):  # fmt: skip
        with pytest.raises(UserError, match="runs forwards only"):
            use()


def test_open_timeline_takes_what_the_command_takes(tmp_path: Path) -> None:
    method = inspect.signature(Guest.open_timeline).parameters
    command = dict(list(inspect.signature(attaching.replay).parameters.items())[1:])
    assert set(method) - {"timeout"} == set(command)
    with pytest.raises(UserError, match="holds no recording"):
        Guest.open_timeline(tmp_path)
