"""DIN: the split activation unit equals the plain one, padding has no say, and it learns."""

import torch
from torch.nn import functional

from models.baselines.din import DinRanker
from models.batch import ACTION_NAMES, HistoryBatch
from models.networks.config import ModelConfig
from models.networks.ranker import RankingBatch, RankingTargets, action_labels, ranking_loss

MODEL = ModelConfig(d_model=12, num_heads=2, ranker_dim=8, content_dim=4)
NUM_FEATURES, NUM_ITEMS = 3, 20
CLICK = ACTION_NAMES.index("click")


def make_batch(padding: int = 0) -> RankingBatch:
    history = HistoryBatch.from_lists(
        [[1, 2, 3], [], [7, 8]], [[2, 2, 3], [], [2, 4]], [[1, 9, 70], [], [5, 6]], max_history=9
    )
    generator = torch.Generator().manual_seed(0)
    pad = {"item_BT": -1, "action_BT": 0, "time_ms_BT": 0}
    columns = {
        name: functional.pad(getattr(history, name), (0, padding), value=fill) for name, fill in pad.items()
    }
    return RankingBatch(
        history=HistoryBatch(length_B=history.length_B, **columns),
        row_BM=torch.tensor([[4, 1, 5, 6], [9, 8, 7, -1], [2, 3, -1, -1]]),
        source_BM=torch.full((3, 4), 6),
        beam_BM=torch.full((3, 4), torch.nan),
        dense_BM=torch.randn(3, 4, generator=generator),
        feature_BMF=torch.randn(3, 4, NUM_FEATURES, generator=generator),
    )


def make_ranker() -> tuple[DinRanker, torch.Tensor]:
    torch.manual_seed(0)
    return DinRanker(MODEL, NUM_FEATURES), torch.randn(NUM_ITEMS, MODEL.d_model)


def test_activation_unit_equals_the_network_on_all_four_parts() -> None:
    ranker, _ = make_ranker()
    event_BTD, candidate_BMD = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    weight_BMT = ranker._activation(event_BTD, candidate_BMD)
    for b in range(2):
        for m in range(3):
            for t in range(5):
                event, candidate = event_BTD[b, t], candidate_BMD[b, m]
                unit = ranker.of_event(event) + ranker.of_candidate(candidate)
                unit = unit + ranker.of_both @ (event * candidate)
                expected = ranker.unit_weight(ranker.unit_activation(unit[None]))[0, 0]
                torch.testing.assert_close(weight_BMT[b, m, t], expected, rtol=1e-5, atol=1e-6)


def test_padding_changes_nothing_and_is_never_first() -> None:
    ranker, item_ND = make_ranker()
    plain, padded = ranker(make_batch(), item_ND), ranker(make_batch(padding=4), item_ND)
    torch.testing.assert_close(plain.relevance_BM, padded.relevance_BM)
    torch.testing.assert_close(plain.action_logit_BMA, padded.action_logit_BMA)
    assert plain.relevance_BM.argmax(1).tolist()[2] < 2
    assert (plain.relevance_BM[1, 3:] < -1e8).all()


def test_it_learns_like_the_ranker_does() -> None:
    ranker, item_ND = make_ranker()
    targets = RankingTargets(
        target_B=torch.tensor([2, 0, 1]),
        chosen_B=torch.ones(3, dtype=torch.bool),
        action_BA=action_labels(torch.full((3,), CLICK), torch.zeros(3)),
    )
    optimiser = torch.optim.AdamW(ranker.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = ranking_loss(ranker(make_batch(), item_ND), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
