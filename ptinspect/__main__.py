"""The process: `ptinspect` and `python -m ptinspect`."""

import sys


def main() -> int:
    """Run ptinspect and return its exit code; for its version alone nothing else is imported."""
    if sys.argv[1:] == ["--version"]:
        from ptinspect import __version__

        sys.stdout.write(f"ptinspect {__version__}\n")
        return 0
    from ptinspect.app import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
