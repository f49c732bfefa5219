"""The topics: names, which message each carries, and how a broker is to keep them.

Knows nothing of who reads or writes them, nor how they are made (`streaming/clients/topic_admin.py`).
"""

from dataclasses import dataclass

from google.protobuf.message import Message

from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.items_pb2 import Item, ItemSid
from protos.headrace.v1.recommend_pb2 import RecommendationLog
from protos.headrace.v1.release_pb2 import Release
from protos.headrace.v1.trends_pb2 import Trend

INTERACTIONS = "interactions"
ITEMS = "items"
SEMANTIC_IDS = "semantic-ids"
RELEASES = "releases"
RECOMMENDATIONS = "recommendations"
TRENDS = "trends"

_DEAD_LETTER_SUFFIX = ".dlq"

MESSAGE_OF: dict[str, type[Message]] = {
    INTERACTIONS: Event,
    ITEMS: Item,
    SEMANTIC_IDS: ItemSid,
    RELEASES: Release,
    RECOMMENDATIONS: RecommendationLog,
    TRENDS: Trend,
}


def dead_letter_topic(name: str) -> str:
    """The topic that takes what a reader of `name` could not use."""
    return name + _DEAD_LETTER_SUFFIX


@dataclass(frozen=True, kw_only=True)
class TopicSpec:
    """How one topic is made. `num_partitions` None takes the deployment's number."""

    name: str
    compacted: bool = False
    num_partitions: int | None = None

    @property
    def configs(self) -> dict[str, str]:
        """The broker's topic settings.

        Records are kept for ever where they are not compacted: retention counts from a record's own
        timestamp, so a replay of old data would vanish as it is written.
        """
        if self.compacted:
            return {"cleanup.policy": "compact"}
        return {"cleanup.policy": "delete", "retention.ms": "-1"}


SPECS: tuple[TopicSpec, ...] = (
    TopicSpec(name=INTERACTIONS),
    TopicSpec(name=ITEMS, compacted=True),
    TopicSpec(name=SEMANTIC_IDS, compacted=True),
    # one partition: the newest record in state LIVE wins, so releases need one order
    TopicSpec(name=RELEASES, compacted=True, num_partitions=1),
    TopicSpec(name=RECOMMENDATIONS),
    TopicSpec(name=TRENDS, compacted=True),
    *(
        TopicSpec(name=dead_letter_topic(name), num_partitions=1)
        for name in (INTERACTIONS, ITEMS, SEMANTIC_IDS, RELEASES, RECOMMENDATIONS)
    ),
)

TOPICS = tuple(spec.name for spec in SPECS)
COMPACTED_TOPICS = frozenset(spec.name for spec in SPECS if spec.compacted)
