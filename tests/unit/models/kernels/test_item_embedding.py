"""The item embedding's kernel, in Triton's interpreter, beside torch and beside the recommender."""

import pytest
import torch
from torch import Tensor

from models.kernels.item_embedding import embed_items, embed_items_reference
from models.kernels.item_embedding_triton import launch_embed_items as launch
from models.networks.config import ModelConfig
from models.networks.recommender import GenerativeRecommender
from tests.kernel_device import on_device

launch_embed_items = on_device(launch)


def make_inputs(
    num_items: int, num_codes: int, codebook_size: int, width: int, content_width: int
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(num_items)
    return (
        torch.randint(codebook_size, (num_items, num_codes), generator=generator),
        torch.randn(num_items, content_width, generator=generator),
        torch.randn(num_codes, codebook_size, width, generator=generator),
        torch.randn(width, content_width, generator=generator) * content_width**-0.5,
        torch.randn(width, generator=generator),
    )


@pytest.mark.parametrize(
    ("num_items", "num_codes", "codebook_size", "width", "content_width"),
    [(0, 3, 4, 8, 8), (1, 1, 1, 1, 1), (33, 4, 256, 256, 384), (32, 2, 8, 64, 32), (70, 3, 5, 65, 33)],
)
def test_the_kernel_gives_what_torch_gives(
    num_items: int, num_codes: int, codebook_size: int, width: int, content_width: int
) -> None:
    inputs = make_inputs(num_items, num_codes, codebook_size, width, content_width)
    torch.testing.assert_close(
        launch_embed_items(*inputs), embed_items_reference(*inputs), rtol=1e-4, atol=1e-4
    )


def test_bfloat16_is_rounded_once_at_the_end() -> None:
    codes_NC, *floats = make_inputs(9, 3, 16, 64, 48)
    rounded = [x.bfloat16() for x in floats]
    found = launch_embed_items(codes_NC, *rounded)
    exact = embed_items_reference(codes_NC, *(x.float() for x in rounded))
    torch.testing.assert_close(found, exact.bfloat16(), rtol=1e-2, atol=1e-2)


def test_it_is_what_the_recommender_encodes() -> None:
    torch.manual_seed(0)
    config = ModelConfig(content_dim=24, num_levels=2, codebook_size=8, d_model=32, num_heads=2)
    recommender = GenerativeRecommender(config)
    codes_NC, content_NE = torch.randint(8, (13, 3)), torch.randn(13, 24)
    expected = recommender.encode_items(codes_NC, content_NE)
    weights = (recommender.code_embedding, recommender.content.weight, recommender.content.bias)
    with torch.no_grad():
        found = launch_embed_items(codes_NC, content_NE, *weights)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with_gradient = embed_items(codes_NC, content_NE, *weights)
    torch.testing.assert_close(with_gradient, expected)
    grads = torch.autograd.grad(with_gradient.square().sum(), weights)
    for grad, expected_grad in zip(grads, torch.autograd.grad(expected.square().sum(), weights), strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-4)
