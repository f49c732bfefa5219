"""What one masked pass over m candidates costs beside the naive ways, and that it gives the same numbers.

Naive: the history is read again for every candidate, one after the other; batched-naive: the same in batches
of `NAIVE_BATCH`. Random weights and a random catalogue of the default sizes: cost does not depend on them.

Shapes: N items, T history, M candidates, F live features, D width.
"""

from collections.abc import Callable

import numpy as np
import torch
from harness import percentiles, seconds_of

from models.batch import HistoryBatch
from models.networks.config import ModelConfig
from models.networks.ranker import Ranker, RankingBatch
from models.ranking.config import StatisticsConfig
from models.ranking.features import feature_names

NUM_ITEMS = 12_101
NAIVE_BATCH = 100
NUM_CANDIDATES = (10, 50, 200, 1_000)
HISTORIES = (20, 100, 500)
_MIN_CALLS, _MAX_CALLS, _ENOUGH_S, _MAX_S = 5, 300, 1.0, 3.0
_DAY_MS = 86_400_000
Row = dict[str, float | int | str]


def cost_rows(*, quick: bool) -> list[Row]:
    """One row for each way, number of candidates and history."""
    candidates, histories = (NUM_CANDIDATES[:2], HISTORIES[:2]) if quick else (NUM_CANDIDATES, HISTORIES)
    torch.manual_seed(0)
    config = ModelConfig(max_history=max(HISTORIES))
    ranker = Ranker(config, len(feature_names(StatisticsConfig()))).eval()
    with torch.no_grad():  # the last layer begins at zero: give everything before it a say
        ranker.output.weight.normal_(std=0.1)
    item_ND = torch.randn(NUM_ITEMS, config.d_model)
    rows = []
    for length in histories:
        for num_candidates in candidates:
            request = make_request(length, num_candidates, ranker.num_features)
            rows += _rows_of(ranker, item_ND, request, length, num_candidates)
    return rows


def make_request(length: int, num_candidates: int, num_features: int) -> RankingBatch:
    """One request with random events, candidates, scores and features."""
    random = np.random.default_rng(length * 10_000 + num_candidates)
    beam_BM = torch.from_numpy(random.normal(-6, 2, (1, num_candidates)).astype(np.float32))
    beam_BM[:, ::3] = torch.nan
    return RankingBatch(
        history=HistoryBatch(
            item_BT=torch.from_numpy(random.integers(NUM_ITEMS, size=(1, length))),
            action_BT=torch.from_numpy(random.integers(1, 8, size=(1, length))),
            time_ms_BT=torch.from_numpy(
                np.sort(random.integers(10**12, 10**12 + 900 * _DAY_MS, (1, length)))
            ),
            length_B=torch.tensor([length]),
        ),
        row_BM=torch.from_numpy(random.permutation(NUM_ITEMS)[None, :num_candidates].copy()),
        source_BM=torch.from_numpy(random.integers(1, 64, size=(1, num_candidates))) * 2,
        beam_BM=beam_BM,
        dense_BM=torch.from_numpy(random.normal(3, 3, (1, num_candidates)).astype(np.float32)),
        feature_BMF=torch.from_numpy(
            random.normal(1, 1, (1, num_candidates, num_features)).astype(np.float32)
        ),
    )


def separately(batch: RankingBatch, columns: slice) -> RankingBatch:
    """The candidates of one request in `columns` as that many requests of one candidate each."""
    count = batch.row_BM[:, columns].shape[1]
    history = batch.history
    return RankingBatch(
        history=HistoryBatch(
            item_BT=history.item_BT.expand(count, -1),
            action_BT=history.action_BT.expand(count, -1),
            time_ms_BT=history.time_ms_BT.expand(count, -1),
            length_B=history.length_B.expand(count),
        ),
        row_BM=batch.row_BM[:, columns].T,
        source_BM=batch.source_BM[:, columns].T,
        beam_BM=batch.beam_BM[:, columns].T,
        dense_BM=batch.dense_BM[:, columns].T,
        feature_BMF=batch.feature_BMF[:, columns].transpose(0, 1),
    )


def _rows_of(
    ranker: Ranker, item_ND: torch.Tensor, request: RankingBatch, length: int, num_candidates: int
) -> list[Row]:
    def in_batches_of(size: int) -> torch.Tensor:
        parts = [separately(request, slice(m, m + size)) for m in range(0, num_candidates, size)]
        return torch.cat([ranker(part, item_ND).relevance_BM[:, 0] for part in parts])

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "one masked pass": lambda: ranker(request, item_ND).relevance_BM[0],
        "batched naive": lambda: in_batches_of(NAIVE_BATCH),
        "naive": lambda: in_batches_of(1),
    }
    rows: list[Row] = []
    with torch.inference_mode():
        reference = ways["one masked pass"]()
        for way, work in ways.items():
            difference = (work() - reference).abs().max().item()
            times = percentiles(_durations(work))
            rows.append(
                {
                    "way": way,
                    "candidates": num_candidates,
                    "history": length,
                    "latency_ms_p50": times["p50_ms"],
                    "latency_ms_p99": times["p99_ms"],
                    "max_difference": difference,
                }
            )
    for row in rows:
        row["times_one_pass"] = float(row["latency_ms_p50"]) / float(rows[0]["latency_ms_p50"])
    return rows


def _durations(work: Callable[[], object]) -> list[float]:
    durations: list[float] = []
    while len(durations) < _MAX_CALLS:
        durations.append(seconds_of(work))
        if sum(durations) > (_ENOUGH_S if len(durations) >= _MIN_CALLS else _MAX_S):
            break
    return durations
