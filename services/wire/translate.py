"""Messages <-> the arrays and rows of `models`, and nothing else: no validation, no I/O."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from models.arrays import Int64Array
from models.batch import IMPRESSION, SKIP, EventBatch, HistoryBatch
from models.candidates import Candidates, Source
from models.catalogue.index import CatalogueIndex
from models.kernels.row_sets import open_positions
from models.tokenizers.content import Vectors
from protos.headrace.v1.events_pb2 import Event, HistoryEvent
from protos.headrace.v1.generator_pb2 import Candidates as CandidatesMessage
from protos.headrace.v1.items_pb2 import Item, ItemSid, SemanticId
from streaming.messages.meaning import EventMeaning, Meaning

PastEvent = tuple[int, int, int]
"""Catalogue row, action, milliseconds since the Unix epoch."""

_MODEL_ACTION = {Meaning.NOTHING: IMPRESSION, Meaning.AVERSION: SKIP}


def known_past(
    history: Sequence[HistoryEvent], catalogue: CatalogueIndex, meaning: EventMeaning
) -> list[PastEvent]:
    """One user's wishes, in the order given, without those for items that the catalogue does not know."""
    wishes = [event for event in history if meaning.of(event.action, event.value) is Meaning.WISH]
    rows = catalogue.rows([event.item_id for event in wishes]).tolist()
    return [
        (row, event.action, event.event_time_ms) for row, event in zip(rows, wishes, strict=True) if row >= 0
    ]


def averse_rows(
    history: Sequence[HistoryEvent], catalogue: CatalogueIndex, meaning: EventMeaning
) -> Int64Array:
    """The rows of the items that a user turned down, once for each time; `history` in order of time.

    A later wish for the same item takes it back.
    """
    averse: list[str] = []
    for event in history:
        said = meaning.of(event.action, event.value)
        if said is Meaning.AVERSION:
            averse.append(event.item_id)
        elif said is Meaning.WISH and event.item_id in averse:
            averse = [item_id for item_id in averse if item_id != event.item_id]
    return known_rows(catalogue, averse)


def past_batch(pasts: Sequence[Sequence[PastEvent]], max_history: int) -> HistoryBatch:
    """Pasts of several users, each cut to its newest `max_history` events."""
    items, actions, times_ms = ([[event[n] for event in past] for past in pasts] for n in range(3))
    return HistoryBatch.from_lists(items, actions, times_ms, max_history=max_history)


def model_action(action: int, value: float, meaning: EventMeaning) -> int:
    """The action as the models take it: a rating of few stars is a skip, one without stars an impression."""
    return _MODEL_ACTION.get(meaning.of(action, value), action)


def event_batch(events: Sequence[Event], row_N: Int64Array, meaning: EventMeaning) -> EventBatch:
    """Events with the catalogue row of each one's item."""
    return EventBatch(
        event_ids=[event.event_id for event in events],
        user_ids=[event.user_id for event in events],
        item_N=row_N,
        action_N=np.array(
            [model_action(event.action, event.value, meaning) for event in events], dtype=np.int64
        ),
        time_ms_N=np.array([event.event_time_ms for event in events], dtype=np.int64),
        value_N=np.array([event.value for event in events], dtype=np.float64),
    )


def known_rows(catalogue: CatalogueIndex, item_ids: Sequence[str]) -> Int64Array:
    """The rows of those items that the catalogue knows."""
    rows = catalogue.rows(item_ids)
    return rows[rows >= 0]


def to_sources(numbers: Iterable[int]) -> frozenset[Source]:
    """The candidate sources with these numbers; numbers that name none are left out."""
    return frozenset(Source(number) for number in numbers if number in Source._value2member_map_)


def candidates_message(candidates: Candidates, item_ids: Sequence[str]) -> CandidatesMessage:
    """The candidates as the generator answers them, in order, without their dense scores."""
    return CandidatesMessage(
        item_ids=[item_ids[row] for row in candidates.row_M.tolist()],
        source_masks=candidates.source_M.tolist(),
        beam_scores=candidates.beam_M.tolist(),
    )


def candidates_of(message: CandidatesMessage, catalogue: CatalogueIndex) -> Candidates:
    """The candidates as the ranker takes them: known, available, each once; dense scores left open."""
    row_M = catalogue.rows(message.item_ids)
    kept_U = open_positions(row_M, catalogue.available_N, np.empty(0, dtype=np.int64))
    mask_M = np.array(message.source_masks, dtype=np.int64)[kept_U]
    beam_M = np.array(message.beam_scores, dtype=np.float32)[kept_U]
    beam_M[(mask_M & Source.BEAM.bit) == 0] = np.nan
    return Candidates(
        row_M=row_M[kept_U],
        source_M=mask_M,
        beam_M=beam_M,
        dense_M=np.full(len(kept_U), np.nan, dtype=np.float32),
    )


def item_sid(
    item: Item, codes: Sequence[int], content_E: Tensor, codebook_version: str, *, announced_time_ms: int
) -> ItemSid:
    """The record of topic `semantic-ids` for an item."""
    return ItemSid(
        item_id=item.item_id,
        sid=SemanticId(codebook_version=codebook_version, codes=codes),
        content=content_E.tolist(),
        unavailable=item.unavailable,
        announced_time_ms=announced_time_ms,
    )


def vectors_of(item: Item) -> Vectors:
    """The vectors that an item brings, by modality."""
    return {one.modality: np.array(one.values, dtype=np.float32) for one in item.embeddings}


def content_of(sid: ItemSid) -> Tensor:
    """The content embedding of a `semantic-ids` record, float32 [E]."""
    return torch.from_numpy(np.array(sid.content, dtype=np.float32))  # 20 times as fast as torch.tensor
