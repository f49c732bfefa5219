import numpy as np
import pytest
import torch
from torch.nn import functional

from models.batch import EventBatch
from models.catalogue.index import CatalogueIndex
from models.networks.config import ModelConfig
from models.tokenizers.config import CodebookConfig
from models.tokenizers.rq_kmeans import fit_codebook
from models.training.config import TrainConfig
from models.training.offline import learning_rate_factor, train_recommender

NUM_ITEMS = 24
MODEL = ModelConfig(content_dim=8, num_levels=2, codebook_size=8, d_model=32, num_heads=2, dropout=0.1)
TRAIN = TrainConfig(align_epochs=1, max_epochs=25, batch_positions=96, learning_rate=3e-3, patience_epochs=25)


@pytest.fixture(scope="module")
def catalogue() -> CatalogueIndex:
    content = functional.normalize(
        torch.from_numpy(np.random.default_rng(0).normal(size=(NUM_ITEMS, 8))).float()
    )
    index = CatalogueIndex(
        fit_codebook(content, CodebookConfig(num_levels=2, codebook_size=8, num_iterations=3))
    )
    index.add_many([f"i{n}" for n in range(NUM_ITEMS)], content, np.zeros(NUM_ITEMS, dtype=np.int64))
    return index


def make_events(num_users: int, begin: int, end: int) -> EventBatch:
    """Every user walks the items in a circle from a start of their own."""
    rows = [(u, t) for u in range(num_users) for t in range(begin, end)]
    return EventBatch(
        event_ids=[str(n) for n in range(len(rows))],
        user_ids=[f"u{u}" for u, _ in rows],
        item_N=np.array([(u + 5 * t) % NUM_ITEMS for u, t in rows], dtype=np.int64),
        action_N=np.array([2 + t % 3 for _, t in rows], dtype=np.int64),
        time_ms_N=np.array([t * 1_000 for _, t in rows], dtype=np.int64),
        value_N=np.zeros(len(rows)),
    )


def train(catalogue, config=TRAIN, num_validation=1):
    reports = []
    model = train_recommender(
        catalogue,
        make_events(40, 0, 6),
        MODEL,
        config,
        validation=make_events(40, 6, 6 + num_validation),
        progress=lambda *report: reports.append(report),
    )
    return model, reports


def test_it_learns_what_comes_next_in_two_stages(catalogue):
    model, reports = train(catalogue)
    assert not model.training
    assert [stage for stage, *_ in reports][:3] == ["learning the items"] * 3
    assert reports[-1][:3] == ("learning to recommend", 75, 75)
    assert max(metrics.get("recall@5", 0) for *_, metrics in reports) > 0.9
    assert reports[-1][3]["code_loss"] < reports[0][3]["code_loss"] / 2


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_state_alone(catalogue):
    config = TrainConfig(max_epochs=1, batch_positions=96)
    torch.manual_seed(5)
    (first, _), (again, _) = train(catalogue, config), train(catalogue, config)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_alignment_moves_the_item_encoder_only(catalogue):
    with_alignment, _ = train(catalogue, TrainConfig(align_epochs=1, max_epochs=0, batch_positions=96))
    without, _ = train(catalogue, TrainConfig(align_epochs=0, max_epochs=0, batch_positions=96))
    before = without.state_dict()
    moved = {n for n, w in with_alignment.state_dict().items() if not torch.equal(w, before[n])}
    assert moved == {"code_embedding", "content.weight", "content.bias"}


def test_without_validation_events_it_trains_to_the_end(catalogue):
    _, reports = train(
        catalogue, TrainConfig(max_epochs=2, align_epochs=0, batch_positions=96), num_validation=0
    )
    assert reports[-1][:3] == ("learning to recommend", 6, 6)
    assert "recall@10" not in reports[-1][3]


def test_it_stops_when_validation_has_not_improved(catalogue):
    config = TrainConfig(
        max_epochs=50, align_epochs=0, batch_positions=96, learning_rate=1e-12, patience_epochs=2
    )
    _, reports = train(catalogue, config)
    assert reports[-1][1] == 9


def test_the_learning_rate_warms_up_and_falls():
    factors = [learning_rate_factor(step, 1_000) for step in range(1_000)]
    assert factors[0] == 0.01
    assert max(factors) == factors[100] == 1.0
    assert factors[-1] == pytest.approx(0.05, abs=1e-3)
