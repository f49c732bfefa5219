"""RQ-VAE tokens: they stand for the content, and the codes that go with them are distinct."""

import torch

from models.catalogue.index import CatalogueIndex
from models.tokenizers.codebook import content_codebook
from models.tokenizers.rq_vae import RqVaeConfig, fit_rq_vae, with_last_code
from tests.factories import make_content

CONFIG = RqVaeConfig(
    num_levels=2, codebook_size=8, latent_dim=8, hidden_dims=(32,), num_steps=150, batch_size=64
)


def grouped_content(num_groups: int = 8, each: int = 20) -> torch.Tensor:
    """Tight groups of unit vectors, in blocks."""
    centre_GE = make_content(num_groups, seed=3)
    noise_NE = 0.02 * torch.randn(num_groups * each, 16, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.normalize(centre_GE.repeat_interleave(each, 0) + noise_NE, dim=1)


def test_same_seed_same_codes_and_the_global_random_state_stays():
    content_NE = grouped_content()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = fit_rq_vae(content_NE, CONFIG).encode(content_NE)
    assert torch.equal(torch.rand(3), expected)
    second = fit_rq_vae(content_NE, CONFIG).encode(content_NE)
    assert torch.equal(first, second)


def test_training_lowers_the_error_of_reconstruction():
    content_NE = grouped_content()

    def error(num_steps: int) -> float:
        model = fit_rq_vae(content_NE, RqVaeConfig(**{**vars(CONFIG), "num_steps": num_steps}))
        with torch.no_grad():
            rebuilt_NE = model.decoder(model.quantised(model.encode(content_NE)))
        return float((rebuilt_NE - content_NE).square().sum(1).mean())

    assert error(150) < 0.5 * error(1)


def test_items_of_one_group_share_their_first_code():
    codes_NL = fit_rq_vae(grouped_content(), CONFIG).encode(grouped_content())
    shares = [
        torch.bincount(codes_NL[begin : begin + 20, 0], minlength=8).max().item() / 20
        for begin in range(0, 160, 20)
    ]
    assert sum(shares) / len(shares) > 0.9


def test_dead_codes_come_back_to_life():
    content_NE = grouped_content()
    model = fit_rq_vae(content_NE, CONFIG)
    model.code_LVZ[0, 3] = 1e3
    model.sum_LVZ[0, 3] = 1e3
    model.count_LV[0, 3] = 0.0
    codes_NL, residual_LNZ = model.quantise(model.encoder(content_NE))
    model.follow(codes_NL, residual_LNZ, torch.Generator().manual_seed(0))
    assert bool((model.code_LVZ[0, 3] - residual_LNZ[0]).square().sum(1).min() < 1e-6)


def test_gradients_pass_the_quantiser():
    model = fit_rq_vae(grouped_content(), RqVaeConfig(**{**vars(CONFIG), "num_steps": 1, "commitment": 0.0}))
    model.zero_grad()
    loss, _, _ = model.loss(grouped_content())
    loss.backward()
    first = next(model.encoder.parameters())
    assert first.grad is not None
    assert float(first.grad.abs().sum()) > 0


def test_fewer_vectors_than_codes():
    content_NE = make_content(5)
    codes_NL = fit_rq_vae(content_NE, CONFIG).encode(content_NE)
    assert codes_NL.shape == (5, 2)


def test_the_last_code_tells_twins_apart_and_is_zero_for_the_others():
    codes_NL = torch.tensor([[1, 1], [2, 2], [1, 1], [1, 1], [3, 0]])
    codes_NC = with_last_code(codes_NL, seed=0)
    assert torch.equal(codes_NC[:, :2], codes_NL)
    assert sorted(codes_NC[[0, 2, 3], 2].tolist()) == [0, 1, 2]
    assert codes_NC[[1, 4], 2].tolist() == [0, 0]
    orders = {tuple(with_last_code(codes_NL, seed=seed)[[0, 2, 3], 2].tolist()) for seed in range(20)}
    assert len(orders) > 1


def test_content_codebook_is_the_mean_of_what_is_left_and_makes_a_catalogue():
    content_NE = grouped_content()
    codes_NL = fit_rq_vae(content_NE, CONFIG).encode(content_NE)
    codebook = content_codebook(codes_NL, content_NE, 8)
    code = int(codes_NL[0, 0])
    torch.testing.assert_close(codebook.centroids_LVE[0, code], content_NE[codes_NL[:, 0] == code].mean(0))
    index = CatalogueIndex(codebook, num_disambiguation=8)
    assert index.insert("a", (*codes_NL[0].tolist(), 0), content_NE[0]) == 0
