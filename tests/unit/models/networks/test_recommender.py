from dataclasses import replace

import pytest
import torch

from models.batch import HistoryBatch
from models.networks.config import TRUNKS, ModelConfig
from models.networks.recommender import NUM_GAP_BUCKETS, GenerativeRecommender, gap_bucket

CONFIG = ModelConfig(content_dim=12, codebook_size=8, d_model=32, num_heads=4, dropout=0.1)


@pytest.fixture
def recommender() -> GenerativeRecommender:
    torch.manual_seed(0)
    return GenerativeRecommender(CONFIG).eval()


@pytest.fixture
def items() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randint(0, 8, (10, 4)), torch.randn(10, 12)


def histories(max_history: int = 50) -> HistoryBatch:
    return HistoryBatch.from_lists(
        [[1, 2, 3], [4], []],
        [[2, 2, 5], [0], []],
        [[0, 1_000, 86_401_000], [7], []],
        max_history=max_history,
    )


def test_gap_buckets():
    times = torch.tensor([[5, 5, 6, 8, 86_400_008, 10, 2**62]])
    assert gap_bucket(times).tolist() == [[0, 1, 2, 3, 28, 1, NUM_GAP_BUCKETS - 1]]


def test_shapes_and_the_empty_history(recommender, items):
    item_ND = recommender.encode_items(*items)
    history = histories()
    assert recommender.user_states(history, item_ND).shape == (3, 3, 32)
    last = recommender.last_state(history, item_ND)
    assert torch.equal(last[2], recommender.empty_state)
    torch.testing.assert_close(last[1], recommender.user_states(history, item_ND)[1, 0])


def test_a_history_is_read_the_same_in_any_batch(recommender, items):
    item_ND = recommender.encode_items(*items)
    together = recommender.last_state(histories(), item_ND)
    alone = HistoryBatch.from_lists([[4]], [[0]], [[7]], max_history=50)
    torch.testing.assert_close(recommender.last_state(alone, item_ND)[0], together[1])


@pytest.mark.parametrize("trunk", TRUNKS)
def test_either_trunk_extends_a_state_by_the_events_that_came(items, trunk):
    torch.manual_seed(0)
    recommender = GenerativeRecommender(replace(CONFIG, trunk=trunk)).eval()
    item_ND, whole = recommender.encode_items(*items), histories()
    known = HistoryBatch.from_lists([[1], [4], []], [[2], [0], []], [[0], [7], []], max_history=50)
    rest = ([[2, 3], [], []], [[2, 5], [], []], [[1_000, 86_401_000], [], []])
    new = HistoryBatch.from_lists(*rest, max_history=50)
    states = recommender.extend(recommender.prefill(known, item_ND), new, item_ND)
    expected = recommender.user_states(whole, item_ND)[[0, 1], [2, 0]]
    torch.testing.assert_close(states.state_BD[:2], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(states.state_BD[2], recommender.empty_state)
    assert states.length_B.tolist() == [3, 1, 0]


def test_a_new_item_needs_only_its_codes_and_content(recommender, items):
    codes, content = items
    item_ND = recommender.encode_items(codes, content)
    torch.testing.assert_close(recommender.encode_items(codes[7:8], content[7:8])[0], item_ND[7])
    sibling = recommender.encode_items(codes[7:8].add(1).remainder(8), content[7:8])
    assert not torch.allclose(sibling[0], item_ND[7])


def test_dense_logits_are_a_cosine_over_the_temperature(recommender, items):
    vector_ND = recommender.item_vectors(recommender.encode_items(*items))
    torch.testing.assert_close(vector_ND.norm(dim=1), torch.ones(10))
    logits = recommender.dense_logits(torch.randn(4, 32), vector_ND)
    assert logits.shape == (4, 10)
    assert logits.abs().max() <= 1 / recommender.log_temperature.exp() + 1e-4


def test_actions_and_gaps_change_the_state(recommender, items):
    item_ND = recommender.encode_items(*items)
    histories = HistoryBatch.from_lists(
        [[1, 2], [1, 2], [1, 2]], [[2, 2], [2, 5], [2, 2]], [[0, 9], [0, 9], [0, 86_400_000]], max_history=2
    )
    state = recommender.last_state(histories, item_ND)
    assert not torch.allclose(state[0], state[1], atol=1e-5)
    assert not torch.allclose(state[0], state[2], atol=1e-5)
