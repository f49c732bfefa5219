"""What every broker promises of topics: made once, with their settings, and the operator's kept.

The brokers are shared by the whole run, so each test uses users, items and positions of its own.
"""

import uuid

import pytest
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.admin import ConfigResource, ConfigResourceType

from streaming.clients.topic_admin import create_topics, existing_topics
from streaming.messages import topics
from streaming.messages.topics import INTERACTIONS, ITEMS
from tests.contract.streams import NUM_PARTITIONS


def test_topics_are_made_once_and_have_their_settings(bootstrap: str) -> None:
    assert create_topics(bootstrap, num_partitions=NUM_PARTITIONS, replication_factor=1) == []
    assert set(topics.TOPICS) <= existing_topics(bootstrap)
    consumer = KafkaConsumer(bootstrap_servers=bootstrap)
    assert len(consumer.partitions_for_topic(INTERACTIONS)) == NUM_PARTITIONS
    assert len(consumer.partitions_for_topic(topics.RELEASES)) == 1
    consumer.close()
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    answer = admin.describe_configs(
        [ConfigResource(ConfigResourceType.TOPIC, name) for name in (INTERACTIONS, ITEMS)],
        config_filter="all",
    )
    admin.close()
    settings = {name: configs for kind in answer.values() for name, configs in kind.items()}
    assert settings[INTERACTIONS]["retention.ms"]["value"] == "-1"
    assert settings[INTERACTIONS]["cleanup.policy"]["value"] == "delete"
    assert settings[ITEMS]["cleanup.policy"]["value"] == "compact"


def test_a_topic_that_somebody_else_made_gets_its_settings(bootstrap: str) -> None:
    name = f"theirs-{uuid.uuid4().hex[:8]}"
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics({name: {"num_partitions": 1, "replication_factor": 1}})
    spec = topics.TopicSpec(name=name)
    assert create_topics(bootstrap, num_partitions=4, replication_factor=1, topics=[spec]) == []
    answer = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)], config_filter="all")
    admin.close()
    (configs,) = (configs for kind in answer.values() for configs in kind.values())
    assert configs["retention.ms"]["value"] == "-1"


@pytest.mark.case("retention.ms set by the operator")
def test_an_operators_settings_are_kept(bootstrap: str) -> None:
    name = f"theirs-{uuid.uuid4().hex[:8]}"
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics(
        {name: {"num_partitions": 1, "replication_factor": 1, "configs": {"retention.ms": "123456789"}}}
    )
    spec = topics.TopicSpec(name=name)
    for _ in range(2):
        create_topics(bootstrap, num_partitions=4, replication_factor=1, topics=[spec])
    answer = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)], config_filter="all")
    admin.close()
    (configs,) = (configs for kind in answer.values() for configs in kind.values())
    assert configs["retention.ms"]["value"] == "123456789"
