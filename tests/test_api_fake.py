"""The Python API on a session that is none."""

from __future__ import annotations

from fakes import FakeSession, context, kernel_tree

from ptinspect.api import Guest


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
