import pytest
import torch

from models.decoder import DepthDecoder


@pytest.fixture
def decoder() -> DepthDecoder:
    torch.manual_seed(0)
    return DepthDecoder(
        d_model=32, num_codes=4, codebook_size=16, num_layers=2, num_heads=4, dropout=0.1
    ).eval()


def test_step_by_step_equals_teacher_forcing(decoder):
    state, codes = torch.randn(5, 32), torch.randint(0, 16, (5, 4))
    forced = decoder(state, codes)
    assert forced.shape == (5, 4, 16)
    for level in range(4):
        step = decoder.next_logits(state, codes[:, None, :level])
        torch.testing.assert_close(step[:, 0], forced[:, level])


def test_every_beam_gets_its_own_prefix_and_its_request_state(decoder):
    state, prefix = torch.randn(2, 32), torch.randint(0, 16, (2, 3, 2))
    together = decoder.next_logits(state, prefix)
    assert together.shape == (2, 3, 16)
    for b in range(2):
        for k in range(3):
            alone = decoder.next_logits(state[b : b + 1], prefix[b : b + 1, k : k + 1])
            torch.testing.assert_close(together[b, k], alone[0, 0])


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
