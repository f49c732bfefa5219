"""Compaction of a partition's log: the newest of each key stays, whatever happens meanwhile."""

from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from streaming.broker.log import OutOfOrder, PartitionLog
from tests.unit.streaming.broker.partition_logs import fill, make_batch, values


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


def test_compaction_keeps_records_without_a_key_and_those_whose_newer_is_not_on_disk(tmp_path: Path) -> None:
    log = PartitionLog(tmp_path, segment_bytes=300)
    fill(log, [make_batch([b"bare"]), make_batch([b"v1"], keys=[b"k"]), *([make_batch([b"x"])] * 10)])
    log.append(make_batch([b"v2"], keys=[b"k"]))
    deque(log.compact(), maxlen=0)
    log.forget_unstable()
    assert [value for _, value in values(log)][:2] == [b"bare", b"v1"]
    log.close()
