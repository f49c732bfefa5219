"""The embedded broker's log of one partition: what is kept, in which order, and what a crash leaves."""

import asyncio
from pathlib import Path

import pytest

from streaming.broker.batches import BadBatch
from streaming.broker.flusher import Flusher
from streaming.broker.log import Fenced, OutOfOrder, PartitionLog
from tests.unit.streaming.broker.partition_logs import fill, make_batch, values


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


async def test_a_log_deleted_in_the_midst_of_a_flush_harms_no_other(tmp_path: Path) -> None:
    gone, kept, flusher = PartitionLog(tmp_path / "gone"), PartitionLog(tmp_path / "kept"), Flusher()
    gone.append(make_batch([b"a"]))
    kept.append(make_batch([b"b"]))
    flushing = asyncio.ensure_future(flusher.flush([gone, kept]))
    gone.delete()
    await asyncio.wait_for(flushing, 5)
    assert values(kept) == [(0, b"b")]
    kept.close()
