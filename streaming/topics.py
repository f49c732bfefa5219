"""The topics: names, which message each carries, and how they are made on a broker.

Knows nothing of who reads or writes them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import Message
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError, NoError, TopicAlreadyExistsError, for_code

from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.items_pb2 import Item, ItemSid
from protos.headrace.v1.recommend_pb2 import RecommendationLog
from protos.headrace.v1.release_pb2 import Release
from protos.headrace.v1.trends_pb2 import Trend
from streaming.clients import make_admin
from streaming.errors import BrokerUnavailable

logger = logging.getLogger(__name__)

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


def create_topics(
    bootstrap: str,
    *,
    num_partitions: int,
    replication_factor: int,
    topics: Sequence[TopicSpec] = SPECS,
    timeout_s: float = 30.0,
) -> list[str]:
    """Makes the missing topics and sets what nobody has set of those that exist; returns the names it made.

    Idempotent. An operator's settings and the number of partitions of an existing topic are left alone.
    Raises BrokerUnavailable.
    """
    admin = make_admin(bootstrap, timeout_s)
    try:
        wanted = {
            spec.name: {
                "num_partitions": spec.num_partitions or num_partitions,
                "replication_factor": replication_factor,
                "configs": spec.configs,
            }
            for spec in topics
        }
        answer = admin.create_topics(wanted, raise_errors=False)
        made, existing = [], []
        for result in answer["topics"]:
            problem = for_code(result["error_code"])
            if problem is NoError:
                made.append(result["name"])
            elif problem is TopicAlreadyExistsError:
                existing.append(result["name"])
            else:
                raise BrokerUnavailable(
                    f"topic {result['name']}: {problem.__name__} {result['error_message']}"
                )
        if existing:
            # another client's first produce may have made the topic with the broker's defaults
            _set_missing(admin, {spec.name: spec.configs for spec in topics if spec.name in existing})
        admin.wait_for_topics(list(wanted))
        return made
    except KafkaError as error:
        raise BrokerUnavailable(f"topics could not be made at {bootstrap}: {error}") from error
    finally:
        admin.close()


def _set_missing(admin: KafkaAdminClient, wanted: dict[str, dict[str, str]]) -> None:
    """Sets those of the wanted settings that are not set on their topic."""
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in wanted]
    answer = admin.describe_configs(resources, config_filter="modified")
    present = {name: set(configs) for kind in answer.values() for name, configs in kind.items()}
    missing = {
        name: {key: value for key, value in configs.items() if key not in present.get(name, ())}
        for name, configs in wanted.items()
    }
    changes = [ConfigResource(ConfigResourceType.TOPIC, name, new) for name, new in missing.items() if new]
    if changes:
        admin.alter_configs(changes)


def existing_topics(bootstrap: str, *, timeout_s: float = 5.0) -> set[str]:
    """The names of all topics of a broker; raises BrokerUnavailable if none answers in time."""
    admin = make_admin(bootstrap, timeout_s)
    try:
        return set(admin.list_topics())
    except KafkaError as error:
        raise BrokerUnavailable(f"{bootstrap}: {error}") from error
    finally:
        admin.close()
