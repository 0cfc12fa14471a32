#!/usr/bin/env python3
"""Speak GDB/MI from a list of rules: python fake_gdb.py RULES.json

RULES: [[regular expression of a command, output], ...]; in the output `{t}` is the command's token.
An output of `!exit…` ends the program, `!silent` says nothing, `!hang` stops reading, `!slow` is
answered only by SIGINT, as GDB answers a command that is cancelled.
"""

import json
import re
import signal
import sys
import time
from pathlib import Path


def main():
    rules = json.loads(Path(sys.argv[1]).read_text())
    slow = []

    def cancel(*_):
        if slow:
            write(slow.pop() + '^error,msg="Quit"\n')

    signal.signal(signal.SIGINT, cancel)
    write("(gdb) \n")
    for line in sys.stdin:
        token, command = re.fullmatch(r"(\d*)(.*)\n?", line).groups()
        outputs = [output for pattern, output in rules if re.match(pattern, command)]
        output = outputs[0] if outputs else "{t}^done\n(gdb) \n"
        if output == "!hang":
            time.sleep(600)
        elif output.startswith("!exit"):
            write(output.removeprefix("!exit"))
            return 3
        elif output == "!slow":
            slow.append(token)
        elif output != "!silent":
            write(output.replace("{t}", token))
    return 0


def write(text):
    sys.stdout.write(text)
    sys.stdout.flush()


sys.exit(main())
