import numpy as np
import pytest
import torch

from models.measures.ranking_metrics import (
    hierarchical_recall,
    ndcg_at,
    ranking_metrics,
    ranks_in_lists,
    ranks_of_targets,
    recall_at,
)


def test_recall_and_ndcg_of_known_ranks():
    ranks = np.array([0, 2, 9, 10, -1])
    assert recall_at(ranks, 10) == pytest.approx(3 / 5)
    assert recall_at(ranks, 5) == pytest.approx(2 / 5)
    assert ndcg_at(ranks, 5) == pytest.approx((1 + 0.5) / 5)
    assert ndcg_at(ranks, 10) == pytest.approx((1 + 0.5 + 1 / np.log2(11)) / 5)
    assert set(ranking_metrics(ranks)) == {"recall@5", "recall@10", "ndcg@5", "ndcg@10"}


def test_no_cases_give_zero():
    assert ranking_metrics(np.zeros(0, dtype=np.int64)) == dict.fromkeys(
        ("recall@5", "recall@10", "ndcg@5", "ndcg@10"), 0.0
    )


def test_ranks_in_padded_lists():
    listed = np.array([[4, 2, -1], [7, 8, 9], [1, -1, -1]])
    assert ranks_in_lists(listed, np.array([2, 1, -1])).tolist() == [1, -1, -1]


def test_ranks_of_targets_count_what_is_better():
    logits = torch.tensor([[0.5, 0.9, 0.1], [0.5, -torch.inf, 0.1], [-torch.inf, 1.0, 2.0]])
    assert ranks_of_targets(logits, torch.tensor([0, 2, 0])).tolist() == [1, 1, -1]


def test_ties_give_the_middle_not_the_top():
    assert ranks_of_targets(torch.zeros(1, 101), torch.tensor([7])).tolist() == [50]


def test_hierarchical_recall_of_prefixes():
    codes = np.array([[1, 2, 3], [4, 5, 6]])
    assert hierarchical_recall(np.array([[[0], [1]], [[4], [-1]]]), codes) == 1.0
    assert hierarchical_recall(np.array([[[1, 2], [0, 0]], [[4, 0], [-1, -1]]]), codes) == 0.5
    assert hierarchical_recall(np.zeros((0, 2, 1), dtype=np.int64), np.zeros((0, 3), dtype=np.int64)) == 0.0
