"""The process: `ptinspect` and `python -m ptinspect`."""

import signal
import sys


def main() -> int:
    """Run ptinspect and return its exit code; for its version alone hardly anything is imported."""
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
    from ptinspect.app import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
