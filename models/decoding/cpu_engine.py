"""The engine on a CPU: compiled searches, matrix products in the format this machine multiplies fastest.

Owns that weights, code tables and encoded items are of the same moment.

Shapes: B requests, N catalogue rows, M candidates, D width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.arrays import Float32Array, Int64Array
from models.batch import HistoryBatch
from models.catalogue.index import CatalogueIndex
from models.decoding.beam_search import SearchResult
from models.decoding.inference import Inference
from models.decoding.item_table import ItemTable
from models.kernels.dense_head_cpu import dense_logits, dense_queries
from models.networks.compiled_ranker import CompiledRanker, has_compiled_form
from models.networks.config import ModelConfig
from models.networks.ranker import Ranker, RankerOutput, RankingBatch
from models.networks.recommender import GenerativeRecommender
from models.networks.user_states import UserStates


class CpuEngine:
    """A `models.decoding.engine.Engine`.

    Matrix products of the trunk run in `dtype`, by default the one that this machine was measured to be
    fastest in; all else in float32. States have no gradient.
    """

    def __init__(
        self,
        recommender: GenerativeRecommender,
        catalogue: CatalogueIndex,
        ranker: Ranker | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.catalogue = catalogue
        self._dtype = dtype
        self._recommender = recommender
        self._prepared: Inference | None = None
        self._table = ItemTable(recommender, catalogue)
        self.load(recommender, ranker)

    @property
    def config(self) -> ModelConfig:
        """The sizes of the networks."""
        return self._recommender.config

    @property
    def num_features(self) -> int:
        """How many live features the ranker takes; 0 without a ranker."""
        return 0 if self._ranker is None else self._ranker.num_features

    @property
    def item_ND(self) -> Tensor:
        """The representation of each row, float32 [N, D] without gradient."""
        return self._table.item_ND

    def load(self, recommender: GenerativeRecommender, ranker: Ranker | None = None) -> None:
        """Takes these networks' weights as they are now; items are encoded again when they are needed."""
        if self._prepared is not None and recommender.config != self._recommender.config:
            self._prepared = None
        self._is_prepared = False
        self._recommender = recommender.eval()
        self._ranker = None if ranker is None else ranker.eval()
        self._table.refresh(recommender)
        self._compiled_ranker = None
        if ranker is not None and has_compiled_form(ranker):
            self._compiled_ranker = CompiledRanker(ranker)

    def put_items(self, row_M: Sequence[int]) -> None:
        """Encodes these rows again: their content changed."""
        for row in row_M:
            self._table.forget(row)

    @torch.no_grad()
    def states(self, history: HistoryBatch) -> UserStates:
        """The users' states now, ready to be extended by their next events."""
        return self._inference.prefill(history, self._rows_to_read)

    @torch.no_grad()
    def extend(self, states: UserStates, new: HistoryBatch) -> UserStates:
        """The states after `new` events of the same users."""
        return self._inference.extend(states, new, self._rows_to_read)

    def decode(
        self, state_BD: Tensor, *, k: int, beam: int, exclude: Sequence[Int64Array] | None = None
    ) -> SearchResult:
        """The `k` most probable available items for each float32 state, by beam search over the trie.

        Rows in `exclude` (int64, one array for each request) are not among them. Raises ValueError for a k or
        beam below 1.
        """
        return self._inference.search(_array(state_BD), self.catalogue.trie, k=k, beam=beam, exclude=exclude)

    def nearest(
        self, state_BD: Tensor, *, k: int, exclude: Sequence[Int64Array] | None = None
    ) -> list[tuple[Int64Array, Float32Array]]:
        """The `k` available items with the highest dense logit for each state (float32 [B, D]), exact.

        Int64 rows and float32 logits, highest first, for each request. Raises ValueError for a k below 1.
        """
        query_BD = dense_queries(_array(state_BD), self._inference.dense_head)
        return self._table.nearest(query_BD, k, allowed_N=self.catalogue.available_N, exclude=exclude)

    def dense_logits(self, state_BD: Tensor, row_BM: Tensor | None = None) -> Tensor:
        """Dense logits, float32 [B, M], of rows (int64, each >= 0) for each state; [B, N] of all rows."""
        head = self._inference.dense_head
        if row_BM is None:
            return torch.from_numpy(dense_queries(_array(state_BD), head)) @ self._table.vector_ND.T
        row_array_BM = np.ascontiguousarray(row_BM.numpy())
        return torch.from_numpy(dense_logits(_array(state_BD), head, self._table.vectors, row_array_BM))

    def rank(self, batch: RankingBatch) -> RankerOutput:
        """Scores all candidates of all requests in one pass; raises ValueError if loaded without a ranker."""
        if self._ranker is None:
            raise ValueError("this engine was loaded without a ranker")
        item_ND = self._table.item_ND  # outside: what is encoded here is also learned from
        if self._compiled_ranker is not None and len(item_ND):
            return self._compiled_ranker(batch, item_ND)
        with torch.inference_mode():
            output: RankerOutput = self._ranker(batch, item_ND)
        return output

    @property
    def _inference(self) -> Inference:
        """The weights, prepared for serving when they are first needed."""
        if self._prepared is None:
            self._prepared = Inference(self._recommender, self._dtype)
        elif not self._is_prepared:
            self._prepared.read_again(self._recommender)
        self._is_prepared = True
        return self._prepared

    @property
    def _rows_to_read(self) -> Tensor:
        """`item_ND`; one row of zeros in its place where there is no item, for what no history names."""
        item_ND = self._table.item_ND
        return item_ND if len(item_ND) else item_ND.new_zeros(1, self.config.d_model)


def _array(state_BD: Tensor) -> Float32Array:
    return np.ascontiguousarray(state_BD.numpy())
