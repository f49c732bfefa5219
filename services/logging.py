"""How log lines look: structlog for our own, the same format for every library's.

JSON on stdout; colours when stdout is a terminal. A line that cannot be written, on a full disk for example,
is counted and lost: what it reports has been done, and must not fail because of it. Knows nothing of what is
logged.
"""

import logging
import sys
from typing import TextIO, cast

import structlog
from structlog.typing import Processor

from services.metrics import LOG_LINES_LOST

_NOISY = ("kafka", "aiokafka", "asyncio", "grpc", "faiss", "transformers", "filelock", "urllib3")


class UnfailingStream:
    """A text stream that takes every line, and counts those that it could not pass on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Passes it on, or loses it."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            LOG_LINES_LOST.inc()
            return len(text)

    def flush(self) -> None:
        """As `write`."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            LOG_LINES_LOST.inc()


def configure_logging(service: str, level: str = "INFO") -> None:
    """Sends every record of this process to stdout as one line that names the service.

    Called once by an entry point; raises ValueError for an unknown level.
    """

    def name_service(
        logger: object, method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        event.setdefault("service", service)
        return event

    shared: list[Processor] = [
        name_service,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # The pretty traceback shows local variables, and those hold histories.
    if sys.stdout.isatty():
        render: list[Processor] = [
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        ]
    else:
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    out = UnfailingStream(sys.stdout)
    handler = logging.StreamHandler(cast(TextIO, out))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))

    # Our own lines do not go by way of the standard library: a request's line costs 60 us there, 20 here.
    structlog.configure(
        processors=[*shared, *render],
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, out)),
        wrapper_class=structlog.make_filtering_bound_logger(root.level),
        cache_logger_on_first_use=False,
    )
