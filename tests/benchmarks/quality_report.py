"""Tables and plots of the quality benchmark's rows: test figures of systems, validation of ablations."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from harness import markdown_table, readme_table, save_plot, show
from matplotlib.figure import Figure

Row = dict[str, Any]
METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
_COLOURS = {"recall@10": "#3b6fb6", "ndcg@10": "#d98032"}


def report(rows: Sequence[Row], *, quick: bool) -> None:
    """Shows, plots and (not in a quick run) puts into the documents what the rows say."""
    systems = summarised([row for row in rows if row["split"] == "test"])
    ablations = summarised([row for row in rows if row["system"].startswith("ablation:")])
    if systems:
        columns = {
            "system": "test",
            **_headings(METRICS),
            "num_seeds": "seeds",
            "minutes": "minutes to train",
        }
        cells = [system_cells(row) for row in sorted(systems, key=lambda row: -row["recall@10"][0])]
        show("test, leave-one-out", cells, columns)
        readme_table("quality", markdown_table(cells, columns), quick=quick)
        save_plot(systems_plot(systems), "quality", quick=quick)
    if ablations:
        columns = {
            "system": "validation",
            "question": "what it asks",
            **_headings(("recall@10", "ndcg@10")),
            "beam_recall@10": "beam R@10",
            "beam_ndcg@10": "beam N@10",
            "fused_recall@10": "fused R@10",
            "all_codes_recall@10": "beam R@10, p over all codes",
            "num_seeds": "seeds",
        }
        cells = [ablation_cells(row) for row in ablations]
        show("ablations, validation", cells, columns)
        readme_table("ablations", markdown_table(cells, columns), quick=quick)
        save_plot(ablations_plot(ablations), "quality_ablations", quick=quick)


def summarised(rows: Sequence[Row]) -> list[Row]:
    """One row for each system and data set: every figure as (mean, standard deviation) over the seeds."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["system"], row["dataset"]].append(row)
    return [_summary(group) for group in groups.values()]


def _summary(group: list[Row]) -> Row:
    first = group[0]
    figures = [key for key, value in first.items() if "@" in key and isinstance(value, float)]
    minutes = [row["train_minutes"] for row in group if row["train_minutes"] is not None]
    return {
        "system": first["system"],
        "dataset": first["dataset"],
        "question": first.get("question"),
        "published": first.get("published"),
        "num_seeds": None if first["seed"] is None else len(group),
        "minutes": float(np.mean(minutes)) if minutes else None,
        **{key: mean_and_spread([row[key] for row in group]) for key in figures},
    }


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; 0 for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def figure_text(value: tuple[float, float] | None, num_seeds: int | None) -> str | None:
    """ ".0835 ± .0012", without the spread where there is one seed."""
    if value is None:
        return None
    mean, spread = (f"{part:.4f}".removeprefix("0") for part in value)
    return f"{mean} ± {spread}" if num_seeds is not None and num_seeds > 1 else mean


def system_cells(row: Row) -> Row:
    """The cells of one system's line."""
    cells = {metric: figure_text(row.get(metric), row["num_seeds"]) for metric in METRICS}
    name = f"*{row['system']}*" if row["published"] else row["system"]
    return row | cells | {"system": name}


def ablation_cells(row: Row) -> Row:
    """The cells of one variant's line."""
    cells = {key: figure_text(value, row["num_seeds"]) for key, value in row.items() if "@" in key}
    return row | cells | {"system": _short(row)}


def systems_plot(systems: Sequence[Row]) -> Figure:
    """Bars of Recall@10 and NDCG@10 on test; published figures are hollow, whiskers are the spread."""
    ordered = sorted(systems, key=lambda row: row["recall@10"][0])
    figure = Figure(figsize=(8, 1.2 + 0.42 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(ordered))
    for shift, metric in ((0.2, "recall@10"), (-0.2, "ndcg@10")):
        colour = _COLOURS[metric]
        for place, row in zip(at, ordered, strict=True):
            mean, spread = row[metric]
            axes.barh(
                place + shift,
                mean,
                height=0.36,
                xerr=spread or None,
                facecolor="none" if row["published"] else colour,
                edgecolor=colour,
            )
        axes.barh(0, 0, color=colour, label=_headings((metric,))[metric])
    axes.set_yticks(at, [row["system"] for row in ordered])
    axes.set_xlabel("test; hollow: as published, not run here; whiskers: standard deviation over seeds")
    axes.legend(loc="lower right")
    return figure


def ablations_plot(ablations: Sequence[Row]) -> Figure:
    """Recall@10 on validation of the dense head, the beam and both together, one line of dots a variant."""
    figure = Figure(figsize=(8, 1.2 + 0.34 * len(ablations)), layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(ablations))[::-1]
    marks = {
        "recall@10": ("o", "dense head / path"),
        "beam_recall@10": ("s", "beam"),
        "fused_recall@10": ("^", "fused"),
    }
    for key, (marker, label) in marks.items():
        known = [(place, row[key]) for place, row in zip(at, ablations, strict=True) if key in row]
        if known:
            places, values = zip(*known, strict=True)
            means, spreads = zip(*values, strict=True)
            axes.errorbar(means, places, xerr=spreads, fmt=marker, label=label, capsize=2)
    axes.set_yticks(at, [_short(row) for row in ablations])
    axes.set_xlabel("validation Recall@10")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    return figure


def _short(row: Row) -> str:
    return str(row["system"]).removeprefix("ablation:")


def _headings(metrics: Sequence[str]) -> dict[str, str]:
    words = {"recall": "Recall", "ndcg": "NDCG"}
    return {metric: f"{words[metric.split('@')[0]]}@{metric.split('@')[1]}" for metric in metrics}
