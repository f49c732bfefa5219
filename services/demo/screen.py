"""What the demo draws on the terminal: tables and one plot, from plain figures.

Knows rich and plotext, not the services; colours are rich's and vanish where there is no terminal.
"""

from collections.abc import Mapping, Sequence

import plotext
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from protos.headrace.v1 import learner_pb2, recommend_pb2, release_pb2

_SMOOTH_POINTS = 16
_FRAME_WIDTH = 4


def recommendations_table(
    title: str,
    response: recommend_pb2.RecommendResponse,
    *,
    before: Sequence[str] = (),
    highlight: str = "",
) -> Table:
    """One answer, `highlight` in bold; beside a list of `before`, the items that moved in are marked."""
    table = Table(title=title, title_justify="left", caption=f"release {response.release_id or 'none'}")
    for name, justify in (("#", "right"), ("item", "left"), ("title", "left"), ("score", "right")):
        table.add_column(name, justify="right" if justify == "right" else "left")
    table.add_column("brought by")
    if before:
        table.add_column("change")
    for position, item in enumerate(response.recommendations, start=1):
        sources = ", ".join(
            recommend_pb2.CandidateSource.Name(source).removeprefix("CANDIDATE_SOURCE_").lower()
            for source in item.sources
        )
        change = ["" if item.item_id in before else "moved in"] if before else []
        table.add_row(
            str(position),
            item.item_id,
            item.title,
            f"{item.score:.2f}",
            sources,
            *change,
            style="bold" if item.item_id == highlight else None,
        )
    return table


def curve_panel(
    curve: Sequence[learner_pb2.QualityPoint], *, console_width: int = 80, height: int = 14
) -> Panel:
    """Prequential Recall@10 of Headrace and of windowed popularity against the events learned.

    Each point is the mean of the newest `_SMOOTH_POINTS`: one micro-batch alone is mostly noise.
    """
    title = "prequential Recall@10 (each event is predicted before it is learned)"
    if len(curve) < 2:
        return Panel("waiting for events", title=title)
    events = [point.num_events for point in curve]
    plotext.clear_figure()
    plotext.plot_size(console_width - _FRAME_WIDTH, height)
    plotext.theme("clear")
    ours = _smooth([point.recall_at_10 for point in curve])
    popularity = _smooth([point.popularity_recall_at_10 for point in curve])
    plotext.plot(events, ours, label="headrace", marker="braille")
    plotext.plot(events, popularity, label="popularity", marker="dot")
    plotext.ylim(0, None)
    plotext.xlabel("events learned")
    return Panel(Text.from_ansi(plotext.build()), title=title)


def _smooth(values: Sequence[float]) -> list[float]:
    windows = (values[max(0, n + 1 - _SMOOTH_POINTS) : n + 1] for n in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def held_out_table(num_events: int, recalls: Mapping[str, float | None], popularity: float | None) -> Table:
    """Recall@10 of releases on the same held-out events, and popularity's; a dash for what none measured."""
    table = Table(title=f"predicted before they were learned: {num_events:,} events", title_justify="left")
    table.add_column("predicted by", min_width=36)
    table.add_column("Recall@10", justify="right")
    for name, recall in (*recalls.items(), ("popularity", popularity)):
        table.add_row(name, "-" if recall is None else f"{recall:.4f}")
    return table


def latency_table(percentiles: Mapping[str, tuple[float, float]], num_requests: int) -> Table:
    """p50 and p99 of Recommend by stage, in milliseconds."""
    table = Table(title=f"answers by stage: {num_requests:,} while learning", title_justify="left")
    table.add_column("stage", min_width=20)  # as wide as the title, which would be broken otherwise
    table.add_column("p50 ms", justify="right")
    table.add_column("p99 ms", justify="right")
    for stage, (p50, p99) in percentiles.items():
        table.add_row(stage, f"{p50:.1f}", f"{p99:.1f}")
    return table


def releases_table(releases: Sequence[release_pb2.Release]) -> Table:
    """Every release with its state and why it has it, oldest first."""
    table = Table(title="releases", title_justify="left")
    table.add_column("release", no_wrap=True)
    table.add_column("state")
    table.add_column("reason")
    for release in sorted(releases, key=lambda release: release.created_time_ms):
        state = release_pb2.ReleaseState.Name(release.state).removeprefix("RELEASE_STATE_").lower()
        style = "bold green" if release.state == release_pb2.RELEASE_STATE_LIVE else None
        table.add_row(release.release_id, state, release.reason, style=style)
    return table


def quality_table(status: learner_pb2.StatusResponse) -> Table:
    """Prequential quality by segment beside popularity on the same events; a dash where there are none."""
    table = Table(
        title="prequential quality, last window",
        title_justify="left",
        caption="each segment has a window of its own",
    )
    table.add_column("segment")
    for name in ("events", "Recall@10", "NDCG@10", "popularity Recall@10"):
        table.add_column(name, justify="right")
    for row in status.quality:
        figures = (row.recall_at_10, row.ndcg_at_10, row.popularity_recall_at_10)
        texts = (f"{figure:.4f}" if row.num_events else "-" for figure in figures)
        table.add_row(row.segment.replace("_", " "), f"{row.num_events:,}", *texts)
    return table
