"""The systems that the quality benchmark compares, each as rows of figures.

A row: system, dataset, split, seed, recall@5, recall@10, ndcg@5, ndcg@10, train_minutes. Owns how each
system is called; what it learns is chosen on validation, and its test figures are taken once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from quality_data import Problem
from quality_sasrec import sasrec_rows

from models.baselines.tiger import TigerConfig
from models.baselines.tiger_training import train_tiger
from models.decoding.popularity_ranks import popularity_ranks
from models.evaluation.leave_one_out import evaluate_leave_one_out
from models.measures.ranking_metrics import ranking_metrics
from models.progress import Progress
from models.sequences.holdout import HoldoutCases
from models.tokenizers.rq_vae import RqVaeConfig

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one run may cost; None leaves a limit at the system's own default."""

    seed: int
    epochs: int | None
    minutes: float | None
    threads: int
    quick: bool


QUICK_STEPS = 30
SASREC_MINUTES = 40.0
TIGER_MINUTES = 45.0


def popularity(problem: Problem, budget: Budget, progress: Progress) -> list[Row]:
    """Items by their number of events before the split's events."""
    del progress
    rows = []
    known = {"validation": problem.split.train, "test": problem.split.before_test}
    for split, held_out in (("validation", problem.split.validation), ("test", problem.split.test)):
        begin_s = time.perf_counter()
        cases = HoldoutCases.from_events(known[split], held_out)
        ranks = popularity_ranks(cases, known[split], len(problem.catalogue))
        minutes = (time.perf_counter() - begin_s) / 60
        rows.append(row("popularity", problem, split, budget.seed, ranking_metrics(ranks), minutes))
    return rows


def sasrec(problem: Problem, budget: Budget, progress: Progress) -> list[Row]:
    """RecBole's SASRec, in its own environment."""
    epochs = 2 if budget.quick and budget.epochs is None else budget.epochs

    def said(stage: str, figures: dict[str, float]) -> None:
        progress(stage, int(figures.pop("epoch", 0)), epochs or 0, figures)

    return sasrec_rows(
        problem,
        seed=budget.seed,
        epochs=epochs,
        minutes=budget.minutes or SASREC_MINUTES,
        threads=budget.threads,
        check=budget.quick,
        progress=said,
    )


def tiger(problem: Problem, budget: Budget, progress: Progress) -> list[Row]:
    """TIGER on RQ-VAE tokens; the checkpoint is chosen by validation."""
    config = TigerConfig(seed=budget.seed)
    codes = RqVaeConfig(seed=budget.seed)
    minutes = budget.minutes or TIGER_MINUTES
    if budget.quick:
        minutes = min(minutes, 0.15)
        config = replace(config, beam=10, validation_cases=100, validate_every=20)
        codes = replace(codes, num_steps=QUICK_STEPS)
    if budget.epochs:
        config = replace(config, max_epochs=budget.epochs)
    begin_s = time.perf_counter()
    trained = train_tiger(
        problem.content_NE,
        problem.split.train,
        problem.split.validation,
        config,
        codes,
        minutes=minutes,
        progress=progress,
    )
    train_minutes = (time.perf_counter() - begin_s) / 60
    rows = []
    known = {"validation": problem.split.train, "test": problem.split.before_test}
    for split, held_out in (("validation", problem.split.validation), ("test", problem.split.test)):
        cases = HoldoutCases.from_events(known[split], held_out)
        if budget.quick:
            cases = cases.select(np.arange(min(len(cases), 200)))
        ranks = trained.ranks(cases, progress=progress)
        figures = ranking_metrics(ranks)
        one = row("TIGER (ours)", problem, split, budget.seed, figures, train_minutes)
        rows.append(one | {"epochs": trained.num_epochs, "best_step": trained.best_step})
    return rows


def headrace(problem: Problem, budget: Budget, progress: Progress) -> list[Row]:
    """The whole path, the beam search alone and the dense head alone, of one training."""
    train = replace(problem.settings.train, seed=budget.seed)
    if budget.epochs or budget.quick:
        train = replace(train, max_epochs=budget.epochs or 1)
    report = evaluate_leave_one_out(
        problem.catalogue,
        problem.events,
        model=problem.model,
        train=train,
        search=problem.settings.search,
        statistics=problem.settings.statistics,
        progress=progress,
    )
    systems = {
        "headrace": report.recommend,
        "headrace generator (beam only)": report.generator,
        "headrace dense": report.dense,
    }
    rows = [
        row(system, problem, "test", budget.seed, figures, report.train_minutes)
        for system, figures in systems.items()
    ]
    rows[1]["hierarchical_recall"] = list(report.hierarchical_recall)
    return rows


def row(
    system: str, problem: Problem, split: str, seed: int, figures: dict[str, float], minutes: float
) -> Row:
    """One row of the results."""
    wanted = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
    return {
        "system": system,
        "dataset": problem.name,
        "split": split,
        "seed": seed,
        **{name: figures[name] for name in wanted},
        "train_minutes": minutes,
    }


SYSTEMS: dict[str, Callable[[Problem, Budget, Progress], list[Row]]] = {
    "popularity": popularity,
    "sasrec": sasrec,
    "tiger": tiger,
    "headrace": headrace,
}
