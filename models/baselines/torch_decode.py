"""The same T5 searched by plain hand-written torch: what a careful engineer writes before measuring further.

Reads the weights of `models.baselines.hf_decode.tiger_t5` and gives the same items. The encoder and the
cross-attention's keys and values are computed once for each request and shared by its beams; a
prefix's keys and values are computed once and follow their beam; the trie is one dense table of children
for each level. Runs in any dtype, with scores in float32.

Shapes: B requests, S tokens read, K beams, l tokens so far, D width, H heads, E head width, F inner
width H * E, V codebook size, W vocabulary, P prefixes of a level, N items, C codes of an item.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import T5ForConditionalGeneration

from models.baselines.hf_decode import PAD, Decoded, code_tokens


class DenseTrie:
    """`child_PV[c]` int32: the number of the longer prefix (of the row, at the last level), -1 for none.

    Raises ValueError if two items have the same codes.
    """

    def __init__(self, codes_NC: Tensor, codebook_size: int) -> None:
        self.codebook_size = codebook_size
        self.child_PV: list[Tensor] = []
        node_N = np.zeros(len(codes_NC), np.int64)
        num_nodes = 1
        for code_N in codes_NC.numpy().T:
            key_N = node_N * codebook_size + code_N
            keys, node_N = np.unique(key_N, return_inverse=True)
            child = np.full(num_nodes * codebook_size, -1, np.int32)
            child[keys] = np.arange(len(keys))
            self.child_PV.append(torch.from_numpy(child).view(num_nodes, codebook_size))
            num_nodes = len(keys)
        if num_nodes != len(codes_NC):
            raise ValueError("two items have the same codes")
        self.child_PV[-1].view(-1)[torch.from_numpy(key_N)] = torch.arange(len(codes_NC), dtype=torch.int32)

    def __len__(self) -> int:
        return len(self.child_PV)


@dataclass(frozen=True)
class _Layer:
    """One layer's weights, each transposed for `x @ w`; the last three are the decoder's alone."""

    self_norm_D: Tensor
    qkv_DF3: Tensor
    self_out_FD: Tensor
    ffn_norm_D: Tensor
    ffn_in: Tensor
    ffn_out: Tensor
    cross_norm_D: Tensor | None = None
    cross_q_DF: Tensor | None = None
    cross_kv_DF2: Tensor | None = None
    cross_out_FD: Tensor | None = None


def _layers(weights: dict[str, Tensor], stack: str, num_layers: int) -> list[_Layer]:
    def joined(prefix: str, names: str) -> Tensor:
        return torch.cat([weights[f"{prefix}.{name}.weight"] for name in names]).T.contiguous()

    layers = []
    for depth in range(num_layers):
        block = f"{stack}.block.{depth}.layer"
        attention = f"{block}.0.SelfAttention"
        last = 2 if stack == "decoder" else 1
        cross = f"{block}.1.EncDecAttention"
        layers.append(
            _Layer(
                self_norm_D=weights[f"{block}.0.layer_norm.weight"],
                qkv_DF3=joined(attention, "qkv"),
                self_out_FD=joined(attention, "o"),
                ffn_norm_D=weights[f"{block}.{last}.layer_norm.weight"],
                ffn_in=weights[f"{block}.{last}.DenseReluDense.wi.weight"].T.contiguous(),
                ffn_out=weights[f"{block}.{last}.DenseReluDense.wo.weight"].T.contiguous(),
                cross_norm_D=weights[f"{block}.1.layer_norm.weight"] if last == 2 else None,
                cross_q_DF=joined(cross, "q") if last == 2 else None,
                cross_kv_DF2=joined(cross, "kv") if last == 2 else None,
                cross_out_FD=joined(cross, "o") if last == 2 else None,
            )
        )
    return layers


@dataclass
class _Cache:
    """Keys and values of one decoder layer: of the beams' prefixes, and of the encoder's output."""

    key_BHKlE: Tensor
    value_BHKlE: Tensor
    cross_key_BHSE: Tensor
    cross_value_BHSE: Tensor

    def follow(self, parent_BK: Tensor) -> None:
        """Gives every new beam the prefix of its parent."""
        batch_B1 = torch.arange(len(parent_BK))[:, None]
        self.key_BHKlE = self.key_BHKlE.transpose(1, 2)[batch_B1, parent_BK].transpose(1, 2)
        self.value_BHKlE = self.value_BHKlE.transpose(1, 2)[batch_B1, parent_BK].transpose(1, 2)


class TorchDecoder:
    """Beam search over items with a T5's weights in `dtype`."""

    def __init__(
        self,
        model: T5ForConditionalGeneration,
        codes_NC: Tensor,
        codebook_size: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        config = model.config
        weights = {name: weight.detach().to(dtype) for name, weight in model.state_dict().items()}
        self.trie = DenseTrie(codes_NC, codebook_size)
        self.dtype = dtype
        self._num_heads, self._width = config.num_heads, config.d_kv
        self._epsilon = config.layer_norm_epsilon
        self._output_scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
        self._embedding_WD, self._output_DW = weights["shared.weight"], weights["lm_head.weight"].T
        self._encoder = _layers(weights, "encoder", config.num_layers)
        self._decoder = _layers(weights, "decoder", len(model.decoder.block))
        self._norm_D = {
            stack: weights[f"{stack}.final_layer_norm.weight"] for stack in ("encoder", "decoder")
        }
        self._bias = {
            stack: getattr(model, stack).block[0].layer[0].SelfAttention for stack in ("encoder", "decoder")
        }
        self._first_token_C = code_tokens(torch.zeros(len(self.trie), dtype=torch.int64), codebook_size)

    def _norm(self, x: Tensor, weight_D: Tensor | None) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], weight_D, self._epsilon)

    def _split(self, x: Tensor, num_parts: int) -> tuple[Tensor, ...]:
        """[B, X, parts * F] to `num_parts` of [B, H, X, E]."""
        batch, length, _ = x.shape
        parts = x.view(batch, length, num_parts, self._num_heads, self._width).permute(2, 0, 3, 1, 4)
        return parts.unbind(0)

    def _feed_forward(self, layer: _Layer, x: Tensor) -> Tensor:
        hidden = functional.relu(self._norm(x, layer.ffn_norm_D) @ layer.ffn_in)
        out: Tensor = x + hidden @ layer.ffn_out
        return out

    def _relative_bias(self, stack: str, num_queries: int, num_keys: int) -> Tensor:
        """[1, H, queries, keys]; the queries are the last of the keys' positions."""
        past = num_keys - num_queries
        bias: Tensor = self._bias[stack].compute_bias(num_queries, num_keys, past_seen_tokens=past)
        return bias.to(self.dtype)

    def encode(self, tokens_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """The encoder's output, [B, S, D] in `dtype`, of int64 tokens and their bool mask."""
        hidden_mask = torch.zeros(mask_BS.shape, dtype=self.dtype).masked_fill(~mask_BS, -torch.inf)
        length = tokens_BS.shape[1]
        bias_BHSS = self._relative_bias("encoder", length, length) + hidden_mask[:, None, None, :]
        x_BSD = self._embedding_WD[tokens_BS]
        for layer in self._encoder:
            q, k, v = self._split(self._norm(x_BSD, layer.self_norm_D) @ layer.qkv_DF3, 3)
            out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias_BHSS, scale=1.0)
            x_BSD = x_BSD + out.transpose(1, 2).flatten(2) @ layer.self_out_FD
            x_BSD = self._feed_forward(layer, x_BSD)
        return self._norm(x_BSD, self._norm_D["encoder"])

    def start(self, encoded_BSD: Tensor) -> list[_Cache]:
        """Each layer's cache before the first token, in the decoder's `dtype`."""
        caches = []
        for layer in self._decoder:
            assert layer.cross_kv_DF2 is not None
            key, value = self._split(encoded_BSD @ layer.cross_kv_DF2, 2)
            nothing = encoded_BSD.new_empty(len(encoded_BSD), self._num_heads, 1, 0, self._width)
            caches.append(_Cache(nothing, nothing, key, value))
        return caches

    def step(self, token_BK: Tensor, caches: list[_Cache], mask_B11S: Tensor) -> Tensor:
        """Logits [B, K, W] in `dtype` after one more token (int64) of each beam, whose keys and values join
        the caches.

        `mask_B11S` (in `dtype`, too) is added to the cross-attention's logits: 0 for a real token, -inf for
        padding.
        """
        x_BKD = self._embedding_WD[token_BK]
        num_tokens = caches[0].key_BHKlE.shape[3] + 1
        bias_1H1l = self._relative_bias("decoder", 1, num_tokens)
        for layer, cache in zip(self._decoder, caches, strict=True):
            assert layer.cross_q_DF is not None
            assert layer.cross_out_FD is not None
            q, k, v = self._split(self._norm(x_BKD, layer.self_norm_D) @ layer.qkv_DF3, 3)
            cache.key_BHKlE = torch.cat([cache.key_BHKlE, k[..., None, :]], dim=3)
            cache.value_BHKlE = torch.cat([cache.value_BHKlE, v[..., None, :]], dim=3)
            logits_BHKl = (cache.key_BHKlE @ q[..., None]).squeeze(4) + bias_1H1l
            weight_BHKl = logits_BHKl.float().softmax(3).to(self.dtype)
            out_BHKE = (weight_BHKl[..., None, :] @ cache.value_BHKlE).squeeze(3)
            x_BKD = x_BKD + out_BHKE.transpose(1, 2).flatten(2) @ layer.self_out_FD
            (q,) = self._split(self._norm(x_BKD, layer.cross_norm_D) @ layer.cross_q_DF, 1)
            out_BHKE = functional.scaled_dot_product_attention(
                q, cache.cross_key_BHSE, cache.cross_value_BHSE, attn_mask=mask_B11S, scale=1.0
            )
            x_BKD = x_BKD + out_BHKE.transpose(1, 2).flatten(2) @ layer.cross_out_FD
            x_BKD = self._feed_forward(layer, x_BKD)
        logits: Tensor = (self._norm(x_BKD, self._norm_D["decoder"]) * self._output_scale) @ self._output_DW
        return logits

    @torch.no_grad()
    def search(self, tokens_BS: Tensor, mask_BS: Tensor, *, k: int, beam: int) -> Decoded:
        """As `HfDecoder.search`: same scores, same order up to ties and the rounding of `dtype`."""
        caches = self.start(self.encode(tokens_BS, mask_BS))
        hidden_mask = torch.zeros(mask_BS.shape, dtype=self.dtype).masked_fill(~mask_BS, -torch.inf)
        size = self.trie.codebook_size
        token_BK = torch.full((len(tokens_BS), 1), PAD)
        node_BK = torch.zeros_like(token_BK)
        score_BK = torch.zeros(token_BK.shape)
        for depth, child_PV in enumerate(self.trie.child_PV):
            logits_BKW = self.step(token_BK, caches, hidden_mask[:, None, None, :])
            first = int(self._first_token_C[depth])
            log_probability_BKV = logits_BKW.float().log_softmax(2)[..., first : first + size]
            child_BKV = child_PV[node_BK]
            total_BKV = (score_BK[..., None] + log_probability_BKV).masked_fill(child_BKV < 0, -torch.inf)
            width = min(k if depth == len(self.trie) - 1 else beam, total_BKV[0].numel())
            score_BK, at_BK = total_BKV.flatten(1).topk(width, dim=1)
            parent_BK, code_BK = at_BK // size, at_BK % size
            # a beam without a child keeps its score of -inf; its node only has to be one that exists
            node_BK = child_BKV.flatten(1).gather(1, at_BK).clamp(min=0).long()
            token_BK = first + code_BK
            for cache in caches:
                cache.follow(parent_BK)
        row_BK = node_BK.masked_fill(score_BK == -torch.inf, -1)
        missing = k - row_BK.shape[1]
        return Decoded(
            functional.pad(row_BK, (0, missing), value=-1),
            functional.pad(score_BK, (0, missing), value=-torch.inf),
        )
