"""What every kind of test shares: free ports, the two brokers that Headrace runs on, the rule for markers."""

import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import structlog

# no clean-up container: the image may be all there is, and the fixture removes what it started
os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"
# kernels run in Triton's interpreter, which is chosen when triton is first imported (by torch, at times);
# 0 runs them on a GPU (tests/kernel_device.py)
os.environ.setdefault("TRITON_INTERPRET", "1")
# threads that spin for each other, while brokers and services want the same cores, cost more than they give
os.environ.setdefault("OMP_NUM_THREADS", "1")

DEFAULT_KAFKA_IMAGE = "apache/kafka:4.2.1"

# the public image takes its defaults only when no setting at all is given
KAFKA_SINGLE_NODE = {
    "KAFKA_NODE_ID": "1",
    "KAFKA_PROCESS_ROLES": "broker,controller",
    # the broker ends transactions by writing to itself: clients' address is none of the container's own
    "KAFKA_LISTENERS": "PLAINTEXT://0.0.0.0:9092,CONTROLLER://0.0.0.0:9093,INTERNAL://0.0.0.0:9094",
    "KAFKA_INTER_BROKER_LISTENER_NAME": "INTERNAL",
    "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
    "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,INTERNAL:PLAINTEXT",
    "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
    "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
    "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR": "1",
    "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR": "1",
    "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
}

_given_ports: set[int] = set()


def find_free_port() -> int:
    """A port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_port_pair() -> int:
    """A free port on loopback with a free one after it, where the system gives no ports to clients.

    No port is given twice in one test run.
    """
    while True:
        port = random.randrange(20_000, 32_000, 2)
        with socket.socket() as first, socket.socket() as second:
            free = all(s.connect_ex(("127.0.0.1", port + i)) for i, s in enumerate((first, second)))
        if free and port not in _given_ports:
            _given_ports.add(port)
            return port


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuses a test that no target of the Makefile would run: they choose by folder and marker."""
    unmarked = [config.rootpath / "tests" / folder for folder in ("unit", "contract")]
    for item in items:
        is_marked = any(item.get_closest_marker(name) for name in ("integration", "container"))
        if not is_marked and not any(item.path.is_relative_to(folder) for folder in unmarked):
            raise pytest.UsageError(f"{item.nodeid} needs the marker `integration` or `container`")


@pytest.fixture(autouse=True)
def default_logging() -> Iterator[None]:
    """Undoes what a command or a service did to structlog: its log may go to what pytest captured."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Call it for a free port on loopback, as often as needed."""
    return find_free_port


@pytest.fixture(scope="session")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The bootstrap address of an embedded broker of this test run."""
    from services.stack.embedded_broker import EmbeddedBroker

    folder = tmp_path_factory.mktemp("broker")
    with EmbeddedBroker(folder, f"127.0.0.1:{find_free_port()}") as broker:
        yield broker.bootstrap


@pytest.fixture(scope="session")
def kafka_container() -> Iterator[str]:
    """The bootstrap address of one Apache Kafka in a container for the whole test run."""
    with kafka_in_container() as bootstrap:
        yield bootstrap


@contextmanager
def kafka_in_container() -> Iterator[str]:
    """The bootstrap address of a new Apache Kafka; fails the test if it cannot be started.

    The image is `KAFKA_TEST_IMAGE`, by default the public one.
    """
    import docker.errors
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    image = os.environ.get("KAFKA_TEST_IMAGE", DEFAULT_KAFKA_IMAGE)
    port = find_free_port()
    try:
        container = DockerContainer(image)
        advertised = f"PLAINTEXT://127.0.0.1:{port},INTERNAL://localhost:9094"
        container.with_envs(**KAFKA_SINGLE_NODE, KAFKA_ADVERTISED_LISTENERS=advertised)
        container.ports = {"9092/tcp": ("127.0.0.1", port)}
        container.waiting_for(LogMessageWaitStrategy("Kafka Server started").with_startup_timeout(120))
    except docker.errors.DockerException as error:
        pytest.fail(f"container tests need a running Docker engine: {error}", pytrace=False)
    try:
        try:
            container.start()
        except (docker.errors.DockerException, TimeoutError, RuntimeError) as error:
            pytest.fail(f"{image} could not be started: {error}", pytrace=False)
        yield f"127.0.0.1:{port}"
    finally:
        # also when the start failed half-way
        if container._container is not None:
            container.stop(force=True, delete_volume=True)


@pytest.fixture(
    params=[
        pytest.param("embedded_broker", marks=pytest.mark.integration, id="embedded"),
        pytest.param("kafka_container", marks=pytest.mark.container, id="apache-kafka"),
    ]
)
def broker(request: pytest.FixtureRequest) -> str:
    """The bootstrap address of each broker in turn: the contract suite runs on both."""
    return str(request.getfixturevalue(request.param))
