"""`stack highwater`: which stacks get deeper while the guest runs than they ever were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptinspect.arch.bits import VirtAddr
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import WHERE, switch, timeout_argument
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.guest.expression import Address
from ptinspect.guest.names import GuestNames
from ptinspect.output.encode import filled
from ptinspect.output.model import Cell, Note, Report, Styled, Table, headings
from ptinspect.text import counted

if TYPE_CHECKING:
    from ptinspect.guest.stacks.stack_growth import Growth

SECONDS = 10.0
SHOWN = 20
COLUMNS = headings("stack", "of", ">before", ">after", ">deeper by", ">free", "known by")


@dataclass(frozen=True)
class GrowthResult:
    """How deep one stack has been, before and after."""

    kind: str
    owner: str
    base: VirtAddr
    top: VirtAddr
    before: int | None
    after: int | None
    grown: int
    free: int | None
    lowest: VirtAddr | None
    how: str
    painted: bool


@dataclass(frozen=True)
class HighwaterResult:
    """How deep the stacks have been, what grew most first."""

    ended: str
    place: str
    deepest: int | None
    least_free: int | None
    unread: int
    """Stacks that could not be read."""
    stacks: Sequence[GrowthResult]


@command(
    "stack highwater",
    group="Stack",
    summary="Let the guest run, and say which stacks got deeper than ever before",
    example="stack highwater --timeout 5",
    arguments=(
        WHERE,
        argument(
            "--task",
            type=arguments.either("any", other=arguments.task),
            default="any",
            metavar="PID|task:NAME|any",
            help="whose stack (default any)",
        ),
        switch("--paint", "fill the free part with a pattern first"),
        switch("--yes", "do not ask before painting", "-y"),
        timeout_argument(f"({SECONDS:.0f})", SECONDS),
    ),
    result=HighwaterResult,
    needs=Needs.STOPPED,
    details="The free part of each stack is scanned before and after: what is not zero any more was "
    "written. --paint fills it with a pattern first (asks, unless --yes) and takes that out again, so "
    "that stores of zeros count too, and only what happens from now on does. Runs at full speed; it shows "
    "the depth, not who was there: stack trace does. Ends at WHERE or after --timeout.",
)
def highwater(
    ctx: Context,
    *,
    where: Sequence[Address],
    task: int | str,
    paint: bool,
    yes: bool,
    timeout: float,
) -> Report:
    """Scan or paint, run, and scan again."""
    from ptinspect.guest.stacks.stack_growth import growths, stacks_of

    guest = ctx.guest
    wanted = stacks_of(guest, task)
    places = [address.value(GuestNames(guest)) for address in where]
    if paint and not yes and not ctx.confirm(f"paint the free part of {counted(len(wanted), 'stack')}?"):
        raise UserError("nothing was painted", "--yes where nobody can be asked")
    found = growths(guest, wanted, places, timeout, paint=paint)
    known = [each for each in found.stacks if each.after.depth is not None]
    state = guest.stopped.cpu_state(guest.stopped.current_cpu)
    result = HighwaterResult(
        ended=found.ended,
        place=f"cpu {state.cpu} at {guest.place(state.pc, state=state)}",
        deepest=max((each.after.depth or 0 for each in known), default=None),
        least_free=min((_free(each) for each in known), default=None),
        unread=len(wanted) - len(known),
        stacks=[_result(each) for each in found.stacks],
    )
    grown = sum(each.grown > 0 for each in known)
    body: list[Note | Table] = [
        Note(f"{result.ended}, {result.place}", "dim"),
        Table(COLUMNS, [_row(each) for each in known[:SHOWN]], empty="no stack could be read"),
        Note(f"{grown} of {len(found.stacks)} stacks got deeper than they were known to have been"),
    ]
    if result.unread:
        body.append(Note(f"{counted(result.unread, 'stack')} could not be read", "changed"))
    return Report(result, body)


def _free(growth: Growth) -> int:
    return growth.stack.size - (growth.after.depth or 0)


def _row(growth: Growth) -> tuple[Cell, ...]:
    before = growth.before.depth
    return (
        growth.stack.kind,
        growth.stack.owner,
        "-" if before is None else str(before),
        str(growth.after.depth),
        Styled(f"{growth.grown:+}" if growth.grown else "0", "changed" if growth.grown else "dim"),
        str(_free(growth)),
        "paint" if growth.painted else "zeros",
    )


def _result(growth: Growth) -> GrowthResult:
    stack, lowest, depth = growth.stack, growth.after.lowest, growth.after.depth
    return filled(
        GrowthResult,
        stack,
        before=growth.before.depth,
        after=depth,
        grown=growth.grown,
        free=None if depth is None else _free(growth),
        lowest=None if lowest is None else VirtAddr(lowest),
        how=growth.after.how,
        painted=growth.painted,
    )
