"""The slow, obvious beam search that `models/decoding/beam_search.py` is checked against: dicts and loops.

Not used for serving. It shares nothing with the fast one but the log-softmax
of one prefix's children.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import torch

from models.decoding.beam_search import CodeLogits
from models.kernels.beam_step_cpu import log_softmax_inplace

Codes: TypeAlias = tuple[int, ...]
Found: TypeAlias = tuple[int, float, Codes]


def beam_search_reference(
    code_logits: CodeLogits,
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
            partial(_log_probabilities, code_logits, b),
            pairs,
            set() if exclude is None else set(exclude[b]),
            k,
            beam,
        )
        for b in range(batch_size)
    ]


def _search_one(
    log_probabilities: Callable[[Codes, list[int]], list[np.float32]],
    pairs: list[tuple[Codes, int]],
    excluded: set[int],
    k: int,
    beam: int,
) -> list[Found]:
    if not pairs:
        return []
    num_codes = len(pairs[0][0])
    beams: list[tuple[np.float32, Codes]] = [(np.float32(0), ())]
    for depth in range(num_codes):
        children = []
        for score, prefix in beams:
            below = [(codes, row) for codes, row in pairs if codes[:depth] == prefix]
            codes_below = sorted({codes[depth] for codes, _ in below})
            left = {codes[depth] for codes, row in below if row not in excluded}
            for code, log_probability in zip(
                codes_below, log_probabilities(prefix, codes_below), strict=True
            ):
                if code in left:
                    children.append((score + log_probability, (*prefix, code)))
        children.sort(key=lambda child: (-child[0], child[1]))
        beams = children[: k if depth == num_codes - 1 else beam]
    row_of = dict(pairs)
    return [(row_of[codes], float(score), codes) for score, codes in beams]


def _log_probabilities(
    code_logits: CodeLogits, b: int, prefix: Codes, children: list[int]
) -> list[np.float32]:
    """Of the codes that follow `prefix` for request b, among themselves."""
    prefix_1l = torch.tensor(prefix, dtype=torch.int64).expand(1, -1)
    logit_n = code_logits(prefix_1l, torch.tensor([b]))[0, children].float().numpy()
    log_softmax_inplace(logit_n)
    return list(logit_n)
