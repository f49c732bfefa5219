"""Beam search by one decoder as one compiled call: `models.decoding.beam_search` with its network inside.

Owns the decoder's weights as `models.kernels.decode_cpu` reads them, of the moment when they were taken.

Shapes: B requests, K beams, X excluded rows, D width, I inputs, O outputs.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from models.arrays import Float32Array, Int64Array
from models.catalogue.trie import Trie
from models.decoding.beam_search import Beams, SearchResult
from models.decoding.exclusions import flat_exclusions
from models.kernels.decode_cpu import MAX_CODES, DecoderArrays, Found, TrieArrays, decode
from models.kernels.level import Level
from models.kernels.shares import in_shares
from models.networks.affine import affine, contiguous
from models.networks.depth_decoder import DepthDecoder

_NO_NODES, _NO_TAIL = np.zeros(0, np.int32), np.zeros(0, np.int64)
_NO_LEVEL = Level(_NO_NODES, np.zeros(0, np.int16), _NO_NODES, _NO_TAIL, _NO_TAIL, _NO_NODES)

# Fewer requests are not worth a thread of their own.
_MIN_SHARE = 8


class CompiledSearch:
    """A frozen reading of one decoder: later changes of its weights do not show."""

    def __init__(self, decoder: DepthDecoder) -> None:
        self._num_heads = decoder.block.attention.num_heads
        self._weights = _arrays(decoder)

    def __call__(
        self,
        state_BD: Float32Array,
        trie: Trie,
        *,
        k: int,
        beam: int,
        exclude: Sequence[Int64Array] | None = None,
    ) -> SearchResult:
        """The k best items for each contiguous state [B, D], as `models.decoding.beam_search.beam_search`.

        A request's result does not depend on the rest of its batch: as many threads as torch may use share a
        large one. Raises ValueError for a k or beam below 1, or where `exclude` has not one entry for each
        request.
        """
        if k < 1 or beam < 1:
            raise ValueError("k and beam must be at least 1")
        excluded_X, end_B = flat_exclusions(exclude, len(state_BD))
        arrays = _trie_arrays(trie)

        def search(begin: int, end: int) -> Found:
            first = 0 if begin == 0 else end_B[begin - 1]
            own_X, own_end_B = excluded_X[first:], end_B[begin:end] - first
            return decode(
                state_BD[begin:end], self._weights, self._num_heads, arrays, k, beam, own_X, own_end_B
            )

        found = _joined(in_shares(search, len(state_BD), _MIN_SHARE))
        beams = tuple(
            Beams(
                prefix_BKl=found.prefix_CBKC[depth, :, :used, : depth + 1],
                node_BK=found.node_CBK[depth, :, :used],
                score_BK=found.score_CBK[depth, :, :used],
            )
            for depth, used in enumerate(found.used_C.tolist())
        )
        return SearchResult(torch.from_numpy(found.row_Bk), torch.from_numpy(found.leaf_Bk), beams)


def _joined(parts: Sequence[Found]) -> Found:
    if len(parts) == 1:
        return parts[0]
    return Found(
        prefix_CBKC=np.concatenate([part.prefix_CBKC for part in parts], axis=1),
        node_CBK=np.concatenate([part.node_CBK for part in parts], axis=1),
        score_CBK=np.concatenate([part.score_CBK for part in parts], axis=1),
        used_C=np.max([part.used_C for part in parts], axis=0),
        row_Bk=np.concatenate([part.row_Bk for part in parts]),
        leaf_Bk=np.concatenate([part.leaf_Bk for part in parts]),
    )


def _trie_arrays(trie: Trie) -> TrieArrays:
    missing = MAX_CODES - trie.num_codes
    levels = (*trie.levels, *[_NO_LEVEL] * missing)
    return TrieArrays(trie.num_codes, levels, trie.row_N, trie.node_NC, trie.available_N)


@torch.no_grad()
def _arrays(decoder: DepthDecoder) -> DecoderArrays:
    block, tables = decoder.block, decoder.tables()
    width = decoder.norm.normalized_shape[0]
    start_DD, start_bias_D = affine(decoder.start)
    projection = affine(block.attention.project_in, block.attention_norm)
    key_value_DE, key_value_bias_E = (part[..., width:] for part in projection)  # without the query's
    seen_DD, seen_bias_D = affine(block.attention.project_out)
    wide, _, narrow = block.ffn
    assert isinstance(wide, nn.Linear)
    assert isinstance(narrow, nn.Linear)
    wide_DF, wide_bias_F = affine(wide, block.ffn_norm)
    narrow_FD, narrow_bias_D = affine(narrow)
    logit_CVD = decoder.norm.weight * decoder.output_weight.transpose(1, 2)
    logit_bias_CV = decoder.output_bias + decoder.norm.bias @ decoder.output_weight
    return DecoderArrays(
        *map(
            contiguous,
            (
                start_DD,
                start_bias_D + decoder.level_embedding[0],
                key_value_DE,
                key_value_bias_E,
                seen_DD,
                seen_bias_D,
                wide_DF,
                wide_bias_F,
                narrow_FD,
                narrow_bias_D,
                logit_CVD,
                logit_bias_CV,
                tables.token_lVD,
                tables.query_lVD,
                tables.key_lVD,
                tables.value_lVD,
            ),
        )
    )
