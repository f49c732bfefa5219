"""The decoding benchmark counts work right, lets systems take turns, and notices wrong answers."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.baselines.hf_decode import history_tokens, tiger_t5
from models.baselines.torch_decode import TorchDecoder
from models.decoding.beam_search import Beams, SearchResult

V = 4


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The benchmark's modules, which import each other by their file names."""
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        import decode_floor
        import decode_growth
        import decode_latency
        import decode_worlds

        yield SimpleNamespace(
            floor=decode_floor, growth=decode_growth, latency=decode_latency, worlds=decode_worlds
        )
    finally:
        sys.path.remove(folder)


def test_random_codes_are_distinct_and_grow_at_the_end(bench: SimpleNamespace) -> None:
    codes_NC = bench.worlds.random_codes(30_000)
    assert len(torch.unique(codes_NC, dim=0)) == len(codes_NC)
    assert torch.equal(codes_NC[:1_000], bench.worlds.random_codes(1_000))
    assert int(codes_NC.max()) < bench.worlds.V


def test_work_is_counted_where_a_prefix_has_a_choice(bench: SimpleNamespace) -> None:
    codes_NC = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 2, 0], [1, 3, 3], [2, 0, 0], [2, 0, 1]])
    branching = bench.floor.Branching(codes_NC, V)
    prefixes = (
        torch.tensor([[[0], [1]], [[1], [-1]]]),
        torch.tensor([[[0, 0], [0, 2], [1, 3]], [[1, 3], [-1, -1], [-1, -1]]]),
        torch.zeros(2, 1, 3, dtype=torch.int64),
    )
    beams = tuple(
        Beams(prefix.numpy(), np.zeros(0, np.int64), np.where(prefix[:, :, 0] < 0, -np.inf, 0))
        for prefix in prefixes
    )
    search = SearchResult(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1), beams)
    # two roots of 3 children; (0) has 2, (1) twice 1; (0, 0) has 2, (0, 2) one, (1, 3) twice 1
    assert branching.needed(search) == (4, 3 + 3 + 2 + 2, 10 + 1 + 1 + 1 + 1 + 1)


def test_the_floor_is_work_over_rate(bench: SimpleNamespace) -> None:
    machine = {"matmul_tflops": {"float32": 0.1, "bfloat16": 0.4}, "memory_gb_s": 10.0}
    work = bench.floor.Work(2e8, 1e6, 2e6) + bench.floor.Work(2e8, 0, 0)
    assert work.floor("float32", machine) == pytest.approx({"flops_floor_ms": 4.0, "bytes_floor_ms": 0.6})
    assert work.floor("bfloat16", machine) == pytest.approx({"flops_floor_ms": 1.0, "bytes_floor_ms": 0.4})


def test_the_t5_is_counted_as_it_multiplies(bench: SimpleNamespace) -> None:
    codes_NC = bench.worlds.random_codes(2_000)
    model = tiger_t5()
    decoder = TorchDecoder(model, codes_NC, 256)
    tokens_BS, mask_BS = history_tokens(codes_NC[torch.arange(40).view(2, 20)], torch.tensor([20, 20]), 256)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        decoder.search(tokens_BS, mask_BS, k=10, beam=30)
    work = bench.floor.t5_work(model.config, batch=2, beam=30, length=20, num_codes=4, codebook_size=256)
    assert work.flops == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_systems_take_turns(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    duration_s = {"slow": 0.5, "fast": 0.25}

    def timed(work: object) -> float:
        assert callable(work)
        work()
        return duration_s[calls[-1]]

    monkeypatch.setattr(bench.latency, "seconds_of", timed)
    cells = [
        bench.worlds.Cell(facts={"system": name, "batch": 2}, work=lambda name=name: calls.append(name))
        for name in duration_s
    ]
    rows = bench.latency.measure(cells, bench.latency.Effort(budget_s=5.0, min_calls=1, max_calls=30))
    assert calls[4:] == (["slow"] * 5 + ["fast"] * 10) * 2
    assert [row["num_calls"] for row in rows] == [10, 20]
    assert rows[0]["latency_ms_p50"] == pytest.approx(500)
    assert rows[1]["requests_per_s"] == pytest.approx(8)


def test_answers_during_insertions_are_checked(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = bench.growth.insertions(300, 400, content_dim=8, compare_every=2, cold=True)
    assert (right["answers_checked"], right["answers_compared"]) == (4, 2)
    assert (right["num_invalid"], right["num_missing"]) == (0, 0)
    assert right["inserts_per_s"] > right["inserts_per_s_with_searches"] > 0

    rows_of = bench.growth._rows_of
    calls = iter(range(100))

    def wrong(*args: object) -> tuple[torch.Tensor, torch.Tensor]:
        row_K, score_K = rows_of(*args)
        row_K = row_K.clone()
        if next(calls) == 0:
            row_K[1] = row_K[0]  # an item twice
        else:
            row_K[-1] = -1  # one too few
        return row_K, score_K

    monkeypatch.setattr(bench.growth, "_rows_of", wrong)
    found = bench.growth.insertions(300, 300, content_dim=8, compare_every=10, cold=False)
    assert (found["num_invalid"], found["num_missing"]) == (1, 2)
