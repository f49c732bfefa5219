"""The figures of a codebook, beside the same counted by hand."""

import torch

from models.tokenizers.health import codebook_health, distinct_prefix_ratio
from tests.factories import make_catalogue


def test_distinct_prefixes_of_a_worked_example() -> None:
    codes_NC = torch.tensor([[1, 2, 0], [1, 2, 1], [1, 3, 0], [2, 3, 0]])
    assert distinct_prefix_ratio(codes_NC) == 3 / 4
    assert distinct_prefix_ratio(codes_NC[:0]) == 1.0


def test_codebook_health_by_hand() -> None:
    index = make_catalogue(20)
    health = codebook_health(index.codebook, index.codes_NC, index.content_NE)
    codes = [tuple(row[:-1]) for row in index.codes_NC.tolist()]
    assert health.collision_ratio == sum(codes.count(code) > 1 for code in codes) / 20
    assert health.usage_ratio_L[0] == len({code[0] for code in codes}) / 8
    error = index.codebook.quantisation_error(index.content_NE)
    assert abs(health.quantisation_error_L[-1] - error) < 1e-5
