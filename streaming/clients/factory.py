"""Makes kafka-python clients, once it is known that somebody listens.

kafka-python spends its whole bootstrap timeout on an address that refuses, logs every attempt, and
leaves the sockets of a client that failed in its constructor to the garbage collector.
"""

import socket
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError

from streaming.errors import BrokerUnavailable
from streaming.header_names import read_any_header_name

_MAX_RECONNECT_BACKOFF_MS = 1_000


def make_admin(bootstrap: str, timeout_s: float, **config: Any) -> KafkaAdminClient:
    """An admin client; raises BrokerUnavailable at once if nobody listens, else after `timeout_s`."""
    return _make(KafkaAdminClient, bootstrap, timeout_s, **config)


def make_consumer(bootstrap: str, timeout_s: float, **config: Any) -> KafkaConsumer:
    """A consumer that neither commits nor makes topics; raises BrokerUnavailable as `make_admin`."""
    read_any_header_name()
    return _make(
        KafkaConsumer,
        bootstrap,
        timeout_s,
        enable_auto_commit=False,
        allow_auto_create_topics=False,
        isolation_level="read_committed",
        reconnect_backoff_max_ms=_MAX_RECONNECT_BACKOFF_MS,
        **config,
    )


def make_producer(bootstrap: str, timeout_s: float, **config: Any) -> KafkaProducer:
    """An idempotent producer that makes no topics; raises BrokerUnavailable as `make_admin`."""
    return _make(
        KafkaProducer,
        bootstrap,
        timeout_s,
        enable_idempotence=True,
        allow_auto_create_topics=False,
        reconnect_backoff_max_ms=_MAX_RECONNECT_BACKOFF_MS,
        **config,
    )


def _make(client_class: Any, bootstrap: str, timeout_s: float, **config: Any) -> Any:
    _require_listener(bootstrap, timeout_s)
    try:
        return client_class(bootstrap_servers=bootstrap, bootstrap_timeout_ms=int(timeout_s * 1000), **config)
    except KafkaError as error:
        raise BrokerUnavailable(f"no broker answers at {bootstrap}: {error}") from error


def _require_listener(bootstrap: str, timeout_s: float) -> None:
    """Raises BrokerUnavailable unless one of the comma-separated host:port takes a connection."""
    problems = []
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s):
                return
        except (OSError, ValueError) as error:
            problems.append(str(error))
    raise BrokerUnavailable(f"no broker at {bootstrap}: {'; '.join(problems)}")
