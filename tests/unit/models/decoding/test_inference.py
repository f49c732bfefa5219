"""The states of few and of many positions, where the trunk multiplies in bfloat16."""

import pytest
import torch

from models.batch import HistoryBatch
from models.decoding.inference import MIN_LOW_POSITIONS, Inference
from models.networks.recommender import GenerativeRecommender
from tests.factories import MODEL, make_catalogue


@pytest.fixture
def inference() -> Inference:
    torch.manual_seed(0)
    return Inference(GenerativeRecommender(MODEL), torch.bfloat16)


def histories(num: int, width: int) -> HistoryBatch:
    rows = [[(b * 7 + t) % 20 for t in range(1 + b % width)] for b in range(num)]
    rows[-1] = list(range(width))
    return HistoryBatch.from_lists(
        rows,
        [[2] * len(row) for row in rows],
        [list(range(len(row))) for row in rows],
        max_history=MODEL.max_history,
    )


@pytest.mark.parametrize("num", [1, 3, 2 * MIN_LOW_POSITIONS])
def test_states_in_another_format_are_nearly_those_of_the_network(inference: Inference, num: int) -> None:
    torch.manual_seed(0)
    recommender, catalogue = GenerativeRecommender(MODEL).eval(), make_catalogue()
    history = histories(num, 5)
    with torch.no_grad():
        item_ND = recommender.encode_items(catalogue.codes_NC, catalogue.content_NE)
        expected = recommender.prefill(history, item_ND)
        found = inference.prefill(history, item_ND)
        more = histories(num, 2)
        longer, extended = (
            one.extend(states, more, item_ND) for one, states in ((recommender, expected), (inference, found))
        )
    assert found.cache.key_ZBHTE.dtype == torch.bfloat16
    assert len(found) == num
    assert torch.equal(found.length_B, expected.length_B)
    torch.testing.assert_close(found.state_BD, expected.state_BD, atol=0.05, rtol=0.05)
    torch.testing.assert_close(extended.state_BD, longer.state_BD, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("num", [1, 2 * MIN_LOW_POSITIONS])
def test_weights_that_are_read_again_are_those_of_a_new_reading(inference: Inference, num: int) -> None:
    """In either format: few positions are computed in float32, many in bfloat16."""
    catalogue, history = make_catalogue(), histories(num, 5)
    torch.manual_seed(1)
    other = GenerativeRecommender(MODEL).eval()
    with torch.no_grad():
        item_ND = other.encode_items(catalogue.codes_NC, catalogue.content_NE)
        before = inference.prefill(history, item_ND)
        inference.read_again(other)
        found, new = (one.prefill(history, item_ND) for one in (inference, Inference(other, torch.bfloat16)))
    assert not torch.equal(before.state_BD, new.state_BD)
    assert torch.equal(found.state_BD, new.state_BD)
