"""`python -m services.broker_host`: the embedded broker of `headrace up`, in a process that ends with it.

The broker's binary asks nobody whether its parent still lives; this process does (`services.launch`), and
stops the broker orderly, so that it writes its state.
"""

import signal
import sys
import threading
from types import FrameType

from services.broker import EmbeddedBroker
from services.errors import ServiceError
from services.settings import load_settings


def main() -> None:
    """Runs the broker until SIGTERM or SIGINT; exit code 1 if it cannot start, or ends by itself."""
    ended = threading.Event()
    died = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    def child_ended(number: int, frame: FrameType | None) -> None:
        died.set()
        ended.set()

    # Before the broker is there: it must not outlive a supervisor that dies meanwhile.
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    try:
        settings = load_settings()
        with EmbeddedBroker(settings.store.broker_path, settings.broker.bootstrap_servers):
            signal.signal(signal.SIGCHLD, child_ended)
            ended.wait()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except ServiceError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from error
    if died.is_set():
        sys.stderr.write("the embedded broker ended by itself; its log is broker.log beside its data\n")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
