"""What the contracts of streams and of engines are checked on: topics of the brokers, and worlds."""

import pytest

from streaming.clients.topic_admin import create_topics
from tests.contract.engines import ENGINES, World
from tests.contract.streams import NUM_PARTITIONS


@pytest.fixture
def bootstrap(broker: str) -> str:
    create_topics(broker, num_partitions=NUM_PARTITIONS, replication_factor=1)
    return broker


@pytest.fixture(params=list(ENGINES))
def world(request: pytest.FixtureRequest) -> World:
    return World(ENGINES[request.param])
