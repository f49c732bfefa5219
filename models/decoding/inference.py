"""The recommender's weights as serving uses them: each part as it is computed fastest on this machine.

Owns the copies, and that all are of the same weights. The trunk's matrix products run in the format this
machine multiplies fastest, its sums, norms and softmaxes in float32; decoder and dense head are compiled.
"""

import copy
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import nn

from models.decoding.compiled_search import CompiledSearch
from models.device import autocast, compute_dtype
from models.kernels.dense_head_cpu import DenseHead
from models.networks.item_identities import ItemIdentities
from models.networks.recommender import MIN_TEMPERATURE, GenerativeRecommender


class Inference:
    """A frozen reading of one recommender: later changes of its weights do not show."""

    def __init__(self, recommender: GenerativeRecommender, dtype: torch.dtype | None = None) -> None:
        self.device = recommender.empty_state.device
        self.dtype = compute_dtype(self.device) if dtype is None else dtype
        # items are encoded before they come here, so what is known of single ones is not copied
        width = recommender.config.d_model
        without = {id(recommender.identities): ItemIdentities(0, width, 0.0)}
        self.recommender = copy.deepcopy(recommender, without).eval().requires_grad_(False)
        self.search = CompiledSearch(self.recommender.decoder)
        self.dense_head = _dense_head(self.recommender)
        if self.dtype != torch.float32:
            for module in self.recommender.trunk.modules():
                if isinstance(module, nn.Linear):
                    module.to(self.dtype)

    def precision(self) -> AbstractContextManager[object]:
        """The context in which the trunk is to be called."""
        return autocast(self.device, self.dtype)


def _dense_head(recommender: GenerativeRecommender) -> DenseHead:
    temperature = recommender.log_temperature.exp().clamp(min=MIN_TEMPERATURE)
    linear = recommender.dense_state
    return DenseHead(
        np.ascontiguousarray(linear.weight.T.float().numpy()),
        np.ascontiguousarray(linear.bias.float().numpy()),
        1.0 / float(temperature),
    )
