"""The searches that setup compiles are those that an engine calls, whatever a request asks."""

import numpy as np
import pytest
import torch

from models.compilation.precompile import precompile
from models.decoding.cpu_engine import CpuEngine
from models.kernels.decode_cpu import decode
from models.kernels.dense_head_cpu import dense_logits, dense_queries
from models.kernels.nearest_cpu import nearest_rows
from models.networks.recommender import GenerativeRecommender
from tests.factories import MODEL, make_catalogue


@pytest.mark.parametrize("num_requests", [1, 3])
def test_an_engine_compiles_nothing_more(num_requests: int) -> None:
    precompile()
    functions = (decode, dense_logits, dense_queries, nearest_rows)
    before = [list(function.signatures) for function in functions]  # type: ignore[attr-defined]
    engine = CpuEngine(GenerativeRecommender(MODEL), make_catalogue())
    state_BD = torch.zeros(2 * num_requests, MODEL.d_model)[::2]  # not one piece of memory
    row_BM = torch.zeros(3, num_requests, dtype=torch.int64).T
    for exclude in (None, [np.arange(6)[::2]] * num_requests):
        engine.decode(state_BD, k=3, beam=5, exclude=exclude)
        engine.nearest(state_BD, k=3, exclude=exclude)
    engine.dense_logits(state_BD, row_BM)
    assert [list(function.signatures) for function in functions] == before  # type: ignore[attr-defined]
