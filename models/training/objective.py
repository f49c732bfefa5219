"""What one batch of windows costs the generative recommender: dense head + depth decoder.

Owns which positions count and which items compete; `models/training/loss.py` owns the formulas and
`models/training/offline.py` the optimiser. The online learner uses the same objective.

Shapes: X supervised states, N catalogue rows, R rows used here, S negatives, C codes, D width, E content.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.batch import HistoryBatch
from models.catalogue.index import CatalogueIndex
from models.kernels.beam_step_cpu import mark_valid_codes
from models.networks.depth_decoder import DepthDecoder
from models.networks.recommender import GenerativeRecommender
from models.sequences.windows import TrainingBatch
from models.training.loss import catalogue_loss, code_loss, sampled_loss

MAX_FULL_SOFTMAX = 20_000
NUM_NEGATIVES = 8_192
EMPTY_STATE_SHARE = 8


@dataclass(frozen=True, kw_only=True)
class GeneratorLoss:
    """Nats per target, float32 scalars with gradients: `dense` over items, `code` over all C codes."""

    dense: Tensor
    code: Tensor
    num_targets: int

    @property
    def total(self) -> Tensor:
        """What the optimiser minimises, a float32 scalar."""
        return self.dense + self.code


class Objective:
    """The training objective over one catalogue of N items.

    Up to `MAX_FULL_SOFTMAX` items the dense head competes against all of them. Beyond, it competes against
    `NUM_NEGATIVES` drawn half uniformly and half by how often `popularity_N` saw them, corrected for
    the drawing; only items that a batch touches are then encoded.
    """

    def __init__(self, catalogue: CatalogueIndex, popularity_N: Tensor, *, seed: int) -> None:
        self.trie = catalogue.trie
        self.codes_NC = catalogue.codes_NC
        self.content_NE = catalogue.content_NE
        num_items = len(catalogue)
        self._sampled = num_items > MAX_FULL_SOFTMAX
        popularity = popularity_N.double() + 1e-12
        self._draw_N = (0.5 / num_items + 0.5 * popularity / popularity.sum()).float()
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(
        self, recommender: GenerativeRecommender, batch: TrainingBatch, dtype: torch.dtype
    ) -> GeneratorLoss:
        """The loss of `batch`; matrix products of the full softmax run in `dtype`.

        One in `EMPTY_STATE_SHARE` windows that open a sequence also teaches the empty state: it is one
        vector, and needs fewer examples than the network.
        """
        history, opening_Y = batch.history, batch.first_B[batch.first_B >= 0][::EMPTY_STATE_SHARE]
        supervised_BT = batch.target_BT >= 0
        target_X = torch.cat([batch.target_BT[supervised_BT], opening_Y])
        negative_S = self._draw() if self._sampled else None
        row_R = self._competing(history, target_X, negative_S)
        item_RD = recommender.encode_items(self.codes_NC[row_R], self.content_NE[row_R])
        state_XD = recommender.states_at(_relabelled(history, row_R), item_RD, supervised_BT)
        empty_YD = recommender.empty_state.to(state_XD.dtype).expand(len(opening_Y), -1)
        state_XD = torch.cat([state_XD, empty_YD])
        query_XD = recommender.dense_queries(state_XD)
        vector_RD = recommender.item_vectors(item_RD)
        if negative_S is None:
            dense = catalogue_loss(query_XD, vector_RD, target_X, dtype=dtype)
        else:
            dense = self._sampled_loss(query_XD, vector_RD, row_R, target_X, negative_S)
        code = self._code_loss(recommender.decoder, state_XD, target_X)
        return GeneratorLoss(dense=dense, code=code, num_targets=len(target_X))

    def _code_loss(self, decoder: DepthDecoder, state_XD: Tensor, target_X: Tensor) -> Tensor:
        """`code_loss` over all levels, of which the decoder computes those down to each target's last choice.

        Where a prefix leads to one item only, the codes below it are certain: on MovieLens 100K two levels
        of four are, for the middling target.
        """
        codes_XC, valid_XCV = self.codes_NC[target_X], self._valid_codes(target_X)
        depth_C = torch.arange(1, codes_XC.shape[1] + 1)
        num_levels_X = ((valid_XCV.sum(2) > 1) * depth_C).amax(1)
        total = state_XD.new_zeros((), dtype=torch.float32)
        for depth in depth_C.tolist():
            of_depth_Y = (num_levels_X == depth).nonzero()[:, 0]
            if len(of_depth_Y):
                codes_YC = codes_XC[of_depth_Y, :depth]
                logits_YCV = decoder(state_XD[of_depth_Y], codes_YC)
                loss = code_loss(logits_YCV, codes_YC, valid_XCV[of_depth_Y, :depth])
                total = total + loss * len(of_depth_Y)
        return total / max(1, len(target_X))

    def _valid_codes(self, target_X: Tensor) -> Tensor:
        """Which codes each target's code competes with at each level, bool [X, C, V]."""
        codes_XC, node_XC = self.codes_NC[target_X].numpy(), self.trie.node_NC[target_X.numpy()]
        valid_CXV = np.zeros((self.trie.num_codes, len(target_X), self.trie.codebook_size), np.bool_)
        node_X = np.zeros(len(target_X), np.int64)
        for depth, level in enumerate(self.trie.levels):
            code_X = np.ascontiguousarray(codes_XC[:, depth])
            mark_valid_codes(level, self.trie.codebook_size, node_X, code_X, valid_CXV[depth])
            node_X = node_XC[:, depth].astype(np.int64)
        return torch.from_numpy(valid_CXV).transpose(0, 1)

    def _draw(self) -> Tensor:
        return torch.multinomial(self._draw_N, NUM_NEGATIVES, replacement=True, generator=self._generator)

    def _competing(self, history: HistoryBatch, target_X: Tensor, negative_S: Tensor | None) -> Tensor:
        """The rows to encode, ascending: all, or those that this batch touches."""
        if negative_S is None:
            return torch.arange(len(self.codes_NC))
        touched = torch.cat([history.item_BT.clamp(min=0).flatten(), target_X, negative_S])
        row_R: Tensor = torch.unique(touched, sorted=True)
        return row_R

    def _sampled_loss(
        self, query_XD: Tensor, vector_RD: Tensor, row_R: Tensor, target_X: Tensor, negative_S: Tensor
    ) -> Tensor:
        return sampled_loss(
            query_XD,
            vector_RD[torch.searchsorted(row_R, target_X)],
            vector_RD[torch.searchsorted(row_R, negative_S)],
            (NUM_NEGATIVES * self._draw_N[negative_S]).log(),
            negative_S == target_X[:, None],
        )


def _relabelled(history: HistoryBatch, row_R: Tensor) -> HistoryBatch:
    """The same history with items as positions in `row_R`."""
    return HistoryBatch(
        item_BT=torch.searchsorted(row_R, history.item_BT.clamp(min=0)),
        action_BT=history.action_BT,
        time_ms_BT=history.time_ms_BT,
        length_B=history.length_B,
    )
