"""The recommender's weights as serving uses them: in the format this machine multiplies fastest.

Owns the copy, the code tables of the decoder and that both are of the same weights. Sums, norms and
softmaxes stay in float32; only matrix products run in the lower precision.
"""

import copy
from contextlib import AbstractContextManager

import torch
from torch import nn

from models.device import autocast, compute_dtype
from models.networks.depth_decoder import DecoderTables
from models.networks.item_identities import ItemIdentities
from models.networks.recommender import GenerativeRecommender


class Inference:
    """A frozen reading of one recommender: later changes of its weights do not show."""

    def __init__(self, recommender: GenerativeRecommender, dtype: torch.dtype | None = None) -> None:
        self.device = recommender.empty_state.device
        self.dtype = compute_dtype(self.device) if dtype is None else dtype
        # items are encoded before they come here, so what is known of single ones is not copied
        width = recommender.config.d_model
        without = {id(recommender.identities): ItemIdentities(0, width, 0.0)}
        self.recommender = copy.deepcopy(recommender, without).eval().requires_grad_(False)
        self.tables: DecoderTables = self.recommender.decoder.tables()
        if self.dtype != torch.float32:
            decoder = self.recommender.decoder
            for module in (*self.recommender.trunk.modules(), *decoder.modules()):
                if isinstance(module, nn.Linear):
                    module.to(self.dtype)
            decoder.output_weight.data = decoder.output_weight.data.to(self.dtype)
            decoder.output_bias.data = decoder.output_bias.data.to(self.dtype)

    def precision(self) -> AbstractContextManager[object]:
        """The context in which the network is to be called."""
        return autocast(self.device, self.dtype)
