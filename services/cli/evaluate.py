"""`headrace evaluate`: trains on a data folder by a published protocol and reports test figures."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import terminal
from services.settings import load_settings

if TYPE_CHECKING:
    from models.evaluation.leave_one_out import EvaluationReport


class Protocol(StrEnum):
    """How events are split into training and test."""

    LEAVE_ONE_OUT = "leave-one-out"


def evaluate(
    data: Annotated[Path, typer.Option(help="A data folder.", exists=True, file_okay=False)],
    protocol: Annotated[
        Protocol, typer.Option(help="leave-one-out: each user's last event is the test.")
    ] = Protocol.LEAVE_ONE_OUT,
    columns: terminal.ColumnsOption = None,
    allow_unmatched: terminal.UnmatchedOption = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train from nothing and report Recall and NDCG at 5 and 10 over the whole catalogue.

    Two tables, by what a system knows: the beam search alone, the dense head alone and popularity know the
    events before; the whole path of Recommend knows the moment of the request, too, as does the popularity
    beside it.
    Needs no running service, and changes none.
    """
    from services.cores import use_cores, wait_asleep

    wait_asleep()
    from models.evaluation.leave_one_out import evaluate_leave_one_out
    from models.tokenizers.health import distinct_prefix_ratio
    from services.learner.cold_start.catalogue import prepare_catalogue
    from services.memory import give_back, keep_few_products, return_large_at_once
    from services.wire.columns import dataset_batch
    from streaming.datasets.folder import load_dataset
    from streaming.datasets.tables import parse_columns

    settings = load_settings()
    use_cores()
    keep_few_products()
    return_large_at_once()
    dataset = load_dataset(data, parse_columns(columns), allow_unmatched=allow_unmatched)
    name = dataset.name
    with terminal.progress_bars() as bars:
        catalogue, model = prepare_catalogue(settings, dataset.items, bars, say=terminal.warn)
        events = dataset_batch(dataset, catalogue, settings.meaning)
        # titles, vectors and ids as they were in the files: a sixth of a gigabyte on Beauty
        del dataset
        give_back()
        report = evaluate_leave_one_out(
            catalogue,
            events,
            model=model,
            train=settings.train,
            search=settings.search,
            statistics=settings.statistics,
            progress=bars,
        )
    _report(report, distinct_prefix_ratio(catalogue.codes_NC), name, protocol, json=json)


def _report(
    report: "EvaluationReport", distinct_ratio: float, data: str, protocol: Protocol, *, json: bool
) -> None:
    of_history = {
        "beam search alone": report.generator,
        "dense head alone": report.dense,
        "popularity": report.popularity,
    }
    of_moment = {"recommend": report.recommend, "popularity at that moment": report.popularity_now}
    if json:
        terminal.print_json(
            {
                "recommend": report.recommend,
                "generator": report.generator,
                "dense": report.dense,
                "popularity": report.popularity,
                "popularity_now": report.popularity_now,
                "hierarchical_recall": report.hierarchical_recall,
                "ranker_validation": report.ranker,
                "distinct_prefix_ratio": round(distinct_ratio, 4),
                "num_cases": report.num_cases,
                "train_minutes": round(report.train_minutes, 2),
                "test_minutes": round(report.test_minutes, 2),
                "data": data,
                "protocol": protocol.value,
            }
        )
        return
    title = f"{data}, {protocol}, {report.num_cases:,} test events"
    terminal.print_metrics(f"{title}: by the events before", of_history)
    terminal.print_metrics("the same events: by the moment of each request, too", of_moment)
    levels = ", ".join(f"{recall:.4f}" for recall in report.hierarchical_recall)
    times = [terminal.duration_text(60 * minutes) for minutes in (report.train_minutes, report.test_minutes)]
    for line in (
        f"beam search: the right first 1 to {len(report.hierarchical_recall)} codes were found for {levels}",
        f"distinct codes, before the one that tells twins apart: {distinct_ratio:.1%} of the number of items",
        f"trained in {times[0]}, tested in {times[1]}",
    ):
        terminal.out.print(line, highlight=False)
