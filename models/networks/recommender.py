"""The generative recommender: items to vectors, histories to user states, and the two heads on them.

Owns every weight that the generator serves. Works on item *rows*' codes and content, so an item that was
announced a moment ago is represented at once; one that was learned from has a vector of its own as well.
Does not know the catalogue, the search or how it is trained.

Shapes: B batch, T history, N items, X states, C codes of an item, V codebook size, D width, E content.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.batch import NUM_ACTIONS, HistoryBatch
from models.networks.base import StatefulTrunk
from models.networks.config import ModelConfig
from models.networks.depth_decoder import DepthDecoder
from models.networks.item_identities import ItemIdentities
from models.networks.trunk_cache import TrunkCache
from models.networks.trunks import make_trunk
from models.networks.user_states import UserStates

NUM_GAP_BUCKETS = 48
MIN_TEMPERATURE = 0.01
_POWERS_OF_2 = 2 ** torch.arange(NUM_GAP_BUCKETS - 2)


def gap_bucket(time_ms_BT: Tensor) -> Tensor:
    """Log2 bucket of the gap to the event before, int64 [B, T] below NUM_GAP_BUCKETS.

    0 for the first event, 1 for no gap (or a step back in time), then one bucket for each doubling:
    1 ms -> 2, 2-3 ms -> 3, one day -> 28.
    """
    doublings = torch.bucketize(time_ms_BT.diff(dim=1), _POWERS_OF_2.to(time_ms_BT.device), right=True)
    return functional.pad(doublings + 1, (1, 0))


class GenerativeRecommender(nn.Module):
    """Item-level trunk with a depth decoder (generation) and a dense head (retrieval) on its states.

    Under autocast, states and item representations stay float32; logits, dense queries and item vectors come
    in the dtype of matrix products.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, num_codes = config.d_model, config.num_levels + 1
        self.code_embedding = nn.Parameter(torch.randn(num_codes, config.codebook_size, width) * 0.02)
        self.content = nn.Linear(config.content_dim, width)
        self.identities = ItemIdentities(config.num_identities, width, config.identity_dropout)
        self.action_embedding = nn.Embedding(NUM_ACTIONS, width)
        self.gap_embedding = nn.Embedding(NUM_GAP_BUCKETS, width)
        nn.init.normal_(self.action_embedding.weight, std=0.02)
        nn.init.normal_(self.gap_embedding.weight, std=0.02)
        self.input_norm = nn.LayerNorm(width)
        self.trunk = make_trunk(config)
        self.empty_state = nn.Parameter(torch.zeros(width))
        self.dense_state = nn.Linear(width, width)
        self.dense_item = nn.Linear(width, width)
        self.log_temperature = nn.Parameter(torch.tensor(0.07).log())
        self.decoder = DepthDecoder(
            d_model=width,
            num_codes=num_codes,
            codebook_size=config.codebook_size,
            num_heads=config.num_heads,
            dropout=config.decoder_dropout,
            ffn_ratio=config.decoder_ffn_ratio,
        )

    def encode_items(self, codes_NC: Tensor, content_NE: Tensor) -> Tensor:
        """Item representations float32 [N, D]: the sum of the code embeddings + the projected content + their
        own vectors. `codes_NC` int64, `content_NE` float32."""
        num_codes, codebook_size, _ = self.code_embedding.shape
        first_C = torch.arange(num_codes, device=codes_NC.device) * codebook_size
        table = self.code_embedding.flatten(0, 1)
        codes_ND = functional.embedding_bag(codes_NC + first_C, table, mode="sum")
        item_ND: Tensor = codes_ND + self.content(content_NE) + self.identities(codes_NC)
        return item_ND

    def embed_history(self, history: HistoryBatch, item_ND: Tensor) -> Tensor:
        """What the trunk reads, float32 [B, T, D]: item (`item_ND` float32, by row) + action + time gap."""
        item_BTD = functional.embedding(history.item_BT.clamp(min=0), item_ND)
        action_BTD = self.action_embedding(history.action_BT)
        gap_BTD = self.gap_embedding(gap_bucket(history.time_ms_BT))
        normed: Tensor = self.input_norm(item_BTD + action_BTD + gap_BTD)
        return normed

    def user_states(self, history: HistoryBatch, item_ND: Tensor) -> Tensor:
        """The user's state after each event, float32 [B, T, D]; zero in the padding."""
        x_BTD = self.embed_history(history, item_ND)
        states: Tensor = self.trunk(x_BTD, history.length_B, history.time_ms_BT)
        return states

    def states_at(self, history: HistoryBatch, item_ND: Tensor, wanted_BT: Tensor) -> Tensor:
        """`user_states` of the X positions that `wanted_BT` (bool) marks, float32 [X, D]: training asks for
        the supervised ones alone."""
        x_BTD = self.embed_history(history, item_ND)
        states: Tensor = self.trunk.states_at(x_BTD, history.length_B, history.time_ms_BT, wanted_BT)
        return states

    def last_state(self, history: HistoryBatch, item_ND: Tensor) -> Tensor:
        """The user's state now, float32 [B, D]: after the last event, or the learned empty state."""
        return self.prefill(history, item_ND).state_BD

    def prefill(
        self, history: HistoryBatch, item_ND: Tensor, trunk: StatefulTrunk | None = None
    ) -> UserStates:
        """The states of B users now, with the cache that `extend` needs; `item_ND` float32, by row.

        `trunk` is another form of this one's, if any.
        """
        x_BTD = self.embed_history(history, item_ND)
        state_BD, cache = (trunk or self.trunk).prefill(x_BTD, history.length_B, history.time_ms_BT)
        empty_B1 = (history.length_B == 0)[:, None]
        state_BD = torch.where(empty_B1, self.empty_state.to(state_BD.dtype), state_BD)
        return UserStates(state_BD=state_BD, cache=cache)

    def extend(
        self,
        states: UserStates,
        new: HistoryBatch,
        item_ND: Tensor,
        trunk: StatefulTrunk | None = None,
    ) -> UserStates:
        """The states after `new` events of the same B users, oldest first; some may have none.

        Costs the new positions alone, and equals `prefill` of the whole histories. `item_ND` float32, by row;
        `trunk` is another form of this one's, if any.
        """
        state_BD, cache = states.state_BD, states.cache
        for t in range(int(new.length_B.amax())):
            is_new_B = t < new.length_B
            x_BD = self._embed_next(cache, new, t, item_ND)
            next_BD, longer = (trunk or self.trunk).extend(cache, x_BD, new.time_ms_BT[:, t])
            state_BD = torch.where(is_new_B[:, None], next_BD, state_BD)
            # what was written past a length that stays is never read
            cache = replace(longer, length_B=torch.where(is_new_B, longer.length_B, cache.length_B))
        return UserStates(state_BD=state_BD, cache=cache)

    def _embed_next(self, cache: TrunkCache, new: HistoryBatch, t: int, item_ND: Tensor) -> Tensor:
        """`embed_history` of each user's `t`-th new event, [B, D]."""
        batch_B = torch.arange(len(cache.length_B), device=cache.length_B.device)
        time_ms_B = new.time_ms_BT[:, t]
        if cache.time_ms_BT.shape[1]:
            before_ms_B = cache.time_ms_BT[batch_B, (cache.length_B - 1).clamp(min=0)]
            bucket_B = gap_bucket(torch.stack([before_ms_B, time_ms_B], dim=1))[:, 1]
        else:
            bucket_B = torch.zeros_like(time_ms_B)
        bucket_B = bucket_B.masked_fill(cache.length_B == 0, 0)
        item_BD = functional.embedding(new.item_BT[:, t].clamp(min=0), item_ND)
        event_BD = item_BD + self.action_embedding(new.action_BT[:, t]) + self.gap_embedding(bucket_B)
        normed: Tensor = self.input_norm(event_BD)
        return normed

    def item_vectors(self, item_ND: Tensor) -> Tensor:
        """What the dense head compares states with: floating [N, D], L2-normalised, of `item_ND` float32."""
        vector_ND: Tensor = functional.normalize(self.dense_item(item_ND), dim=-1)
        return vector_ND

    def dense_logits(self, state_XD: Tensor, vector_ND: Tensor) -> Tensor:
        """Cosine of each projected state and item vector over the learned temperature: floating [X, N]."""
        return self.dense_queries(state_XD) @ vector_ND.T

    def dense_queries(self, state_XD: Tensor) -> Tensor:
        """The projected states, floating [X, D], scaled: a dot product with an item vector is its logit."""
        temperature = self.log_temperature.exp().clamp(min=MIN_TEMPERATURE)
        return functional.normalize(self.dense_state(state_XD), dim=-1) / temperature
