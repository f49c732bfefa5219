"""The history store: window, exactly-once, growth; what is read is the contract of every history."""

import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import lmdb
import pytest

from protos.headrace.v1.events_pb2 import Action, Event
from streaming.histories.store import ApplyReport, HistoryStore
from streaming.messages.records import Record


def record(offset: int, *, user: str = "u", event_id: str = "", partition: int = 0) -> Record:
    event = Event(
        event_id=event_id or f"{partition}-{offset}",
        user_id=user,
        item_id=f"i{offset}",
        action=Action.ACTION_CLICK,
        event_time_ms=1_000 + offset,
        value=0.5,
    )
    return Record(
        topic="interactions", partition=partition, offset=offset, key=user, timestamp_ms=1, message=event
    )


def test_a_reader_that_comes_while_the_store_is_made_finishes_it(tmp_path: Path) -> None:
    lmdb.open(str(tmp_path / "h"), max_dbs=4).close()  # a file, and none of the databases in it
    with HistoryStore.open(tmp_path / "h", read_only=True) as store:
        assert store.get("u", 10) == []
    with HistoryStore.open(tmp_path / "h", read_only=False) as store:
        assert store.offsets() == {}


def test_users_are_counted_and_the_offsets_known(tmp_path: Path) -> None:
    with HistoryStore.open(tmp_path / "h", read_only=False) as store:
        assert (store.num_users(), store.offsets()) == (0, {})
        store.apply([record(0), record(1), record(2, user="v")], {"interactions/0": 3, "interactions/1": 7})
        assert store.num_users() == 2
        assert store.offsets() == {"interactions/0": 3, "interactions/1": 7}


def test_a_record_is_applied_once_and_offsets_never_go_back(tmp_path: Path) -> None:
    with HistoryStore.open(tmp_path / "h", read_only=False) as store:
        store.apply([record(0), record(1)], {"interactions/0": 2})
        again = store.apply([record(0), record(1), record(2)], {"interactions/0": 3})
        assert again == ApplyReport(num_applied=1, num_replayed=2)
        assert store.apply([], {"interactions/0": 1}) == ApplyReport()
        assert store.offsets() == {"interactions/0": 3}
        assert store.count("u") == 3


def test_the_same_event_id_counts_once_inside_the_window(tmp_path: Path) -> None:
    with HistoryStore.open(tmp_path / "h", read_only=False, max_events=3) as store:
        first = store.apply([record(0, event_id="x"), record(1, event_id="x")], {"interactions/0": 2})
        assert first == ApplyReport(num_applied=1, num_duplicates=1)
        # the same id of another user is another event
        assert store.apply([record(2, user="v", event_id="x")], {"interactions/0": 3}).num_applied == 1
        store.apply([record(i) for i in range(3, 6)], {"interactions/0": 6})
        assert [event.item_id for event in store.get("u", 10)] == ["i3", "i4", "i5"]
        assert store.count("u") == 4
        # x fell out of the window of three
        assert store.apply([record(6, event_id="x")], {"interactions/0": 7}).num_applied == 1


def test_the_map_grows_and_state_survives_reopening(tmp_path: Path) -> None:
    with HistoryStore.open(tmp_path / "h", read_only=False, map_bytes=1 << 17) as store:
        for start in range(0, 3_000, 500):
            records = [record(i, user=f"u{i % 50}") for i in range(start, start + 500)]
            store.apply(records, {"interactions/0": start + 500})
    with HistoryStore.open(tmp_path / "h", read_only=False) as store:
        assert sum(store.count(f"u{u}") for u in range(50)) == 3_000
        assert store.offsets() == {"interactions/0": 3_000}


def test_a_failed_apply_changes_nothing(tmp_path: Path) -> None:
    broken = Record(topic="interactions", partition=0, offset=1, key="u", timestamp_ms=1, message=None)
    with HistoryStore.open(tmp_path / "h", read_only=False) as store:
        with pytest.raises(AttributeError):
            store.apply([record(0), broken], {"interactions/0": 2})
        assert (store.count("u"), store.offsets()) == (0, {})


def test_a_reader_in_another_process_sees_what_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "h"
    program = (
        "import sys; from pathlib import Path; from streaming.histories.store import HistoryStore\n"
        "store = HistoryStore.open(Path(sys.argv[1]), read_only=True, map_bytes=1 << 17)\n"
        "for line in sys.stdin: print(store.count('u0'), len(store.get('u0', 10_000)), flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[4],
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None

        def ask() -> str:
            assert reader.stdin is not None
            assert reader.stdout is not None
            reader.stdin.write("?\n")
            reader.stdin.flush()
            return reader.stdout.readline().strip()

        assert ask() == "0 0"
        # the reader mapped the file at its first size; the writer lets it grow
        with HistoryStore.open(path, read_only=False, map_bytes=1 << 17) as store:
            for start in range(0, 4_000, 1_000):
                records = [record(i, user=f"u{i % 5}") for i in range(start, start + 1_000)]
                store.apply(records, {"interactions/0": start + 1_000})
                assert ask() == f"{(start + 1_000) // 5} {(start + 1_000) // 5}"
        reader.stdin.close()
        assert reader.wait(10) == 0


def test_random_streams_equal_an_obvious_reference(tmp_path: Path) -> None:
    rng = random.Random(7)
    reference: dict[str, list[tuple[str, str]]] = defaultdict(list)
    window = 5
    with HistoryStore.open(tmp_path / "h", read_only=False, max_events=window) as store:
        for start in range(0, 400, 40):
            batch = []
            for offset in range(start, start + 40):
                user, event_id = f"u{rng.randrange(6)}", f"e{rng.randrange(60)}"
                batch.append(record(offset, user=user, event_id=event_id))
                if event_id not in [kept for kept, _ in reference[user][-window:]]:
                    reference[user].append((event_id, f"i{offset}"))
            store.apply(batch, {"interactions/0": start + 40})
        for user, events in reference.items():
            assert store.count(user) == len(events)
            assert [e.item_id for e in store.get(user, 99)] == [item for _, item in events[-window:]]
