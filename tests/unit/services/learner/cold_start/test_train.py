"""What a first release can be learned from, and what is said of items that are too much alike."""

from pathlib import Path

import pytest
import torch

from models.catalogue.index import CatalogueIndex
from models.tokenizers.content import unit_vectors
from protos.headrace.v1.events_pb2 import Action, Event
from protos.headrace.v1.items_pb2 import Embedding, Item
from services.learner.cold_start.catalogue import NothingToLearn, prepare_catalogue
from services.learner.cold_start.content import item_content
from services.learner.cold_start.train import train_first_release
from services.settings import Settings
from tests.integration.learner_world import small_settings

NUM_ALIKE = 100


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Two levels of eight codes; nobody listens on the broker's port."""
    return small_settings("127.0.0.1:1", tmp_path)


def ignore(*_: object) -> None:
    """No progress is shown."""


def items_of(vectors: list[list[float]]) -> list[Item]:
    return [
        Item(item_id=f"item-{n}", embeddings=[Embedding(modality="text", values=vector)])
        for n, vector in enumerate(vectors)
    ]


@pytest.mark.case("same-vector, zero-vectors, nan-vectors")
def test_items_that_are_all_alike_can_each_be_reached(settings: Settings) -> None:
    said: list[str] = []
    items = items_of([[1.0] * 16] * NUM_ALIKE)
    catalogue, _ = prepare_catalogue(settings, items, ignore, say=said.append)
    assert isinstance(catalogue, CatalogueIndex)
    assert len(torch.unique(catalogue.codes_NC, dim=0)) == NUM_ALIKE
    assert [catalogue.row_of(codes) for codes in catalogue.codes_NC.tolist()] == [*range(NUM_ALIKE)]
    assert len(said) == 1
    assert "92 of 100 items have a semantic ID that says another content" in said[0]
    said.clear()
    prepare_catalogue(settings, items_of(torch.eye(16).tolist()), ignore, say=said.append)
    assert said == []


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1.0, 1e30])
def test_a_vector_of_any_length_says_the_same(scale: float) -> None:
    vectors = torch.tensor([[3.0, -4.0], [1.0, 0.0]], dtype=torch.float64) * scale
    units = unit_vectors(vectors.float())
    assert torch.allclose(units, torch.tensor([[0.6, -0.8], [1.0, 0.0]]), atol=1e-4)
    assert unit_vectors(torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]


def test_more_items_than_codes_are_refused_by_number(settings: Settings) -> None:
    with pytest.raises(NothingToLearn, match=r"513 items are more than the 512 .*CODEBOOK_SIZE"):
        prepare_catalogue(settings, items_of([[1.0] * 16] * 513), ignore)


@pytest.mark.parametrize("odd", [[float("nan")] * 16, [float("inf")] * 16, [1.0] * 7])
def test_an_odd_vector_in_the_topic_is_named_and_costs_only_its_item(odd: list[float]) -> None:
    items = items_of([*torch.eye(16).tolist(), odd])
    content = item_content(items, [], ignore)
    assert content.kept == [*range(16)]
    assert "1 items bring a vector" in content.notes[0]
    assert "'item-16'" in content.notes[0]


def test_what_people_act_on_decides_whether_own_vectors_are_taken() -> None:
    items = items_of(torch.eye(16).tolist()) + [Item(item_id=f"bare-{n}") for n in range(40)]
    events = [Event(user_id="u", item_id=f"item-{n}") for n in range(16)]
    assert item_content(items, events, ignore).kept == [*range(16)]


@pytest.mark.case("one-event-each, one-item, nine-items, no events on the items")
@pytest.mark.parametrize("item_id", ["item-0", "another"])
def test_too_few_events_are_refused_before_anything_else_is_done(settings: Settings, item_id: str) -> None:
    """Without a broker, and without a codebook: nothing was asked, nothing embedded."""
    few = 19 if item_id == "item-0" else 100
    events = [
        Event(event_id=str(n), user_id="u", item_id=item_id, action=Action.ACTION_CLICK, event_time_ms=n + 1)
        for n in range(few)
    ]
    with pytest.raises(NothingToLearn, match=r"too few for a first release; 20 are needed"):
        train_first_release(settings, items_of([[1.0] * 16]), events, offsets={}, progress=ignore)
