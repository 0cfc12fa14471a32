"""`help` and `version`."""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect import __version__
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.command import AmbiguousError, Command, Parser, argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import INSTEAD
from ptinspect.commands.session.topics import (
    FoundResult,
    TopicResult,
    search,
    topic,
    topic_names,
    topic_report,
)
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.output.encode import filled
from ptinspect.output.model import Cell, Note, Report, Styled, Table, headings

GROUPS = ("Guest", "Run and stop", "Timeline", "Look", "Tables", "Snapshots", "KPTI", "Stack", "Session")
"""Titles in the list of commands, in their order."""
TOPIC = "formats"
FORMATS = (
    ("snapshot", 1, ".npz", "a zip of numpy arrays, read by numpy.load: ptinspect/snapshot/store.py"),
    ("stack trace", 1, ".json", "one JSON document: ptinspect/stack/trace_file.py"),
    ("result", 1, "--json", "one JSON object a line: command, ok, result or error, line, place"),
    ("rows", 1, ".csv .jsonl .parquet", "export: one row for each descriptor that is not zero"),
    ("ptdump", 1, "text", "the kernel's own kernel_page_tables, in the form of its release"),
)
"""Name, version, where it is met, and what it is."""
PROMISE = (
    "Within a version fields and columns are added, never renamed or removed; read what you know and "
    "ignore the rest. Addresses and raw descriptors are hex texts, counts and sizes numbers, levels "
    "numbers from -1 to 3; in Parquet addresses are unsigned 64-bit numbers."
)


@dataclass(frozen=True)
class ArgumentResult:
    """An argument of a command."""

    name: str
    meaning: str


@dataclass(frozen=True)
class CommandResult:
    """What is known of a command."""

    command: str
    summary: str
    usage: str
    arguments: Sequence[ArgumentResult]
    details: str
    example: str
    aliases: Sequence[str]


@dataclass(frozen=True)
class ListedResult(CommandResult):
    """The same, and the group that lists it."""

    group: str


@dataclass(frozen=True)
class CommandsResult:
    """Commands."""

    commands: Sequence[ListedResult]


@dataclass(frozen=True)
class FormatResult:
    """A format that ptinspect writes."""

    name: str
    version: int
    seen: str
    what: str


@dataclass(frozen=True)
class FormatsResult:
    """The formats, the columns of exports, and the schemas of results."""

    topic: str
    formats: Sequence[FormatResult]
    columns: Sequence[str]
    schemas: Sequence[str]
    folder: str


@command(
    "help",
    aliases=("?",),
    group="Session",
    summary="List the commands, or explain one",
    example="help walk",
    result=CommandResult | CommandsResult | FormatsResult | TopicResult | FoundResult,
    arguments=(
        argument(
            "words", nargs="*", type=arguments.command_word, metavar="COMMAND", help="the command to explain"
        ),
    ),
    details="A command may be abbreviated as long as it stays unambiguous. The list ends with the topics: "
    "help glossary has every word and column; help formats the files and the JSON that ptinspect writes, and "
    "what is promised about them. A word that is neither is looked for in the topics.",
    recorded=False,
)
def show_help(ctx: Context, *, words: list[str]) -> Report:
    """List all commands, those that begin with the given words, or explain one."""
    named = tuple(" ".join(words).split())
    if not named:
        listed = _list(list(ctx.registry), "Commands (help COMMAND explains one)")
        also = Note(f"Topics (help TOPIC): {', '.join(sorted([*topic_names(), TOPIC]))}")
        return Report(listed.value, (*listed.body, also))
    if named == (TOPIC,):
        return formats_report()
    if len(named) == 1 and named[0] in topic_names():
        return topic_report(topic(named[0]))
    try:
        command, used = ctx.registry.resolve(named)
    except UserError as error:
        if group := ctx.registry.beginning(named):
            return _list(group, f"Commands that begin with {' '.join(named)!r}")
        found = None if isinstance(error, AmbiguousError) else search(named, INSTEAD.get(named[0], ""))
        if found is None:
            raise
        return found
    if used < len(named):
        raise UserError(f"no command {' '.join(named)!r}", f"help {command.name}")
    group = [c for c in ctx.registry.beginning(named) if c is not command]
    return explain(command, group)


def _list(commands: list[Command], title: str) -> Report:
    rows: list[tuple[Cell, Cell]] = []
    for name in sorted({c.group for c in commands}, key=GROUPS.index):
        group = [c for c in commands if c.group == name]
        if len(group) < len(commands):
            rows += [("", ""), (Styled(name, "title"), "")]
        rows.extend((Styled(c.name, "level"), _summary(c)) for c in group)
    result = CommandsResult([ListedResult(**vars(_facts(c)), group=c.group) for c in commands])
    return Report(result, (Table(headings("", ""), rows, title),))


def _summary(command: Command) -> str:
    return command.summary + (f" ({', '.join(command.aliases)})" if command.aliases else "")


def explain(command: Command, group: list[Command] | None = None) -> Report:
    """Explain one command; `group` are those with the same first words."""
    facts = _facts(command)
    body: list[Table | Note] = [Note(f"{command.name}: {command.summary}", "title"), Note(facts.usage)]
    rows = [(one.name, one.meaning) for one in facts.arguments]
    if rows:
        body.append(Table(headings("argument", "meaning"), rows))
    if command.details:
        body.append(Note(command.details))
    if command.aliases:
        body.append(Note(f"short: {', '.join(command.aliases)}"))
    body.append(Note(f"example: {command.example}"))
    if group:
        body.append(Note(f"see also: {', '.join(c.name for c in group)}", "dim"))
    return Report(facts, body)


def _arguments(parser: Parser) -> list[ArgumentResult]:
    rows = []
    for action in parser.actions():
        value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        if action.choices is not None and not isinstance(action.metavar, str):
            value = "|".join(str(c) for c in action.choices)
        names = ", ".join(action.option_strings)
        label = value if not names else names if action.nargs == 0 else f"{names} {value}"
        rows.append(ArgumentResult(label, action.help or ""))
    return rows


def _facts(command: Command) -> CommandResult:
    parser = None if command.passthrough else command.parser()
    usage = f"usage: {command.name} TEXT…" if parser is None else " ".join(parser.format_usage().split())
    arguments = [] if parser is None else _arguments(parser)
    return filled(CommandResult, command, command=command.name, usage=usage, arguments=arguments)


@dataclass(frozen=True)
class VersionResult:
    """Which version this is."""

    version: str
    python: str
    gdb_script: str
    """The script that a GDB sources."""


@command(
    "version",
    group="Session",
    summary="Say which version of ptinspect this is",
    example="version",
    result=VersionResult,
)
def version(ctx: Context) -> Report:
    """Say the version of ptinspect and of the Python that runs it, and where the scripts for GDB are."""
    import platform

    from ptinspect.link.gdb.agent import script_path

    scripts = str(script_path().with_name("ptinspect.py"))
    result = VersionResult(__version__, platform.python_version(), scripts)
    line = f"ptinspect {__version__} (Python {result.python})"
    return Report(result, (Note(line), Note(f"inside GDB: source {scripts}")))


def formats_report() -> Report:
    """Say which formats there are."""
    from ptinspect.output.json import SCHEMAS, schema_names
    from ptinspect.output.rows import COLUMNS

    known = schema_names()
    result = FormatsResult(
        topic=TOPIC,
        formats=[FormatResult(*item) for item in FORMATS],
        columns=COLUMNS,
        schemas=known,
        folder=str(SCHEMAS),
    )
    rows = [(name, str(version), seen, what) for name, version, seen, what in FORMATS]
    body = (
        Table(headings("format", ">version", "seen as", "what it is"), rows, "Formats"),
        Note(PROMISE),
        Note(f"Columns of export: {', '.join(COLUMNS)}."),
        Note("They are empty where a descriptor has no such field: ng only leaves, mark only tables."),
        Note(f"JSON Schemas of results, in {SCHEMAS}: {', '.join(known)}."),
    )
    return Report(result, body)
