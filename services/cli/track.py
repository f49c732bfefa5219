"""`headrace track`: one event of a user, through the gateway."""

import time
from enum import StrEnum
from typing import Annotated

import typer

from services.cli import calls, terminal
from services.settings import load_settings


class ActionName(StrEnum):
    """The actions of headrace.v1.Action, as words."""

    IMPRESSION = "impression"
    CLICK = "click"
    LIKE = "like"
    CART = "cart"
    PURCHASE = "purchase"
    SKIP = "skip"
    RATING = "rating"


def track(
    user: Annotated[str, typer.Argument(help="The user id.")],
    item: Annotated[str, typer.Argument(help="The item id.")],
    action: Annotated[ActionName, typer.Option(help="What the user did.")] = ActionName.CLICK,
    value: Annotated[float, typer.Option(help="The stars of a rating, the price of a purchase.")] = 0.0,
    event_id: Annotated[str, typer.Option(help="Made by the gateway if not given.")] = "",
    request_id: Annotated[str, typer.Option(help="The Recommend request that showed the item.")] = "",
    time_ms: Annotated[
        int, typer.Option(help="Event time, ms since 1970 UTC; default now.", min=0, max=2**63 - 1)
    ] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Send one event to the stream."""
    if action is ActionName.RATING and not value:
        raise typer.BadParameter("a rating needs its stars: --value STARS")
    from protos.headrace.v1.events_pb2 import Action, Event
    from protos.headrace.v1.recommend_pb2 import TrackRequest

    event = Event(
        event_id=event_id,
        user_id=user,
        item_id=item,
        action=Action.Value(f"ACTION_{action.name}"),
        event_time_ms=time_ms or time.time_ns() // 1_000_000,
        value=value,
        request_id=request_id,
    )
    with calls.gateway(load_settings()) as stub:
        response = stub.Track(TrackRequest(event=event), timeout=calls.CALL_TIMEOUT_S)
    if json:
        terminal.print_json(terminal.message_dict(response))
    else:
        terminal.out.print(
            f"tracked {action} of {item} by {user}: event {response.event_id}", highlight=False
        )
