"""The entry point: the command, also where it is interrupted while it is still being imported."""

import os
import sys

_INTERRUPTED = 130


def main() -> None:
    """`services.cli.main.main`; one word for Ctrl-C in its first second, one line without a folder."""
    try:
        os.getcwd()
    except OSError:
        sys.stderr.write("error this folder has been removed: go to another one\n")
        sys.exit(1)
    try:
        from services.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(_INTERRUPTED)
