"""The entry point: the command, with one word for an interruption even while it is still being imported."""

import os
import sys

# also what Typer makes of Ctrl-C
_INTERRUPTED = 130


def main() -> None:
    """`services.cli.main.main`; one word for Ctrl-C whenever it comes, one line if the folder is gone."""
    try:
        os.getcwd()
    except OSError:
        sys.stderr.write("error this folder has been removed: go to another one\n")
        sys.exit(1)
    try:
        from services.cli.main import main as run

        run()
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != _INTERRUPTED:
            raise
        sys.stderr.write("interrupted\n")
        sys.exit(_INTERRUPTED)
