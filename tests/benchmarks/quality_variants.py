"""What the ablations put in the place of Headrace's own parts; used by `quality_ablations.py` alone.

Shapes: B cases, N items, X targets, C codes of an item, V codebook size, D width, E content width, K beams.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import numpy as np
import torch
from quality_data import Problem
from quality_systems import QUICK_STEPS, Budget
from torch import Tensor, nn
from torch.nn import functional

from models.arrays import Float32Array, Int64Array
from models.baselines.tiger_search import CodeTable, search_codes
from models.candidates import Candidates
from models.catalogue.index import CatalogueIndex
from models.decoding.cpu_engine import CpuEngine
from models.networks.config import ModelConfig
from models.networks.recommender import GenerativeRecommender
from models.tokenizers import rq_kmeans as semantic_ids
from models.tokenizers.codebook import content_codebook
from models.tokenizers.rq_vae import RqVaeConfig, fit_rq_vae
from models.training import objective
from models.training.loss import code_loss

MakeRecommender = Callable[[ModelConfig], GenerativeRecommender]


class Silent(nn.Module):
    """A module of which nothing is heard: its output is zero, so that it learns nothing either."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """The module's output times zero."""
        silent: Tensor = self.module(x) * 0.0
        return silent


def without_content(catalogue: CatalogueIndex) -> MakeRecommender:
    """Items are their codes alone."""
    return lambda config: _silenced(config, "content")


def without_actions(catalogue: CatalogueIndex) -> MakeRecommender:
    """Histories do not say what the user did with an item."""
    return lambda config: _silenced(config, "action_embedding")


def without_gaps(catalogue: CatalogueIndex) -> MakeRecommender:
    """Histories do not say how long ago the event before was."""
    return lambda config: _silenced(config, "gap_embedding")


def _silenced(config: ModelConfig, name: str) -> GenerativeRecommender:
    recommender = GenerativeRecommender(config)
    setattr(recommender, name, Silent(getattr(recommender, name)))
    return recommender


def code_loss_only(catalogue: CatalogueIndex) -> MakeRecommender:
    """The dense head learns from states and items that it does not change, so it is only a measure."""
    return _CodeLossOnly


class _CodeLossOnly(GenerativeRecommender):
    def dense_queries(self, state_XD: Tensor) -> Tensor:
        """Of states that get no gradient."""
        return super().dense_queries(state_XD.detach())

    def item_vectors(self, item_ND: Tensor) -> Tensor:
        """Of items that get no gradient."""
        return super().item_vectors(item_ND.detach())


def dense_loss_only(catalogue: CatalogueIndex) -> MakeRecommender:
    """The decoder learns from states that it does not change, so it is only a measure."""

    def make(config: ModelConfig) -> GenerativeRecommender:
        recommender = GenerativeRecommender(config)
        recommender.decoder.register_forward_pre_hook(_detach_state)
        return recommender

    return make


def _detach_state(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    state_ND, *rest = arguments
    return (state_ND.detach(), *rest)


def loss_over_all_codes(catalogue: CatalogueIndex) -> AbstractContextManager[object]:
    """The code loss of a target is among all V codes, not among those that lead to an item."""

    def over_all(logits_XCV: Tensor, codes_XC: Tensor, valid_XCV: Tensor) -> Tensor:
        return code_loss(logits_XCV, codes_XC, torch.ones_like(valid_XCV))

    return mock.patch.object(objective, "code_loss", over_all)


def rq_vae_catalogue(problem: Problem, budget: Budget) -> tuple[CatalogueIndex, ModelConfig]:
    """The items under the codes of an RQ-VAE; the last code numbers those that share a prefix."""
    codebook = problem.settings.codebook
    config = RqVaeConfig(
        num_levels=codebook.num_levels,
        codebook_size=codebook.codebook_size,
        num_steps=QUICK_STEPS if budget.quick else RqVaeConfig.num_steps,
        seed=budget.seed,
    )
    content_NE = problem.content_NE
    codes_NL = fit_rq_vae(content_NE, config).encode(content_NE)
    catalogue = CatalogueIndex(content_codebook(codes_NL, content_NE, codebook.codebook_size))
    used: dict[tuple[int, ...], int] = {}
    for n, item_id in enumerate(problem.catalogue.item_ids):
        prefix = tuple(codes_NL[n].tolist())
        last = used.get(prefix, 0)
        used[prefix] = last + 1
        catalogue.insert(item_id, (*prefix, last), content_NE[n])
    return catalogue, problem.model


def uniform_seed_catalogue(problem: Problem, budget: Budget) -> tuple[CatalogueIndex, ModelConfig]:
    """The items under a codebook whose k-means starts at items drawn uniformly."""

    def uniform(points_NE: Any, num_seeds: int, random: np.random.Generator) -> Any:
        distinct_NE = np.unique(points_NE, axis=0)
        chosen = random.permutation(len(distinct_NE))[:num_seeds]
        return distinct_NE[chosen].copy()

    with mock.patch.object(semantic_ids, "_plus_plus_seeds", uniform):
        return problem.recoded(problem.settings.codebook)


class BeamOnly(CpuEngine):
    """An engine whose dense head proposes nothing."""

    def nearest(self, state_BD: Tensor, **options: Any) -> list[tuple[Int64Array, Float32Array]]:
        """Nobody."""
        return [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))] * len(state_BD)


def fused(candidates: Candidates) -> Int64Array:
    """Rows by the mean of the two log-probabilities, each among the candidates that its source scored.

    A candidate that a source did not score has that source's lowest.
    """
    total_M = np.zeros(len(candidates))
    for score_M in (candidates.beam_M, candidates.dense_M):
        known_M = np.isfinite(score_M)
        if known_M.any():
            filled_M = np.where(known_M, score_M, score_M[known_M].min()).astype(np.float64)
            total_M += filled_M - np.logaddexp.reduce(filled_M)
    return candidates.row_M[np.argsort(-total_M, kind="stable")]


def search_all_codes(
    recommender: GenerativeRecommender,
    catalogue: CatalogueIndex,
    state_BD: Tensor,
    known: list[Int64Array],
    *,
    k: int,
    beam: int,
) -> Int64Array:
    """Beam search whose probabilities are of all V codes, not of the children that exist: rows [B, k]."""
    table = CodeTable(catalogue.codes_NC)
    num_codes = catalogue.codes_NC.shape[1]

    def code_logits(prefix_BKl: Tensor) -> Tensor:
        batch, beams, depth = prefix_BKl.shape
        codes_XC = functional.pad(prefix_BKl, (0, num_codes - depth)).flatten(0, 1)
        state_XD = state_BD.float()[:, None].expand(-1, beams, -1).flatten(0, 1)
        logits_XCV: Tensor = recommender.decoder(state_XD, codes_XC)
        return logits_XCV[:, depth].view(batch, beams, -1)

    found = search_codes(code_logits, table, batch_size=len(state_BD), k=k, beam=beam, exclude=known)
    rows_BK = np.full((len(state_BD), k), -1, dtype=np.int64)
    rows_BK[:, : found.row_BK.shape[1]] = found.row_BK.numpy()
    return rows_BK
