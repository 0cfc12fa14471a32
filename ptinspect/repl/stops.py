"""Actions at stops: which one a stop is for, and how what it interrupted goes on."""

from __future__ import annotations

from collections.abc import Mapping

from ptinspect.commands.framework.context import Context
from ptinspect.errors import UserError
from ptinspect.guest import expression
from ptinspect.guest.names import GuestNames
from ptinspect.script.outcome import Outcome
from ptinspect.script.statements import Line, OnStop, Statement

LEAST_SECONDS = 0.1
"""What a command that goes on gets, however little is left of its time."""


def action_for(ctx: Context, actions: Mapping[str, OnStop], outcome: Outcome) -> OnStop | None:
    """Return the action for a stop: for its breakpoint, its address, or any.

    Raises PtinspectError if the address of an action cannot be known any more.
    """
    pc = outcome.result.get("pc")
    if outcome.result.get("state") != "stopped" or not isinstance(pc, str):
        return None
    for where, action in actions.items():
        if where.isdecimal() and int(where) == outcome.result.get("breakpoint"):
            return action
        if where != "any" and not where.isdecimal() and resolve(ctx, where) == int(pc, 16):
            return action
    return actions.get("any")


def resolve(ctx: Context, where: str) -> int | None:
    """Return the address that an action is for; None for `any` and numbers. Raises PtinspectError."""
    if where == "any" or where.isdecimal():
        return None
    return expression.address(where).value(GuestNames(ctx.guest))


def goes_on(ctx: Context, body: tuple[Statement, ...]) -> bool:
    """Tell whether the last of the actions lets the guest go on."""
    return bool(body) and _continues(ctx, body[-1])


def check(ctx: Context, body: tuple[Statement, ...]) -> None:
    """Raise UserError if the guest would go on in the middle of the actions."""
    if any(_continues(ctx, statement) for statement in body[:-1]):
        raise UserError("'continue' among the actions at a stop", "it can only be the last of them")


def _continues(ctx: Context, statement: Statement) -> bool:
    if not isinstance(statement, Line):
        return False
    try:
        return ctx.registry.split(statement.text).command.name == "continue"
    except UserError:  # it has a variable for a name, or is no command
        return False
