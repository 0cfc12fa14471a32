"""The forms in which people paste a log: what loggers put in front of its lines, how mailers wrap them."""

from __future__ import annotations

import functools
import html
import json
import re
import textwrap
from collections.abc import Callable, Sequence

from oops_logs import lines

STAMPED = re.compile(r"\[ *(\d+\.\d+)\] ?(.*)")

Rows = list[tuple[str, str]]
"""Seconds since boot as printed, and what the kernel said."""
Form = Callable[[Rows], list[str]]


@functools.cache
def rows(name: str) -> Rows:
    """Return the lines of a log of the tests, with their time stamps."""
    found, last = [], "0.000000"
    for raw in lines(name):
        line = raw.replace("\x1b[6n", "")
        match = STAMPED.match(line)
        last = match[1] if match is not None else last
        found.append((last, match[2] if match is not None else line))
    return found


def each(form: str) -> Form:
    """Return the form that puts `form` around every line: time, text, micro, seconds, number."""

    def put(rows: Rows) -> list[str]:
        return [
            form.format(
                time=f"{float(time):12.6f}",
                t=time,
                text=text,
                micro=int(float(time) * 1_000_000),
                ms=f"{int(float(time) * 1000) % 1000:03}",
                clock=f"10:00:{int(float(time)) % 60:02}",
                delta=f"{0.000002:.6f}",
                unix=f"{1_750_039_209 + float(time):.6f}",
                number=number,
            ).rstrip("\n")
            for number, (time, text) in enumerate(rows, 1)
        ]

    return put


PREFIXES: dict[str, Form] = {
    "console": each("[{time}] {text}"),
    "no stamps": each("{text}"),
    "indented": each("    [{time}] {text}"),
    "dmesg -T": each("[Mon Jun 16 {clock} 2025] {text}"),
    "dmesg -T, German": each("[Mo Jun 16 {clock} 2025] {text}"),
    "dmesg -T, Chinese": each("[一 6月 16 {clock} 2025] {text}"),
    "dmesg -H": each("[  +{delta}] {text}"),
    "dmesg -d": each("[{time} <    {delta}>] {text}"),
    "dmesg -x": each("kern  :emerg : [{time}] {text}"),
    "dmesg -x -T": each("kern  :emerg : [Mon Jun 16 {clock} 2025] {text}"),
    "dmesg --raw": each("<0>[{time}] {text}"),
    "dmesg iso": each("2025-06-16T{clock},{micro:06}+08:00 {text}"),
    "journalctl": each("Jun 16 {clock} host kernel: {text}"),
    "journalctl short-precise": each("Jun 16 {clock}.{micro:06} my-host.example.org kernel: {text}"),
    "journalctl short-iso": each("2025-06-16T{clock}+0800 host kernel: {text}"),
    "journalctl short-iso-precise": each("2025-06-16T{clock}.{micro:06}+08:00 host kernel: {text}"),
    "journalctl short-full": each("Mon 2025-06-16 {clock} CST host kernel: {text}"),
    "journalctl short-full, German": each("Mo 2025-06-16 {clock} CEST host kernel: {text}"),
    "journalctl short-monotonic": each("[{time}] host kernel: {text}"),
    "journalctl short-delta": each("[{time} <    {delta} >] host kernel: {text}"),
    "journalctl short-unix": each("{unix} host kernel: {text}"),
    "journalctl, French": each("juin 16 {clock} host kernel: {text}"),
    "journalctl, French, accent": each("févr. 16 {clock} host kernel: {text}"),
    "journalctl, Japanese": each("6月 16 {clock} host kernel: {text}"),
    "syslog": each("Jun 16 {clock} host kernel: [{time}] {text}"),
    "syslog, RFC 5424": each("<2>1 2025-06-16T{clock}.123456+08:00 host kernel - - - [{time}] {text}"),
    "LAVA": each("{clock}.123456  [{time}] {text}"),
    "GitHub Actions": each("2025-06-16T{clock}.1234567Z [{time}] {text}"),
    "GitLab": each("2025-06-16T{clock}.123456Z 01O [{time}] {text}"),
    "Jenkins": each("[2025-06-16T{clock}.123Z] [{time}] {text}"),
    "tio": each("[{clock}.123] [{time}] {text}"),
    "minicom": each("[2025-06-16 {clock}] [{time}] {text}"),
    "ts": each("Jun 16 {clock} [{time}] {text}"),
    "cat -n": each("{number:6}\t[{time}] {text}"),
    "cat -n, no stamps": each("{number:6}\t{text}"),
    "grep -n": each("{number}:[{time}] {text}"),
    "bars": each("| [{time}] {text}"),
    "bars, no stamps": each("| {text}"),
    "quoted": each("> [{time}] {text}"),
    "quoted twice": each("> > [{time}] {text}"),
    "quoted, no stamps": each(">> {text}"),
    "printk.caller": each("[{time}][    T1] {text}"),
    "Android": each("<6>[{time}][ T1234] {text}"),
    "Android, CPU": each("[{time}]c6  {text}"),
    "Android, CPU and PID": each("[{time}] c6   747 {text}"),
    "MediaTek": each("[{time}]  (6)[747:cryptomgr_test]{text}"),
    "MediaTek, dash": each("<0>[{time}] -(6)[747:cryptomgr_test]{text}"),
    "Qualcomm": each("[{time}] (CPU:6-pid:747:cryptomgr_test) {text}"),
    "Qualcomm, clock": each("[{time} / 09-26 13:22:37.704][2][662][ndroid.systemui] {text}"),
    "Exynos": each("[{time}] [6: cryptomgr_test:  747] {text}"),
    "Samsung": each("<0>[{time}]  [6:cryptomgr_test:  747] {text}"),
    "Samsung, short": each("[{time}] [6: swapper/0: 1] {text}"),
    "logcat": each("06-16 {clock}.123     0     0 E KERNEL  : [{time}] {text}"),
    "logcat, root": each("06-16 {clock}.123  root     0     0 W         : {text}"),
    "ramoops": each("<4>[{time}] {text}"),
    "RT": each("[{time}] 006: {text}"),
    "kmsg": each("0,{number},{micro},-;{text}"),
    "kmsg, caller": each("0,{number},{micro},-,caller=T747;{text}"),
    "journalctl -o json": lambda rows: [
        json.dumps({"__CURSOR": "s=1", "PRIORITY": "4", "MESSAGE": text, "_TRANSPORT": "kernel"})
        for _, text in rows
    ],
    "LAVA's own log": lambda rows: [
        "- " + json.dumps({"dt": "2025-06-16T10:00:09", "lvl": "target", "msg": f"[{time}] {text}"})
        for time, text in rows
    ],
    "journalctl -o json-pretty": lambda rows: [
        row
        for _, text in rows
        for row in ("{", '\t"PRIORITY" : "1",', f'\t"MESSAGE" : {json.dumps(text)},', '\t"_UID" : "0"', "}")
    ],
    "container": lambda rows: [
        json.dumps({"log": f"[{time}] {text}\n", "stream": "stdout", "time": "2025-06-16T10:00:09.1Z"})
        for time, text in rows
    ],
    "one string of JSON": lambda rows: [
        json.dumps({"id": 7, "message": "".join(f"[{time}] {text}\n" for time, text in rows)})
    ],
    "QNX host": each("Jun 16 {clock}.123    qvm_la.45077    slog*    0  (console) [{time}] {text}"),
    "Xen": each("(XEN) DOM1: [{time}] {text}"),
    "HiSilicon": each("[{time}s][pid:747,cpu6,cryptomgr_test]{text}"),
    "container's name": each("ttyAMA0_1 | [{time}] {text}"),
    "table of a database": each('"2025-06-16 {clock}","kernel","[{time}] {text}"'),
    "YAML": each("- {{dt: '2025-06-16T{clock}', lvl: target, msg: '[{time}] {text}'}}"),
    "list of a program": each("    '[{time}] {text}\\r',"),
    "unknown logger": each("board7/ttyS0~ {text}"),
    "unknown logger, numbers": each("{{{number}}} node-12 @@ {text}"),
}
"""Name -> what is put around each line."""


def words(width: int, *, flowed: bool = False) -> Callable[[Sequence[str]], list[str]]:
    """Return a fold at words, as mailers do; `flowed` leaves the space at the end (RFC 3676)."""

    def fold(text: Sequence[str]) -> list[str]:
        out = []
        for line in text:
            parts = textwrap.wrap(
                line,
                width,
                break_long_words=False,
                break_on_hyphens=False,
                drop_whitespace=True,
                replace_whitespace=False,
                subsequent_indent="",
            ) or [line]
            out += [part + " " for part in parts[:-1]] + parts[-1:] if flowed else parts
        return out

    return fold


def hard(width: int) -> Callable[[Sequence[str]], list[str]]:
    """Return a fold at a terminal's width, in the middle of words."""

    def fold(text: Sequence[str]) -> list[str]:
        return [line[i : i + width] for line in text for i in range(0, max(len(line), 1), width)]

    return fold


def soft_breaks(text: Sequence[str]) -> list[str]:
    """Encode and fold as quoted-printable does (RFC 2045)."""
    out: list[str] = []
    for raw in text:
        parts = [part.replace("\x00", "=3D") for part in hard(66)([raw.replace("=", "\x00")])]
        out += [part + "=" for part in parts[:-1]] + parts[-1:]
    return out


def quoted_after(text: Sequence[str]) -> list[str]:
    """Fold at 72, then quote: every row has the mark."""
    return [f"> {line}" for line in words(72)(text)]


FOLDS: dict[str, Callable[[Sequence[str]], list[str]]] = {
    "not folded": list,
    "72": words(72),
    "76": words(76),
    "78": words(78),
    "80": words(80),
    "72, flowed": words(72, flowed=True),
    "terminal of 80": hard(80),
    "folded, then quoted": quoted_after,
    "folded, then numbered": lambda text: [f"{n:6}\t{line}" for n, line in enumerate(words(76)(text), 1)],
}
"""Name -> how long lines are wrapped."""


def coat(change: Callable[[str], str]) -> Callable[[Sequence[str]], list[str]]:
    return lambda text: [change(line) for line in text]


COATS: dict[str, Callable[[Sequence[str]], list[str]]] = {
    "as it is": list,
    "no-break spaces": coat(lambda line: line.replace("  ", " \u00a0")),
    "only no-break spaces": coat(lambda line: line.replace(" ", "\u00a0")),
    "CR": coat(lambda line: line + "\r"),
    "CR that a program shows": coat(lambda line: line + "^M"),
    "colours": coat(lambda line: "\x1b[32m" + line.replace("] ", "] \x1b[0m\x1b[1;31m", 1) + "\x1b[0m"),
    "HTML": coat(lambda line: line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")),
    "HTML of a page": coat(lambda line: f'<span class="log pass">{html.escape(line, quote=False)}</span>'),
    "HTML of a mail": lambda text: ["<br>".join(html.escape(line, quote=False) for line in text)],
    "Markdown": coat(lambda line: re.sub(r"([][_#<>*])", r"\\\1", line)),
    "quoted-printable": soft_breaks,
}
"""Name -> what terminals, browsers and mail programs make of the characters of what was wrapped."""
