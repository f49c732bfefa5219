"""What live statistics and candidate sources add to a ranker, and the variants that do without some.

Offline: leave-one-out validation. A generator trained on the training events alone, a ranker for each
variant fitted by `fit_examples` to most users' validation items and measured on the others'. The same
variants on a stream are `ranker_stream.py`'s.

A variant leaves feature columns at zero and drops candidates that only its missing sources proposed.

Shapes: M candidates, F live features.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from quality_data import Problem

from models.arrays import Float32Array
from models.candidates import Candidates, Source
from models.catalogue.index import CatalogueIndex
from models.decoding.config import SearchConfig
from models.evaluation.leave_one_out import split_leave_one_out
from models.networks.ranker import Ranker
from models.networks.recommender import GenerativeRecommender
from models.ranking.config import StatisticsConfig
from models.ranking.features import feature_names
from models.ranking.live_sources import LIVE_SOURCES
from models.ranking.live_statistics import LiveStatistics
from models.ranking.pipeline import Pipeline
from models.ranking.statistics_follower import StatisticsFollower
from models.sequences.holdout import HoldoutCases
from models.training.config import TrainConfig
from models.training.offline import train_recommender
from models.training.ranker_examples import Example, collect_examples
from models.training.ranker_fitting import fit_examples

Row = dict[str, float | int | str]
Tick = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A ranker that does without some features (`hidden` name a group of them) and some sources."""

    name: str
    hidden: tuple[str, ...] = ()
    disabled: tuple[Source, ...] = ()

    def feature_mask(self, names: tuple[str, ...]) -> Float32Array:
        """0 for the columns it does without, float32 [F]."""
        return np.asarray([0.0 if group_of(name) in self.hidden else 1.0 for name in names], dtype=np.float32)

    def keeps(self, candidates: Candidates) -> np.ndarray:
        """Bool [M]: which candidates a remaining source proposed."""
        mask = sum(source.bit for source in Source if source not in self.disabled)
        return (candidates.source_M & mask) != 0

    def view(self, candidates: Candidates, features_MF: Float32Array, names: tuple[str, ...]) -> "View":
        """What it gets to see of a request."""
        kept = np.nonzero(self.keeps(candidates))[0]
        gone = sum(source.bit for source in self.disabled)
        no_beam, no_dense = Source.BEAM in self.disabled, Source.DENSE in self.disabled
        unknown = np.full(len(kept), np.nan, dtype=np.float32)
        seen = Candidates(
            row_M=candidates.row_M[kept],
            source_M=candidates.source_M[kept] & ~gone,
            beam_M=unknown if no_beam else candidates.beam_M[kept],
            dense_M=unknown if no_dense else candidates.dense_M[kept],
        )
        return View(candidates=seen, features_MF=features_MF[kept] * self.feature_mask(names))


@dataclass(frozen=True, kw_only=True)
class View:
    """A request as one variant sees it."""

    candidates: Candidates
    features_MF: Float32Array

    def place(self, row: int) -> int | None:
        """Where the item is among the candidates."""
        found = np.nonzero(self.candidates.row_M == row)[0]
        return int(found[0]) if len(found) else None


GROUPS = ("counts", "ties", "age", "content")


def group_of(name: str) -> str:
    """The group of a feature; "user" for those that no variant does without."""
    if name.startswith(("log_count", "momentum")):
        return "counts"
    if name.startswith("tie"):
        return "ties"
    if name.startswith("cosine"):
        return "content"
    if ("event" in name and "user" not in name) or name == "log_days_since_announced":
        return "age"
    return "user"


VARIANTS = (
    Variant(name="everything"),
    Variant(name="no live statistics at all", hidden=(*GROUPS, "user"), disabled=LIVE_SOURCES),
    Variant(name="beam and dense candidates only", disabled=LIVE_SOURCES),
    *(Variant(name=f"without {group}", hidden=(group,)) for group in GROUPS),
    *(
        Variant(name=f"without {source.name.lower()} candidates", disabled=(source,))
        for source in (Source.BEAM, Source.DENSE, *LIVE_SOURCES)
    ),
)
QUICK_VARIANTS = VARIANTS[:3]
STREAM_VARIANTS = tuple(
    one for one in VARIANTS if one.name not in ("without content", "without trending candidates")
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much is trained and asked; days are those that have events."""

    generator_epochs: int = 4
    num_cases: int = 6_000
    warm_up_days: int = 15
    num_days: int = 45
    variants: tuple[Variant, ...] = VARIANTS
    stream_variants: tuple[Variant, ...] = STREAM_VARIANTS


QUICK_BUDGET = Budget(
    generator_epochs=1,
    num_cases=100,
    warm_up_days=3,
    num_days=3,
    variants=QUICK_VARIANTS,
    stream_variants=QUICK_VARIANTS,
)


def offline_rows(problem: Problem, budget: Budget, tick: Tick) -> list[Row]:
    """Leave-one-out validation: one row for each variant, and for the sources alone."""
    split = split_leave_one_out(problem.events)
    config = TrainConfig(max_epochs=budget.generator_epochs, align_epochs=0)
    nothing = split.train.select(np.arange(0))
    recommender = train_recommender(problem.catalogue, split.train, problem.model, config, validation=nothing)
    pipeline = make_pipeline(problem.catalogue, recommender)
    cases = HoldoutCases.from_events(split.train, split.validation)
    chosen = np.random.default_rng(0).permutation(len(cases))[: budget.num_cases]
    chosen = chosen[np.argsort(cases.time_ms_B[chosen], kind="stable")]
    in_order = split.train.select(np.argsort(split.train.time_ms_N, kind="stable"))
    follower = StatisticsFollower(pipeline.scorer.statistics, problem.catalogue, in_order)
    asked = collect_examples(
        pipeline,
        cases.select(chosen),
        split.validation.select(chosen),
        follower,
        lambda stage, done, total, *_: tick(stage, done, total),
    )
    rows: list[Row] = []
    for number, variant in enumerate(budget.variants):
        tick("offline variants", number, len(budget.variants))
        figures = _fit_variant(pipeline, asked, variant)
        rows.append({"part": "offline", "variant": variant.name, **figures})
    return rows


def _fit_variant(pipeline: Pipeline, asked: list[Example | None], variant: Variant) -> dict[str, float]:
    torch.manual_seed(0)
    names = pipeline.scorer.feature_names
    pipeline.ranker.load_state_dict(Ranker(pipeline.ranker.config, pipeline.ranker.num_features).state_dict())
    seen = [None if example is None else seen_by(variant, example, names) for example in asked]
    figures = fit_examples(pipeline, seen, random=np.random.default_rng(0), validation_share=0.3)
    return {name: figures[name] for name in ("recall@10", "ndcg@10", "candidate_recall", "blank_ndcg@10")}


def seen_by(variant: Variant, example: Example, names: tuple[str, ...]) -> Example | None:
    """A request as a variant sees it; None where no source that it has proposed the item."""
    row = int(example.candidates.row_M[example.target])
    view = variant.view(example.candidates, example.features_MF, names)
    place = view.place(row)
    if place is None:
        return None
    return replace(example, candidates=view.candidates, features_MF=view.features_MF, target=place)


def make_pipeline(catalogue: CatalogueIndex, recommender: GenerativeRecommender) -> Pipeline:
    """The whole path with a blank ranker and blank statistics."""
    statistics = LiveStatistics(StatisticsConfig())
    torch.manual_seed(0)
    ranker = Ranker(recommender.config, len(feature_names(statistics.config)))
    return Pipeline.build(recommender, ranker, catalogue, statistics, SearchConfig())
