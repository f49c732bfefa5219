"""Small real things for tests: catalogues, releases, messages. Random weights, fixed seeds."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.artifacts.release import ReleaseBundle
from models.artifacts.release_meta import ReleaseMeta, config_hash
from models.catalogue.index import CatalogueIndex
from models.networks.config import ModelConfig
from models.networks.ranker import Ranker
from models.networks.recommender import GenerativeRecommender
from models.ranking.config import StatisticsConfig
from models.ranking.features import feature_names
from models.ranking.live_statistics import LiveStatistics
from models.tokenizers.codebook import Codebook
from models.tokenizers.config import CodebookConfig
from models.tokenizers.rq_kmeans import fit_codebook
from protos.headrace.v1.events_pb2 import ACTION_CLICK, HistoryEvent
from protos.headrace.v1.items_pb2 import Embedding, Item

CONTENT_DIM = 16
NUM_ITEMS = 50
MODEL = ModelConfig(
    content_dim=CONTENT_DIM, num_levels=2, codebook_size=8, d_model=32, num_layers=1, num_heads=2,
    max_history=20, ranker_dim=16,
)  # fmt: skip
TIME_MS = 1_700_000_000_000


def make_content(num_items: int = NUM_ITEMS, *, seed: int = 0, content_dim: int = CONTENT_DIM) -> Tensor:
    """Unit vectors, float32 [N, E]."""
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(num_items, content_dim, generator=generator), dim=1)


def make_codebook(content_NE: Tensor, *, model: ModelConfig = MODEL, seed: int = 0) -> Codebook:
    """A codebook fitted to these vectors."""
    config = CodebookConfig(
        num_levels=model.num_levels, codebook_size=model.codebook_size, num_iterations=5, seed=seed
    )
    return fit_codebook(content_NE, config)


def make_catalogue(
    num_items: int = NUM_ITEMS, *, model: ModelConfig = MODEL, seed: int = 0, codebook_seed: int = 0
) -> CatalogueIndex:
    """Items item-0, item-1, ... with random content, announced at the beginning of time."""
    content_NE = make_content(num_items, seed=seed, content_dim=model.content_dim)
    index = CatalogueIndex(make_codebook(content_NE, model=model, seed=codebook_seed))
    index.add_many([f"item-{n}" for n in range(num_items)], content_NE, np.zeros(num_items, dtype=np.int64))
    return index


def make_release(
    release_id: str,
    *,
    parent: str = "",
    catalogue: CatalogueIndex | None = None,
    model: ModelConfig = MODEL,
    offsets: Mapping[str, int] | None = None,
    seed: int = 0,
) -> ReleaseBundle:
    """A whole release with random weights."""
    catalogue = catalogue or make_catalogue(model=model)
    statistics_config = StatisticsConfig()
    statistics = LiveStatistics(statistics_config)
    statistics.update("somebody", "item-0", ACTION_CLICK, TIME_MS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        recommender = GenerativeRecommender(model).eval()
        ranker = Ranker(model, len(feature_names(statistics_config))).eval()
    meta = ReleaseMeta(
        release_id=release_id,
        parent_release_id=parent,
        codebook_version=catalogue.codebook.version,
        created_time_ms=TIME_MS,
        offsets=dict(offsets or {}),
        metrics={"recall@10": 0.1},
        config_hash=config_hash(model, statistics_config),
    )
    return ReleaseBundle(
        recommender=recommender, ranker=ranker, catalogue=catalogue, statistics=statistics, meta=meta
    )


def make_history(*numbers: int) -> list[HistoryEvent]:
    """Clicks on item-n, a minute apart."""
    return [
        HistoryEvent(item_id=f"item-{n}", action=ACTION_CLICK, event_time_ms=TIME_MS + 60_000 * i)
        for i, n in enumerate(numbers)
    ]


def make_item(item_id: str, content_E: Tensor, *, unavailable: bool = False, announced_ms: int = 0) -> Item:
    """An item that brings its own vector."""
    return Item(
        item_id=item_id,
        title=f"The {item_id}",
        embeddings=[Embedding(modality="text", values=content_E.tolist())],
        unavailable=unavailable,
        announced_time_ms=announced_ms,
    )
