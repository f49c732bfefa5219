"""`headrace dlq`: what was rejected and why, and sending it again."""

import base64
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import terminal
from services.settings import load_settings

if TYPE_CHECKING:
    from streaming.clients.dead_letter import DeadLetter

app = typer.Typer(help="See dead letters and send them again.", no_args_is_help=True)

_SHOWN_CHARS = 200


class SourceTopic(StrEnum):
    """The topics that have a dead-letter topic."""

    INTERACTIONS = "interactions"
    ITEMS = "items"
    SEMANTIC_IDS = "semantic-ids"
    RELEASES = "releases"
    RECOMMENDATIONS = "recommendations"


TopicArgument = Annotated[SourceTopic, typer.Argument(help="The topic that the records came from.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _bootstrap() -> str:
    """The broker of the service that answers; raises StateElsewhere where the settings name another."""
    from services.rpc.state import find_state

    return find_state(load_settings()).settings.broker.bootstrap_servers


@app.command("list")
def list_letters(
    topic: TopicArgument = SourceTopic.INTERACTIONS,
    limit: Annotated[int, typer.Option(help="The newest so many.", min=1)] = 50,
    json: JsonOption = False,
) -> None:
    """The newest dead letters of a topic, oldest first."""
    from streaming.clients.dead_letter import list_dead_letters

    letters = list_dead_letters(_bootstrap(), topic.value, limit)
    if json:
        terminal.print_json([_as_json(letter) for letter in letters])
        return
    if not letters:
        terminal.note(f"no dead letters of {topic.value}")
        return
    rows = [
        (
            f"{letter.partition}/{letter.offset}",
            terminal.time_text(letter.timestamp_ms),
            ", ".join(letter.stages),
            str(letter.num_failed),
            _sent_again(letter),
            letter.reason,
            " ".join(letter.exception.split())[:_SHOWN_CHARS],
        )
        for letter in letters
    ]
    terminal.print_table(
        f"dead letters of {topic.value}",
        ["at", "rejected (UTC)", "stages", "failed", "again", "reason", "problem"],
        rows,
    )


@app.command()
def redrive(
    topic: TopicArgument = SourceTopic.INTERACTIONS,
    reason: Annotated[str | None, typer.Option(help="Only those with this reason.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Those too that were sent again before.")] = False,
    json: JsonOption = False,
) -> None:
    """Send dead letters to their topic again, once what was wrong is mended; each once.

    They also stay where they are: one that fails again is the same letter, with a count. What was learned in
    the meantime is recognised by its event id.
    """
    from streaming.clients.dead_letter import redrive as send_again

    bootstrap = _bootstrap()
    num_sent = send_again(bootstrap, topic.value, reason=reason, again=again)
    if json:
        terminal.print_json({"num_sent": num_sent})
    else:
        terminal.out.print(f"{num_sent:,} records sent to {topic.value} again", highlight=False)
        if not num_sent and not again:
            terminal.note("letters that were sent again before are left alone: --again sends them once more")


def _sent_again(letter: "DeadLetter") -> str:
    """How often; `taken` where nobody has refused it since."""
    if not letter.num_redriven:
        return "-"
    return f"{letter.num_redriven}" + ("" if letter.num_failed > letter.num_redriven else ", taken")


def _as_json(letter: "DeadLetter") -> dict[str, Any]:
    return {
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "stage": letter.stage,
        "stages": list(letter.stages),
        "num_failed": letter.num_failed,
        "num_redriven": letter.num_redriven,
        "reason": letter.reason,
        "exception": letter.exception,
        "timestamp_ms": letter.timestamp_ms,
        "key": _text(letter.key),
        "value_base64": base64.b64encode(letter.value or b"").decode(),
        "truncated": letter.truncated,
    }


def _text(key: bytes | None) -> str:
    return "" if key is None else key.decode(errors="replace")
