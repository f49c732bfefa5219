"""TIGER's network: a T5 that reads a history as semantic IDs and writes the next item's.

Rajput et al., "Recommender systems with generative retrieval" (NeurIPS 2023), section 4: a user token (the
user's id hashed into 2,000), then the C codes of each of the newest 20 items; 4 + 4 layers, width 128, 6
heads of 64, feed-forward 1,024, dropout .1. The network is Hugging Face's.

It differs from the paper in one thing, for a CPU's sake: a history is encoded once for all of its prefixes.
Encoder attention is causal between items (the codes of an item see each other), each target's decoder
sees the items before it only, and all targets of a history stand in one decoder sequence, hidden from each
other. Every prefix is thus an example, at a third of the cost of encoding each by itself.

Knows codes and user numbers; training is `tiger_training.py`'s, search `tiger_search.py`'s.

Shapes: B histories, T items, S = 1 + T * C encoder tokens, X targets of a history, N items, C codes of an
item, K beams, l codes so far, D width, V codes of the level.
"""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import T5Config, T5Model

from models.arrays import Int64Array
from models.baselines.tiger_search import CodeTable, Found, search_codes
from models.networks.blocks import ByteDropout


@dataclass(frozen=True, kw_only=True)
class TigerConfig:
    """The paper's network; the batch, the learning rate and what validation costs are ours.

    `batch_positions` history items make a step; every `validate_every` steps `validation_cases` cases choose.
    """

    d_model: int = 128
    d_kv: int = 64
    d_ff: int = 1_024
    num_layers: int = 4
    num_heads: int = 6
    dropout: float = 0.1
    num_user_tokens: int = 2_000
    max_items: int = 20
    beam: int = 50
    batch_positions: int = 1_024
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 200
    max_epochs: int = 1_000
    validate_every: int = 500
    validation_cases: int = 1_000
    seed: int = 0


def user_token(user_id: str, num_tokens: int) -> int:
    """The user's token: a hash that is the same in every process."""
    return zlib.crc32(user_id.encode()) % num_tokens


class Tiger(nn.Module):
    """The T5, over items with `codes_NC` (int64, distinct)."""

    codes_NC: Tensor

    def __init__(self, config: TigerConfig, codes_NC: Tensor) -> None:
        super().__init__()
        self.config = config
        self.table = CodeTable(codes_NC)
        self.register_buffer("codes_NC", codes_NC, persistent=False)
        self.num_codes = codes_NC.shape[1]
        self.level_sizes = [int(size) + 1 for size in codes_NC.amax(0)]
        # token 0 starts the decoder and pads; then the users; then each level's codes
        starts = torch.tensor([1 + config.num_user_tokens, *self.level_sizes]).cumsum(0)
        self.level_starts = starts[:-1].tolist()
        self.t5 = T5Model(
            T5Config(
                vocab_size=int(starts[-1]),
                d_model=config.d_model,
                d_kv=config.d_kv,
                d_ff=config.d_ff,
                num_layers=config.num_layers,
                num_decoder_layers=config.num_layers,
                num_heads=config.num_heads,
                dropout_rate=config.dropout,
                use_cache=False,
            )
        )
        _cheap_dropout(self.t5)

    def forward(self, item_BT: Tensor, user_B: Tensor, target_BT: Tensor) -> Tensor:
        """Mean over targets of -log p(codes), a float32 scalar in nats.

        `item_BT` int64 rows, right-padded with -1; `user_B` int64 user tokens; `target_BT` int64 the row that
        follows each position, -1 where there is none.
        """
        encoded_BSD, place_S, real_BS = self._encode(item_BT, user_B)
        codes_BTC = self.codes_NC[target_BT.clamp(min=0)]
        allowed_BTT = torch.arange(item_BT.shape[1])[None, :, None] >= place_S[None, None, :]
        hidden_BTCD = self._decode(
            encoded_BSD, codes_BTC[..., :-1], allowed_BTT & real_BS[:, None, :], self.num_codes
        )
        valid_BT = target_BT >= 0
        hidden_XCD, codes_XC = hidden_BTCD[valid_BT], codes_BTC[valid_BT]
        loss = hidden_XCD.new_zeros((), dtype=torch.float32)
        for level in range(self.num_codes):
            logits_XV = self._logits(hidden_XCD[:, level], level)
            loss = loss + nn.functional.cross_entropy(logits_XV.float(), codes_XC[:, level])
        return loss

    @torch.no_grad()
    def search(
        self, item_BT: Tensor, user_B: Tensor, *, k: int, beam: int, exclude: list[Int64Array]
    ) -> Found:
        """The `k` best items of each history by beam search over codes that exist.

        `item_BT` and `user_B` as in `forward`; `exclude` int64 rows (>= 0) for each history.
        """
        encoded_BSD, _, real_BS = self._encode(item_BT, user_B)

        def code_logits(prefix_BKl: Tensor) -> Tensor:
            level = prefix_BKl.shape[2]
            seen_BKS = real_BS[:, None, :].expand(-1, prefix_BKl.shape[1], -1)
            hidden_BKCD = self._decode(encoded_BSD, prefix_BKl, seen_BKS, level + 1)
            return self._logits(hidden_BKCD[:, :, level], level)

        return search_codes(code_logits, self.table, batch_size=len(item_BT), k=k, beam=beam, exclude=exclude)

    def _encode(self, item_BT: Tensor, user_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States [B, S, D], each token's item (-1 the user's), and which tokens are real, bool [B, S]."""
        num_items = item_BT.shape[1]
        token_BTC = self.codes_NC[item_BT.clamp(min=0)] + torch.tensor(self.level_starts)
        token_BS = torch.cat([1 + user_B[:, None], token_BTC.flatten(1)], dim=1)
        place_S = torch.cat([torch.tensor([-1]), torch.arange(num_items).repeat_interleave(self.num_codes)])
        real_BS = torch.cat(
            [
                torch.ones(len(item_BT), 1, dtype=torch.bool),
                (item_BT >= 0).repeat_interleave(self.num_codes, 1),
            ],
            dim=1,
        )
        earlier_SS = place_S[None, :] <= place_S[:, None]
        mask = additive((earlier_SS & real_BS[:, None, :])[:, None])
        states: Tensor = self.t5.encoder(
            inputs_embeds=self.t5.shared(token_BS), attention_mask=mask
        ).last_hidden_state
        return states, place_S, real_BS

    def _decode(self, encoded_BSD: Tensor, codes_BXl: Tensor, seen_BXS: Tensor, width: int) -> Tensor:
        """Hidden states [B, X, width, D] after the start token and `width` - 1 codes of each of X targets.

        `seen_BXS` bool: which encoder tokens a target may see. The X targets do not see each other.
        """
        batch, num_targets = codes_BXl.shape[:2]
        token_BXl = codes_BXl + torch.tensor(self.level_starts[: width - 1], dtype=torch.int64)
        start_BX1 = torch.zeros(batch, num_targets, 1, dtype=torch.int64)
        token_BP = torch.cat([start_BX1, token_BXl], dim=2).flatten(1)
        target_P = torch.arange(num_targets).repeat_interleave(width)
        place_P = torch.arange(num_targets * width)
        own_PP = (target_P[:, None] == target_P[None, :]) & (place_P[:, None] >= place_P[None, :])
        hidden_BPD = self.t5.decoder(
            inputs_embeds=self.t5.shared(token_BP),
            attention_mask=additive(own_PP[None, None]).expand(batch, -1, -1, -1),
            encoder_hidden_states=encoded_BSD,
            encoder_attention_mask=additive(seen_BXS.repeat_interleave(width, 1)[:, None]),
            use_cache=False,
        ).last_hidden_state
        hidden: Tensor = hidden_BPD.view(batch, num_targets, width, -1)
        return hidden

    def _logits(self, hidden_XD: Tensor, level: int) -> Tensor:
        """Logits of one level's codes by the shared embedding, scaled as T5 does; [.., V]."""
        start = self.level_starts[level]
        weight_VD = self.t5.shared.weight[start : start + self.level_sizes[level]]
        logits_XV: Tensor = (hidden_XD * self.config.d_model**-0.5) @ weight_VD.T
        return logits_XV


def additive(allowed: Tensor) -> Tensor:
    """A bool mask as what is added to attention logits, float32: 0 where allowed, very low elsewhere."""
    return torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.float32).min / 2)


def _cheap_dropout(module: nn.Module) -> None:
    """Puts `ByteDropout` in the place of every dropout module: a fifth of a step's time on a CPU."""
    for name, child in module.named_children():
        if isinstance(child, nn.Dropout):
            setattr(module, name, ByteDropout(child.p))
        else:
            _cheap_dropout(child)
