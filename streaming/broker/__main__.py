"""`python -m streaming.broker --folder F --port P`: serves F until SIGTERM or SIGINT."""

import argparse
import sys
from pathlib import Path

from streaming.broker.server import run


def main() -> None:
    """Exit codes: 0 stopped, 1 the folder or the port cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m streaming.broker", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where its records are")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    try:
        run(given.folder, given.host, given.port)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
