"""The engine: the one way in which services, learner, evaluation and benchmarks reach the networks.

What is benchmarked is what is served. Everything that runs on a device is behind it: weights, the encoded
catalogue, the searches. It knows rows; statistics, policy and messages are its callers'.

Shapes: B requests, N catalogue rows, M candidates, K neighbours, D width, T history.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from models.arrays import Float32Array, Int64Array
from models.batch import HistoryBatch
from models.catalogue.index import CatalogueIndex
from models.decoding.beam_search import SearchResult
from models.networks.config import ModelConfig
from models.networks.ranker import Ranker, RankerOutput, RankingBatch
from models.networks.recommender import GenerativeRecommender
from models.networks.user_states import UserStates


class Engine(Protocol):
    """Weights over one catalogue. Belongs to one thread; a call sees what was put in and loaded before it.

    A request's answer does not depend on the rest of its batch beyond the rounding of a matrix product.
    """

    @property
    def catalogue(self) -> CatalogueIndex:
        """What the rows are; grows while the engine serves."""
        ...

    @property
    def config(self) -> ModelConfig:
        """The sizes of the networks."""
        ...

    @property
    def num_features(self) -> int:
        """How many live features the ranker takes; 0 without a ranker."""
        ...

    @property
    def item_ND(self) -> Tensor:
        """The representation of each row, float32 [N, D] without gradient: what the ranker learns from."""
        ...

    def load(self, recommender: GenerativeRecommender, ranker: Ranker | None = None) -> None:
        """Takes these networks' weights as they are now; `rank` needs a ranker.

        To be called again whenever they have changed.
        """
        ...

    def put_items(self, row_M: Sequence[int]) -> None:
        """Tells it that the content of these catalogue rows changed. New rows need no announcement."""
        ...

    def states(self, history: HistoryBatch) -> UserStates:
        """The users' states now, ready to be extended; without events the empty state."""
        ...

    def extend(self, states: UserStates, new: HistoryBatch) -> UserStates:
        """The states after `new` events of the same users, oldest first; equals `states` of the whole."""
        ...

    def decode(
        self, state_BD: Tensor, *, k: int, beam: int, exclude: Sequence[Int64Array] | None = None
    ) -> SearchResult:
        """The `k` most probable available items for each state (float32 [B, D]), with `beam` prefixes kept.

        Rows in `exclude` (one int64 array for each request; what is no row is ignored) are not among them.
        Raises ValueError for a k or beam below 1, and for another number of arrays.
        """
        ...

    def nearest(
        self, state_BD: Tensor, *, k: int, exclude: Sequence[Int64Array] | None = None
    ) -> list[tuple[Int64Array, Float32Array]]:
        """The `k` available items with the highest dense logit for each state, and those logits, exact.

        Int64 rows and float32 logits for each request, highest first, ties by row; fewer where there are no
        more. Raises ValueError for a k below 1. `exclude` as in `decode`.
        """
        ...

    def dense_logits(self, state_BD: Tensor, row_BM: Tensor | None = None) -> Tensor:
        """Dense logits, float32 [B, M], of rows (int64, each >= 0) for each state; [B, N] of all rows."""
        ...

    def rank(self, batch: RankingBatch) -> RankerOutput:
        """Scores all candidates of all requests in one pass, without gradients.

        Raises ValueError if it was loaded without a ranker.
        """
        ...
