"""From histories to candidates: the beam over semantic IDs and the dense neighbours, fused.

Owns the generator as it is served: the encoded catalogue, the user states, both searches and their
union. Does not know the live statistics (`models.ranking.live_sources`) nor the ranker.

Shapes: B requests, N items, K beams, M candidates, D width, C codes of an item, l codes of a prefix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.arrays import Int64Array
from models.batch import HistoryBatch
from models.candidates import Candidates, Source, unite
from models.catalogue.index import CatalogueIndex
from models.decoding.beam_search import SearchResult, beam_search
from models.decoding.config import SearchConfig
from models.decoding.inference import Inference
from models.decoding.item_table import ItemTable
from models.networks.recommender import GenerativeRecommender
from models.networks.user_states import UserStates


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What one batch of requests got: candidates, the states they came from, and the beam's own result."""

    candidates: list[Candidates]
    state_BD: Tensor
    search: SearchResult | None


class Generator:
    """Answers histories with candidates, from one recommender and one (growing) catalogue.

    Matrix products run in `dtype`, by default the one that this machine was measured to be fastest in.
    """

    def __init__(
        self,
        recommender: GenerativeRecommender,
        catalogue: CatalogueIndex,
        config: SearchConfig,
        table: ItemTable | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.recommender = recommender.eval()
        self.catalogue = catalogue
        self.config = config
        self.table = ItemTable(recommender, catalogue) if table is None else table
        self._dtype = dtype
        self._inference: Inference | None = None
        self._weights_version = -1

    def insert(
        self,
        item_id: str,
        codes: Sequence[int],
        content_E: Tensor,
        *,
        available: bool = True,
        announced_ms: int = 0,
    ) -> int:
        """Makes an item known (or changes its availability); it can be proposed from the next call on.

        Returns its row; ValueError if another item has these codes.
        """
        row = self.catalogue.insert(item_id, codes, content_E, available=available, announced_ms=announced_ms)
        self.table.forget(row)
        return row

    def refresh(self) -> None:
        """Encodes the catalogue again at the next call: the weights changed."""
        self.table.refresh()

    def generate_many(
        self,
        history: HistoryBatch,
        *,
        k: int,
        beam: int,
        exclude: Sequence[Int64Array] | None = None,
        use_beam: bool = True,
        use_dense: bool = True,
    ) -> list[Candidates]:
        """At most `k` items from each source for each of B histories, each item once, best beams first.

        Rows in `exclude` (one array per request) and unavailable items are never among them.
        """
        found = self.generate(
            history, k=k, beam=beam, exclude=exclude, use_beam=use_beam, use_dense=use_dense
        )
        return found.candidates

    @property
    def inference(self) -> Inference:
        """The present weights, prepared for serving; prepared anew after they changed."""
        if self._inference is None or self._weights_version != self.table.weights_version:
            self._weights_version = self.table.weights_version
            self._inference = Inference(self.recommender, self._dtype)
        return self._inference

    @torch.no_grad()
    def prefill(self, history: HistoryBatch) -> UserStates:
        """The users' states now, ready to be extended by their next events."""
        with self.inference.precision():
            return self.inference.recommender.prefill(history, self.table.item_ND)

    @torch.no_grad()
    def extend(self, states: UserStates, new: HistoryBatch) -> UserStates:
        """The states after `new` events of the same users."""
        with self.inference.precision():
            return self.inference.recommender.extend(states, new, self.table.item_ND)

    @torch.no_grad()
    def generate(
        self,
        history: HistoryBatch,
        *,
        k: int,
        beam: int,
        exclude: Sequence[Int64Array] | None = None,
        use_beam: bool = True,
        use_dense: bool = True,
        state_BD: Tensor | None = None,
    ) -> Generation:
        """`generate_many` with the user states and the search's prefixes kept.

        `state_BD`: the states of these histories where they are known, which spares the trunk.
        """
        if not len(self.catalogue):
            state_BD = self.recommender.empty_state.detach().expand(len(history), -1)
            return Generation(candidates=[_nothing()] * len(history), state_BD=state_BD, search=None)
        if state_BD is None:
            state_BD = self.prefill(history).state_BD
        proposals: list[list[Candidates]] = [[_nothing()] for _ in range(len(history))]
        search = None
        if use_beam:
            search = self._search(state_BD, k=k, beam=max(beam, k), exclude=exclude)
            for b, found in enumerate(_from_beam(search)):
                proposals[b].append(found)
        if use_dense:
            for b, found in enumerate(self._nearest(state_BD, k=k, exclude=exclude)):
                proposals[b].append(found)
        return Generation(candidates=[unite(one) for one in proposals], state_BD=state_BD, search=search)

    def _search(
        self, state_BD: Tensor, *, k: int, beam: int, exclude: Sequence[Int64Array] | None
    ) -> SearchResult:
        with self.inference.precision():
            decoding = self.inference.tables.start(state_BD)
            return beam_search(
                decoding.logits,
                self.catalogue.trie,
                batch_size=len(state_BD),
                k=k,
                beam=beam,
                exclude=exclude,
            )

    def _nearest(self, state_BD: Tensor, *, k: int, exclude: Sequence[Int64Array] | None) -> list[Candidates]:
        """The `k` available items with the highest dense logit for each state."""
        queries_BD = self.recommender.dense_queries(state_BD).float()
        nearest = self.table.nearest(queries_BD, k, allowed_N=self.catalogue.available_N, exclude=exclude)
        return [
            Candidates(
                row_M=row_M,
                source_M=np.full(len(row_M), Source.DENSE.bit, dtype=np.int64),
                beam_M=np.full(len(row_M), np.nan, dtype=np.float32),
                dense_M=dense_M,
            )
            for row_M, dense_M in nearest
        ]


def _nothing() -> Candidates:
    no_scores = np.empty(0, dtype=np.float32)
    no_rows = np.empty(0, dtype=np.int64)
    return Candidates(row_M=no_rows, source_M=no_rows, beam_M=no_scores, dense_M=no_scores)


def _from_beam(search: SearchResult) -> list[Candidates]:
    found = []
    for row_tensor, score_tensor in zip(search.row_BK, search.score_BK, strict=True):
        rows, scores = row_tensor.numpy(), score_tensor.float().numpy()
        rows, scores = rows[rows >= 0], scores[rows >= 0]
        found.append(
            Candidates(
                row_M=rows.astype(np.int64),
                source_M=np.full(len(rows), Source.BEAM.bit, dtype=np.int64),
                beam_M=scores.astype(np.float32),
                dense_M=np.full(len(rows), np.nan, dtype=np.float32),
            )
        )
    return found
