"""What every engine does with a ranker's network; the other half of `test_engines.py`."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.batch import HistoryBatch
from models.networks.ranker import Ranker, RankingBatch
from models.networks.recommender import GenerativeRecommender
from tests.contract.engines import ENGINES, NUM_FEATURES, World, histories
from tests.factories import MODEL, make_catalogue


def test_ranking_is_the_network_s(world: World) -> None:
    batch = ranking_batch(world)
    with torch.no_grad():
        expected = world.ranker(batch, world.encoded()[0])
    found = world.engine.rank(batch)
    torch.testing.assert_close(found.relevance_BM, expected.relevance_BM, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.action_logit_BMA, expected.action_logit_BMA, atol=1e-4, rtol=1e-4)
    assert world.engine.num_features == NUM_FEATURES


@pytest.mark.parametrize("name", list(ENGINES))
@pytest.mark.parametrize("lengths", [(0,), (1,), (50,), (7, 0, 50)])
@pytest.mark.parametrize("num_candidates", [1, 33, 700])
@pytest.mark.parametrize(
    ("num_features", "changes"),
    [
        (3, {}),
        (0, {"ranker_dim": 8, "num_heads": 4}),
        (21, {"ranker_dim": 64, "num_heads": 1}),
        (5, {"ranker_dim": 24, "num_heads": 2, "num_layers": 2}),
        (3, {"trunk": "hstu"}),
    ],
)
def test_ranking_is_the_networks_for_every_size(
    name: str, lengths: tuple[int, ...], num_candidates: int, num_features: int, changes: dict[str, object]
) -> None:
    config = replace(MODEL, max_history=50, **changes)  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(num_candidates)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        recommender, ranker = GenerativeRecommender(config).eval(), Ranker(config, num_features).eval()
        World.shake(ranker)
    catalogue = make_catalogue(model=config)
    engine = ENGINES[name](recommender, catalogue, ranker)
    size = (len(lengths), num_candidates)
    beam_BM = torch.randn(size, generator=random) * 4 - 8
    beam_BM[torch.rand(size, generator=random) < 0.5] = torch.nan
    batch = RankingBatch(
        history=some_history(lengths, len(catalogue)),
        row_BM=torch.randint(-1, len(catalogue), size, generator=random),
        source_BM=torch.randint(0, 256, size, generator=random),
        beam_BM=beam_BM,
        dense_BM=torch.randn(size, generator=random) * 9,
        feature_BMF=torch.randn((*size, num_features), generator=random),
    )
    with torch.no_grad():
        expected = ranker(batch, engine.item_ND)
    found = engine.rank(batch)
    torch.testing.assert_close(found.relevance_BM, expected.relevance_BM, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.action_logit_BMA, expected.action_logit_BMA, atol=1e-4, rtol=1e-4)


def some_history(lengths: tuple[int, ...], num_items: int) -> HistoryBatch:
    """Gaps of all sizes, also none and backwards; rows and actions of all kinds."""
    random = np.random.default_rng(0)
    gaps = [np.sign(random.normal(0.5, 1, n)) * 2.0 ** random.integers(0, 60, n) for n in lengths]
    return HistoryBatch.from_lists(
        [random.integers(num_items, size=n).tolist() for n in lengths],
        [random.integers(8, size=n).tolist() for n in lengths],
        [np.cumsum(gap.astype(np.int64)).tolist() for gap in gaps],
        max_history=50,
    )


@pytest.mark.parametrize("name", list(ENGINES))
def test_ranking_follows_the_weights_that_were_loaded(name: str) -> None:
    world = World(ENGINES[name])
    batch = ranking_batch(world)
    before = world.engine.rank(batch).relevance_BM.clone()
    world.shake(world.ranker)
    world.engine.load(world.recommender, world.ranker)
    assert not torch.allclose(world.engine.rank(batch).relevance_BM, before)


def ranking_batch(world: World) -> RankingBatch:
    history = histories([3, 9], [1])
    row_BM = torch.tensor([[4, 7, 8], [2, 6, -1]])
    state_BD = world.engine.states(history).state_BD
    return RankingBatch(
        history=history,
        row_BM=row_BM,
        source_BM=torch.full((2, 3), 2),
        beam_BM=torch.tensor([[-3.0, torch.nan, -4.0], [torch.nan, -2.0, torch.nan]]),
        dense_BM=world.engine.dense_logits(state_BD, row_BM.clamp(min=0)),
        feature_BMF=torch.randn(2, 3, NUM_FEATURES, generator=torch.Generator().manual_seed(1)),
    )


@pytest.mark.parametrize("name", list(ENGINES))
def test_without_a_ranker_nothing_is_ranked(name: str) -> None:
    world = World(ENGINES[name])
    batch = ranking_batch(world)
    engine = ENGINES[name](world.recommender, world.catalogue, None)
    assert engine.num_features == 0
    with pytest.raises(ValueError, match="without a ranker"):
        engine.rank(batch)
