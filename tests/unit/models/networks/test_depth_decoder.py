import pytest
import torch

from models.networks.depth_decoder import DepthDecoder


@pytest.fixture
def decoder() -> DepthDecoder:
    torch.manual_seed(0)
    return DepthDecoder(
        d_model=32, num_codes=4, codebook_size=16, num_heads=4, dropout=0.1, ffn_ratio=2
    ).eval()


def test_step_by_step_equals_teacher_forcing(decoder):
    state, codes = torch.randn(5, 32), torch.randint(0, 16, (5, 4))
    forced = decoder(state, codes)
    assert forced.shape == (5, 4, 16)
    decoding = decoder.tables().start(state)
    for level in range(4):
        step = decoding.logits(codes[:, :level], torch.arange(5))
        torch.testing.assert_close(step, forced[:, level], atol=1e-5, rtol=1e-5)


def test_every_prefix_is_decoded_for_its_request(decoder):
    state, prefix, request = torch.randn(2, 32), torch.randint(0, 16, (3, 2)), torch.tensor([1, 0, 1])
    together = decoder.tables().start(state).logits(prefix, request)
    assert together.shape == (3, 16)
    for q, b in enumerate(request.tolist()):
        alone = decoder.tables().start(state[b : b + 1]).logits(prefix[q : q + 1], torch.tensor([0]))
        torch.testing.assert_close(together[q], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_compiled_attention_is_that_of_torch(decoder, length):
    decoding = decoder.tables().start(torch.randn(3, 32))
    prefix, request = torch.randint(0, 16, (7, length)), torch.tensor([0, 0, 1, 2, 2, 1, 0])
    expected = decoding.attend_in_torch(prefix, request)
    torch.testing.assert_close(decoding.attend(prefix, request), expected, atol=1e-6, rtol=1e-5)


def test_a_code_is_predicted_without_seeing_itself(decoder):
    state, codes = torch.randn(3, 32), torch.randint(0, 8, (3, 4))
    changed = codes.clone()
    changed[:, 2:] += 8
    before, after = decoder(state, codes), decoder(state, changed)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_the_state_conditions_every_level(decoder):
    codes = torch.randint(0, 16, (1, 4))
    difference = decoder(torch.randn(1, 32), codes) - decoder(torch.randn(1, 32), codes)
    assert (difference.abs().amax(2) > 1e-4).all()
