"""The broker's topics: their settings, and the logs of their partitions.

`topics.json` in the broker's folder says what there is; it is replaced as a whole, so a crash leaves the old
or the new one.
"""

import fcntl
import json
import logging
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streaming.broker.batches import BadBatch
from streaming.broker.log import SEGMENT_BYTES, PartitionLog
from streaming.broker.segment import replace_file

logger = logging.getLogger(__name__)

DEFAULT_CONFIGS = {
    "cleanup.policy": "delete",
    "retention.ms": str(7 * 24 * 3_600_000),
    "retention.bytes": "-1",
    "segment.bytes": str(SEGMENT_BYTES),
    "max.message.bytes": str(8 << 20),
}
_MAX_PARTITIONS = 1_000
_LEGAL_NAME = re.compile(r"[a-zA-Z0-9._-]{1,240}")  # a folder's name has more, and 255 at most
_OUR_FOLDER = re.compile(r".+-\d+\.[0-9a-f]{8}")
_PRODUCER_IDS_A_WRITE = 1_000


class BadTopic(ValueError):
    """A name, a number of partitions or a setting that no topic can have."""


@dataclass
class Topic:
    """One topic; its settings are those that somebody set."""

    name: str
    id: uuid.UUID
    configs: dict[str, str]
    logs: list[PartitionLog] = field(default_factory=list)

    def config(self, name: str) -> str:
        """A setting, or its default."""
        return self.configs.get(name, DEFAULT_CONFIGS[name])


class Topics:
    """All topics of one folder. Raises OSError if the folder cannot be read or written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "topics.json"
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"another broker uses {folder}") from None
        try:
            state = self._read()
        except OSError:
            self._lock.close()
            raise
        self.cluster_id = str(state.get("cluster_id") or "") or uuid.uuid4().hex[:22]
        self._next_producer_id = self._reserved_producer_id = int(state.get("next_producer_id", 1))
        self._topics: dict[str, Topic] = {}
        for name, saved in state.get("topics", {}).items():
            topic = Topic(name, uuid.UUID(saved["id"]), saved["configs"])
            self._open(topic, saved["num_partitions"])
            self._topics[name] = topic
        self._remove_leftovers()
        self._save()

    def __iter__(self) -> Iterator[Topic]:
        return iter(self._topics.values())

    def get(self, name: str) -> Topic | None:
        """A topic by its name."""
        return self._topics.get(name)

    def log(self, name: str, partition: int) -> PartitionLog | None:
        """The log of one partition."""
        topic = self._topics.get(name)
        return topic.logs[partition] if topic and 0 <= partition < len(topic.logs) else None

    def create(self, name: str, num_partitions: int, configs: dict[str, str]) -> Topic:
        """A new topic; raises BadTopic."""
        topic = Topic(_named(name), uuid.uuid4(), _checked(configs))
        self._open(topic, num_partitions)
        self._topics[name] = topic
        try:
            self._save()
        except OSError:
            del self._topics[name]
            raise
        return topic

    def grow(self, topic: Topic, num_partitions: int) -> None:
        """Adds partitions; raises BadTopic if it has as many already."""
        if num_partitions <= len(topic.logs):
            raise BadTopic(f"{topic.name} has {len(topic.logs)} partitions already")
        self._open(topic, num_partitions)
        self._save()

    def configure(self, topic: Topic, configs: dict[str, str]) -> None:
        """Replaces a topic's settings; raises BadTopic."""
        topic.configs = _checked(configs)
        self._save()

    def delete(self, topic: Topic) -> None:
        """Removes a topic and its records."""
        del self._topics[topic.name]
        self._save()
        for log in topic.logs:
            log.delete()

    def new_producer_id(self) -> int:
        """A number that no producer has had, not even before a restart."""
        if self._next_producer_id >= self._reserved_producer_id:
            self._reserved_producer_id = self._next_producer_id + _PRODUCER_IDS_A_WRITE
            self._save()
        self._next_producer_id += 1
        return self._next_producer_id - 1

    def clean(self) -> Iterator[None]:
        """Deletes and compacts as each topic's settings say, in steps of some milliseconds."""
        now_ms = time.time_ns() // 1_000_000
        for topic in [*self]:
            policies = topic.config("cleanup.policy").split(",")
            age_ms, max_bytes = int(topic.config("retention.ms")), int(topic.config("retention.bytes"))
            for log in [*topic.logs]:
                try:
                    if "compact" in policies:
                        yield from log.compact()
                    if "delete" in policies:
                        log.delete_old(
                            before_ms=now_ms - age_ms if age_ms >= 0 else None,
                            max_bytes=max_bytes if max_bytes >= 0 else None,
                        )
                except (OSError, BadBatch) as error:  # the disk's, or a file that changed under us
                    logger.warning("not_cleaned path=%s error=%r", log.folder, error)

    def close(self) -> None:
        """Closes all files; another broker may use the folder."""
        for topic in self:
            for log in topic.logs:
                log.close()
        self._lock.close()

    def _open(self, topic: Topic, num_partitions: int) -> None:
        _counted(num_partitions)
        segment_bytes = min(SEGMENT_BYTES, int(topic.config("segment.bytes")))
        for partition in range(len(topic.logs), num_partitions):
            # the id in the name: a topic that is made again after a crash in its deletion begins empty
            folder = self._folder / "logs" / f"{topic.name}-{partition}.{topic.id.hex[:8]}"
            topic.logs.append(PartitionLog(folder, segment_bytes=segment_bytes))

    def _remove_leftovers(self) -> None:
        """Removes the logs of topics whose making or deletion a crash cut short."""
        kept = {log.folder for topic in self for log in topic.logs}
        for path in (self._folder / "logs").glob("*"):
            if path not in kept and _OUR_FOLDER.fullmatch(path.name):
                shutil.rmtree(path)

    def _read(self) -> dict[str, Any]:
        if not self._path.exists():
            if any((self._folder / "logs").glob("*")):
                raise OSError(
                    f"{self._path} is missing, and the logs beside it hold records: bring it back, or move "
                    f"{self._folder} away to begin anew"
                )
            return {}
        try:
            state = json.loads(self._path.read_text())
            _ = (str(state.get("cluster_id")), int(state.get("next_producer_id", 1)))
            for name, saved in state.get("topics", {}).items():
                _ = (_named(name), uuid.UUID(saved["id"]), _counted(int(saved["num_partitions"])))
                _checked(dict(saved["configs"]))
            return dict(state)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise OSError(
                f"{self._path} is damaged ({error!r}): bring a copy of it back, or move {self._folder} away "
                "to begin anew"
            ) from error

    def _save(self) -> None:
        state = {
            "cluster_id": self.cluster_id,
            "next_producer_id": self._reserved_producer_id,
            "topics": {
                t.name: {"id": t.id.hex, "num_partitions": len(t.logs), "configs": t.configs} for t in self
            },
        }
        replace_file(self._path, json.dumps(state, indent=1))


def _named(name: str) -> str:
    if not _LEGAL_NAME.fullmatch(name) or name in (".", ".."):
        raise BadTopic("a topic's name has 1 to 240 letters, digits, dots, hyphens and underscores")
    return name


def _counted(num_partitions: int) -> int:
    if not 1 <= num_partitions <= _MAX_PARTITIONS:
        raise BadTopic(f"a topic has 1 to {_MAX_PARTITIONS} partitions, not {num_partitions}")
    return num_partitions


def _checked(configs: dict[str, str]) -> dict[str, str]:
    for name, value in configs.items():
        if name == "cleanup.policy":
            if not set(value.split(",")) <= {"compact", "delete"}:
                raise BadTopic(f"cleanup.policy is compact, delete or both, not {value!r}")
        elif name in DEFAULT_CONFIGS and not re.fullmatch(r"-?[0-9]{1,18}", value):
            raise BadTopic(f"{name} is a whole number, not {value!r}")
    return dict(configs)
