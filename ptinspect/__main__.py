"""The process: `ptinspect` and `python -m ptinspect`."""

import gc
import os
import signal
import sys

GARBAGE_AFTER = 100_000
"""Objects made and kept before Python looks for garbage: a start makes many, and none of them is any."""


def _open_streams() -> None:
    """Open /dev/null in place of streams that are closed: what is opened next would be in theirs.

    An input that is closed stays None: nobody is there who could be asked.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(nowhere, True)
            if name != "stdin":
                setattr(sys, name, os.fdopen(nowhere, "w"))


def main() -> int:
    """Run ptinspect and return its exit code; for its version alone hardly anything is imported."""
    _open_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(
            signal.SIGINT, signal.SIG_DFL
        )  # no traceback before there is anything to leave in order
    if sys.argv[1:] == ["--version"]:
        from ptinspect import __version__

        try:
            sys.stdout.write(f"ptinspect {__version__}\n")
            sys.stdout.flush()
            return 0
        except OSError:
            pass  # the long way says what is wrong
    gc.set_threshold(GARBAGE_AFTER)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # else numpy starts threads, and multiplies nothing
    from ptinspect.app import main as run
    from ptinspect.numpy_parts import use_parts_of_numpy

    use_parts_of_numpy()
    code = run()
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except OSError:
        return code
    os._exit(code)  # all is closed and in order; Python would take itself apart for as long as a command runs


if __name__ == "__main__":
    sys.exit(main())
