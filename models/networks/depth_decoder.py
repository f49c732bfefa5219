"""The depth decoder: one causal block over the C codes of a semantic ID.

It sees the user only through the trunk's state, which it takes as its first token, and the codes so
far; it does not know which code tuples are real items (`models/catalogue/trie.py`) nor how to search
(`models/decoding/beam_search.py`).

It is one block, and that is what makes it fast: what the block reads of a code does not depend on the
user, so the queries, keys and values of all codes are computed once for the weights (`DecoderTables`),
and a decoding step looks them up.

Shapes: N targets, B requests, Q prefixes, C codes of an item, V codebook size, D width, l codes so
far.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.arrays import Float32Array
from models.kernels.attend_cpu import attend_prefix
from models.networks.blocks import Block, ByteDropout


class DepthDecoder(nn.Module):
    """p(code_c | state, codes before c) for each of `num_codes` levels of `codebook_size` codes."""

    causal_CC: Tensor

    def __init__(
        self,
        *,
        d_model: int,
        num_codes: int,
        codebook_size: int,
        num_heads: int,
        dropout: float,
        ffn_ratio: int,
    ) -> None:
        super().__init__()
        self.start = nn.Linear(d_model, d_model)
        # the last level's codes are never read back: nothing follows them
        self.code_embedding = nn.Parameter(torch.randn(num_codes - 1, codebook_size, d_model) * 0.02)
        self.level_embedding = nn.Parameter(torch.zeros(num_codes, d_model))
        self.input_dropout = ByteDropout(dropout)
        self.block = Block(d_model, num_heads, dropout, ffn_ratio)
        self.norm = nn.LayerNorm(d_model)
        self.output_weight = nn.Parameter(torch.randn(num_codes, d_model, codebook_size) * d_model**-0.5)
        self.output_bias = nn.Parameter(torch.zeros(num_codes, codebook_size))
        blocked_CC = torch.ones(num_codes, num_codes).triu(1).bool()
        causal_CC = torch.zeros(num_codes, num_codes).masked_fill(blocked_CC, -torch.inf)
        self.register_buffer("causal_CC", causal_CC, persistent=False)

    def _tokens(self, start_ND: Tensor, prefix_Nl: Tensor) -> Tensor:
        """What the block reads, [N, l + 1, D]: the projected state, then the codes of the prefix."""
        width = prefix_Nl.shape[1] + 1
        first_l = torch.arange(width - 1, device=prefix_Nl.device) * self.code_embedding.shape[1]
        code_NlD = functional.embedding(prefix_Nl + first_l, self.code_embedding.flatten(0, 1))
        token_NlD = torch.cat([start_ND[:, None], code_NlD], dim=1) + self.level_embedding[:width]
        dropped: Tensor = self.input_dropout(token_NlD)
        return dropped

    def forward(self, state_ND: Tensor, codes_NC: Tensor) -> Tensor:
        """Teacher-forced logits [N, C, V], in the dtype of matrix products, for `codes_NC` int64 and
        `state_ND` floating; code c is predicted from those before it. Of the first codes alone, C may be
        fewer than an item has."""
        num_codes = codes_NC.shape[1]
        token_NCD = self._tokens(self.start(state_ND), codes_NC[:, :-1])
        causal_CC = self.causal_CC[:num_codes, :num_codes]
        hidden_CND = self.norm(self.block(token_NCD, causal_CC[None])).transpose(0, 1)
        bias_C1V, weight_CDV = self.output_bias[:num_codes, None], self.output_weight[:num_codes]
        return torch.baddbmm(bias_C1V, hidden_CND, weight_CDV).transpose(0, 1)

    @torch.no_grad()
    def tables(self) -> "DecoderTables":
        """What decoding looks up, of the present weights."""
        token_lVD = self.code_embedding + self.level_embedding[1:, None]
        q, k, v = (part.transpose(1, 2).flatten(2).float() for part in self.block.project(token_lVD))
        return DecoderTables(decoder=self, token_lVD=token_lVD, query_lVD=q, key_lVD=k, value_lVD=v)


@dataclass(frozen=True, kw_only=True)
class DecoderTables:
    """Token, query, key and value of every code at every level but the last: float32 [C - 1, V, D]."""

    decoder: DepthDecoder
    token_lVD: Tensor
    query_lVD: Tensor
    key_lVD: Tensor
    value_lVD: Tensor

    @cached_property
    def arrays(self) -> tuple[Float32Array, Float32Array, Float32Array]:
        """Query, key and value as `attend_prefix` takes them: contiguous float32 [C - 1, V, D]."""
        query, key, value = (
            np.ascontiguousarray(table.numpy()) for table in (self.query_lVD, self.key_lVD, self.value_lVD)
        )
        return query, key, value

    @torch.no_grad()
    def start(self, state_BD: Tensor) -> "Decoding":
        """Begins the decoding of B requests from their states, floating, [B, D]."""
        decoder = self.decoder
        start_BD = decoder.start(state_BD) + decoder.level_embedding[0]
        # a token that sees itself alone attends with weight 1: its query is never needed
        _, k, v = decoder.block.project(start_BD[:, None])
        return Decoding(
            tables=self,
            start_BD=start_BD,
            key_BD=k.flatten(1).float().contiguous(),
            value_BD=v.flatten(1).float().contiguous(),
        )


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """B requests in the middle of a search: the first token of each, and the tables for all others.

    `start_BD`, `key_BD` and `value_BD` are float32.
    """

    tables: DecoderTables
    start_BD: Tensor
    key_BD: Tensor
    value_BD: Tensor

    @torch.no_grad()
    def logits(self, prefix_Ql: Tensor, request_Q: Tensor) -> Tensor:
        """Logits [Q, V], in the dtype of matrix products, of the code after each prefix of l < C codes
        (int64), of requests `request_Q` (int64)."""
        depth = prefix_Ql.shape[1]
        decoder = self.tables.decoder
        if depth == 0:
            token_QD, seen_QD = self.start_BD[request_Q], self.value_BD[request_Q]
        else:
            token_QD = self.tables.token_lVD[depth - 1][prefix_Ql[:, -1]]
            seen_QD = self.attend(prefix_Ql, request_Q)
        token_QD = token_QD + decoder.block.attention.project_out(seen_QD)
        hidden_QD = decoder.norm(decoder.block.feed_forward(token_QD))
        weight_DV, bias_V = decoder.output_weight[depth], decoder.output_bias[depth]
        return torch.addmm(bias_V, hidden_QD, weight_DV)

    def attend(self, prefix_Ql: Tensor, request_Q: Tensor) -> Tensor:
        """What the last of l >= 1 codes (int64) sees of the first token and the codes, float32 [Q, D]."""
        if self.key_BD.device.type != "cpu" or type(self.key_BD) is not Tensor:
            return self.attend_in_torch(prefix_Ql, request_Q)
        seen_QD = attend_prefix(
            np.ascontiguousarray(prefix_Ql.numpy()),
            request_Q.numpy(),
            self.key_BD.numpy(),
            self.value_BD.numpy(),
            *self.tables.arrays,
            self.tables.decoder.block.attention.num_heads,
        )
        return torch.from_numpy(seen_QD)

    def attend_in_torch(self, prefix_Ql: Tensor, request_Q: Tensor) -> Tensor:
        """`attend` on any device, in shapes that do not depend on values: float32 [Q, D]."""
        tables, num_heads = self.tables, self.tables.decoder.block.attention.num_heads
        query_QD = tables.query_lVD[prefix_Ql.shape[1] - 1][prefix_Ql[:, -1]]
        keys, values = [self.key_BD[request_Q]], [self.value_BD[request_Q]]
        for level, code_Q in enumerate(prefix_Ql.unbind(1)):
            keys.append(tables.key_lVD[level][code_Q])
            values.append(tables.value_lVD[level][code_Q])
        split = (len(prefix_Ql), prefix_Ql.shape[1] + 1, num_heads, -1)
        key_QsHE, value_QsHE = torch.stack(keys, 1).view(split), torch.stack(values, 1).view(split)
        score_QsH = (query_QD.view(len(prefix_Ql), 1, num_heads, -1) * key_QsHE).sum(3)
        weight_QsH = (score_QsH * key_QsHE.shape[3] ** -0.5).softmax(1)
        seen_QHE: Tensor = (value_QsHE * weight_QsH[..., None]).sum(1)
        return seen_QHE.flatten(1)
