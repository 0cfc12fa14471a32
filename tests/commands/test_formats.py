"""What is promised about results: real ones against the schemas that ship with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders import TABLES_AT
from fakes import KERNEL, FakeKernel, context, kernel_tree, run, text
from test_import import guest, info, put, ram

from ptinspect.commands.framework.command import Command
from ptinspect.commands.framework.registry import build_registry
from ptinspect.errors import PtinspectError
from ptinspect.output.encode import schema_of
from ptinspect.output.json import schema, schema_names
from ptinspect.output.rows import COLUMNS
from ptinspect.snapshot import store
from ptinspect.stack import trace_file

jsonschema = pytest.importorskip("jsonschema")
DATA = Path(__file__).parent.parent / "data" / "ptdump"

LINES = (
    f"walk {KERNEL:#x}",
    "walk 0xffff800030000000",
    "walk pa:0x0 --root pa:0x40000000",
    "map",
    "map --level pmd --limit 1",
    "map --bar",
    "summary",
    "find pa:0x40100000",
    "snap a",
    "snaps",
    "export a -o {tmp}/a.csv",
    "save a {tmp}/a.npz",
    "load {tmp}/a.npz --as b",
    "diff a b",
    "drop b",
    "decode 0x60000040200f81 --level 2",
    "decode 0x0 --level pte",
    "regs",
    "regime",
    "cpu",
    "status",
    "symbol start_kernel",
    "x/4gx pa:0x40000000",
    "version",
    "help",
    "help walk",
    "break start_kernel",
    "stepi",
    "detach",
)
"""Lines whose results are held against the schemas; `{tmp}` is a directory."""


def check(command: str, result: Any) -> None:
    """Raise ValidationError unless a result is as its schema says, once it is JSON."""
    plain = json.loads(json.dumps(result))
    jsonschema.Draft202012Validator(schema(command)).validate(plain)


def test_real_results_are_as_the_schemas_say(tmp_path: Path) -> None:
    ctx = context(kernel_tree(), FakeKernel())
    seen = set()
    for line in LINES:
        words = line.format(tmp=tmp_path)
        try:
            result = dict(run(ctx, words).result)
        except PtinspectError as error:
            if line.startswith(("walk pa:", "stepi")):
                continue
            raise AssertionError(f"{words}: {error}") from error
        name = ctx.registry.split(words).command.name
        check(name, result)
        seen.add(name)
    assert len(seen) >= 20


def test_imports_are_as_the_schema_says(tmp_path: Path) -> None:
    tree = guest()
    path = put(tmp_path / "ram", ram(tree, info(tree)))
    check("import", run(context(), f"import {path} --base pa:{TABLES_AT:#x}").result)
    check("import", run(context(), f"import {DATA}/6.1-39bit.txt").result)
    check("diff", run(context(), f"diff {DATA}/6.1-39bit.txt {DATA}/6.1-39bit.npz").result)
    check("export", run(context(), f"export {DATA}/6.1-39bit.npz --format ptdump -o {tmp_path}/t").result)


@pytest.mark.parametrize("name", schema_names())
def test_schemas_are_valid_and_of_commands(name: str) -> None:
    found = schema(name)
    jsonschema.Draft202012Validator.check_schema(found)
    assert found["version"] == 1 and found["type"] == "object"
    assert tuple(name.split()) in build_registry().commands


def test_a_field_that_is_gone_is_noticed_and_one_that_is_new_is_not() -> None:
    result = dict(run(context(kernel_tree()), "summary").result)
    check("summary", {**result, "new": 1})
    broken = json.loads(json.dumps(result))
    del broken["levels"][0]["leaves_ng"]
    with pytest.raises(jsonschema.ValidationError, match="leaves_ng"):
        check("summary", broken)
    with pytest.raises(jsonschema.ValidationError):
        check("summary", {**result, "root": {**result["root"], "pa": 5}})


def test_help_formats_tells_versions_columns_and_the_promise() -> None:
    report = run(context(), "help formats")
    said = " ".join(text(report).split())
    assert report.result["columns"] == list(COLUMNS)
    assert "never renamed" in said and "summary" in report.result["schemas"]
    versions = {row["name"]: row["version"] for row in report.result["formats"]}
    assert versions["stack trace"] == trace_file.VERSION
    assert versions["snapshot"] == 1 and "Format, version 1" in (store.__doc__ or "")


def covers(kept: Any, made: Any, path: str = "") -> list[str]:
    """What a kept schema promises that the one made from the type does not."""
    wrong = [
        f"{path}: no alternative has what {sorted(each['properties'])} promise"
        for each in kept.get("anyOf", ())
        if all(covers(each, own) for own in objects(made))
    ]
    for name, item in kept.get("properties", {}).items():
        own = objects(made)
        if not any(name in found.get("properties", {}) for found in own):
            if own and all(found.get("properties") for found in own):
                wrong.append(f"{path}.{name} is missing")
            continue
        found = next(found for found in own if name in found.get("properties", {}))
        if name in kept.get("required", ()) and name not in found["required"]:
            wrong.append(f"{path}.{name} may be left out")
        wrong += covers(item, found["properties"][name], f"{path}.{name}")
    if "items" in kept:
        wrong += [
            text
            for found in objects(made)
            if "items" in found
            for text in covers(kept["items"], found["items"])
        ]
    names, own_names = types(kept), types(made)
    if names and own_names and not own_names <= names | ({"integer"} if "number" in names else set()):
        wrong.append(f"{path}: {sorted(own_names)}, not {sorted(names)}")
    if kept.get("pattern") and "string" in own_names and kept["pattern"] not in str(made):
        wrong.append(f"{path}: no {kept['pattern']}")
    return wrong


def objects(schema: Any) -> list[Any]:
    return list(schema.get("anyOf", [schema]))


def types(schema: Any) -> set[str]:
    found = [item.get("type", []) for item in objects(schema)]
    if any("enum" in item for item in objects(schema)):
        found.append("string")
    return {name for item in found for name in ([item] if isinstance(item, str) else item)}


MADE = [command for command in build_registry() if command.result is not None]


@pytest.mark.parametrize("command", MADE, ids=lambda command: command.name)
def test_the_types_of_results_keep_what_the_schemas_promise(command: Command) -> None:
    made = schema_of(command.result)
    if command.name in schema_names():
        assert covers(schema(command.name), made) == []


def test_a_schema_that_breaks_its_promise_is_found() -> None:
    kept = {"type": "object", "required": ["a"], "properties": {"a": {"type": "string", "pattern": "^0x"}}}
    for properties, required in (
        ({}, []),
        ({"a": {"type": "string"}}, ["a"]),
        ({"a": {"type": "integer"}}, ["a"]),
    ):
        made = {"type": "object", "required": required, "properties": {"b": {}, **properties}}
        assert covers(kept, made) != []
    assert covers(kept, {"type": "object", "required": [], "properties": kept["properties"]}) != []
    assert covers(kept, kept) == []
    assert covers({"anyOf": [kept]}, {"type": "object", "properties": {"b": {}}}) != []
    assert covers({"anyOf": [kept]}, {"anyOf": [{"type": "object", "properties": {"b": {}}}, kept]}) == []
