"""`set` and `show`: the options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ptinspect import config
from ptinspect.commands.framework.arguments import switch
from ptinspect.commands.framework.command import argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.options import OPTIONS, find, option_name, option_value, written
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.output.model import Note, Report, Table, escape, headings


@dataclass(frozen=True)
class SetResult:
    """The options that were chosen, and where they were saved."""

    options: Mapping[str, object]
    saved: str | None


@dataclass(frozen=True)
class OptionResult:
    """An option."""

    name: str
    value: object
    from_: str
    default: object
    meaning: str
    choices: Sequence[str]


@dataclass(frozen=True)
class OptionsResult:
    """Options, and the file that keeps them."""

    options: Sequence[OptionResult]
    file: str


@command(
    "set",
    group="Session",
    summary="Choose an option for this session, or for good with --save",
    example="set pager off",
    arguments=(
        argument("name", nargs="?", type=option_name, metavar="NAME", help="the option; show lists them"),
        argument("value", nargs="*", type=option_value, metavar="VALUE", help="its value, or: default"),
        switch("--save", "keep it in the configuration file"),
    ),
    result=SetResult | OptionsResult,
    details="Without VALUE: shows it; the word default takes the choice back. --save writes it to the "
    "configuration file too (PTINSPECT_CONFIG names another); alone, it writes all set in this session. "
    "What is set here wins over --plain and the like, those over NO_COLOR, and that over the file.",
)
def set_option(ctx: Context, *, name: str | None, value: list[str], save: bool) -> Report:
    """Choose an option, show it, or save."""
    if name is None:
        return _save(ctx, None) if save else _table(ctx, tuple(OPTIONS))
    name = find(name).name
    if not value:
        return _save(ctx, [name]) if save else _table(ctx, (name,))
    text = " ".join(value)
    if text == "default":
        ctx.options.chosen[name] = (OPTIONS[name].default, "session")
    else:
        ctx.options.set(name, text, "session")
    return _save(ctx, [name]) if save else _shown_now(ctx, [name], "")


def _save(ctx: Context, names: list[str] | None) -> Report:
    if names is None:
        names = [name for name in OPTIONS if ctx.options.origin(name) == "session"]
        if not names:
            raise UserError("nothing was set in this session", "set NAME VALUE, or set --save NAME VALUE")
    path = config.config_file()
    config.write(path, {name: ctx.options[name] for name in names})
    return _shown_now(ctx, names, str(path))


def _shown_now(ctx: Context, names: list[str], path: str) -> Report:
    values = {name: ctx.options[name] for name in names}
    lines = [f"{name} is {_shown(ctx, name)}" for name in names]
    if path:
        lines.append(f"saved in {escape(str(path))}")
    return Report(SetResult(values, path or None), (Note("\n".join(lines)),))


def _shown(ctx: Context, name: str) -> str:
    value = written(ctx.options[name])
    return repr(value) if value != value.strip() else value


@command(
    "show",
    group="Session",
    summary="Show the options, where each comes from, and what it does",
    example="show pager",
    result=OptionsResult,
    arguments=(argument("name", nargs="?", type=option_name, metavar="NAME", help="only this option"),),
)
def show(ctx: Context, *, name: str | None) -> Report:
    """Show one option, or all."""
    return _table(ctx, tuple(OPTIONS) if name is None else (find(name).name,))


def _table(ctx: Context, names: tuple[str, ...]) -> Report:
    rows = [(name, _shown(ctx, name), ctx.options.origin(name), OPTIONS[name].meaning) for name in names]
    columns = headings("option", "value", "from", "what it does")
    path = str(config.config_file())
    listed = [
        OptionResult(
            name=name,
            value=ctx.options[name],
            from_=ctx.options.origin(name),
            default=OPTIONS[name].default,
            meaning=OPTIONS[name].meaning,
            choices=OPTIONS[name].choices,
        )
        for name in names
    ]
    return Report(OptionsResult(listed, path), (Table(columns, rows), Note(f"the file is {path}", "dim")))
