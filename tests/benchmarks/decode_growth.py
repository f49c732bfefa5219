"""How decoding grows with the catalogue and with the history, and how fast items go in meanwhile.

Searches and insertions take turns in one thread, as in `services/model_host/model_thread.py`: a search never
runs beside a writer. Every answer is checked: k items, each once, each known and available, and the same as
of an index built anew from the same items.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from decode_floor import Branching
from decode_latency import Effort, measure
from decode_worlds import (
    K,
    V,
    World,
    catalogue_of,
    dtypes,
    histories,
    name_of,
    random_catalogue,
    random_codebook,
    random_codes,
    random_content,
)
from harness import percentiles, seconds_of
from torch import Tensor

from models.batch import HistoryBatch
from models.catalogue.index import CatalogueIndex
from models.decoding.cpu_engine import CpuEngine
from models.decoding.generation import generate
from protos.headrace.v1.items_pb2 import ItemSid, SemanticId
from services.model_host.live_catalogue import LiveCatalogue

BEAM = 50
# A search on a known state reads no content; a million vectors of the default width would be 1.5 GB
_SMALL_CONTENT = 8
_PUT_SIZE = 100


def catalogue_sizes(sizes: Sequence[int], effort: Effort, tick: Callable[[], object]) -> list[dict[str, Any]]:
    """Warm decodes of every size in turn: latency, its ratio to the first size's, and the index.

    `num_prefixes` is how many prefixes had a choice below them in one such decode; the network runs for
    no others, so it says what a larger catalogue makes the search do.
    """
    worlds, facts_of = [], {}
    for size in sizes:
        begin_s = time.perf_counter()
        world = World.of("random", random_catalogue(size, content_dim=_SMALL_CONTENT))
        built_s = time.perf_counter() - begin_s
        dtype = dtypes()[-1]
        search = world.generation(dtype, histories(size, 1, 20), beam=BEAM).search
        assert search is not None
        facts_of[size] = {
            "index_mb": world.catalogue.trie.num_bytes / 1e6,
            "build_s": built_s,
            "num_prefixes": Branching(world.catalogue.codes_NC, V).needed(search)[0],
        }
        worlds.append(world)
    cells = [
        cell
        for batch in (1, 32)
        for dtype in dtypes()
        for world in worlds
        for cell in world.cells(variants=["warm"], batch=batch, beam=BEAM, length=20, dtype=dtype)
    ]
    rows = measure(cells, effort, tick)
    first = {(r["batch"], r["dtype"]): r["latency_ms_p50"] for r in rows if r["catalogue"] == sizes[0]}
    for row in rows:
        row.update(facts_of[row["catalogue"]])
        row["ratio_to_smallest"] = row["latency_ms_p50"] / first[row["batch"], row["dtype"]]
    return rows


def history_lengths(
    lengths: Sequence[int], effort: Effort, tick: Callable[[], object]
) -> list[dict[str, Any]]:
    """Cold, warm and one-event-later decodes at batch 1, of a model that reads up to the longest."""
    catalogue = random_catalogue(12_101, content_dim=_SMALL_CONTENT)
    world = World.of("random", catalogue, max_history=max(lengths))
    variants = ["cold", "warm", "event"]
    cells = [
        cell
        for length in lengths
        for cell in world.cells(variants=variants, batch=1, beam=BEAM, length=length, dtype=dtypes()[-1])
    ]
    return measure(cells, effort, tick)


@dataclass
class _Turns:
    """What alternating puts and searches took, and what was wrong with the answers."""

    put_s: float = 0.0
    search_s: list[float] = field(default_factory=list)
    num_checked: int = 0
    num_compared: int = 0
    num_invalid: int = 0
    num_missing: int = 0

    def facts(self, num_new: int) -> dict[str, Any]:
        """As columns of a row."""
        during = percentiles(self.search_s)
        return {
            "put_size": _PUT_SIZE,
            "inserts_per_s": num_new / self.put_s,
            "inserts_per_s_with_searches": num_new / (self.put_s + sum(self.search_s)),
            "search_during_ms_p50": during["p50_ms"],
            "search_during_ms_p99": during["p99_ms"],
            "answers_checked": self.num_checked,
            "answers_compared": self.num_compared,
            "num_invalid": self.num_invalid,
            "num_missing": self.num_missing,
        }


def insertions(
    num_before: int, num_new: int, *, content_dim: int, compare_every: int, cold: bool
) -> dict[str, Any]:
    """Announces `num_new` items to a live generator, `_PUT_SIZE` at a time with a search after each.

    Items come as the messages that the services get. A `cold` search begins at the history, which makes
    the new items be encoded too; otherwise the user's state is known. Every `compare_every`-th search is
    repeated on an index made anew. `num_invalid` counts answers with an item that is unknown, not
    available or there twice; `num_missing` those with fewer than k, or other than the new index gives.
    """
    codes_NC = random_codes(num_before + 2 * num_new)
    content_NE = random_content(num_before + num_new, content_dim)
    catalogue = catalogue_of(codes_NC[:num_before], content_NE[:num_before], random_codebook(content_dim))
    world = World.of("random", catalogue)
    engine = world.engines[dtypes()[-1]]
    live = LiveCatalogue()
    live.swap(catalogue)
    history = histories(num_before, 1, 20)
    known_BD = None if cold else torch.randn(1, world.recommender.config.d_model)
    before_s = [_search_s(engine, history, known_BD) for _ in range(20)]
    version = catalogue.codebook.version
    sids = _messages(version, codes_NC, content_NE, range(num_before, num_before + num_new))
    turns = _Turns()
    gc.collect()
    for turn, first in enumerate(range(0, num_new, _PUT_SIZE)):
        turns.put_s += seconds_of(partial(live.put_many, sids[first : first + _PUT_SIZE]))
        turns.search_s.append(_search_s(engine, history, known_BD))
        compare = turn % compare_every == compare_every - 1
        state_BD = engine.states(history).state_BD if known_BD is None else known_BD
        fresh = CpuEngine(world.recommender, _rebuilt(catalogue), dtype=dtypes()[-1]) if compare else None
        _check(turns, engine, history, state_BD, fresh)
    turns.num_missing += len(catalogue) != num_before + num_new
    return {
        "items_before": num_before,
        "items_inserted": num_new,
        "content_dim": content_dim,
        "variant": "cold" if cold else "warm",
        "dtype": name_of(dtypes()[-1]),
        "search_before_ms_p50": percentiles(before_s)["p50_ms"],
        "index_alone_per_s": _inserts_per_s(catalogue, codes_NC[num_before + num_new :]),
        **turns.facts(num_new),
    }


def _messages(version: str, codes_NC: Tensor, content_NE: Tensor, rows: range) -> list[ItemSid]:
    """What the tokenizer would announce for these rows."""
    return [
        ItemSid(
            item_id=f"item-{row}",
            sid=SemanticId(codebook_version=version, codes=codes_NC[row].tolist()),
            content=content_NE[row].tolist(),
            announced_time_ms=1,
        )
        for row in rows
    ]


def _inserts_per_s(catalogue: CatalogueIndex, codes_NC: Tensor) -> float:
    """Item by item into the index alone, with nothing in between."""
    content_E = torch.zeros(catalogue.codebook.content_dim)
    codes = codes_NC.tolist()
    begin_s = time.perf_counter()
    for n, codes_C in enumerate(codes):
        catalogue.insert(f"more-{n}", codes_C, content_E)
    return len(codes) / (time.perf_counter() - begin_s)


def _search_s(engine: CpuEngine, history: HistoryBatch, state_BD: Tensor | None) -> float:
    return seconds_of(lambda: generate(engine, history, k=K, beam=BEAM, use_dense=False, state_BD=state_BD))


def _rebuilt(catalogue: CatalogueIndex) -> CatalogueIndex:
    return catalogue_of(catalogue.codes_NC, catalogue.content_NE, catalogue.codebook)


def _rows_of(engine: CpuEngine, history: HistoryBatch, state_BD: Tensor) -> tuple[Tensor, Tensor]:
    found = generate(engine, history, k=K, beam=BEAM, use_dense=False, state_BD=state_BD).search
    assert found is not None
    return found.row_BK[0], found.score_BK[0]


def _check(
    turns: _Turns,
    engine: CpuEngine,
    history: HistoryBatch,
    state_BD: Tensor,
    rebuilt: CpuEngine | None,
) -> None:
    """One more search, looked at: valid, complete, and as on a rebuilt index where there is one."""
    catalogue = engine.catalogue
    row_K, score_K = _rows_of(engine, history, state_BD)
    rows = [row for row in row_K.tolist() if row >= 0]
    turns.num_checked += 1
    known = all(row < len(catalogue) and bool(catalogue.available_N[row]) for row in rows)
    coded = known and all(catalogue.row_of(catalogue.codes_NC[row].tolist()) == row for row in rows)
    turns.num_invalid += not coded or len(set(rows)) < len(rows)
    turns.num_missing += len(rows) < K
    if rebuilt is not None:
        turns.num_compared += 1
        other_K, other_score_K = _rows_of(rebuilt, history, state_BD)
        same = torch.equal(row_K, other_K) and torch.equal(score_K, other_score_K)
        turns.num_missing += not same
