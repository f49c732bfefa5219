"""The slow, obvious beam search that `models/search.py` is checked against: dicts and loops.

Not used for serving. It shares nothing with the fast one but the log-softmax.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Codes: TypeAlias = tuple[int, ...]
Found: TypeAlias = tuple[int, float, Codes]


def beam_search_reference(
    code_logits: Callable[[Tensor], Tensor],
    items: Iterable[tuple[Codes, int]],
    *,
    batch_size: int,
    k: int,
    beam: int,
    exclude: Sequence[Iterable[int]] | None = None,
) -> list[list[Found]]:
    """For each request at most k (row, score, codes), best first, of `items`: (codes, row) pairs."""
    pairs = list(items)
    return [
        _search_one(
            partial(_log_probabilities, code_logits, batch_size, b),
            [(codes, row) for codes, row in pairs if exclude is None or row not in set(exclude[b])],
            k,
            beam,
        )
        for b in range(batch_size)
    ]


def _search_one(
    log_probabilities: Callable[[Codes], list[np.float32]], pairs: list[tuple[Codes, int]], k: int, beam: int
) -> list[Found]:
    root: dict[int, Any] = {}
    for codes, row in pairs:
        node = root
        for code in codes[:-1]:
            node = node.setdefault(code, {})
        node[codes[-1]] = row
    if not pairs:
        return []
    num_codes = len(pairs[0][0])
    beams: list[tuple[np.float32, Codes, Any]] = [(np.float32(0), (), root)]
    for depth in range(num_codes):
        children = []
        for score, prefix, node in beams:
            log_probability_V = log_probabilities(prefix)
            children += [
                (score + log_probability_V[code], (*prefix, code), child) for code, child in node.items()
            ]
        children.sort(key=lambda child: (-child[0], child[1]))
        beams = children[: k if depth == num_codes - 1 else beam]
    return [(row, float(score), codes) for score, codes, row in beams]


def _log_probabilities(
    code_logits: Callable[[Tensor], Tensor], batch_size: int, b: int, prefix: Codes
) -> list[np.float32]:
    """Of every next code for request b; asks for the whole batch, because the callable is made for one."""
    prefix_B1l = torch.tensor(prefix, dtype=torch.int64).expand(batch_size, 1, -1)
    return list(torch.log_softmax(code_logits(prefix_B1l)[b, 0].float(), dim=-1).numpy())
