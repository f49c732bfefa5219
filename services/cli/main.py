"""The `headrace` command: registers one file for each group of commands, and turns errors into one line.

Nothing here or at the top of a command's file imports torch, Kafka or gRPC: `--help` must be quick.
"""

import logging
import os
import sys

import structlog
import typer
from rich.text import Text

from models.errors import ModelError
from services.cli import (
    demo,
    dlq,
    doctor,
    evaluate,
    items,
    recommend,
    release,
    replay,
    settings,
    state,
    track,
    train,
    up,
)
from services.cli.calls import status_of
from services.cli.terminal import err, shown, take_any_text
from services.errors import ServiceError
from streaming.errors import BrokerUnavailable, StreamingError

app = typer.Typer(
    name="headrace",
    help="A streaming, online-learning generative recommender service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("up")(up.up)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("recommend")(recommend.recommend)
app.command("track")(track.track)
app.command("replay")(replay.replay)
app.add_typer(items.app, name="items")
app.add_typer(release.app, name="release")
app.add_typer(dlq.app, name="dlq")
app.command("state")(state.state)
app.command("settings")(settings.settings)
app.command("doctor")(doctor.doctor)


def error_line(error: BaseException) -> str | None:
    """What to tell a person about `error`, or None if it is a fault of ours that needs its traceback."""
    if isinstance(error, BrokerUnavailable):
        return f"{error}; is `headrace up` running, and is HEADRACE_BROKER__BOOTSTRAP_SERVERS right?"
    if isinstance(error, ServiceError | StreamingError | ModelError | OSError):
        return str(error) or type(error).__name__
    if "grpc" in sys.modules:
        import grpc

        if isinstance(error, grpc.RpcError):
            return ": ".join(status_of(error))
    if "kafka" in sys.modules:
        from kafka.errors import KafkaError

        if isinstance(error, KafkaError):
            return f"broker: {error}"
    return None


def _as_utf8(argument: str) -> str:
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        return argument


def main() -> None:
    """Exit codes: 0 done, 1 failed, 2 a mistake on the command line, 130 interrupted."""
    structlog.configure(
        # stdout is for data
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        cache_logger_on_first_use=False,
    )
    if logging.lastResort is not None:
        # what a person should know of, commands say themselves
        logging.lastResort.setLevel(logging.ERROR)
    take_any_text()
    # in a locale that is ascii, Python has not read UTF-8 as such
    sys.argv = [_as_utf8(argument) for argument in sys.argv]
    for argument in sys.argv[1:]:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            err.print(Text.assemble(("error", "red"), f" the argument {argument!a} is no UTF-8 text"))
            sys.exit(2)
    try:
        app()
    except Exception as error:
        line = error_line(error)
        if line is None:
            raise
        err.print(Text.assemble(("error", "red"), " ", shown(" ".join(line.split()))), soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
