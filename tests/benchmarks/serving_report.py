"""Tables for the terminal and the documents, and the plots, of `bench_serving.py`."""

from typing import Any

from harness import markdown_table, readme_table, save_plot, show
from matplotlib.figure import Figure
from serving_measures import BEAM, K, Row
from serving_world import World


def serving_table(rows: list[Row], gorse: dict[str, Any]) -> list[Row]:
    """`Recommend` by load and learner, the stages beside it; gorse below."""
    table = []
    for row in rows:
        stages = row["stages"]
        table.append(
            {
                "load": row["load"],
                "learner": row["learner"],
                "p50 ms": f"{row['p50_ms']:.1f}",
                "p99 ms": f"{row['p99_ms']:.1f}",
                "requests/s": f"{row['per_s']:.0f}",
                **{
                    f"{stage} p50 / p99": f"{stages[stage]['p50_ms']:.1f} / {stages[stage]['p99_ms']:.1f}"
                    for stage in ("generate", "rank")
                    if stage in stages
                },
                "CPU ms": f"{sum(row['cpu_ms_per_answer'].values()):.1f}",
            }
        )
    one, eight = "gorse 0.5.9*, 1 client", "gorse 0.5.9*, 8 clients"
    empty = {"learner": "", "generate p50 / p99": "", "rank p50 / p99": "", "CPU ms": ""}
    table.append(
        {
            **empty,
            "load": one,
            "p50 ms": f"{gorse['one_client_p50_ms']:.1f}",
            "p99 ms": f"{gorse['one_client_p99_ms']:.1f}",
            "requests/s": "",
        }
    )
    table.append(
        {
            **empty,
            "load": eight,
            "p50 ms": "",
            "p99 ms": f"{gorse['eight_clients_p99_ms']:.1f}",
            "requests/s": f"{gorse['eight_clients_per_s']:.0f}",
        }
    )
    return table


def user_table(users: list[Row], changes: list[Row]) -> list[Row]:
    """Kept states, and how soon an event counts."""
    table = [
        {
            "what": f"Recommend, {row['user']} user: whole / generate",
            "p50 ms": f"{row['p50_ms']:.1f} / {row['stages']['generate']['p50_ms']:.1f}",
            "p95 or p99 ms": f"{row['p99_ms']:.1f} / {row['stages']['generate']['p99_ms']:.1f}",
        }
        for row in users
    ]
    for row in changes:
        for since, words in (("sent", "Track sent"), ("confirmed", "the broker had it")):
            table.append(
                {
                    "what": f"event to its user's changed answer, since {words}; learner {row['learner']}",
                    "p50 ms": f"{row[f'since_{since}_median_ms']:.0f}",
                    "p95 or p99 ms": f"{row[f'since_{since}_p95_ms']:.0f}",
                }
            )
    return table


def batching_table(rows: list[Row]) -> list[Row]:
    """With and without, side by side."""
    table = []
    for callers in dict.fromkeys(row["callers"] for row in rows):
        on, off = (
            next(row for row in rows if row["callers"] == callers and row["batching"] is batching)
            for batching in (True, False)
        )
        table.append(
            {
                "callers": callers,
                "requests/s": f"{on['per_s']:.0f}",
                "p99 ms": f"{on['p99_ms']:.1f}",
                "mean batch": f"{on['mean_batch']:.1f}",
                "queue wait ms": f"{on['mean_queue_wait_ms']:.1f}",
                "requests/s without": f"{off['per_s']:.0f}",
                "p99 ms without": f"{off['p99_ms']:.1f}",
                "queue wait ms without": f"{off['mean_queue_wait_ms']:.1f}",
            }
        )
    return table


def track_table(rows: list[Row], gorse: dict[str, Any]) -> list[Row]:
    """Events a second, gorse below."""
    table = [
        {
            "how": f"{row['mode']}, {row['callers']} at once, {row['events_a_message']} a message",
            "events/s": f"{row['per_s']:,.0f}",
            "p50 ms": f"{row['p50_ms']:.1f}" if "p50_ms" in row else "",
            "p99 ms": f"{row['p99_ms']:.1f}" if "p99_ms" in row else "",
        }
        for row in rows
    ]
    for how, name in (("one by one", "insert_single_per_s"), ("batched", "insert_batched_per_s")):
        per_s = f"{gorse[name]:,.0f}"
        table.append({"how": f"gorse 0.5.9*, {how}", "events/s": per_s, "p50 ms": "", "p99 ms": ""})
    return table


def pause_table(rows: list[Row]) -> list[Row]:
    """One call with the pause before it, side by side with the one without."""
    table = []
    for call in dict.fromkeys(row["call"] for row in rows):
        cpu_ms = {row["pause_ms"]: row["cpu_ms_median"] for row in rows if row["call"] == call}
        table.append({"call": call} | {f"after {ms} ms of sleep": f"{cpu:.1f}" for ms, cpu in cpu_ms.items()})
    return table


def batching_plot(rows: list[Row]) -> Figure:
    """Throughput and p99 against the number of callers."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, value, label in ((left, "per_s", "requests/s"), (right, "p99_ms", "p99, ms")):
        for batching, name in ((True, "micro-batching"), (False, "one by one")):
            own = [row for row in rows if row["batching"] is batching]
            callers = [row["callers"] for row in own]
            axes.plot(callers, [row[value] for row in own], marker="o", label=name)
        axes.set(xscale="log", xlabel="concurrent callers", ylabel=label)
        axes.set_xticks(callers, [str(number) for number in callers])
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    left.legend()
    figure.suptitle("The generator alone, beam 50")
    return figure


def serving_plot(rows: list[Row]) -> Figure:
    """Where the CPU of one answer goes, by service, for each load."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    labels = [f"{row['load']}\n{row['learner']}" for row in rows]
    below = [0.0] * len(rows)
    for service in rows[0]["cpu_ms_per_answer"]:
        heights = [row["cpu_ms_per_answer"][service] for row in rows]
        axes.bar(labels, heights, bottom=below, label=service)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set_ylabel("CPU ms for each answer")
    axes.tick_params(axis="x", labelsize=7)
    axes.legend(fontsize=7, ncols=2)
    return figure


def publish(payload: dict[str, Any], world: World, *, quick: bool) -> None:
    """Tables on the terminal and in the documents, plots."""
    catalogue = f"{world.dataset.name}, {len(world.dataset.items):,} items, beam {BEAM}, k {K}"
    tables = {
        "serving": [
            serving_table(payload["recommend"], payload["gorse"]),
            user_table(payload["users"], payload["change"]),
        ],
        "serving-pauses": [pause_table(payload["pauses"])],
        "serving-batching": [batching_table(payload["batching"])],
        "track": [track_table(payload["track"], payload["gorse"])],
    }
    for marker, parts in tables.items():
        for part in parts:
            show(f"{marker}: {catalogue}", part, list(part[0]))
        text = "\n\n".join(markdown_table(part, list(part[0])) for part in parts)
        readme_table(marker, text, quick=quick)
    save_plot(serving_plot(payload["recommend"]), "serving", quick=quick)
    save_plot(batching_plot(payload["batching"]), "serving-batching", quick=quick)
