"""Batches padded to few sizes hold what they held."""

import torch

from models.batch import HistoryBatch, few_sizes
from models.networks.ranker import PADDING_LOGIT, Ranker, RankingBatch
from models.sequences.windows import TrainingBatch
from tests.factories import MODEL


def test_there_are_few_sizes_and_none_is_much_larger_than_it_need_be() -> None:
    sizes = [few_sizes(size) for size in range(1, 1025)]
    assert all(size <= padded <= max(4, 1.25 * size + 4) for size, padded in enumerate(sizes, start=1))
    assert sorted(set(sizes[:64])) == [4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64]
    assert len(set(sizes[64:])) == 16
    assert few_sizes(0) == 0


def test_a_batch_in_few_sizes_has_the_same_windows_and_targets() -> None:
    history = HistoryBatch.from_lists([[1, 2, 3, 4, 5]], [[2] * 5], [[7] * 5], max_history=5)
    batch = TrainingBatch(
        history=history, target_BT=torch.tensor([[-1, -1, -1, -1, 9]]), first_B=torch.tensor([1])
    )
    assert batch.num_targets == 2
    padded = batch.in_few_sizes(max_history=50)
    assert padded.target_BT.shape == padded.history.item_BT.shape == (4, 8)
    assert padded.num_targets == 2
    assert padded.history.length_B.tolist() == [5, 0, 0, 0]
    assert torch.equal(padded.history.item_BT[:1, :5], history.item_BT)
    assert padded.history.item_BT[0, 5:].tolist() == [-1] * 3
    assert padded.first_B.tolist() == [1, -1, -1, -1]
    assert batch.in_few_sizes(max_history=5).target_BT.shape == (4, 5)


def test_a_ranking_batch_in_few_sizes_ranks_the_same() -> None:
    torch.manual_seed(0)
    ranker = Ranker(MODEL, 2).eval()
    item_ND = torch.randn(20, MODEL.d_model)
    batch = RankingBatch(
        history=HistoryBatch.from_lists([[1, 2, 3, 4, 5], []], [[2] * 5, []], [[7] * 5, []], max_history=5),
        row_BM=torch.tensor([[1, 2, 3, 4, 5], [6, 7, -1, -1, -1]]),
        source_BM=torch.randint(0, 200, (2, 5)),
        beam_BM=torch.full((2, 5), torch.nan),
        dense_BM=torch.randn(2, 5),
        feature_BMF=torch.randn(2, 5, 2),
    )
    padded = batch.in_few_sizes()
    assert padded.row_BM.shape == padded.history.item_BT.shape == (2, 8)
    with torch.no_grad():
        found, expected = ranker(padded, item_ND), ranker(batch, item_ND)
    torch.testing.assert_close(found.relevance_BM[:, :5], expected.relevance_BM)
    torch.testing.assert_close(found.action_logit_BMA[:, :5], expected.action_logit_BMA)
    assert (found.relevance_BM[:, 5:] == PADDING_LOGIT).all()
