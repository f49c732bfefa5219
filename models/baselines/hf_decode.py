"""TIGER's way to decode with the library people use: Hugging Face `generate` under a prefix constraint.

A T5 (Raffel et al., 2020) of TIGER's size (Rajput et al., 2023, "Recommender systems with generative
retrieval", section 4: 4 + 4 layers, width 128, 6 heads of 64, feed-forward 1,024) reads every history item
as its C code tokens and writes the next item's. `prefix_allowed_tokens_fn` looks the allowed tokens up
in a trie of dictionaries, as the public implementations do. It knows code tuples and rows only.

Shapes: B requests, T history items, S = T * C tokens, N items, C codes of an item, K results.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

PAD = 0
_FIRST_CODE_TOKEN = 1
# generate() starts all beams but the first at -1e9 and never drops them: such scores are no items
_LOWEST_SCORE = -1e8


@dataclass(frozen=True)
class Decoded:
    """What B requests got, best first: `row_BK` int64, -1 where fewer than k items were found.

    `score_BK` float32 log-probabilities, -inf there.
    """

    row_BK: Tensor
    score_BK: Tensor


def tiger_t5(num_codes: int = 4, codebook_size: int = 256, *, seed: int = 0) -> T5ForConditionalGeneration:
    """A T5 of TIGER's size with random weights, in evaluation mode; 4.6M parameters at the defaults."""
    config = T5Config(
        vocab_size=_FIRST_CODE_TOKEN + num_codes * codebook_size,
        d_model=128,
        d_kv=64,
        d_ff=1024,
        num_layers=4,
        num_decoder_layers=4,
        num_heads=6,
        pad_token_id=PAD,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
    model.train(False)
    return model


def code_tokens(codes_XC: Tensor, codebook_size: int) -> Tensor:
    """The token of each code, int64 [.., C]: every level has its own, and the pad token precedes all."""
    first_C = _FIRST_CODE_TOKEN + torch.arange(codes_XC.shape[-1]) * codebook_size
    return codes_XC + first_C


def history_tokens(codes_BTC: Tensor, length_B: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """What the encoder reads: tokens int64 [B, S], padded on the right, and their mask bool [B, S].

    Raises ValueError for an empty history: an encoder without a token has no output.
    """
    if not bool((length_B > 0).all()):
        raise ValueError("a history is empty")
    valid_BT = torch.arange(codes_BTC.shape[1]) < length_B[:, None]
    mask_BS = valid_BT.repeat_interleave(codes_BTC.shape[2], dim=1)
    tokens_BS = code_tokens(codes_BTC, codebook_size).flatten(1)
    return tokens_BS.masked_fill(~mask_BS, PAD), mask_BS


class HfDecoder:
    """Beam search over items by `T5ForConditionalGeneration.generate`."""

    def __init__(self, model: T5ForConditionalGeneration, codes_NC: Tensor, codebook_size: int) -> None:
        self.model = model
        self._num_codes = codes_NC.shape[1]
        tokens_NC = code_tokens(codes_NC, codebook_size).tolist()
        self._row_of = {tuple(tokens): row for row, tokens in enumerate(tokens_NC)}
        self._allowed: dict[tuple[int, ...], list[int]] = {}
        for tokens in tokens_NC:
            for depth, token in enumerate(tokens):
                allowed = self._allowed.setdefault(tuple(tokens[:depth]), [])
                if token not in allowed:
                    allowed.append(token)

    @torch.no_grad()
    def search(self, tokens_BS: Tensor, mask_BS: Tensor, *, k: int, beam: int) -> Decoded:
        """The `k` best of `beam` >= k beams; a token's probability is among the whole vocabulary.

        `tokens_BS` int64 and `mask_BS` bool, as `history_tokens` gives them.
        """
        model: Any = self.model  # generate() is typed for a protocol that T5 does not meet
        found = model.generate(
            input_ids=tokens_BS,
            attention_mask=mask_BS,
            decoder_start_token_id=PAD,
            num_beams=beam,
            num_return_sequences=k,
            max_new_tokens=self._num_codes,
            min_new_tokens=self._num_codes,
            do_sample=False,
            length_penalty=0.0,
            prefix_allowed_tokens_fn=self._allowed_tokens,
            return_dict_in_generate=True,
            output_scores=True,
        )
        score_BK = found.sequences_scores.view(-1, k).float()
        sequences = found.sequences[:, 1:].tolist()
        row_BK = torch.tensor([self._row_of.get(tuple(s), -1) for s in sequences]).view(-1, k)
        found_BK = score_BK > _LOWEST_SCORE
        return Decoded(row_BK.masked_fill(~found_BK, -1), score_BK.masked_fill(~found_BK, -torch.inf))

    def _allowed_tokens(self, batch: int, tokens: Tensor) -> list[int]:
        """A beam that is no item's prefix has -inf already; it may pad, as no token at all is an error."""
        return self._allowed.get(tuple(tokens[1:].tolist()), [PAD])
