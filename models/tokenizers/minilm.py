"""all-MiniLM-L6-v2 as a plain function of its weights, which stay in their file.

Owns the network: BERT (Devlin et al., 2019) of six layers, post-norm, without dropout and pooler. That of
transformers takes 155 MB of imports for the same numbers (`tests/unit/models/tokenizers/test_text.py`
compares them). Which text, its word pieces and what becomes of the vectors belongs to
`models/tokenizers/text.py`.

The weights are mapped, not read: all processes that embed texts share their pages, the rows of words that
never occur are hardly touched, and the kernel may drop any of them.

Shapes: N texts, T word pieces, E width, F feed-forward width.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

WIDTH = 384
_NUM_LAYERS, _NUM_HEADS = 6, 12
_NORM_EPS = 1e-12


@dataclass(frozen=True)
class _Linear:
    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x.to(self.weight.dtype), self.weight, self.bias)


@dataclass(frozen=True)
class _Norm:
    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (WIDTH,), self.weight, self.bias, _NORM_EPS)


@dataclass(frozen=True, kw_only=True)
class _Layer:
    query: _Linear
    key: _Linear
    value: _Linear
    attention_out: _Linear
    attention_norm: _Norm
    widen: _Linear
    narrow: _Linear
    out_norm: _Norm

    def __call__(self, hidden_NTE: Tensor, attended_N11T: Tensor) -> Tensor:
        seen = functional.scaled_dot_product_attention(
            _heads(self.query(hidden_NTE)),
            _heads(self.key(hidden_NTE)),
            _heads(self.value(hidden_NTE)),
            attn_mask=attended_N11T,
        )
        seen_NTE = self.attention_out(seen.transpose(1, 2).flatten(2))
        hidden_NTE = self.attention_norm(hidden_NTE + seen_NTE)
        return self.out_norm(hidden_NTE + self.narrow(functional.gelu(self.widen(hidden_NTE))))


class MiniLM:
    """The network on one device, its matrix products in `dtype`, all else in float32."""

    def __init__(self, weights: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Maps a safetensors file; raises KeyError where a weight is missing."""
        found = load_file(weights)

        def linear(name: str) -> _Linear:
            # float32 on a CPU is what the file holds: nothing is copied
            return _Linear(*(found[f"{name}.{part}"].to(device, dtype) for part in ("weight", "bias")))

        def norm(name: str) -> _Norm:
            return _Norm(*(found[f"{name}.LayerNorm.{part}"].to(device) for part in ("weight", "bias")))

        self._word_VE = found["embeddings.word_embeddings.weight"].to(device)
        # every text is one sentence, type 0
        self._place_TE = found["embeddings.position_embeddings.weight"].to(device)
        self._type_E = found["embeddings.token_type_embeddings.weight"][0].to(device)
        self._norm = norm("embeddings")
        names = [f"encoder.layer.{layer}" for layer in range(_NUM_LAYERS)]
        self._layers = [
            _Layer(
                query=linear(f"{name}.attention.self.query"),
                key=linear(f"{name}.attention.self.key"),
                value=linear(f"{name}.attention.self.value"),
                attention_out=linear(f"{name}.attention.output.dense"),
                attention_norm=norm(f"{name}.attention.output"),
                widen=linear(f"{name}.intermediate.dense"),
                narrow=linear(f"{name}.output.dense"),
                out_norm=norm(f"{name}.output"),
            )
            for name in names
        ]

    def __call__(self, piece_NT: Tensor, attended_NT: Tensor) -> Tensor:
        """The last hidden states, float32 [N, T, 384], of int64 word pieces; padding is where `attended_NT`
        (bool) is false."""
        embedded_NTE = functional.embedding(piece_NT, self._word_VE) + self._type_E
        hidden_NTE = self._norm(embedded_NTE + self._place_TE[: piece_NT.shape[1]])
        for layer in self._layers:
            hidden_NTE = layer(hidden_NTE, attended_NT[:, None, None])
        return hidden_NTE


def _heads(x_NTE: Tensor) -> Tensor:
    return x_NTE.view(*x_NTE.shape[:2], _NUM_HEADS, WIDTH // _NUM_HEADS).transpose(1, 2)
