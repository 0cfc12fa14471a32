"""The few MI commands that ptinspect needs, answered from GDB's Python in GDB/MI's own syntax.

GDB's own MI cannot be used from a command of the CLI: `interpreter-exec mi` writes to the stream that
was there when the interpreter was made (GDB 13, mi/mi-interp.c, mi_interp::init), and gdb.execute_mi came
with GDB 14. Nothing but the standard library and `gdb` is imported.
"""

import re

import gdb

WIDEST = 64
"""Registers wider than this many bits are left out: vectors."""
WATCHPOINTS = {
    gdb.BP_HARDWARE_WATCHPOINT: "hw watchpoint",
    gdb.BP_READ_WATCHPOINT: "read watchpoint",
    gdb.BP_ACCESS_WATCHPOINT: "acc watchpoint",
}
"""Types of breakpoints that watch memory -> MI's name."""
commands = {}
"""Commands that ptinspect's scripts add, by name."""


LOADS = re.compile(r"python .*; import ptinspect_[a-z]+; ")
"""How ptinspect loads a script."""


class ScriptCommand:
    """Stands in for gdb.MICommand while a script of ptinspect's is loaded."""

    def __init__(self, name):
        commands[name] = self


def quoted(text):
    """Return a C string of MI."""
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def value(item):
    """Return a value of MI."""
    if isinstance(item, dict):
        return "{" + fields(item) + "}"
    if isinstance(item, list | tuple):
        return "[" + ",".join(map(value, item)) + "]"
    return quoted(item)


def fields(items):
    """Return the fields of a tuple or a result."""
    return ",".join(f"{name}={value(item)}" for name, item in items.items())


def answer(command):
    """Run one MI command and return MI's records, errors too."""
    try:
        words = gdb.string_to_argv(command)
        if words[0] == "-interpreter-exec":
            run = load if LOADS.match(words[2]) else execute
            text = run(words[2])
            return f"~{quoted(text)}\n^done\n"
        handler = commands.get(words[0])
        found = handler.invoke(words[1:]) if handler else OWN[words[0]](words[1:])
        return f"^done,{fields(found)}\n" if found else "^done\n"
    except KeyError as error:
        return f"^error,msg={quoted(f'Undefined MI command: {error}')}\n"
    except gdb.error as error:
        return f"^error,msg={quoted(str(error).strip() or 'error')}\n"
    except KeyboardInterrupt:
        return '^error,msg="Quit"\n'


def execute(line):
    """Run a command of the CLI and return what it prints."""
    return gdb.execute(line, False, True)


def load(line):
    """Load a script; the MI commands that it adds are kept here."""
    kept = gdb.MICommand
    gdb.MICommand = ScriptCommand
    try:
        return execute(line)
    finally:
        gdb.MICommand = kept


def registers():
    """Return the names of the registers, in GDB's order."""
    frame = gdb.newest_frame()
    return [register.name for register in frame.architecture().registers()]


def register_names(words):
    """-data-list-register-names"""
    return {"register-names": registers()}


def register_values(words):
    """-data-list-register-values [--thread N --frame 0] x NUMBER ..."""
    if words[0] == "--thread":
        thread_select(words[1:2])
        words = words[4:]
    frame, names = gdb.newest_frame(), registers()
    found = []
    for number in map(int, words[1:]):
        try:
            raw = frame.read_register(names[number])
            if raw.type.sizeof * 8 <= WIDEST:
                bits = (1 << raw.type.sizeof * 8) - 1
                found.append(
                    {"number": number, "value": hex(int(raw.cast(UNSIGNED[raw.type.sizeof])) & bits)}
                )
        except (gdb.error, ValueError, KeyError):
            continue
    return {"register-values": found}


def _integer(name):
    try:
        return gdb.lookup_type(name)
    except gdb.error:
        return None


UNSIGNED = {8: _integer("unsigned long long"), 4: _integer("unsigned int")}


def thread_list(words):
    """-thread-list-ids"""
    threads = sorted(thread.num for thread in gdb.selected_inferior().threads())
    return {"thread-ids": [], "number-of-threads": len(threads)}


def thread_select(words):
    """-thread-select N"""
    wanted = [thread for thread in gdb.selected_inferior().threads() if thread.num == int(words[0])]
    if not wanted:
        raise gdb.error(f"Invalid thread id: {words[0]}")
    wanted[0].switch()
    return {}


def break_insert(words):
    """-break-insert [-t] [-h] [-p THREAD] [-c CONDITION] *ADDRESS"""
    known = {breakpoint.number for breakpoint in gdb.breakpoints()}
    options, address = words[:-1], words[-1]
    line = ["t" * ("-t" in options) + ("hbreak" if "-h" in options else "break"), address]
    for option, word in (("-p", "thread"), ("-c", "if")):
        if option in options:
            line += [word, options[options.index(option) + 1]]
    gdb.execute(" ".join(line), False, True)
    new = [breakpoint for breakpoint in gdb.breakpoints() if breakpoint.number not in known]
    return {"bkpt": row(new[0])}


def break_watch(words):
    """-break-watch -a EXPRESSION"""
    if words[:1] != ["-a"] or len(words) != 2:
        raise gdb.error("-break-watch: only -a EXPRESSION")
    known = {breakpoint.number for breakpoint in gdb.breakpoints()}
    gdb.execute(f"awatch {words[1]}", False, True)
    new = [breakpoint for breakpoint in gdb.breakpoints() if breakpoint.number not in known]
    if new[0].type != gdb.BP_ACCESS_WATCHPOINT:
        new[0].delete()
        raise gdb.error("Expression cannot be implemented with read/access watchpoint.")
    return {"hw-awpt": {"number": new[0].number, "exp": words[1]}}


def break_list(words):
    """-break-list"""
    rows = [found for found in map(row, gdb.breakpoints()) if "addr" in found or "what" in found]
    return {"BreakpointTable": {"body": rows}}


def row(breakpoint):
    """Return MI's fields of a breakpoint; without `addr` if it has no one address."""
    watching = WATCHPOINTS.get(breakpoint.type)
    hardware = breakpoint.type == getattr(gdb, "BP_HARDWARE_BREAKPOINT", None)
    found = {
        "number": breakpoint.number,
        "type": watching or ("hw breakpoint" if hardware else "breakpoint"),
        "enabled": "y" if breakpoint.enabled else "n",
        "disp": "del" if breakpoint.temporary else "keep",
        "times": breakpoint.hit_count,
    }
    if watching:
        found["what"] = breakpoint.expression or ""
        return found
    if breakpoint.thread is not None:
        found["thread"] = breakpoint.thread
    if breakpoint.condition:
        found["cond"] = breakpoint.condition
    exact = re.fullmatch(r"\*(0x[0-9a-f]+)", breakpoint.location or "")
    places = getattr(breakpoint, "locations", [])
    if exact:
        found["addr"] = exact[1]
    elif len(places) == 1:
        found["addr"] = hex(places[0].address)
    return found


def break_delete(words):
    """-break-delete [NUMBER ...]"""
    gdb.execute(" ".join(["delete", *words]), False, True)
    return {}


OWN = {
    "-data-list-register-names": register_names,
    "-data-list-register-values": register_values,
    "-thread-list-ids": thread_list,
    "-thread-select": thread_select,
    "-break-insert": break_insert,
    "-break-watch": break_watch,
    "-break-list": break_list,
    "-break-delete": break_delete,
}
