"""A data set replayed into a sink: order, announcements, slices, pace."""

import time

import numpy as np
import pytest
from google.protobuf.message import Message

from protos.headrace.v1.items_pb2 import Item
from streaming.datasets.folder import LEAD_MS, Dataset
from streaming.datasets.replay import replay
from streaming.messages.topics import INTERACTIONS, ITEMS


class ListSink:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, Message]] = []
        self.num_flushed = 0

    def send(self, topic: str, key: str, message: Message) -> None:
        self.sent.append((topic, key, message))

    def flush(self) -> None:
        self.num_flushed = len(self.sent)

    def keys(self) -> list[str]:
        return [f"{topic}:{key}" for topic, key, _ in self.sent]


@pytest.fixture
def dataset() -> Dataset:
    items = ["a", "b", "a", "c", "d", "b", "c", "e", "a", "e"]
    return Dataset(
        name="d",
        items=[Item(item_id=item, title=item.upper()) for item in "abcdef"],
        user_id_N=np.array([f"u{n % 3}" for n in range(10)], dtype=object),
        item_id_N=np.array(items, dtype=object),
        time_ms_N=np.arange(1_000, 1_010),
        action_N=np.full(10, 2),
        value_N=np.zeros(10),
        row_N=np.arange(10),
        position_N=None,
        event_id_N=np.array([f"e{n}" for n in range(10)], dtype=object),
    )


def test_each_item_is_announced_before_its_first_event(dataset: Dataset) -> None:
    sink = ListSink()
    assert replay(dataset, sink) == 10
    events = [message for topic, _, message in sink.sent if topic == INTERACTIONS]
    assert events == [dataset.event(n) for n in range(10)]
    announced = [message for topic, _, message in sink.sent if topic == ITEMS]
    assert [item.item_id for item in announced] == ["a", "b", "c", "d", "e"]  # type: ignore[attr-defined]
    for place, (topic, key, message) in enumerate(sink.sent):
        if topic == ITEMS:
            _, _, event = sink.sent[place + 1]
            assert event.item_id == key  # type: ignore[attr-defined]
            assert message.announced_time_ms == event.event_time_ms - LEAD_MS  # type: ignore[attr-defined]
    assert sink.num_flushed == len(sink.sent)
    assert not any(item.announced_time_ms for item in dataset.items)


def test_a_slice_announces_only_what_is_not_known(dataset: Dataset) -> None:
    sink = ListSink()
    progress: list[int] = []
    sent = replay(dataset, sink, start=0.7, known_items={"a", "b"}, on_progress=progress.append)
    assert sent == 3
    assert sink.keys() == [
        "items:e",
        "interactions:u1",
        "interactions:u2",
        "interactions:u0",
    ]
    assert progress == [3]


def test_a_rate_is_kept(dataset: Dataset) -> None:
    sink = ListSink()
    began_s = time.monotonic()
    replay(dataset, sink, events_per_s=100.0)
    assert 0.09 <= time.monotonic() - began_s < 1.0
