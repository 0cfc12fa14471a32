"""The rewrite in a recorded boot: what was seen of it live is seen again in the replay, from its end too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from session import Live, launched, need_guest

from ptinspect.errors import ReplayStands, TargetTimeout
from ptinspect.guest.recordings.writers import Writers
from ptinspect.link.qemu.replay_log import places


def without_time(result: dict[str, Any]) -> dict[str, Any]:
    """Return what does not depend on the machine."""
    return {name: value for name, value in result.items() if "second" not in name}


def written_again(live: Live, file: Path) -> dict[str, Any]:
    """Record the stores in the replay, which stops where the recorded guest stood.

    On a busy machine it may not go on from there, each time from another place (link/qemu/replay_log.py tells
    of a few of them): then it is tried again, from a state before that.
    """
    stuck = []
    for seconds in range(30, 150, 15):  # ten are enough on a quiet machine
        try:
            live("timeline goto end")
            return live(f"kpti writes --timeout {seconds} --output {file}")
        except (ReplayStands, TargetTimeout):
            stuck.append(live("timeline")["position"])
    pytest.fail(f"the replay was stuck each time: {stuck}")


@pytest.mark.parametrize("name", ["5.10-cloud", "6.12-cloud"])
def test_the_stores_of_the_rewrite_are_the_same_live_and_in_the_replay(name: str, tmp_path: Path) -> None:
    need_guest(name)
    with launched(name, f"--memory 256 --timeline {tmp_path / 't'}") as live:
        seen = live(f"kpti writes --timeout 200 --output {tmp_path / 'live.json'}")
        live("detach")
        live(f"timeline open {tmp_path / 't'}")
        live("break kernel_clone")  # it stops nobody who goes back
        assert without_time(written_again(live, tmp_path / "again.json")) == without_time(seen)
        written = json.loads((tmp_path / "live.json").read_text())["writes"]
        assert written == json.loads((tmp_path / "again.json").read_text())["writes"] != []
        log = places(tmp_path / "t" / "replay.log")
        stood = [*sorted(at for at in log.shy if at - 1 in log.shy)[:1], *sorted(log.stuck)[:1]]
        for at in stood:
            assert live(f"timeline goto {at}")["position"] == at
            live("stepi")
            assert live("timeline")["position"] == at + 1
            assert live(f"timeline goto {at}")["position"] == at and live("rsi")["position"] == at - 1
            live(f"timeline goto {at}")
            live("continue")
            assert (here := live("timeline"))["position"] == here["end"]
        live("timeline goto end")
        stores = {int(w["descriptor_pa"], 16): w for w in written if w["changed"]}
        histories = Writers(live.ctx.guest, stores, 300).histories(every=False)
        assert {h.pa: (h.writes[-1].before, h.writes[-1].after, h.writes[-1].how) for h in histories} == {
            pa: (int(store["before"], 16), int(store["stored"], 16), "store") for pa, store in stores.items()
        }
