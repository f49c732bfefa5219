"""A history store's writer in a process of its own, as the projector is one beside the gateway's reader.

`python -m tests.contract.history_writer FOLDER` applies each line of its input, a list of records, and
answers with an empty line when they can be read.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from protos.headrace.v1.events_pb2 import Event
from streaming.histories.store import HistoryStore, Written
from streaming.messages.records import Record, split_position

_REPOSITORY = Path(__file__).parents[2]


def apply(store: HistoryStore, ones: Sequence[Written]) -> None:
    """Applies events with the offsets that follow them, as the projector does."""
    records = []
    for one in ones:
        topic, partition = split_position(one.position)
        records.append(
            Record(
                topic=topic,
                partition=partition,
                offset=one.offset,
                key=one.event.user_id,
                timestamp_ms=1,
                message=one.event,
            )
        )
    store.apply(records, {one.position: one.offset + 1 for one in ones})


class WriterProcess:
    """`with WriterProcess(path) as writer: writer.apply(ones)`; who returns from that can read them."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_REPOSITORY,
        )
        self.apply([])

    def apply(self, ones: Sequence[Written]) -> None:
        """As the function above, over there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = [[one.position, one.offset, one.event.SerializeToString().hex()] for one in ones]
        print(json.dumps(line), file=self._process.stdin, flush=True)
        assert self._process.stdout.readline() == "\n", "the writer died"

    def __enter__(self) -> "WriterProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=20)
        assert self._process.returncode == 0


def main() -> None:
    """Applies until its input ends."""
    with HistoryStore.open(Path(sys.argv[1]), read_only=False) as store:
        for line in sys.stdin:
            ones = [
                Written(event=Event.FromString(bytes.fromhex(event)), position=position, offset=offset)
                for position, offset, event in json.loads(line)
            ]
            apply(store, ones)
            sys.stdout.write("\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
