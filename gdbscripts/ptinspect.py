"""ptinspect inside a GDB of your own: `source ptinspect.py`, then `ptinspect walk $pc`, or `pt walk $pc`, ...

Every command of ptinspect is there, with the same output and the same snapshot files: `ptinspect help` lists
them. `pt` is short for it unless another script has a command of that name. GDB must be connected to QEMU's
gdbstub (`target remote :1234`); attach.gdb has the settings for that. GDB 12 or newer with Python.

GDB's own Python sees no virtual environment, and needs none: ptinspect runs in a process of its own,
started by the first `pt`, and this file only carries MI commands to GDB and answers back. Its Python is
found in this order:

1. `$PTINSPECT_PYTHON`
2. the virtual environment that this file is installed in, or `.venv` beside the folder of this file
3. the one whose `bin` holds the `ptinspect` that is found in PATH

What GDB sources shares one namespace with all other scripts, which have a Path, a Frame, ... of their own
in it: this file takes no name there but its module's.
"""

__import__("sys").path.insert(0, __import__("os").path.dirname(__import__("os").path.realpath(__file__)))
import ptinspect_command  # noqa: E402, F401 (beside this file; the commands are there by that)

__import__("sys").path.pop(0)
