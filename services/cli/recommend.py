"""`headrace recommend`: what a user is likely to want next, from the running gateway."""

from typing import Annotated

import typer

from services.cli import calls, terminal
from services.settings import load_settings

_WHY = {
    "FALLBACK_REASON_UNKNOWN_USER": "nothing is known of this user (`headrace track USER ITEM` changes that)",
    "FALLBACK_REASON_NO_USABLE_EVENTS": "no event of this user is a wish (impressions, skips, ratings that "
    "are low or without stars)",
    "FALLBACK_REASON_NO_RELEASE": "no release yet; `headrace train --from-topic` or `--data DIR` makes one",
    "FALLBACK_REASON_BACKEND_UNAVAILABLE": "the model does not answer; `headrace state` says what is live",
}


_WHY_FEWER = {
    "SHORTFALL_REASON_CATALOGUE_EXHAUSTED": "there are no more items (`headrace replay --data DIR` or "
    "`headrace items import FILE` announces some)",
    "SHORTFALL_REASON_FILTERED": "filtered: the others are excluded, of other categories, or were had before",
}


def recommend(
    user: Annotated[str, typer.Argument(help="The user id.")],
    k: Annotated[int, typer.Option("--k", "-k", help="How many items.", min=1, max=2**31 - 1)] = 10,
    exclude: Annotated[list[str] | None, typer.Option(help="An item id never to answer; repeatable.")] = None,
    category: Annotated[
        list[str] | None, typer.Option(help="Only items of this category; repeatable.")
    ] = None,
    include_seen: Annotated[bool, typer.Option(help="Items the user already had may be answered.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask the gateway for recommendations."""
    from protos.headrace.v1.recommend_pb2 import (
        CandidateSource,
        FallbackReason,
        RecommendRequest,
        ShortfallReason,
    )

    request = RecommendRequest(
        user_id=user,
        k=k,
        exclude_item_ids=exclude or [],
        categories=category or [],
        include_seen=include_seen,
    )
    with calls.gateway(load_settings()) as stub:
        response = stub.Recommend(request, timeout=calls.CALL_TIMEOUT_S)
    if json:
        terminal.print_json(terminal.message_dict(response))
        return
    rows = [
        (
            position,
            item.item_id,
            item.title,
            f"{item.score:.4f}",
            ", ".join(
                terminal.enum_word(CandidateSource.Name(source), "CANDIDATE_SOURCE_")
                for source in item.sources
            ),
        )
        for position, item in enumerate(response.recommendations, start=1)
    ]
    terminal.print_table(
        f"for user {user}", ["#", "item", "title", "score", "sources"], rows, numbers=("#", "score")
    )
    notes = [f"release {response.release_id or '-'}"]
    if response.fallback_reason:
        name = FallbackReason.Name(response.fallback_reason)
        what = "as for a stranger" if response.release_id else "popular items"
        notes.append(f"{what}: {_WHY.get(name, name)}")
    elif response.degraded:
        notes.append(
            "degraded: the ranker does not answer (`headrace doctor`; its log is in `headrace state`)"
        )
    if response.shortfall_reason:
        name = ShortfallReason.Name(response.shortfall_reason)
        notes.append(f"fewer than asked: {_WHY_FEWER.get(name, name)}")
    notes += [f"{stage.stage} {stage.latency_ms:.1f} ms" for stage in response.stages]
    terminal.note(" · ".join(notes))
