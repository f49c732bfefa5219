"""The depth decoder: a small causal transformer over the C codes of one semantic ID.

It sees the user only through the trunk's state, which it takes as its first token, and the codes so
far; it does not know which code tuples are real items (`models/trie.py`) nor how to search
(`models/search.py`).

Shapes: N targets, B batch, K beams, C codes of an item, V codebook size, D width, l codes so far.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.trunk import Block, ByteDropout


class DepthDecoder(nn.Module):
    """p(code_c | state, codes before c) for each of `num_codes` levels of `codebook_size` codes."""

    causal_CC: Tensor

    def __init__(
        self,
        *,
        d_model: int,
        num_codes: int,
        codebook_size: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.start = nn.Linear(d_model, d_model)
        # the last level's codes are never read back: nothing follows them
        self.code_embedding = nn.Parameter(torch.randn(num_codes - 1, codebook_size, d_model) * 0.02)
        self.level_embedding = nn.Parameter(torch.zeros(num_codes, d_model))
        self.input_dropout = ByteDropout(dropout)
        self.blocks = nn.ModuleList([Block(d_model, num_heads, dropout) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(d_model)
        self.output_weight = nn.Parameter(torch.randn(num_codes, d_model, codebook_size) * d_model**-0.5)
        self.output_bias = nn.Parameter(torch.zeros(num_codes, codebook_size))
        blocked_CC = torch.ones(num_codes, num_codes).triu(1).bool()
        causal_CC = torch.zeros(num_codes, num_codes).masked_fill(blocked_CC, -torch.inf)
        self.register_buffer("causal_CC", causal_CC, persistent=False)

    def _tokens(self, start_ND: Tensor, prefix_Nl: Tensor) -> Tensor:
        """What the first block reads, [N, l + 1, D]: the projected state, then the codes of the prefix."""
        width = prefix_Nl.shape[1] + 1
        first_l = torch.arange(width - 1, device=prefix_Nl.device) * self.code_embedding.shape[1]
        code_NlD = functional.embedding(prefix_Nl + first_l, self.code_embedding.flatten(0, 1))
        token_NlD = torch.cat([start_ND[:, None], code_NlD], dim=1) + self.level_embedding[:width]
        dropped: Tensor = self.input_dropout(token_NlD)
        return dropped

    def forward(self, state_ND: Tensor, codes_NC: Tensor) -> Tensor:
        """Teacher-forced logits [N, C, V] for `codes_NC` int64; code c is predicted from those before it."""
        token_NCD = self._tokens(self.start(state_ND), codes_NC[:, :-1])
        for block in self.blocks:
            token_NCD = block(token_NCD, self.causal_CC[None])
        hidden_CND = self.norm(token_NCD).transpose(0, 1)
        logits_CNV = torch.baddbmm(self.output_bias[:, None], hidden_CND, self.output_weight)
        return logits_CNV.transpose(0, 1)

    def next_logits(self, state_BD: Tensor, prefix_BKl: Tensor) -> Tensor:
        """Logits [B, K, V] of the code after each of K prefixes of l < C codes (int64); l may be 0.

        The short prefix is computed again at each level: there is no cache to reorder between beams. In the
        last block only the last token goes on, as a candidate after the others.
        """
        batch, beams, length = prefix_BKl.shape
        start_ND = self.start(state_BD)[:, None].expand(-1, beams, -1).flatten(0, 1)
        token_NlD = self._tokens(start_ND, prefix_BKl.reshape(batch * beams, length))
        bias_ll = self.causal_CC[None, : length + 1, : length + 1]
        for block in self.blocks[:-1]:
            token_NlD = block(token_NlD, bias_ll)
        last_block = self.blocks[-1]
        assert isinstance(last_block, Block)
        no_bias_11l = self.causal_CC.new_zeros(1, 1, length)
        last_N1D = last_block.forward_candidates(token_NlD[:, :-1], token_NlD[:, -1:], no_bias_11l)
        hidden_ND = self.norm(last_N1D[:, 0])
        logits_NV = torch.addmm(self.output_bias[length], hidden_ND, self.output_weight[length])
        return logits_NV.view(batch, beams, self.output_bias.shape[1])
