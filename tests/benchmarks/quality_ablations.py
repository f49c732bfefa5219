"""Named variants of Headrace, each trained and scored on VALIDATION, that decide its defaults.

Owns the registry and the figures of a variant. What a variant replaces lives here and in
`quality_variants.py`, never in production code. The test events are not touched.

Figures of a row: recall and NDCG of the dense head (which also chooses the epoch), `beam_*` of the beam
search as shipped, `fused_*` of the union of both ranked by the mean of their log-probabilities. Rows of the
whole path hold what the ranker reached on the validation users it kept back.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import quality_variants as variants
import torch
from quality_data import Problem
from quality_systems import Budget, Row, row

from models.catalogue.index import CatalogueIndex
from models.decoding.cpu_engine import CpuEngine
from models.decoding.dense_ranks import dense_ranks
from models.decoding.generation import generate
from models.measures.ranking_metrics import ranking_metrics, ranks_in_lists
from models.networks.config import ModelConfig
from models.networks.ranker import Ranker
from models.networks.recommender import GenerativeRecommender
from models.progress import Progress
from models.ranking.features import feature_names
from models.ranking.live_statistics import LiveStatistics
from models.ranking.pipeline import Pipeline
from models.sequences.holdout import HoldoutCases
from models.tokenizers.config import CodebookConfig
from models.training.offline import train_recommender
from models.training.ranker_fitting import fit_ranker

MOVIELENS = "movielens_small"
NUM_ANSWERS = 10
_BATCH = 64

MakeRecommender = Callable[[ModelConfig], GenerativeRecommender]
Recoded = tuple[CatalogueIndex, ModelConfig]


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One variant: what it asks, and what it replaces in the default.

    `model` and `codebook` are fields of their configs; `recode` makes the catalogue, `recommender` the
    network for it, `patch` holds while it trains. `path` fits the ranker too, with or without candidates of
    the dense head. `all_codes` adds figures of a search whose probabilities are of all V codes.
    """

    question: str
    dataset: str = "amazon_beauty"
    model: Mapping[str, Any] = field(default_factory=dict)
    codebook: Mapping[str, Any] = field(default_factory=dict)
    recode: Callable[[Problem, Budget], Recoded] | None = None
    recommender: Callable[[CatalogueIndex], MakeRecommender] | None = None
    patch: Callable[[CatalogueIndex], AbstractContextManager[object]] | None = None
    all_codes: bool = False
    path: bool = False
    dense_candidates: bool = True


ABLATIONS: dict[str, Ablation] = {
    "default": Ablation(question="the default", all_codes=True),
    "softmax": Ablation(question="trunk: softmax + ALiBi", model={"trunk": "softmax"}),
    "hstu": Ablation(question="trunk: HSTU", model={"trunk": "hstu"}),
    "rq-vae": Ablation(question="tokens: RQ-VAE", recode=variants.rq_vae_catalogue),
    "uniform-seeds": Ablation(
        question="tokens: uniform k-means seeds for k-means++", recode=variants.uniform_seed_catalogue
    ),
    "2x256": Ablation(question="tokens: 2 levels of 256", codebook={"num_levels": 2}),
    "4x256": Ablation(question="tokens: 4 levels of 256", codebook={"num_levels": 4}),
    "3x64": Ablation(question="tokens: 3 levels of 64", codebook={"codebook_size": 64}),
    "decoder-ffn-2": Ablation(
        question="decoder: feed-forward of twice the width", model={"decoder_ffn_ratio": 2}
    ),
    "decoder-ffn-4": Ablation(question="decoder: of four times the width", model={"decoder_ffn_ratio": 4}),
    "no-content": Ablation(question="no content projection", recommender=variants.without_content),
    "no-identities": Ablation(question="no vector of the item's own", model={"num_identities": 0}),
    "identities-always": Ablation(
        question="the item's own vector never left out in training", model={"identity_dropout": 0.0}
    ),
    "code-loss-only": Ablation(
        question="no dense head: code loss alone reaches the trunk", recommender=variants.code_loss_only
    ),
    "dense-loss-only": Ablation(
        question="no code loss: dense loss alone reaches the trunk", recommender=variants.dense_loss_only
    ),
    "loss-all-codes": Ablation(
        question="code loss over all codes", patch=variants.loss_over_all_codes, all_codes=True
    ),
    "path": Ablation(question="whole path: candidates of beam and dense head", path=True),
    "path-beam": Ablation(
        question="whole path: candidates of the beam alone", path=True, dense_candidates=False
    ),
    "ml-default": Ablation(question="the default on MovieLens", dataset=MOVIELENS),
    "ml-no-action": Ablation(
        question="no action embedding", dataset=MOVIELENS, recommender=variants.without_actions
    ),
    "ml-no-gap": Ablation(
        question="no time-gap embedding", dataset=MOVIELENS, recommender=variants.without_gaps
    ),
}


def ablation_rows(name: str, problem: Problem, budget: Budget, progress: Progress) -> list[Row]:
    """Trains the variant and scores it on the validation events: one row."""
    ablation = ABLATIONS[name]
    begin_s = time.perf_counter()
    catalogue, model = _recoded(ablation, problem, budget)
    recommender = _train(ablation, catalogue, replace(model, **ablation.model), problem, budget, progress)
    if ablation.path:
        figures = _path_figures(ablation, recommender, catalogue, problem, budget, progress)
        extra = {key: figures[key] for key in ("candidate_recall", "blank_ndcg@10")}
        minutes = (time.perf_counter() - begin_s) / 60
    else:
        minutes = (time.perf_counter() - begin_s) / 60
        figures, extra = _figures(ablation, recommender, catalogue, problem, progress)
    one = row(f"ablation:{name}", problem, "validation", budget.seed, figures, minutes)
    return [one | extra | {"question": ablation.question}]


def _recoded(ablation: Ablation, problem: Problem, budget: Budget) -> Recoded:
    if ablation.recode is not None:
        return ablation.recode(problem, budget)
    if ablation.codebook:
        return problem.recoded(CodebookConfig(**ablation.codebook))
    return problem.catalogue, problem.model


def _train(
    ablation: Ablation,
    catalogue: CatalogueIndex,
    model: ModelConfig,
    problem: Problem,
    budget: Budget,
    progress: Progress,
) -> GenerativeRecommender:
    train = replace(problem.settings.train, seed=budget.seed)
    epochs = budget.epochs or (1 if budget.quick else None)
    if epochs:
        train = replace(train, max_epochs=epochs)
    make = ablation.recommender(catalogue) if ablation.recommender else GenerativeRecommender
    begin_s, limit_s = time.monotonic(), (budget.minutes or 0) * 60
    with ablation.patch(catalogue) if ablation.patch else nullcontext():
        return train_recommender(
            catalogue,
            problem.split.train,
            model,
            train,
            validation=problem.split.validation,
            progress=progress,
            time_share=(lambda: (time.monotonic() - begin_s) / limit_s) if limit_s else None,
            make_recommender=make,
        )


@torch.no_grad()
def _figures(
    ablation: Ablation,
    recommender: GenerativeRecommender,
    catalogue: CatalogueIndex,
    problem: Problem,
    progress: Progress,
) -> tuple[dict[str, float], dict[str, float]]:
    """The dense head's figures, and those of the beam and of both together."""
    cases = HoldoutCases.from_events(problem.split.train, problem.split.validation)
    engine = CpuEngine(recommender, catalogue)
    dense = dense_ranks(engine, cases)
    listed = {name: np.full((len(cases), NUM_ANSWERS), -1) for name in ("beam", "fused", "all_codes")}
    done = 0
    for chosen, part in cases.batches(_BATCH):
        found = generate(
            engine,
            part.histories(recommender.config.max_history),
            k=problem.settings.search.num_dense,
            beam=problem.settings.search.beam,
            exclude=part.known_rows(),
        )
        if found.search is not None:
            rows_BK = found.search.row_BK[:, :NUM_ANSWERS]
            listed["beam"][chosen, : rows_BK.shape[1]] = rows_BK
        for case, candidates in zip(chosen, found.candidates, strict=True):
            best = variants.fused(candidates)[:NUM_ANSWERS]
            listed["fused"][case, : len(best)] = best
        if ablation.all_codes:
            listed["all_codes"][chosen] = variants.search_all_codes(
                recommender, catalogue, found.state_BD, part.known_rows(), k=NUM_ANSWERS,
                beam=problem.settings.search.beam,
            )  # fmt: skip
        done += len(chosen)
        progress("validation", done, len(cases))
    names = ["beam", "fused"] + (["all_codes"] if ablation.all_codes else [])
    extra = {
        f"{name}_{metric}": value
        for name in names
        for metric, value in ranking_metrics(ranks_in_lists(listed[name], cases.target_B)).items()
    }
    return ranking_metrics(dense), extra


def _path_figures(
    ablation: Ablation,
    recommender: GenerativeRecommender,
    catalogue: CatalogueIndex,
    problem: Problem,
    budget: Budget,
    progress: Progress,
) -> dict[str, float]:
    """What a ranker reaches on the validation users it was not fitted to."""
    settings = problem.settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(budget.seed)
        ranker = Ranker(recommender.config, len(feature_names(settings.statistics)))
    statistics = LiveStatistics(settings.statistics)
    pipeline = Pipeline.build(recommender, ranker, catalogue, statistics, settings.search)
    if not ablation.dense_candidates:
        pipeline = replace(pipeline, engine=variants.BeamOnly(recommender, catalogue, ranker))
    events = problem.split.train
    return fit_ranker(
        pipeline,
        events,
        problem.split.validation,
        stream=events.select(np.argsort(events.time_ms_N, kind="stable")),
        seed=budget.seed,
        progress=progress,
    )
