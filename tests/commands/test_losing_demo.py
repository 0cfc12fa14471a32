"""`demo --timeline`: what it refuses, and how it judges what the recording shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import build_registry
from ptinspect.commands.target import demo
from ptinspect.commands.target.losing_demo import judged
from ptinspect.errors import UserError
from ptinspect.guest.injection import LosingKernel

KERNEL = LosingKernel(Path("losing-kernel"), None, "", 14, 0xFFFF_8000_1000_0188, "rewrite+0x188")
STORE = 0x4028_0188
CAUSE: dict[str, Any] = {"code": "lost-entry", "written": {"pc": hex(STORE)}}
WRITE: dict[str, Any] = {"pc": hex(STORE), "changes": ["lost"], "position": 144_942_337}


@pytest.mark.parametrize("options", ["--fault lost", "--smp 2", "--no-guard"])
def test_what_does_not_go_with_a_recording_is_refused(
    options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ctx = Context(build_registry())
    with pytest.raises(UserError):
        ctx.registry.run(ctx, f"demo --timeline {options}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("cause", "writes", "ok"),
    [
        (CAUSE, [WRITE], True),
        (CAUSE, [WRITE, {**WRITE, "pc": "0x40280058", "changes": ["marked"]}], False),
        (CAUSE, [{**WRITE, "pc": "0x40280058"}], False),
        (CAUSE, [], False),
        ({**CAUSE, "written": {"pc": "0x40280058"}}, [WRITE], False),
        ({"code": "stack-mapping-lost"}, [WRITE], False),
    ],
)
def test_only_the_store_that_was_put_there_will_do(
    cause: dict[str, Any], writes: list[dict[str, Any]], ok: bool
) -> None:
    report = judged(KERNEL, STORE, Path("boot"), cause, {"writes": writes})
    assert (report.result["ok"], report.exit_code) == (ok, 0 if ok else 1)


@pytest.mark.parametrize(
    ("options", "name"), [("", "after.npz"), ("--timeline", "boot"), ("--timeline", "losing-kernel")]
)
def test_the_user_is_asked_before_a_demo_overwrites_files(
    options: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def began(*arguments: object, **more: object) -> None:
        raise UserError("it begins")

    monkeypatch.setattr(demo, "launch", began)
    monkeypatch.setattr(demo, "lost_in_recording", began)
    ctx = Context(build_registry(), interactive=True)
    asked: list[str] = []
    ctx.interaction.confirm = lambda question: bool(asked.append(question))  # type: ignore[method-assign]
    line = f"demo {options} -o {tmp_path}"
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="it begins"):
        ctx.registry.run(ctx, line)
    assert not asked
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} stays as it was"):
        ctx.registry.run(ctx, line)
    assert len(asked) == 1 and f"{name} is there already: overwrite it" in asked[0]
    for ctx.interactive in (True, False):  # who is not there is not asked
        with pytest.raises(UserError, match="it begins"):
            ctx.registry.run(ctx, f"{line} {'--force' * ctx.interactive}")
    assert len(asked) == 1
