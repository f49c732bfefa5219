"""Dead letters of records that are hardly any: whatever was written, its letter is written, and sent again.

What the protocol allows and no client of ours would write: nothing at all, headers of thousands of digits,
keys of megabytes, foreign records among the letters themselves.
"""

import time

import pytest
from aiokafka import AIOKafkaProducer

from streaming.clients.consumer import PartitionConsumer
from streaming.clients.dead_letter import DeadLetter, DeadLetters, list_dead_letters, redrive
from streaming.clients.topic_admin import create_topics
from streaming.messages.records import ORIGIN
from streaming.messages.topics import INTERACTIONS, dead_letter_topic

PATIENCE_S = 30

pytestmark = pytest.mark.integration

Headers = list[tuple[str, bytes | None]]


@pytest.fixture
def bootstrap(broker: str) -> str:
    """A broker with all topics."""
    create_topics(broker, num_partitions=4, replication_factor=1)
    return broker


async def write(
    bootstrap: str, key: bytes | None, value: bytes | None, headers: Headers, topic: str = INTERACTIONS
) -> None:
    """One record in partition 0, as a batch: the client's `send` refuses some that the protocol allows."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, max_request_size=8 << 20) as producer:
        batch = producer.create_batch()
        assert batch.append(key=key, value=value, timestamp=None, headers=headers) is not None
        batch.close()
        await (await producer.send_batch(batch, topic, partition=0))


def read_all(bootstrap: str, stage: str) -> None:
    """Reads `interactions` to its end, as a stage does."""
    letters = DeadLetters(bootstrap, stage=stage)
    deadline = time.monotonic() + PATIENCE_S
    with PartitionConsumer(
        bootstrap, [INTERACTIONS], offsets={}, dead_letters=letters, stage=stage
    ) as consumer:
        while sum(consumer.lag().values()):
            assert time.monotonic() < deadline, "the end was not reached"
            consumer.poll(100, 0.2)
    letters.close()


def own_letters(bootstrap: str, begin: int) -> list[DeadLetter]:
    letters = list_dead_letters(bootstrap, INTERACTIONS)
    return [one for one in letters if one.partition == 0 and one.offset >= begin]


@pytest.mark.parametrize(
    ("key", "value", "headers", "is_whole"),
    [
        pytest.param(None, None, [], True, id="nothing at all"),
        pytest.param(None, b"{", [], True, id="no key"),
        pytest.param(b"u", None, [], True, id="no value"),
        pytest.param(b"u", b"{}", [(ORIGIN, b"1" * 5_000 + b"/1/1")], True, id="an origin of 5,000 digits"),
        pytest.param(b"u", b"{}", [(ORIGIN, "²/1/1".encode())], True, id="an origin of other digits"),
        pytest.param(b"k" * 900_000, b"{}", [], False, id="a large key"),
        pytest.param(b"u", b"{}", [("content-type", b"a" * 900_000)], True, id="a large header"),
    ],
)
async def test_the_letter_of_any_record_is_written_and_sent_again(
    bootstrap: str, key: bytes | None, value: bytes | None, headers: Headers, is_whole: bool
) -> None:
    with PartitionConsumer(
        bootstrap, [INTERACTIONS], offsets={}, dead_letters=None, stage="test"
    ) as consumer:
        begin = consumer.end_offsets()[f"{INTERACTIONS}/0"]
    await write(bootstrap, key, value, headers)
    read_all(bootstrap, "first")
    [letter] = own_letters(bootstrap, begin)
    assert (letter.offset, letter.truncated, letter.num_failed) == (begin, not is_whole, 1)
    assert (letter.key or b"") == (key or b"")[:65_536]
    assert (letter.value or b"") == (value or b"")

    def ours(one: DeadLetter) -> bool:
        return one.partition == 0 and one.offset == begin

    assert redrive(bootstrap, INTERACTIONS, select=ours) == is_whole
    assert redrive(bootstrap, INTERACTIONS, select=ours) == 0
    read_all(bootstrap, "second")
    [letter] = own_letters(bootstrap, begin)
    assert (letter.num_redriven, letter.num_failed) == ((1, 2) if is_whole else (0, 1))
    # what was sent again lies there now, too, and is no letter of its own
    assert own_letters(bootstrap, begin + 1) == []


async def test_foreign_records_among_the_letters_are_shown(bootstrap: str) -> None:
    place = dead_letter_topic(INTERACTIONS)
    odd: Headers = [("headrace-attempt", "²".encode()), ("headrace-offset", b"9" * 5_000), ("", None)]
    await write(bootstrap, None, None, odd, place)
    await write(bootstrap, b"k", b"v", [("headrace-redriven", b"\xff")], place)
    letters = list_dead_letters(bootstrap, INTERACTIONS)
    assert [one.num_failed for one in letters if one.offset == -1] == [1]
