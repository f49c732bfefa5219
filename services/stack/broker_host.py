"""`python -m services.stack.broker_host`: the embedded broker of `headrace up`, where the settings say."""

import sys

from services.errors import ServiceError
from services.rpc.descriptors import raise_limit
from services.settings import load_settings
from services.stack.embedded_broker import loopback_address
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
