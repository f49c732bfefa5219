"""Messages become the right arrays and back."""

import numpy as np

from models.candidates import Candidates, Source
from protos.headrace.v1.generator_pb2 import Candidates as CandidatesMessage
from protos.headrace.v1.recommend_pb2 import CANDIDATE_SOURCE_BEAM, CANDIDATE_SOURCE_DENSE
from services.wire import translate
from services.wire.source_masks import sources_of
from streaming.messages.meaning import EventMeaning
from streaming.messages.records import offset_messages
from tests.factories import make_catalogue, make_history


def test_history_keeps_only_known_items_and_the_newest() -> None:
    index = make_catalogue()
    history = make_history(1, 999, 2, 3)
    batch = translate.past_batch([translate.known_past(history, index, EventMeaning()), []], max_history=2)
    assert batch.item_BT[0].tolist() == [2, 3]
    assert batch.time_ms_BT[0].tolist() == [history[2].event_time_ms, history[3].event_time_ms]
    assert batch.length_B.tolist() == [2, 0]


def test_candidates_round_trip() -> None:
    index = make_catalogue()
    sent = Candidates(
        row_M=np.array([4, 7]),
        source_M=np.array([Source.BEAM.bit | Source.DENSE.bit, Source.DENSE.bit]),
        beam_M=np.array([-2.5, np.nan], dtype=np.float32),
        dense_M=np.array([1.5, 0.5], dtype=np.float32),
    )
    message = translate.candidates_message(sent, index.item_ids)
    assert list(message.item_ids) == ["item-4", "item-7"]
    assert sources_of(message.source_masks[0]) == (CANDIDATE_SOURCE_BEAM, CANDIDATE_SOURCE_DENSE)
    index.set_available(7, False)
    message.item_ids.extend(["item-4", "nobody"])
    message.source_masks.extend([0, 0])
    message.beam_scores.extend([-1.0, -1.0])
    got = translate.candidates_of(message, index)
    assert got.row_M.tolist() == [4]
    assert got.source_M.tolist() == [Source.BEAM.bit | Source.DENSE.bit]
    assert got.beam_M.tolist() == [-2.5]
    assert np.isnan(got.dense_M).all()
    assert len(translate.candidates_of(CandidatesMessage(), index)) == 0


def test_candidates_keep_their_order_and_a_beam_score_needs_the_beam() -> None:
    message = CandidatesMessage(
        item_ids=["item-9", "item-2", "item-5"],
        source_masks=[Source.BEAM.bit, Source.DENSE.bit, Source.BEAM.bit],
        beam_scores=[-1.0, -2.0, -3.0],
    )
    got = translate.candidates_of(message, make_catalogue())
    assert got.row_M.tolist() == [9, 2, 5]
    np.testing.assert_array_equal(got.beam_M, np.array([-1.0, np.nan, -3.0], dtype=np.float32))


def test_offsets_become_messages_in_order() -> None:
    messages = offset_messages({"semantic-ids/0": 2, "interactions/3": 17})
    assert [(m.topic, m.partition, m.offset) for m in messages] == [
        ("interactions", 3, 17),
        ("semantic-ids", 0, 2),
    ]
