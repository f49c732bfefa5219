"""What batches of windows cost the generative recommender: dense head + depth decoder.

Owns which positions count and which items compete; `models/training/loss.py` owns the formulas and
`models/training/offline.py` the optimiser. The online learner uses the same objective.

Shapes: X supervised states, N catalogue rows, R rows used here, S negatives, C codes, D width, E content.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.batch import HistoryBatch, few_sizes
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
        self, recommender: GenerativeRecommender, batches: Sequence[TrainingBatch], dtype: torch.dtype
    ) -> GeneratorLoss:
        """The loss of one or more batches together; matrix products of the full softmax run in `dtype`.

        One in `EMPTY_STATE_SHARE` windows that open a sequence also teaches the empty state: it is one
        vector, and needs fewer examples than the network.
        """
        max_history = recommender.config.max_history
        batches = [batch.in_few_sizes(max_history) for batch in batches]
        wanted = [_wanted(batch.target_BT) for batch in batches]
        first_B = torch.cat([batch.first_B for batch in batches])
        opening_Y = first_B[first_B >= 0][::EMPTY_STATE_SHARE]
        targets = [batch.target_BT[wanted_BT] for batch, wanted_BT in zip(batches, wanted, strict=True)]
        target_X = torch.cat([*targets, opening_Y])
        negative_S = self._draw() if self._sampled else None
        row_R = self._competing([batch.history for batch in batches], target_X, negative_S)
        codes_RC, content_RE = self.codes_NC, self.content_NE
        if self._sampled:
            codes_RC, content_RE = codes_RC[row_R], content_RE[row_R]
        item_RD = recommender.encode_items(codes_RC, content_RE)
        states = [
            recommender.states_at(_relabelled(batch.history, row_R), item_RD, wanted_BT)
            for batch, wanted_BT in zip(batches, wanted, strict=True)
        ]
        states.append(recommender.empty_state.to(states[0].dtype).expand(len(opening_Y), -1))
        num_more = few_sizes(len(target_X)) - len(target_X)
        state_XD = functional.pad(torch.cat(states), (0, 0, 0, num_more))
        target_X = functional.pad(target_X, (0, num_more), value=-1)
        query_XD = recommender.dense_queries(state_XD)
        vector_RD = recommender.item_vectors(item_RD)
        known_X = target_X >= 0
        if negative_S is None:
            dense = catalogue_loss(query_XD, vector_RD, target_X, dtype=dtype)
        else:
            dense = self._sampled_loss(query_XD[known_X], vector_RD, row_R, target_X[known_X], negative_S)
        code = self._code_loss(recommender.decoder, state_XD[known_X], target_X[known_X])
        return GeneratorLoss(dense=dense, code=code, num_targets=int(known_X.sum()))

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
            number = len(of_depth_Y)
            if number:
                some_Y = functional.pad(of_depth_Y, (0, few_sizes(number) - number))
                logits_YCV = decoder(state_XD[some_Y], codes_XC[some_Y, :depth])[:number]
                valid_YCV = valid_XCV[of_depth_Y, :depth]
                total = total + number * code_loss(logits_YCV, codes_XC[of_depth_Y, :depth], valid_YCV)
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

    def _competing(
        self, histories: Sequence[HistoryBatch], target_X: Tensor, negative_S: Tensor | None
    ) -> Tensor:
        """The rows to encode, ascending: all, or those that these batches touch."""
        if negative_S is None:
            return torch.arange(len(self.codes_NC))
        read = [history.item_BT.flatten() for history in histories]
        row_R: Tensor = torch.unique(torch.cat([*read, target_X, negative_S]).clamp(min=0), sorted=True)
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


def _wanted(target_BT: Tensor) -> Tensor:
    """The positions whose states are computed, bool [B, T]: the supervised ones, and others up to one of a
    few sizes."""
    supervised = (target_BT >= 0).flatten()
    number = int(supervised.sum())
    others = (~supervised).nonzero()[: few_sizes(number) - number, 0]
    return supervised.index_fill(0, others, True).view_as(target_BT)


def _relabelled(history: HistoryBatch, row_R: Tensor) -> HistoryBatch:
    """The same history with items as positions in `row_R`."""
    return HistoryBatch(
        item_BT=torch.searchsorted(row_R, history.item_BT.clamp(min=0)),
        action_BT=history.action_BT,
        time_ms_BT=history.time_ms_BT,
        length_B=history.length_B,
    )
