"""Tables and plots of the ranker's results: on the terminal, as SVG, in the documents."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from harness import markdown_table, readme_table, save_plot, show
from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
_COST = {
    "history": "history",
    "candidates": "candidates",
    "one": "one masked pass, ms",
    "batched": "batched naive, ms",
    "naive": "naive, ms",
    "gain": "naive / one pass",
}
_MOVIELENS = {
    "system": "ranker",
    "auc": "AUC",
    "ndcg@10": "NDCG@10",
    "ece": "ECE",
    "ece_calibrated": "ECE, Platt-scaled",
    "num_seeds": "seeds",
}
_OFFLINE = {
    "variant": "ranker",
    "recall@10": "Recall@10",
    "ndcg@10": "NDCG@10",
    "candidate_recall": "recall of its candidates",
}
_STREAM = {
    "variant": "system",
    "recall@10": "Recall@10",
    "ndcg@10": "NDCG@10",
    "recall@10_new_items": "new items",
    "recall@10_old_items": "old items",
    "recall@10_new_users": "new users",
    "recall@10_old_users": "old users",
    "recall@10_old_users_old_items": "old users, old items",
}
_SHOWN_DAYS = (
    "everything",
    "no live statistics at all",
    "co-occurrence neighbours",
    "dense head",
    "popularity",
)
_COMMAND = "`make bench-ranker`"


def report(payload: Mapping[str, Any], *, quick: bool) -> None:
    """Everything there are rows for."""
    if "cost" in payload:
        rows = _cost(payload["cost"])
        show("one masked pass beside reading the history for every candidate", rows, _COST)
        _plot_cost(payload["cost"], quick=quick)
        readme_table("ranker-cost", markdown_table(rows, _COST) + _note_cost(payload["cost"]), quick=quick)
    if "movielens" in payload:
        rows = _over_seeds(payload["movielens"])
        show("who will like what, MovieLens in time order", rows, _MOVIELENS)
        readme_table("ranker", markdown_table(rows, _MOVIELENS) + _note_movielens(payload), quick=quick)
    parts = []
    for part, columns, title in (
        ("offline", _OFFLINE, "Leave-one-out validation"),
        ("stream", _STREAM, "The stream, day by day"),
    ):
        if part in payload:
            show(title, payload[part], columns)
            parts.append(
                f"{title} ({_note_data(part, payload)}):\n\n{markdown_table(payload[part], columns)}"
            )
    if "stream_days" in payload:
        _plot_days(payload["stream_days"], quick=quick)
    if parts:
        note = (
            f"\n\n{_COMMAND}. A variant's ranker is fitted and learns without what it lacks. On the stream"
            " every item is announced on the day of its first event, which is kind to new items; each event"
            " is scored before it is learned."
        )
        readme_table("ranker-statistics", "\n\n".join(parts) + note, quick=quick)


def _cost(rows: Rows) -> list[dict[str, Any]]:
    table: dict[tuple[int, int], dict[str, Any]] = {}
    short = {"one masked pass": "one", "batched naive": "batched", "naive": "naive"}
    for row in rows:
        key = row["history"], row["candidates"]
        cells = table.setdefault(key, {"history": key[0], "candidates": key[1]})
        cells[short[row["way"]]] = row["latency_ms_p50"]
        if row["way"] == "naive":
            cells["gain"] = row["times_one_pass"]
    return [table[key] for key in sorted(table)]


def _note_cost(rows: Rows) -> str:
    worst = max(row["max_difference"] for row in rows)
    return (
        f"\n\n{_COMMAND}; medians on one thread, the network alone, in float32. The largest difference"
        f" between a score of the one pass and of a pass of its own was {worst:.1g}."
    )


def _over_seeds(rows: Rows) -> list[dict[str, Any]]:
    """Mean and spread of the seeds, as text."""
    table = []
    for system in dict.fromkeys(row["system"] for row in rows):
        mine = [row for row in rows if row["system"] == system]
        cells: dict[str, Any] = {"system": system, "num_seeds": len(mine)}
        for key in ("auc", "ndcg@10", "ece", "ece_calibrated"):
            values = np.asarray([row[key] for row in mine])
            cells[key] = f"{values.mean():.4f} ± {values.std():.4f}"
        table.append(cells)
    return table


def _note_movielens(payload: Mapping[str, Any]) -> str:
    row = payload["movielens"][0]
    return (
        f"\n\n{_COMMAND}, {row['dataset']}: events in time order, the generator trained on the first half,"
        " both rankers in the same way on the next 30%, chosen on the next 10%, tested on the last"
        f" {row['num_test']:,} ratings (4 stars or more: a like); mean ± standard deviation over seeds."
        " GroupLens calls this set one for development: the figures compare the two, no more."
    )


def _note_data(part: str, payload: Mapping[str, Any]) -> str:
    about = payload[f"{part}_data"]
    text = f"{about['dataset']}, {about['num_users']:,} users"
    if part == "stream":
        text += f", {about['num_days']} days after {about['warm_up_days']} of warm-up"
    return text


def _plot_cost(rows: Rows, *, quick: bool) -> None:
    histories = sorted({row["history"] for row in rows})
    figure = Figure(figsize=(4 * len(histories), 3.4), layout="constrained")
    for axes, history in zip(figure.subplots(1, len(histories), sharey=True), histories, strict=True):
        for way in ("naive", "batched naive", "one masked pass"):
            mine = [row for row in rows if row["way"] == way and row["history"] == history]
            axes.plot([r["candidates"] for r in mine], [r["latency_ms_p50"] for r in mine], "o-", label=way)
        axes.set(xscale="log", yscale="log", xlabel="candidates", title=f"history {history}")
    figure.axes[0].set_ylabel("ms, median")
    figure.axes[0].legend()
    save_plot(figure, "ranker_cost", quick=quick)


def _plot_days(rows: Rows, *, quick: bool) -> None:
    """Recall@10 of all scored events so far, by day."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for system in _SHOWN_DAYS:
        mine = [row for row in rows if row["system"] == system]
        events = np.cumsum([row["events"] for row in mine])
        found = np.cumsum([row["events"] * row["recall@10"] for row in mine])
        axes.plot([row["day"] for row in mine], found / events, label=system)
    axes.set(xlabel="day", ylabel="Recall@10 so far", title="Scored before learned")
    axes.legend()
    save_plot(figure, "ranker_stream", quick=quick)
