"""The decode in static shapes beside the search that serves, and that it could be captured."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from models.catalogue.trie import Trie
from models.decoding import captured_decode
from models.decoding.beam_search import CodeLogits, SearchResult, beam_search
from models.decoding.captured_decode import CapturedDecode, DecodeSizes
from models.kernels.beam_step_torch import beam_step_reference
from models.kernels.beam_step_triton import launch_beam_step
from models.networks.depth_decoder import DepthDecoder
from tests.kernel_device import DEVICE, moved

V, C, D = 6, 3, 16
TOLERANCE = 1e-4


def make_decoder(seed: int) -> DepthDecoder:
    torch.manual_seed(seed)
    decoder = DepthDecoder(
        d_model=D, num_codes=C, codebook_size=V, num_heads=2, dropout=0.0, ffn_ratio=2
    ).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(3)  # far apart, so that rounding changes no order
    return decoder


class World:
    """A catalogue, a network and requests."""

    def __init__(self, seed: int, num_items: int, availability: float, batch_size: int) -> None:
        random = np.random.default_rng(seed)
        numbers = random.permutation(V**C)[:num_items]
        self.codes_NC = np.stack(np.unravel_index(numbers, (V,) * C), axis=1).astype(np.int64)
        self.available_N = random.random(num_items) < availability
        self.state_BD = torch.from_numpy(random.standard_normal((batch_size, D)).astype(np.float32))
        tables = {device: make_decoder(seed).to(device).tables() for device in ("cpu", DEVICE.type)}

        def start(state_BD: Tensor) -> CodeLogits:
            return tables[state_BD.device.type].start(state_BD).logits

        self.start = start

    @torch.no_grad()
    def search(self, k: int, beam: int, exclude: Sequence[np.ndarray] | None) -> SearchResult:
        trie = Trie(C, V)
        for row, (codes, available) in enumerate(zip(self.codes_NC, self.available_N, strict=True)):
            trie.insert(codes.tolist(), row, available=bool(available))
        logits = self.start(self.state_BD)
        return beam_search(logits, trie, batch_size=len(self.state_BD), k=k, beam=beam, exclude=exclude)

    def decode(self, k: int, beam: int, **sizes: int) -> CapturedDecode:
        defaults = {"batch_size": len(self.state_BD), "max_items": V**C, "max_excluded": 32}
        decode = CapturedDecode(
            self.start,
            DecodeSizes(k=k, beam=beam, num_codes=C, codebook_size=V, state_width=D, **(defaults | sizes)),
            DEVICE,
        )
        decode.load(self.codes_NC, self.available_N)
        return decode


def assert_same(found: tuple[Tensor, Tensor], expected: SearchResult) -> None:
    row_BK, score_BK = moved(found, torch.device("cpu"))
    torch.testing.assert_close(score_BK, expected.score_BK, rtol=TOLERANCE, atol=TOLERANCE)
    assert torch.equal(row_BK, expected.row_BK)


@settings(max_examples=40, deadline=None, derandomize=True)  # rounding may swap what is all but equal
@given(
    seed=st.integers(0, 2**20),
    num_items=st.sampled_from([0, 1, 7, 60, V**C]),
    availability=st.sampled_from([1.0, 0.6, 0.0]),
    batch_size=st.integers(1, 3),
    k=st.integers(1, 12),
    beam=st.sampled_from([1, 3, 40]),
    excludes=st.booleans(),
)
def test_it_finds_what_the_serving_search_finds(
    seed: int, num_items: int, availability: float, batch_size: int, k: int, beam: int, excludes: bool
) -> None:
    world = World(seed, num_items, availability, batch_size)
    random = np.random.default_rng(seed + 1)
    exclude = [random.integers(-1, num_items, 20) for _ in range(batch_size)] if excludes else None
    found = world.decode(k, beam)(world.state_BD, exclude or ())
    assert_same(found, world.search(k, beam, exclude))


def test_the_kernel_in_its_place_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(3, 60, 0.8, 2)
    exclude = [np.arange(15), np.array([2, 40])]
    expected = world.search(5, 8, exclude)
    monkeypatch.setattr(captured_decode, "beam_step", launch_beam_step)
    assert_same(world.decode(5, 8)(world.state_BD, exclude), expected)


def test_the_buffers_serve_again_for_other_requests_and_another_catalogue() -> None:
    world = World(1, 60, 1.0, 3)
    decode = world.decode(5, 8)
    decode(world.state_BD, [np.arange(20)] * 3)
    assert_same(decode(world.state_BD), world.search(5, 8, None))
    few = World(1, 60, 1.0, 3)
    few.state_BD = world.state_BD[1:2]
    assert_same(decode(few.state_BD), few.search(5, 8, None))
    few.codes_NC, few.available_N = world.codes_NC[:4], world.available_N[:4]
    decode.load(few.codes_NC, few.available_N)
    assert_same(decode(few.state_BD), few.search(5, 8, None))


def test_no_operation_waits_for_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without values, whatever asks for one (a count, a choice of shape) raises."""
    # a kernel would read where a tensor without values says that it lies
    monkeypatch.setattr(captured_decode, "beam_step", beam_step_reference)
    world = World(0, 60, 1.0, 2)
    decode = world.decode(5, 8)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        row_BK, score_BK = decode._decode()
    assert row_BK.shape == score_BK.shape == (2, 5)


def test_what_it_was_not_made_for_is_refused() -> None:
    world = World(0, 20, 1.0, 2)
    decode = world.decode(5, 8, max_items=20, max_excluded=4)
    with pytest.raises(ValueError, match="3 requests"):
        decode(torch.zeros(3, D))
    with pytest.raises(ValueError, match="5 rows"):
        decode(world.state_BD, [np.arange(5), np.arange(0)])
    with pytest.raises(ValueError, match="1 lists"):
        decode(world.state_BD, [np.arange(2)])
    with pytest.raises(ValueError, match="21 items"):
        decode.load(np.zeros((21, C), np.int64), np.ones(21, np.bool_))
    with pytest.raises(ValueError, match="power of two"):
        world.decode(5, 8, max_excluded=3)
    with pytest.raises(ValueError, match="at least 1"):
        world.decode(0, 8)
