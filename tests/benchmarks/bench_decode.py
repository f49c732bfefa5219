"""How fast items are found: Headrace beside Hugging Face `generate` and a plain torch beam search.

    make bench-decode                                   # everything, about 10 minutes
    make bench-decode ARGS=--quick                      # does it run?
    python tests/benchmarks/bench_decode.py --json

All systems take turns in one run on the same machine, in float32 and in what the machine computes fastest
in. Beside every row stands its floor: what the decode needs over what this machine was measured to do
(`decode_floor.py`). Further: growth with the catalogue and the history, insertions into a live index
(`decode_growth.py`), and where the time goes (`decode_profile.py`).

Writes results/decode.json, decode-*.svg and the two tables of docs/benchmarks/decoding.md.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from decode_floor import Branching, Work, dense_work, search_work, t5_work, trunk_work
from decode_growth import catalogue_sizes, history_lengths, insertions
from decode_latency import Effort, measure
from decode_profile import profiles
from decode_report import compare_with_hf, show_all, write_plots, write_tables
from decode_worlds import (
    NUM_ITEMS,
    NUM_LEVELS,
    Baselines,
    Cell,
    V,
    World,
    beauty_catalogue,
    dtypes,
    histories,
    random_catalogue,
)
from harness import console, emit, load_results, machine, parser, progress, write_results

Tick = Callable[[], object]


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long."""

    batches: tuple[int, ...]
    beams: tuple[int, ...]
    lengths: tuple[int, ...]
    hf: tuple[tuple[int, int], ...]  # (batch, beam)
    effort: Effort
    sizes: tuple[int, ...]
    history_lengths: tuple[int, ...]
    insertions: tuple[tuple[int, int, int], ...]  # (items before, new items, content width)
    profiled: tuple[int, ...]
    with_beauty: bool


FULL = Plan(
    batches=(1, 32),
    beams=(10, 50, 200, 512),
    lengths=(20, 50),
    hf=((1, 20), (1, 50), (32, 50)),
    effort=Effort(budget_s=0.6, min_calls=3, max_calls=200),
    sizes=(NUM_ITEMS, 100_000, 1_000_000),
    history_lengths=(20, 50, 100, 200, 500, 1_000),
    insertions=((NUM_ITEMS, 20_000, 384), (1_000_000, 20_000, 8)),
    profiled=(1, 32),
    with_beauty=True,
)
QUICK = Plan(
    batches=(1, 8),
    beams=(20, 50),
    lengths=(20,),
    hf=((1, 20),),
    effort=Effort(budget_s=0.1, min_calls=3, max_calls=20),
    sizes=(NUM_ITEMS, 50_000),
    history_lengths=(20, 200),
    insertions=((5_000, 1_000, 384),),
    profiled=(1,),
    with_beauty=False,
)
MANY = 100_000  # from so many items on, insertions are measured on a known state and compared once
MOST_BEAMS = 2_000  # of all requests together: beyond, plain torch takes seconds for each answer
EXTRA_BEAM = 50  # the beam at which the variants beyond cold and warm are measured


def cells_of(plan: Plan, worlds: list[World], baselines: Baselines) -> Iterator[list[Cell]]:
    """The rows that take turns: all systems at one batch, beam and history."""
    for length in plan.lengths:
        for batch in plan.batches:
            for beam in plan.beams:
                if batch * beam > MOST_BEAMS:
                    continue
                variants = ["cold", "warm"] + ["event", "cold+dense"] * (beam == EXTRA_BEAM)
                shape: dict[str, int] = {"batch": batch, "beam": beam, "length": length}
                cells = baselines.cells("hf", **shape) if (batch, beam) in plan.hf else []
                cells += baselines.cells("torch", **shape)
                for world in worlds:
                    for dtype in dtypes():
                        cells += world.cells(variants=variants, dtype=dtype, **shape)
                yield cells


def work_of(row: dict[str, Any], worlds: dict[str, World], baselines: Baselines) -> Work:
    """What a row's decode needs."""
    batch, beam, length = row["batch"], row["beam"], row["history"]
    if row["system"] != "headrace":
        config = baselines.hf.model.config
        return t5_work(
            config, batch=batch, beam=beam, length=length, num_codes=NUM_LEVELS + 1, codebook_size=V
        )
    world = worlds[row["codes"]]
    history = histories(len(world.catalogue), batch, length)
    dtype = getattr(torch, row["dtype"])
    search = world.generation(dtype, history, beam=beam).search
    assert search is not None
    work = search_work(world.recommender, Branching(world.catalogue.codes_NC, V), search)
    if row["variant"] in ("cold", "cold+dense"):
        work += trunk_work(world.recommender, batch=batch, length=length)
    if row["variant"] == "event":
        work += trunk_work(world.recommender, batch=batch, length=1)
    if row["variant"] == "cold+dense":
        work += dense_work(world.recommender, batch=batch, num_items=len(world.catalogue))
    return work


def latencies(plan: Plan, worlds: list[World], baselines: Baselines, tick: Tick) -> list[dict[str, Any]]:
    """The rows of all systems, each with its floor and its ratio to it."""
    rows = [row for cells in cells_of(plan, worlds, baselines) for row in measure(cells, plan.effort, tick)]
    by_codes = {world.codes: world for world in worlds}
    for row in rows:
        floor = work_of(row, by_codes, baselines).floor(row["dtype"], machine())
        row.update(floor)
        row["ratio_to_floor"] = row["latency_ms_p50"] / max(floor.values())
    compare_with_hf(rows)
    return rows


def run(plan: Plan) -> dict[str, Any]:
    """Everything, as it is written."""
    worlds = [World.of("random", random_catalogue(NUM_ITEMS, content_dim=384))]
    notes = []
    if plan.with_beauty:
        try:
            worlds.append(World.of("beauty", beauty_catalogue()))
        except FileNotFoundError as error:
            notes.append(f"no rows with Beauty's codes: {error.args[0]}")
            console.print(notes[-1])
    baselines = Baselines("random", worlds[0].catalogue.codes_NC)
    with progress() as bar:
        num_rows = sum(len(cells) for cells in cells_of(plan, worlds, baselines))
        task = bar.add_task("systems", total=num_rows)
        rows = latencies(plan, worlds, baselines, lambda: bar.advance(task))
        task = bar.add_task("catalogue sizes", total=2 * len(plan.sizes) * len(dtypes()))
        sizes = catalogue_sizes(plan.sizes, plan.effort, lambda: bar.advance(task))
        task = bar.add_task("history lengths", total=3 * len(plan.history_lengths))
        lengths = history_lengths(plan.history_lengths, plan.effort, lambda: bar.advance(task))
        inserted = []
        for before, new, width in bar.track(plan.insertions, description="insertions"):
            compare_every = max(1, new // 100 // 5) if before < MANY else new // 100
            one = insertions(before, new, content_dim=width, compare_every=compare_every, cold=before < MANY)
            inserted.append(one)
        bar.add_task("profile", total=None)
        profile = profiles(worlds[0], baselines, list(plan.profiled), plan.effort)
    return {
        "rows": rows,
        "catalogue_sizes": sizes,
        "history_lengths": lengths,
        "insertions": inserted,
        "profile": profile,
        "notes": notes,
    }


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    payload = run(QUICK if args.quick else FULL)
    path = write_results("decode", payload, quick=args.quick)
    write_plots(payload, quick=args.quick)
    write_tables(payload, quick=args.quick)
    show_all(payload)
    console.print(f"written to {path.parent.name}/{path.name} and decode-*.svg beside it")
    if args.json:
        emit(load_results("decode", quick=args.quick))
    if any(one["num_invalid"] or one["num_missing"] for one in payload["insertions"]):
        raise SystemExit("an answer during the insertions was invalid or incomplete")


if __name__ == "__main__":
    main()
