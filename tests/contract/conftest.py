"""The topics of the brokers that the contract of streams is checked on."""

import pytest

from streaming.clients.topic_admin import create_topics
from tests.contract.streams import NUM_PARTITIONS


@pytest.fixture
def bootstrap(broker: str) -> str:
    create_topics(broker, num_partitions=NUM_PARTITIONS, replication_factor=1)
    return broker
