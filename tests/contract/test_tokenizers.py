"""What `models.tokenizers.base.Tokenizer` promises, of every tokenizer: each check is handed a fitted one."""

from collections.abc import Callable

import pytest
import torch

from models.tokenizers.base import Tokenizer
from models.tokenizers.rq_vae import RqVae, RqVaeConfig, fit_rq_vae
from tests.factories import CONTENT_DIM, make_codebook, make_content
from tests.sources import classes

NUM_FITTED = 200
# more than any tokenizer takes at a time, and no multiple of that
NUM_MANY = 20_011


def make_rq_vae() -> RqVae:
    config = RqVaeConfig(
        num_levels=3, codebook_size=8, latent_dim=8, hidden_dims=(32,), num_steps=60, batch_size=64
    )
    return fit_rq_vae(make_content(NUM_FITTED), config)


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "Codebook": lambda: make_codebook(make_content(NUM_FITTED)),
    "RqVae": make_rq_vae,
}


@pytest.fixture(scope="module", params=TOKENIZERS.values(), ids=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Each tokenizer in turn."""
    made: Tokenizer = request.param()
    return made


def test_every_tokenizer_is_in_the_suite() -> None:
    found = {one for one in classes("models") if hasattr(one, "encode") and hasattr(one, "codebook_size")}
    assert {one.__name__ for one in found - {Tokenizer}} == set(TOKENIZERS)


def test_codes_have_the_shape_type_and_range_that_it_names(tokenizer: Tokenizer) -> None:
    assert tokenizer.content_dim == CONTENT_DIM
    for content_NE in (make_content(NUM_FITTED), make_content(NUM_MANY, seed=1), 100 * make_content(50)):
        codes_NL = tokenizer.encode(content_NE)
        assert codes_NL.dtype == torch.int64
        assert codes_NL.shape == (len(content_NE), tokenizer.num_levels)
        assert int(codes_NL.min()) >= 0
        assert int(codes_NL.max()) < tokenizer.codebook_size
        assert not codes_NL.requires_grad


def test_different_content_has_different_codes(tokenizer: Tokenizer) -> None:
    codes_NL = tokenizer.encode(make_content(NUM_FITTED))
    assert all(len(codes_N.unique()) > 1 for codes_N in codes_NL.T)


def test_the_same_content_gives_the_same_codes_and_nothing_else_changes(tokenizer: Tokenizer) -> None:
    content_NE = make_content(NUM_FITTED, seed=1)
    before_NE, random = content_NE.clone(), torch.get_rng_state()
    first_NL = tokenizer.encode(content_NE)
    assert torch.equal(tokenizer.encode(content_NE), first_NL)
    assert torch.equal(content_NE, before_NE)
    assert torch.equal(torch.get_rng_state(), random)


def test_codes_do_not_depend_on_what_is_encoded_beside(tokenizer: Tokenizer) -> None:
    content_NE = make_content(NUM_FITTED, seed=1)
    expected_NL = tokenizer.encode(content_NE)
    alone_NL = torch.cat([tokenizer.encode(content_NE[n : n + 1]) for n in range(NUM_FITTED)])
    assert torch.equal(alone_NL, expected_NL)
    assert torch.equal(tokenizer.encode(content_NE.flip(0)), expected_NL.flip(0))
    among_NE = torch.cat([make_content(NUM_MANY, seed=2), content_NE])
    assert torch.equal(tokenizer.encode(among_NE)[-NUM_FITTED:], expected_NL)


def test_a_part_of_a_larger_tensor_is_encoded_as_it_stands(tokenizer: Tokenizer) -> None:
    content_NE = make_content(20, seed=1)
    across_NE = torch.stack([content_NE, -content_NE], dim=2)[..., 0]
    assert not across_NE.is_contiguous()
    assert torch.equal(tokenizer.encode(across_NE), tokenizer.encode(content_NE))


def test_nothing_has_no_codes(tokenizer: Tokenizer) -> None:
    codes_NL = tokenizer.encode(torch.empty(0, CONTENT_DIM))
    assert codes_NL.dtype == torch.int64
    assert codes_NL.shape == (0, tokenizer.num_levels)


@pytest.mark.parametrize("width", [0, CONTENT_DIM - 1, CONTENT_DIM + 1])
@pytest.mark.parametrize("num_items", [0, 3])
def test_content_of_another_width_is_refused(tokenizer: Tokenizer, width: int, num_items: int) -> None:
    with pytest.raises(ValueError):
        tokenizer.encode(torch.zeros(num_items, width))
