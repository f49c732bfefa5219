"""The brokers of the odd records."""

from collections.abc import Iterator

import pytest

from services.stack.embedded_broker import EmbeddedBroker
from streaming.clients.topic_admin import create_topics
from tests.conftest import find_free_port


@pytest.fixture(scope="module")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker for this file alone: what is written here is nothing that other tests' readers expect."""
    with EmbeddedBroker(tmp_path_factory.mktemp("odd"), f"127.0.0.1:{find_free_port()}") as broker:
        yield broker.bootstrap


@pytest.fixture
def bootstrap(broker: str) -> str:
    create_topics(broker, num_partitions=4, replication_factor=1)
    return broker
