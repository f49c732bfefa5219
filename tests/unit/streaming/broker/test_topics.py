"""The list of topics: damaged or missing, it is named, and no record is deleted."""

import json
from pathlib import Path

import pytest

from streaming.broker.topics import Topics


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
