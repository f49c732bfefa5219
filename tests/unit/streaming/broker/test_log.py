"""The embedded broker's log of one partition: what is kept, in which order, and what a crash leaves."""

import asyncio
import json
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from streaming.broker.batches import BadBatch, read_batches
from streaming.broker.flusher import Flusher
from streaming.broker.log import Fenced, OutOfOrder, PartitionLog
from streaming.broker.offsets import GroupOffsets
from streaming.broker.topics import Topics

PRODUCER = 7


def make_batch(
    values: list[bytes],
    *,
    keys: list[bytes | None] | None = None,
    timestamp_ms: int = 1_000,
    sequence: int = -1,
    epoch: int = 0,
    codec: int = 0,
) -> bytes:
    """A batch as a producer sends it; with a sequence number, an idempotent one."""
    producer_id = PRODUCER if sequence >= 0 else -1
    builder = DefaultRecordBatchBuilder(2, codec, 0, producer_id, epoch, sequence, 1 << 20)
    for i, value in enumerate(values):
        builder.append(i, timestamp_ms, keys[i] if keys else None, value, [])
    return bytes(builder.build())


def fill(log: PartitionLog, batches: list[bytes]) -> None:
    for batch in batches:
        log.append(batch)
    log.sync()
    log.mark_stable(log.end_offset)


def values(log: PartitionLog, offset: int = 0) -> list[tuple[int, bytes]]:
    """(offset, value) of every record that can be read."""
    found: list[tuple[int, bytes]] = []
    while data := log.read(offset, 300):
        for position, batch in read_batches(data):
            records = DefaultRecordBatch(data[position : position + batch.size])
            found += [(r.offset, bytes(r.value or b"")) for r in records if r.offset >= offset]
            offset = batch.next_offset
    return found


@pytest.mark.parametrize("codec", [0, 1, 2, 3, 4])
def test_records_are_read_back_in_order_after_a_restart(tmp_path: Path, codec: int) -> None:
    log = PartitionLog(tmp_path, segment_bytes=1_000)
    sent = [b"%d" % i * 20 for i in range(60)]
    fill(log, [make_batch(sent[i : i + 3], codec=codec) for i in range(0, 60, 3)])
    expected = list(enumerate(sent))
    assert values(log) == expected
    assert values(log, 31) == expected[31:]
    assert len(list(tmp_path.glob("*.log"))) > 1
    log.close()
    again = PartitionLog(tmp_path, segment_bytes=1_000)
    assert (again.start_offset, again.end_offset, again.stable_offset) == (0, 60, 60)
    assert values(again) == expected
    again.close()


@pytest.mark.parametrize("cut_bytes", [1, 40, 70])
def test_a_torn_end_is_cut_off_and_the_rest_kept(tmp_path: Path, cut_bytes: int) -> None:
    log = PartitionLog(tmp_path)
    fill(log, [make_batch([b"kept"]), make_batch([b"torn"])])
    log.close()
    (path,) = tmp_path.glob("*.log")
    path.write_bytes(path.read_bytes()[:-cut_bytes])
    again = PartitionLog(tmp_path)
    assert values(again) == [(0, b"kept")]
    fill(again, [make_batch([b"next"])])
    assert values(again) == [(0, b"kept"), (1, b"next")]
    again.close()


def test_a_batch_whose_bytes_changed_on_disk_is_cut_off(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path)
    fill(log, [make_batch([b"kept"]), make_batch([b"changed"])])
    log.close()
    (path,) = tmp_path.glob("*.log")
    path.write_bytes(path.read_bytes().replace(b"changed", b"chanted"))
    again = PartitionLog(tmp_path)
    assert values(again) == [(0, b"kept")]
    again.close()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 30,
        b"\0" * 61,
        make_batch([b"a"])[:-1],
        make_batch([b"a"]) * 2,
        make_batch([b"abcdef"]).replace(b"abcdef", b"abcdeg"),
    ],
    ids=["nothing", "short", "zeros", "cut", "two batches", "changed"],
)
def test_what_is_no_batch_is_refused_and_nothing_written(tmp_path: Path, data: bytes) -> None:
    log = PartitionLog(tmp_path)
    with pytest.raises(BadBatch):
        log.append(data)
    assert log.end_offset == log.size == 0
    log.close()


def test_what_a_producer_sends_again_is_written_once(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path)
    first, second = make_batch([b"a", b"b"], sequence=0), make_batch([b"c"], sequence=2)
    assert [log.append(first), log.append(second), log.append(first), log.append(second)] == [0, 2, 0, 2]
    with pytest.raises(OutOfOrder):
        log.append(make_batch([b"e"], sequence=4))
    fill(log, [make_batch([b"other epoch"], sequence=0, epoch=1)])
    with pytest.raises(Fenced):
        log.append(make_batch([b"old"], sequence=3))
    log.close()
    again = PartitionLog(tmp_path)
    assert again.append(make_batch([b"other epoch"], sequence=0, epoch=1)) == 3
    assert [value for _, value in values(again)] == [b"a", b"b", b"c", b"other epoch"]
    again.close()


def test_only_what_is_on_disk_can_be_read(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path)
    log.append(make_batch([b"a"]))
    assert values(log) == []
    log.sync()
    log.mark_stable(1)
    assert values(log) == [(0, b"a")]
    log.close()


async def test_what_the_disk_refuses_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, flusher = PartitionLog(tmp_path), Flusher()
    log.append(make_batch([b"a"], sequence=0))
    await flusher.flush([log])

    def fail() -> None:
        raise OSError(28, "No space left on device")

    log.append(make_batch([b"b"], sequence=1))
    with monkeypatch.context() as patch:
        patch.setattr(log, "sync", fail)
        waiting = [asyncio.ensure_future(flusher.flush([log])) for _ in range(3)]
        assert all(isinstance(e, OSError) for e in await asyncio.gather(*waiting, return_exceptions=True))
    assert (log.end_offset, log.stable_offset) == (1, 1)
    assert log.append(make_batch([b"b again"], sequence=1)) == 1
    await flusher.flush([log])
    assert values(log) == [(0, b"a"), (1, b"b again")]
    log.close()


def test_the_first_record_of_a_time(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, segment_bytes=200)
    fill(log, [make_batch([b"x"], timestamp_ms=time_ms) for time_ms in (100, 300, 200, 400)])
    assert [log.offset_at(t) for t in (0, 150, 300, 301, 400, 401)] == [
        (0, 100),
        (1, 300),
        (1, 300),
        (3, 400),
        (3, 400),
        None,
    ]
    log.close()


def test_deleted_records_stay_deleted(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, segment_bytes=200)
    fill(log, [make_batch([b"%d" % i]) for i in range(10)])
    num_files = len(list(tmp_path.glob("*.log")))
    log.delete_before(6)
    assert log.start_offset == 6
    assert len(list(tmp_path.glob("*.log"))) < num_files
    log.close()
    again = PartitionLog(tmp_path, segment_bytes=200)
    assert (again.start_offset, again.end_offset) == (6, 10)
    again.delete_before(10)
    again.close()
    empty = PartitionLog(tmp_path)
    assert (empty.start_offset, empty.end_offset) == (10, 10)
    empty.close()


def test_closed_files_go_by_age_and_by_size(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, segment_bytes=200)
    fill(log, [make_batch([b"%d" % i], timestamp_ms=i * 100) for i in range(12)])
    log.delete_old(before_ms=400, max_bytes=None)
    assert 0 < log.start_offset <= 4
    log.delete_old(before_ms=None, max_bytes=300)
    assert log.size < 300 + 200  # and what is left of a file that holds both
    log.delete_old(before_ms=1 << 60, max_bytes=0)
    assert log.end_offset == 12
    assert values(log, log.start_offset)[-1] == (11, b"11")
    log.close()


def test_compaction_keeps_the_newest_of_each_key_at_its_offset(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, segment_bytes=1_000)
    keys: list[bytes | None] = [b"a", b"b", b"c"]
    fill(log, [make_batch([b"once"], keys=[b"rare"])])
    fill(log, [make_batch([b"%d" % i] * 3, keys=keys) for i in range(200)])
    before, newest = log.size, dict(values(log))
    deque(log.compact(), maxlen=0)
    assert log.size < before / 5
    after = dict(values(log))
    assert after.items() <= newest.items()
    assert after[0] == b"once"
    assert {after[offset] for offset in (598, 599, 600)} == {b"199"}
    log.close()
    again = PartitionLog(tmp_path, segment_bytes=1_000)
    assert dict(values(again)) == after
    assert again.end_offset == 601
    again.close()


MEDDLERS: dict[str, Callable[[PartitionLog], object]] = {
    "append": lambda log: log.mark_stable(log.append(make_batch([b"new"], keys=[b"a"])) + 1),
    "append what is not on disk": lambda log: log.append(make_batch([b"new"], keys=[b"a"])),
    "forget what is not on disk": lambda log: (log.append(make_batch([b"new"])), log.forget_unstable()),
    "read": lambda log: values(log),
    "delete all before the end": lambda log: log.delete_before(log.stable_offset),
    "delete the oldest": lambda log: log.delete_old(before_ms=None, max_bytes=log.size // 2),
}


@pytest.mark.parametrize("meddle", MEDDLERS.values(), ids=MEDDLERS)
def test_whatever_happens_between_two_steps_of_a_compaction_the_newest_of_each_key_stays(
    tmp_path: Path, meddle: Callable[[PartitionLog], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.broker.log._STEP_BYTES", 1)
    log = PartitionLog(tmp_path, segment_bytes=500)
    fill(log, [make_batch([b"once"], keys=[b"rare"])])
    fill(log, [make_batch([b"%d" % i], keys=[b"ab"[i % 2 : i % 2 + 1]]) for i in range(40)])
    for step, _ in enumerate(log.compact()):
        if step % 20 == 5:
            meddle(log)
    log.mark_stable(log.end_offset)
    end = log.end_offset
    after = values(log, log.start_offset)
    log.close()
    again = PartitionLog(tmp_path, segment_bytes=500)
    assert again.end_offset == end
    assert values(again, again.start_offset) == after
    if not again.start_offset:
        found = dict(after)
        assert (found[0], found[40]) == (b"once", b"39")
        assert found.get(39) == b"38" or b"new" in found.values()
    assert [offset for offset, _ in after] == sorted({offset for offset, _ in after})
    again.close()


@pytest.mark.parametrize("end", [PartitionLog.close, PartitionLog.delete])
def test_a_compaction_ends_where_its_log_does(
    tmp_path: Path, end: Callable[[PartitionLog], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.broker.log._STEP_BYTES", 1)
    for num_steps in range(0, 60, 7):
        log = PartitionLog(tmp_path / str(num_steps), segment_bytes=500)
        fill(log, [make_batch([b"%d" % i], keys=[b"a"]) for i in range(40)])
        steps = log.compact()
        assert len(list(islice(steps, num_steps))) == num_steps
        end(log)
        deque(steps, maxlen=0)


def test_compaction_leaves_what_a_producer_sent_last(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, segment_bytes=500)
    first = make_batch([b"old"], keys=[b"a"], sequence=0)
    fill(log, [first, *(make_batch([b"%d" % i], keys=[b"a"]) for i in range(40))])
    deque(log.compact(), maxlen=0)
    log.close()
    again = PartitionLog(tmp_path, segment_bytes=500)
    assert again.append(first) == 0
    assert again.append(make_batch([b"next"], keys=[b"a"], sequence=1)) == 41
    with pytest.raises(OutOfOrder):
        again.append(make_batch([b"lost one"], keys=[b"a"], sequence=3))
    again.close()


async def test_a_log_deleted_in_the_midst_of_a_flush_harms_no_other(tmp_path: Path) -> None:
    gone, kept, flusher = PartitionLog(tmp_path / "gone"), PartitionLog(tmp_path / "kept"), Flusher()
    gone.append(make_batch([b"a"]))
    kept.append(make_batch([b"b"]))
    flushing = asyncio.ensure_future(flusher.flush([gone, kept]))
    gone.delete()
    await asyncio.wait_for(flushing, 5)
    assert values(kept) == [(0, b"b")]
    kept.close()


def test_compaction_keeps_records_without_a_key_and_those_whose_newer_is_not_on_disk(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, segment_bytes=300)
    fill(log, [make_batch([b"bare"]), make_batch([b"v1"], keys=[b"k"]), *([make_batch([b"x"])] * 10)])
    log.append(make_batch([b"v2"], keys=[b"k"]))
    deque(log.compact(), maxlen=0)
    log.forget_unstable()
    assert [value for _, value in values(log)][:2] == [b"bare", b"v1"]
    log.close()


def saved(**changes: object) -> str:
    topic = {"id": "0" * 32, "num_partitions": 1, "configs": {}} | changes
    return json.dumps({"topics": {"t": topic}})


DAMAGED_LISTS = [
    None,
    "",
    "{",
    "[]",
    "[" * 100_000,
    '{"next_producer_id": Infinity}',
    '{"topics": {"t": {}}}',
    saved(num_partitions=0),
    saved(num_partitions=float("inf")),
    saved(configs={"retention.ms": "soon"}),
    saved().replace('"t"', '"../t"'),
]


@pytest.mark.parametrize("text", DAMAGED_LISTS, ids=lambda text: str(text)[:60])
def test_a_damaged_or_missing_list_of_topics_is_named_and_no_record_deleted(
    tmp_path: Path, text: str | None
) -> None:
    topics = Topics(tmp_path)
    topics.create("t", 1, {})
    topics.close()
    path = tmp_path / "topics.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(OSError, match=r"topics\.json is (missing|damaged).*move .*away"):
        Topics(tmp_path)
    assert list((tmp_path / "logs").iterdir())


def test_damaged_lines_among_the_commits_are_passed_over(tmp_path: Path) -> None:
    lines = [
        '["g", "t", 0, Infinity, null]',
        "[" * 100_000,
        '["g", "t", 1, 5, null]',
        '["g", "t", 2, 7, ["text"]]',
        '["g", "t", 3',
    ]
    (tmp_path / "offsets.jsonl").write_text("\n".join(lines))
    for _ in range(2):
        offsets = GroupOffsets(tmp_path)
        assert {partition: one.offset for (_, partition), one in offsets.of("g").items()} == {1: 5, 2: 7}
        offsets.close()
