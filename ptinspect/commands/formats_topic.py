"""`help formats`: the files and the JSON that ptinspect writes, their versions, and what is promised."""

from __future__ import annotations

from ptinspect import formats
from ptinspect.output.model import Column, Note, Report, Table

TOPIC = "formats"
VERSIONS = (
    ("snapshot", 1, ".npz", "a zip of numpy arrays, read by numpy.load: ptinspect/snapshot/store.py"),
    ("stack trace", 1, ".json", "one JSON document: ptinspect/stack/tracefile.py"),
    ("result", 1, "--json", "one JSON object a line: command, ok, result or error, line, place"),
    ("rows", 1, ".csv .jsonl .parquet", "export: one row for each descriptor that is not zero"),
    ("ptdump", 1, "text", "the kernel's own kernel_page_tables, in the form of its release"),
)
"""Name, version, where it is seen, and what it is."""
PROMISE = (
    "Within a version fields and columns are added, never renamed or removed; read what you know and "
    "ignore the rest. Addresses and raw descriptors are hex texts, counts and sizes numbers, levels "
    "numbers from -1 to 3; in Parquet addresses are unsigned 64-bit numbers."
)


def formats_report() -> Report:
    """Say which formats there are."""
    from ptinspect.output.rows import COLUMNS

    known = formats.names()
    result = {
        "topic": TOPIC,
        "formats": [
            {"name": name, "version": version, "seen": seen, "what": what}
            for name, version, seen, what in VERSIONS
        ],
        "columns": list(COLUMNS),
        "schemas": known,
        "folder": str(formats.FOLDER),
    }
    columns = (Column("format"), Column("version", "right"), Column("seen as"), Column("what it is"))
    rows = [(name, str(version), seen, what) for name, version, seen, what in VERSIONS]
    body = (
        Table(columns, rows, "Formats"),
        Note(PROMISE),
        Note(f"Columns of export: {', '.join(COLUMNS)}."),
        Note("They are empty where a descriptor has no such field: ng only leaves, mark only tables."),
        Note(f"JSON Schemas of results, in {formats.FOLDER}: {', '.join(known)}."),
    )
    return Report(result, body)
