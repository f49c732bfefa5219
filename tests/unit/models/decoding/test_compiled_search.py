"""A batch that threads share is searched as by one thread, to the last bit."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from models.catalogue.trie import Trie
from models.decoding.compiled_search import CompiledSearch
from models.networks.depth_decoder import DepthDecoder


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("num_requests", [16, 19, 40])
def test_threads_share_a_batch_and_its_exclusions(num_requests: int) -> None:
    random = np.random.default_rng(1)
    code_NC = np.unique(random.integers(0, 6, size=(60, 3)), axis=0)
    trie = Trie(3, 6)
    trie.insert_many(code_NC, np.ones(len(code_NC), np.bool_))
    torch.manual_seed(2)
    decoder = DepthDecoder(d_model=8, num_codes=3, codebook_size=6, num_heads=2, dropout=0.0, ffn_ratio=2)
    search = CompiledSearch(decoder.eval())
    state_BD = random.standard_normal((num_requests, 8), dtype=np.float32)
    exclude = [np.arange(n % 4, dtype=np.int64) for n in range(num_requests)]
    torch.set_num_threads(1)
    one = search(state_BD, trie, k=5, beam=7, exclude=exclude)
    torch.set_num_threads(3)
    shared = search(state_BD, trie, k=5, beam=7, exclude=exclude)
    assert torch.equal(one.row_BK, shared.row_BK)
    assert torch.equal(one.score_BK, shared.score_BK)
    for mine, other in zip(one.prefixes, shared.prefixes, strict=True):
        assert torch.equal(mine, other)
    for b, rows in enumerate(exclude):
        assert not set(rows.tolist()) & set(shared.row_BK[b].tolist())
