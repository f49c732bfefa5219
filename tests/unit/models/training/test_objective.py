import numpy as np
import pytest
import torch

import models.training.objective
from models.batch import HistoryBatch
from models.catalogue.index import CatalogueIndex
from models.networks.config import ModelConfig
from models.networks.recommender import GenerativeRecommender
from models.sequences.windows import TrainingBatch
from models.tokenizers.codebook import Codebook
from models.training.loss import code_loss
from models.training.objective import Objective

NUM_ITEMS = 30


@pytest.fixture
def recommender() -> GenerativeRecommender:
    torch.manual_seed(0)
    config = ModelConfig(content_dim=6, codebook_size=8, d_model=16, num_heads=2, dropout=0.0)
    return GenerativeRecommender(config)


def make_batch(opening: int) -> TrainingBatch:
    history = HistoryBatch.from_lists([[1, 2, 3], [4]], [[0] * 3, [0]], [[1, 2, 3], [1]], max_history=5)
    return TrainingBatch(
        history=history,
        target_BT=torch.tensor([[-1, 3, 9], [5, -1, -1]]),
        first_B=torch.tensor([-1, opening]),
    )


def make_objective() -> Objective:
    torch.manual_seed(1)
    content = torch.randn(NUM_ITEMS, 6)
    catalogue = CatalogueIndex(Codebook(torch.randn(3, 8, 6)))
    for n in range(NUM_ITEMS):
        prefix = torch.randint(0, 4, (2,)).tolist()
        catalogue.insert(f"i{n}", (*prefix, n % 8, n // 8), content[n], available=n != 20)
    return Objective(catalogue, torch.arange(NUM_ITEMS), seed=0)


def test_a_code_competes_with_its_siblings_alone():
    objective = make_objective()
    target = torch.tensor([3, 9, 20])
    valid = objective._valid_codes(target)
    codes = objective.codes_NC[torch.arange(NUM_ITEMS) != 20]
    for x, row in enumerate(target.tolist()):
        own = objective.codes_NC[row]
        for depth in range(4):
            siblings = codes[(codes[:, :depth] == own[:depth]).all(1), depth].tolist()
            assert valid[x, depth].nonzero()[:, 0].tolist() == sorted({*siblings, int(own[depth])})


def test_only_supervised_positions_and_the_opening_count(recommender):
    objective = make_objective()
    loss = objective(recommender, [make_batch(-1)], torch.float32)
    assert loss.num_targets == 3
    with torch.no_grad():
        item_ND = recommender.encode_items(objective.codes_NC, objective.content_NE)
        state_XD = recommender.user_states(make_batch(-1).history, item_ND)[[0, 0, 1], [1, 2, 0]]
        logits = recommender.dense_logits(state_XD, recommender.item_vectors(item_ND))
        expected = -logits.log_softmax(1)[range(3), [3, 9, 5]].mean()
    torch.testing.assert_close(loss.dense.detach(), expected)
    assert make_objective()(recommender, [make_batch(7)], torch.float32).num_targets == 4


def test_batches_together_cost_the_mean_over_all_their_targets(recommender):
    recommender.eval()
    one, other = make_batch(-1), make_batch(7)
    apart = [make_objective()(recommender, [batch], torch.float32) for batch in (one, other)]
    together = make_objective()(recommender, [one, other], torch.float32)
    assert together.num_targets == sum(loss.num_targets for loss in apart) == 7
    for name in ("dense", "code"):
        expected = sum(getattr(loss, name) * loss.num_targets for loss in apart) / together.num_targets
        torch.testing.assert_close(getattr(together, name), expected)


def test_the_levels_that_are_left_out_would_have_cost_nothing(recommender):
    objective = make_objective()
    state_XD, target_X = torch.randn(NUM_ITEMS, 16), torch.arange(NUM_ITEMS)
    codes_XC = objective.codes_NC
    decoder = recommender.decoder.eval()
    whole = code_loss(decoder(state_XD, codes_XC), codes_XC, objective._valid_codes(target_X))
    torch.testing.assert_close(objective._code_loss(decoder, state_XD, target_X), whole)


def test_every_weight_learns(recommender):
    make_objective()(recommender, [make_batch(7)], torch.float32).total.backward()
    without = [name for name, p in recommender.named_parameters() if p.grad is None]
    assert without == []


def test_the_sampled_objective_is_near_the_full_one(recommender, monkeypatch):
    full = make_objective()(recommender, [make_batch(7)], torch.float32)
    monkeypatch.setattr(models.training.objective, "MAX_FULL_SOFTMAX", 10)
    sampled = make_objective()(recommender, [make_batch(7)], torch.float32)
    assert sampled.code.item() == pytest.approx(full.code.item())
    assert sampled.dense.item() == pytest.approx(full.dense.item(), abs=0.05)


def test_the_sample_depends_on_the_seed_only(recommender, monkeypatch):
    monkeypatch.setattr(models.training.objective, "MAX_FULL_SOFTMAX", 10)
    first, again = (make_objective()(recommender, [make_batch(7)], torch.float32).dense for _ in range(2))
    assert np.array_equal(first.detach().numpy(), again.detach().numpy())
