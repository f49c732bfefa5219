"""The engines of the contract, and the world each is tried in; a second engine joins by a line in ENGINES."""

from collections.abc import Callable

import torch

from models.batch import HistoryBatch
from models.catalogue.index import CatalogueIndex
from models.decoding.cpu_engine import CpuEngine
from models.decoding.engine import Engine
from models.networks.config import ModelConfig
from models.networks.ranker import Ranker
from models.networks.recommender import GenerativeRecommender
from tests.factories import MODEL, NUM_ITEMS, make_catalogue

NUM_FEATURES = 3
Make = Callable[[GenerativeRecommender, CatalogueIndex, Ranker | None], Engine]

ENGINES: dict[str, Make] = {
    "cpu": lambda recommender, catalogue, ranker: CpuEngine(
        recommender, catalogue, ranker, dtype=torch.float32
    ),
}
# As they are served: a CPU multiplies in another format where that is faster.
SERVED: dict[str, Make] = {
    "cpu": lambda recommender, catalogue, ranker: CpuEngine(
        recommender, catalogue, ranker, dtype=torch.bfloat16
    ),
}


class World:
    """An engine, and the networks it was loaded with."""

    def __init__(self, make: Make, model: ModelConfig = MODEL, num_items: int = NUM_ITEMS) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.recommender = GenerativeRecommender(model).eval()
            self.ranker = Ranker(model, NUM_FEATURES).eval()
            self.shake(self.ranker)
        whole = make_catalogue(model=model)
        self.catalogue = whole if num_items == NUM_ITEMS else CatalogueIndex(whole.codebook)
        for n in range(len(self.catalogue), num_items):
            self.catalogue.insert(f"item-{n}", whole.codes_NC[n].tolist(), whole.content_NE[n])
        self.engine = make(self.recommender, self.catalogue, self.ranker)

    @staticmethod
    def shake(network: torch.nn.Module) -> None:
        """Other weights than it had."""
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)

    def encoded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the networks themselves make of the catalogue: items [N, D] and dense vectors [N, D]."""
        with torch.no_grad():
            item_ND = self.recommender.encode_items(self.catalogue.codes_NC, self.catalogue.content_NE)
            return item_ND, self.recommender.item_vectors(item_ND)


def histories(*rows: list[int]) -> HistoryBatch:
    return HistoryBatch.from_lists(
        rows,
        [[2] * len(one) for one in rows],
        [[1_000 * (n + 1) for n in range(len(one))] for one in rows],
        max_history=MODEL.max_history,
    )
