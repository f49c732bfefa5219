"""`python -m services.broker_host`: the embedded broker of `headrace up`, where the settings say."""

import sys

from services.broker import loopback_address
from services.descriptors import raise_limit
from services.errors import ServiceError
from services.settings import load_settings
from streaming.broker.server import run


def main() -> None:
    """Runs the broker until SIGTERM or SIGINT; exit code 1 if it cannot start."""
    try:
        settings = load_settings()
        raise_limit()  # each partition keeps its files open
        run(settings.store.broker_path, *loopback_address(settings.broker.bootstrap_servers))
    except (ServiceError, OSError, ValueError) as error:
        sys.stderr.write(f"the embedded broker cannot start: {error}\n")
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
