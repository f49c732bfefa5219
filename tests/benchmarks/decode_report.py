"""The plots and the documents' tables of the decoding benchmark, from its results alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from decode_profile import GROUPS
from harness import markdown_table, readme_table, save_plot, show, text_of
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

Row = Mapping[str, Any]

_COLOURS = {"headrace": "#0b6e4f", "torch": "#d17b0f", "hf": "#8d99ae"}
_STYLES = {"float32": "--", "bfloat16": "-"}
_NAMES = {"hf": "Hugging Face generate", "torch": "plain torch, T5", "headrace": "Headrace"}
_COLUMNS = {
    "system": "system",
    "variant": "variant",
    "dtype": "dtype",
    "codes": "codes",
    "batch": "batch",
    "beam": "beam",
    "history": "history",
    "latency_ms_p50": "p50 ms",
    "latency_ms_p99": "p99 ms",
    "requests_per_s": "requests/s",
    "ratio_to_floor": "× floor",
    "times_faster_than_hf": "× HF",
}
_SIZES = {
    "catalogue": "items",
    "batch": "batch",
    "dtype": "dtype",
    "latency_ms_p50": "p50 ms",
    "ratio_to_smallest": "× smallest",
    "num_prefixes": "prefixes with a choice",
    "index_mb": "index MB",
    "build_s": "build s",
}
_INSERTS = {
    "items_before": "items before",
    "items_inserted": "inserted",
    "variant": "searches",
    "inserts_per_s": "inserted/s",
    "inserts_per_s_with_searches": "with searches/s",
    "index_alone_per_s": "index alone/s",
    "search_before_ms_p50": "search before, ms",
    "search_during_ms_p50": "search during, ms",
    "answers_checked": "answers checked",
    "num_invalid": "invalid",
    "num_missing": "missing",
}


def compare_with_hf(rows: list[dict[str, Any]]) -> None:
    """Adds `times_faster_than_hf` (throughput) where HF ran at the same batch, beam and history."""
    hf = {_setting(row): row["requests_per_s"] for row in rows if row["system"] == "hf"}
    for row in rows:
        base = hf.get(_setting(row))
        row["times_faster_than_hf"] = None if base is None else row["requests_per_s"] / base


def show_all(payload: Mapping[str, Any]) -> None:
    """Everything that was measured, on the terminal."""
    show("decode", payload["rows"], _COLUMNS)
    show("how it grows with the catalogue", payload["catalogue_sizes"], _SIZES)
    columns = ["variant", "history", "latency_ms_p50", "latency_ms_p99"]
    show("how it grows with the history", payload["history_lengths"], columns)
    show("insertions into a live index", payload["insertions"], _INSERTS)
    show("where the time goes", payload["profile"], ["system", "dtype", "batch", "group", "ms", "share"])


def write_tables(payload: Mapping[str, Any], *, quick: bool) -> None:
    """The documents' tables `decode` and `decode-growth`."""
    rows, columns = _headline(payload["rows"])
    readme_table("decode", markdown_table(rows, columns), quick=quick)
    growth = [
        markdown_table(payload["catalogue_sizes"], {k: v for k, v in _SIZES.items() if k != "build_s"}),
        markdown_table(payload["insertions"], _INSERTS),
    ]
    readme_table("decode-growth", "\n\n".join(growth), quick=quick)


def _headline(rows: Sequence[Row]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Beam 50, smallest and largest batch, real codes where there are any; histories side by side."""
    codes = "beauty" if any(row["codes"] == "beauty" for row in rows) else "random"
    batches = {min(row["batch"] for row in rows), max(row["batch"] for row in rows)}
    columns = {key: _COLUMNS[key] for key in ("batch", "system", "variant", "dtype")}
    joined: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        is_shown = row["beam"] == 50 and row["batch"] in batches
        if not is_shown or (row["system"] == "headrace" and row["codes"] != codes):
            continue
        key = tuple(row[name] for name in columns)
        one = joined.setdefault(key, {name: row[name] for name in columns})
        for name in ("latency_ms_p50", "requests_per_s", "ratio_to_floor", "times_faster_than_hf"):
            one[f"{name}@{row['history']}"] = row[name]
    for name in ("latency_ms_p50", "requests_per_s", "ratio_to_floor", "times_faster_than_hf"):
        for length in sorted({row["history"] for row in rows}):
            columns[f"{name}@{length}"] = f"{_COLUMNS[name]}, {length} events"
    order = {"hf": 0, "torch": 1, "headrace": 2}
    shown = sorted(joined.values(), key=lambda row: (row["batch"], order[row["system"]]))
    return shown, columns


def write_plots(payload: Mapping[str, Any], *, quick: bool) -> None:
    """decode-systems, decode-beam, decode-catalogue, decode-history and decode-profile, as SVG."""
    save_plot(_systems(payload["rows"]), "decode-systems", quick=quick)
    save_plot(_beams(payload["rows"]), "decode-beam", quick=quick)
    save_plot(_catalogues(payload["catalogue_sizes"]), "decode-catalogue", quick=quick)
    save_plot(_lengths(payload["history_lengths"]), "decode-history", quick=quick)
    save_plot(_profile(payload["profile"]), "decode-profile", quick=quick)


def _setting(row: Row) -> tuple[int, int, int]:
    return row["batch"], row["beam"], row["history"]


def _label(row: Row) -> str:
    variant = "" if row["system"] != "headrace" else f", {row['variant']}, {row['codes']} codes"
    return f"{_NAMES[row['system']]}{variant}"


def _figures(row: Row) -> str:
    return f"{text_of(row['latency_ms_p50'])} ms, {text_of(row['requests_per_s'])}/s"


def _systems(rows: Sequence[Row]) -> Figure:
    """Bars of latency and throughput in every setting that HF ran in, with a mark at the floor."""
    settings = sorted({_setting(row) for row in rows if row["system"] == "hf"})
    figure = Figure(figsize=(9, 0.6 + 2.6 * len(settings)), layout="constrained")
    axes: list[Axes] = list(figure.subplots(len(settings), 1, squeeze=False)[:, 0])
    for axis, setting in zip(axes, settings, strict=True):
        shown = [row for row in rows if _setting(row) == setting]
        shown.sort(key=lambda row: row["latency_ms_p50"], reverse=True)
        place = range(len(shown))
        colours = [_COLOURS[row["system"]] for row in shown]
        bars = axis.barh(place, [row["latency_ms_p50"] for row in shown], color=colours)
        axis.bar_label(
            bars, [f"{r['latency_ms_p50']:.3g} ms, {r['requests_per_s']:.3g}/s" for r in shown], padding=3
        )
        floors = [max(row["flops_floor_ms"], row["bytes_floor_ms"]) for row in shown]
        axis.plot(floors, place, "k|", markersize=10, label="floor")
        axis.set_yticks(place, [f"{_label(row)}, {row['dtype']}" for row in shown], fontsize=7)
        axis.set_xscale("log")
        axis.margins(x=0.3)
        axis.set_title("batch {}, beam {}, history {}".format(*setting), fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower right")
    axes[-1].set_xlabel("latency of the batch, p50, ms")
    return figure


def _beams(rows: Sequence[Row]) -> Figure:
    """Latency over beam, one panel for each batch size, at the shortest history."""
    length = min(row["history"] for row in rows)
    shown = [r for r in rows if r["history"] == length and r["variant"] in ("cold", "warm")]
    batches = sorted({row["batch"] for row in shown})
    colour_of = {name: f"C{n}" for n, name in enumerate(dict.fromkeys(map(_label, shown)))}
    figure = Figure(figsize=(4.2 * len(batches), 5), layout="constrained")
    for axis, batch in zip(figure.subplots(1, len(batches), squeeze=False)[0], batches, strict=True):
        _lines(axis, [row for row in shown if row["batch"] == batch], "beam", _label, colour_of)
        axis.set(title=f"batch {batch}, history {length}", xlabel="beam")
    figure.legend(*_legend(figure.axes), loc="outside lower center", ncols=3, fontsize=7)
    return figure


def _legend(axes: Iterable[Axes]) -> tuple[list[Artist], list[str]]:
    """The lines of all panels and their names, each name once."""
    lines: dict[str, Artist] = {}
    for axis in axes:
        lines |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    return list(lines.values()), list(lines)


def _catalogues(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    _lines(axis, rows, "catalogue", lambda row: f"batch {row['batch']}")
    axis.set(title="decode on a known state, beam 50", xlabel="items, random distinct codes")
    axis.legend(fontsize=7)
    return figure


def _lengths(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    _lines(axis, rows, "history", lambda row: row["variant"])
    axis.set(title="batch 1, beam 50", xlabel="events in the history")
    axis.legend(fontsize=8)
    return figure


def _lines(
    axis: Axes,
    rows: Sequence[Row],
    key: str,
    label: Callable[[Row], str],
    colour_of: Mapping[str, str] | None = None,
) -> None:
    """A line for each label and dtype: one colour for a label, dashed in float32."""
    lines: dict[str, dict[str, list[Row]]] = {}
    places = sorted({row[key] for row in rows})
    for row in rows:
        lines.setdefault(label(row), {}).setdefault(row["dtype"], []).append(row)
    for n, (name, by_dtype) in enumerate(lines.items()):
        colour = f"C{n}" if colour_of is None else colour_of[name]
        for dtype, points in by_dtype.items():
            points.sort(key=lambda row: row[key])
            at, latency = [row[key] for row in points], [row["latency_ms_p50"] for row in points]
            (line,) = axis.plot(at, latency, _STYLES.get(dtype, "-"), color=colour, marker=".")
            line.set_label(f"{name}, {dtype}")
    axis.set(xscale="log", yscale="log", ylabel="latency of the batch, p50, ms")
    axis.set_xticks(places, [f"{place:,}" for place in places])
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(which="both", alpha=0.2)


def _profile(rows: Sequence[Row]) -> Figure:
    """One stacked bar for each system, dtype and batch, in milliseconds for a request."""
    keys = list(dict.fromkeys((row["batch"], row["system"], row["dtype"]) for row in rows))
    figure = Figure(figsize=(8, 1 + 0.5 * len(keys)), layout="constrained")
    axis = figure.subplots()
    begin = [0.0] * len(keys)
    for n, group in enumerate(GROUPS):
        spent = {(r["batch"], r["system"], r["dtype"]): r["share"] for r in rows if r["group"] == group}
        width = [100 * spent.get(key, 0.0) for key in keys]
        if any(width):
            axis.barh(range(len(keys)), width, left=begin, label=group, color=f"C{n}")
        begin = [a + b for a, b in zip(begin, width, strict=True)]
    totals = [sum(r["ms"] for r in rows if (r["batch"], r["system"], r["dtype"]) == key) for key in keys]
    labels = [f"{s}, batch {b}, {d}: {t:.3g} ms" for (b, s, d), t in zip(keys, totals, strict=True)]
    axis.set_yticks(range(len(keys)), labels, fontsize=8)
    axis.set(title="where the time of a decode goes (beam 50, history 20)", xlabel="% of the batch's time")
    figure.legend(loc="outside lower center", ncols=4, fontsize=7)
    return figure
