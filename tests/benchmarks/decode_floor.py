"""How fast a decode could be on this machine: what it must compute and read, over what was measured.

Only matrix products count as work, a multiply-add being two operations, and only what this request
needs, padding and repetition left out. Bytes are the weights, each read once for a batch, and the
catalogue's entries that are looked at. The floor is the larger of the two times; softmax, sorting,
gathering and Python are all above it.

Shapes: B requests, T history, S = T * C tokens, P prefixes, D width, C codes, N items.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from models.arrays import Int64Array
from models.decoding.beam_search import SearchResult
from models.networks.recommender import GenerativeRecommender

_ENTRY_BYTES = 10  # of an edge of the trie: code, child, count of available items
_T5_ENTRY_BYTES = 4


@dataclass(frozen=True)
class Work:
    """Floating-point operations; numbers of weights and of other bytes that are read."""

    flops: float
    num_weights: float
    num_bytes: float

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.flops + other.flops,
            self.num_weights + other.num_weights,
            self.num_bytes + other.num_bytes,
        )

    def floor(self, dtype: str, machine: Mapping[str, Any]) -> dict[str, float]:
        """`flops_floor_ms` and `bytes_floor_ms` at the rates in `machine` (`harness.machine`)."""
        item_bytes = 4 if dtype == "float32" else 2
        num_bytes = self.num_weights * item_bytes + self.num_bytes
        return {
            "flops_floor_ms": self.flops / (machine["matmul_tflops"][dtype] * 1e12) * 1e3,
            "bytes_floor_ms": num_bytes / (machine["memory_gb_s"] * 1e9) * 1e3,
        }


class Branching:
    """How many children each prefix of a catalogue has."""

    def __init__(self, codes_NC: Tensor, codebook_size: int) -> None:
        self._size = codebook_size
        self._parents: list[tuple[Int64Array, Int64Array]] = []
        key_N = np.zeros(len(codes_NC), np.int64)
        for code_N in codes_NC.numpy().T:
            child_N = np.unique(key_N * codebook_size + code_N)
            parent, count = np.unique(child_N // codebook_size, return_counts=True)
            self._parents.append((parent, count))
            key_N = key_N * codebook_size + code_N

    def needed(self, search: SearchResult) -> tuple[int, int, int]:
        """(prefixes with a choice below them, their children, all children) that a search expanded.

        A prefix with one child leaves nothing to choose, so the network is not needed for it.
        """
        batch_size = len(search.row_BK)
        expanded = [np.zeros((batch_size, 0), np.int64)]
        for prefix_BKl in search.prefixes[:-1]:
            prefix_Pl = prefix_BKl.flatten(0, 1).numpy()
            expanded.append(prefix_Pl[prefix_Pl[:, 0] >= 0])
        num_prefixes = num_scored = num_children = 0
        for prefix_Pl, (parent, count) in zip(expanded, self._parents, strict=True):
            key_P = np.zeros(len(prefix_Pl), np.int64)
            for code_P in prefix_Pl.T:
                key_P = key_P * self._size + code_P
            count_P = count[np.searchsorted(parent, key_P)]
            num_prefixes += int((count_P > 1).sum())
            num_scored += int(count_P[count_P > 1].sum())
            num_children += int(count_P.sum())
        return num_prefixes, num_scored, num_children


def trunk_work(recommender: GenerativeRecommender, *, batch: int, length: int) -> Work:
    """History to state. Of the last layer, all positions need keys and values, and the last one the rest."""
    width = recommender.config.d_model
    weights = [_linear_weights(block) for block in recommender.trunk.blocks]
    key_value = 2 * width**2
    per_user = length * sum(weights[:-1]) + length * key_value + weights[-1] - key_value
    # scores and sums over the positions before: half the square in all layers but the last
    pairs = (len(weights) - 1) * length * (length + 1) / 2 + length
    flops = 2 * batch * (per_user + 2 * pairs * width)
    return Work(flops, sum(weights), batch * length * width * 4)


def search_work(recommender: GenerativeRecommender, branching: Branching, search: SearchResult) -> Work:
    """State to items, of exactly those prefixes that a search expanded.

    What the decoder reads of a code depends on the weights alone, so a prefix costs its attention, the
    output projection, the feed-forward layers, and one product for each child that is scored.
    """
    width = recommender.config.d_model
    batch_size = len(search.row_BK)
    num_prefixes, num_scored, num_children = branching.needed(search)
    start = _linear_weights(recommender.decoder.start) + 2 * width**2
    block = _linear_weights(recommender.decoder) - _linear_weights(recommender.decoder.start) - 3 * width**2
    depth = recommender.config.num_levels + 1
    attention = 2 * depth * width
    multiplies = batch_size * start + num_prefixes * (block + attention) + num_scored * width
    outputs = min(num_scored, depth * recommender.config.codebook_size) * width
    looked_up = num_prefixes * 3 * depth * width * 4
    return Work(2 * multiplies, start + block + outputs, num_children * _ENTRY_BYTES + looked_up)


def dense_work(recommender: GenerativeRecommender, *, batch: int, num_items: int) -> Work:
    """The dense head: every item's vector is read and multiplied."""
    width = recommender.config.d_model
    return Work(2 * batch * width * (width + num_items), width**2, num_items * width * 4)


def t5_work(config: Any, *, batch: int, beam: int, length: int, num_codes: int, codebook_size: int) -> Work:
    """A T5 with its encoder, cross-attention keys and prefixes computed once; softmax over all tokens."""
    width, inner, hidden = config.d_model, config.num_heads * config.d_kv, config.d_ff
    num_tokens = length * num_codes
    feed_forward = 2 * width * hidden
    encoder_layer = 4 * width * inner + feed_forward
    decoder_layer = 6 * width * inner + feed_forward
    cross = 2 * width * inner
    encode = num_tokens * (encoder_layer + 2 * num_tokens * inner + cross)
    positions = 1 + min(beam, codebook_size) + (num_codes - 2) * beam
    step = decoder_layer + 2 * (num_tokens + num_codes / 2) * inner
    vocabulary = config.vocab_size * width
    multiplies = config.num_layers * (encode + positions * step) + positions * vocabulary
    num_weights = config.num_layers * (encoder_layer + decoder_layer + cross) + vocabulary
    return Work(2 * batch * multiplies, num_weights, batch * positions * codebook_size * _T5_ENTRY_BYTES)


def _linear_weights(module: nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
