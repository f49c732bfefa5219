"""The recommender's weights as serving uses them: each part as it is computed fastest on this machine.

Owns the copies, and that all are of the same weights. The trunk's matrix products run in the format this
machine multiplies fastest, its sums, norms and softmaxes in float32; decoder and dense head are compiled.

Shapes: B requests, T history, N items, D width.
"""

import copy

import numpy as np
import torch
from torch import Tensor, nn

from models.batch import HistoryBatch, few_sizes
from models.decoding.compiled_search import CompiledSearch
from models.device import autocast, compute_dtype
from models.kernels.dense_head_cpu import DenseHead
from models.networks.compiled_trunk import compiled_trunk
from models.networks.item_identities import ItemIdentities
from models.networks.recommender import MIN_TEMPERATURE, GenerativeRecommender
from models.networks.user_states import UserStates

# Positions (B x T) from which on bfloat16 pays, where it is faster at all: with AMX a request of 50 events
# takes 2.7 ms in float32 and 2.4 in bfloat16, but 7.7 when its length is met for the first time.
MIN_LOW_POSITIONS = 128
# Below that many, an event each is extended faster in one compiled call than in bfloat16.
_FEW_USERS = 8


class Inference:
    """A frozen reading of one recommender: later changes of its weights show once it is read again."""

    def __init__(self, recommender: GenerativeRecommender, dtype: torch.dtype | None = None) -> None:
        self.device = recommender.empty_state.device
        self.dtype = compute_dtype(self.device) if dtype is None else dtype
        # items are encoded before they come here, so what is known of single ones is not copied
        width = recommender.config.d_model
        without = {id(recommender.identities): ItemIdentities(0, width, 0.0)}
        self._precise = copy.deepcopy(recommender, without).eval().requires_grad_(False)
        self._fast = self._precise
        if self.dtype != torch.float32:
            self._fast = copy.deepcopy(self._precise)
            for module in self._fast.trunk.modules():
                if isinstance(module, nn.Linear):
                    module.to(self.dtype)
        self._prepare()

    def _prepare(self) -> None:
        self.search = CompiledSearch(self._precise.decoder)
        self._compiled = compiled_trunk(self._precise.trunk)
        self.dense_head = _dense_head(self._precise)

    @torch.no_grad()
    def read_again(self, recommender: GenerativeRecommender) -> None:
        """Takes the weights of another recommender of the same shape, or of the same one later."""
        weights = dict(recommender.named_parameters())
        for copied in {self._precise, self._fast}:
            for name, weight in copied.named_parameters():
                if weight.numel():  # what is known of single items was left out
                    weight.copy_(weights[name])
        self._prepare()

    def prefill(self, history: HistoryBatch, item_ND: Tensor) -> UserStates:
        """The states of B users now, from their histories and `item_ND` float32, by row.

        Few positions are computed in float32 whatever the format, many padded to a few sizes.
        """
        num, width = history.item_BT.shape
        if self._fast is self._precise or num * width < MIN_LOW_POSITIONS:
            states = self._precise.prefill(history, item_ND, self._compiled)
            return UserStates(state_BD=states.state_BD, cache=states.cache.to(self.dtype))
        widest = max(width, self._fast.config.max_history)
        padded = history.padded(few_sizes(num), min(few_sizes(width), widest))
        with autocast(self.device, self.dtype):
            return self._fast.prefill(padded, item_ND).select(torch.arange(num))

    def extend(self, states: UserStates, new: HistoryBatch, item_ND: Tensor) -> UserStates:
        """`states` after `new` events of the same users; `item_ND` float32, by row."""
        if self._compiled is not None and (self._fast is self._precise or len(states) < _FEW_USERS):
            states = self._precise.extend(states, new, item_ND, self._compiled)
            return UserStates(state_BD=states.state_BD, cache=states.cache.to(self.dtype))
        with autocast(self.device, self.dtype):
            return self._fast.extend(states, new, item_ND)


def _dense_head(recommender: GenerativeRecommender) -> DenseHead:
    temperature = recommender.log_temperature.exp().clamp(min=MIN_TEMPERATURE)
    linear = recommender.dense_state
    return DenseHead(
        np.ascontiguousarray(linear.weight.T.float().numpy()),
        np.ascontiguousarray(linear.bias.float().numpy()),
        1.0 / float(temperature),
    )
