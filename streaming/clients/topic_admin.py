"""Makes the topics on a broker, and says which there are.

Which topics there must be, and how they are kept, is `streaming/messages/topics.py`'s.
"""

from collections.abc import Sequence

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError, NoError, TopicAlreadyExistsError, for_code

from streaming.clients.factory import make_admin
from streaming.errors import BrokerUnavailable
from streaming.messages.topics import SPECS, TopicSpec


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
