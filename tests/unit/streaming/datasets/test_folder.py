"""A data folder as a stream: order, actions, and items with holes."""

from pathlib import Path

import numpy as np
import pytest

from protos.headrace.v1.events_pb2 import Action
from streaming.datasets.folder import load_dataset
from streaming.messages.events import validate_event, validate_item
from tests.unit.streaming.datasets.folders import T, basic, write


def test_events_stand_in_time_order_then_file_order(tmp_path: Path) -> None:
    dataset = basic(tmp_path)
    assert (dataset.time_ms_N - 1_000 * T).tolist() == [100_000, 200_000, 200_000, 300_000]
    assert dataset.row_N.tolist() == [1, 2, 3, 0]
    event = dataset.event(0)
    assert (event.user_id, event.item_id, event.action) == ("8", "2", Action.ACTION_CLICK)
    assert not any(validate_event(dataset.event(n)) for n in range(len(dataset)))


def test_position_breaks_ties_of_time(tmp_path: Path) -> None:
    dataset = basic(tmp_path, position=[1, 0, 5, 4])
    assert dataset.row_N.tolist() == [1, 3, 2, 0]
    assert dataset.position_N is not None
    assert dataset.position_N.tolist() == [0, 4, 5, 1]


def test_ratings_carry_their_value_and_actions_their_name(tmp_path: Path) -> None:
    rated = basic(tmp_path, rating=[5.0, 4.0, None, 2.0])
    assert set(rated.action_N.tolist()) == {int(Action.ACTION_RATING)}
    assert rated.value_N.tolist() == [4.0, 0.0, 2.0, 5.0]
    named = basic(tmp_path, action=["click", "LIKE", "ACTION_CART", "purchase"])
    assert named.action_N.tolist() == [3, 4, 5, 2]
    numbered = basic(tmp_path, action=[2, 3, 4, 5], value=[0.5, 1.5, 2.5, 3.5])
    assert numbered.action_N.tolist() == [3, 4, 5, 2]
    assert numbered.value_N.tolist() == [1.5, 2.5, 3.5, 0.5]


def test_items_may_lack_everything_but_an_id(tmp_path: Path) -> None:
    dataset = basic(tmp_path, item_id=[1, 2, 3, 99])
    assert [item.item_id for item in dataset.items] == ["1", "2", "3", "99"]
    assert list(dataset.items[0].categories) == ["A", "B"]
    assert list(dataset.items[2].categories) == ["A", "C"]
    assert (dataset.items[1].title, dataset.items[2].brand) == ("", "")
    assert not any(validate_item(item) for item in dataset.items)


def test_embeddings_belong_to_the_lines_of_the_items_file(tmp_path: Path) -> None:
    vectors = np.eye(3, 4, dtype=np.float16)
    (tmp_path / "shop").mkdir()
    np.save(tmp_path / "shop" / "title_emb_x.npy", vectors)
    dataset = basic(tmp_path, item_id=[1, 2, 3, 99])
    for k in range(3):
        (embedding,) = dataset.items[k].embeddings
        assert embedding.modality == "text"
        assert list(embedding.values) == vectors[k].tolist()
    assert not dataset.items[3].embeddings


def test_a_slice_is_a_share_of_events(tmp_path: Path) -> None:
    dataset = basic(tmp_path)
    assert dataset.bounds(0.0, 0.5) == (0, 2)
    assert dataset.bounds(0.5, 1.0) == (2, 4)
    with pytest.raises(ValueError, match="slice"):
        dataset.bounds(0.5, 0.4)


def test_a_data_set_can_be_moved_to_end_at_a_moment(tmp_path: Path) -> None:
    dataset = basic(tmp_path)
    moved = dataset.ending_at(10**15)
    assert moved.time_ms_N[-1] == 10**15
    assert np.array_equal(np.diff(moved.time_ms_N), np.diff(dataset.time_ms_N))


def test_an_event_has_the_id_of_what_it_says_in_any_folder(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {
        "user_id": [1, 1, 2, 2],
        "item_id": [1, 1, 2, 3],
        "timestamp": [T, T, T + 1, T + 2],
    }
    first = load_dataset(write(tmp_path / "monday" / "export", columns))
    columns["timestamp"] = [T, T, T + 1, T + 3]
    second = load_dataset(write(tmp_path / "tuesday" / "export", columns))
    ours, theirs = ([one.event_id(n) for n in range(4)] for one in (first, second))
    assert len(set(ours)) == 4
    assert ours[:3] == theirs[:3]
    assert ours[3] != theirs[3]
    assert [first.ending_at(10**13).event_id(n) for n in range(4)] == ours


@pytest.mark.case("a folder of 100 items, events on 40")
def test_every_item_is_announced_a_day_before_its_first_event_or_from_the_start(tmp_path: Path) -> None:
    items = [{"item_id": n} for n in range(100)]
    columns: dict[str, list[object]] = {
        "user_id": list(range(40)),
        "item_id": list(range(40)),
        "timestamp": [T + 86_400 * n for n in range(40)],
    }
    dataset = load_dataset(write(tmp_path / "shop", columns, items))
    announced = {item.item_id: item.announced_time_ms for item in dataset.announcements()}
    assert len(announced) == 100
    assert announced["5"] == 1_000 * (T + 86_400 * 4)
    assert announced["99"] == 1_000 * (T - 86_400)
