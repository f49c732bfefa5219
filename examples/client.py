"""Asks for recommendations, says that the user liked the first, and asks again.

python examples/client.py USER [HOST:PORT]
"""

import sys

import grpc

from protos.headrace.v1.events_pb2 import Action, Event
from protos.headrace.v1.recommend_pb2 import (
    FallbackReason,
    RecommendRequest,
    RecommendResponse,
    ShortfallReason,
    TrackRequest,
)
from protos.headrace.v1.recommend_pb2_grpc import RecommenderServiceStub


def main(user: str, address: str = "127.0.0.1:7400") -> None:
    with grpc.insecure_channel(address) as channel:
        gateway = RecommenderServiceStub(channel)
        first = gateway.Recommend(RecommendRequest(user_id=user, k=5), timeout=5)
        print("before:", told(first))
        if first.recommendations:
            liked = Event(user_id=user, item_id=first.recommendations[0].item_id, action=Action.ACTION_LIKE)
            liked.request_id = first.request_id  # joins the answer and what came of it
            gateway.Track(TrackRequest(event=liked), timeout=5)
        then = gateway.Recommend(RecommendRequest(user_id=user, k=5), timeout=5)
        print("after: ", told(then))


def told(answer: RecommendResponse) -> str:
    """The titles and the release, or why there are none."""
    titles = [item.title or item.item_id for item in answer.recommendations]
    if titles:
        return f"{titles} {answer.release_id}"
    fallback = FallbackReason.Name(answer.fallback_reason)
    return f"nothing: {fallback}, {ShortfallReason.Name(answer.shortfall_reason)}"


if __name__ == "__main__":
    main(*sys.argv[1:])
