"""Where the learner stands: what it has read, written and published, beside the weights of the same moment.

It travels inside the checkpoint, so that position and state are never of different moments.
"""

import base64
from dataclasses import asdict, dataclass, field
from typing import Any

from models.artifacts.manifest import JsonValue


@dataclass(kw_only=True)
class LearnerPosition:
    """`offsets` are the next to read, by "topic/partition"; `deferred` holds records read but not learned.

    `live_release_id` is the release that the learner holds for live. `ledger_name` is a file beside the
    checkpoints, `ledger_bytes` its length. `num_learned` counts since the first release was trained,
    its own events included.
    """

    live_release_id: str
    offsets: dict[str, int] = field(default_factory=dict)
    deferred: list["DeferredRecord"] = field(default_factory=list)
    ledger_name: str = ""
    ledger_bytes: int = 0
    num_learned: int = 0
    num_duplicate: int = 0
    num_since_release: int = 0
    num_dead_lettered: int = 0
    checkpoint_time_ms: int = 0

    def extra(self) -> dict[str, JsonValue]:
        """Everything but the offsets, for `OnlineLearner.save`."""
        values = {name: value for name, value in vars(self).items() if name != "offsets"}
        return values | {"deferred": [record.to_json() for record in self.deferred]}

    @classmethod
    def from_extra(cls, offsets: dict[str, int], extra: Any) -> "LearnerPosition":
        """The inverse of `extra`; raises KeyError or TypeError for what `extra` did not write."""
        values = dict(extra)
        deferred = [DeferredRecord.from_json(record) for record in values.pop("deferred")]
        return cls(offsets=dict(offsets), deferred=deferred, **values)


@dataclass(frozen=True, kw_only=True)
class DeferredRecord:
    """An event that waits for its item to become known: its place in the stream and its bytes.

    `value` is the protobuf of the event; `timestamp_ms` is the record's, for the freshness figures; `origin`
    is the header of one that was sent again.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    value: bytes
    origin: str = ""

    def to_json(self) -> dict[str, JsonValue]:
        """Bytes as base64."""
        return asdict(self) | {"value": base64.b64encode(self.value).decode()}

    @classmethod
    def from_json(cls, data: Any) -> "DeferredRecord":
        """The inverse of `to_json`."""
        values = dict(data)
        return cls(value=base64.b64decode(values.pop("value")), **values)
