"""A target-attention ranker to compare with: DIN, on the very inputs of ours.

Zhou et al., 2018, "Deep Interest Network for Click-Through Rate Prediction": the interest that a candidate
activates in a history is the sum of its events, each weighed by a small network that sees the event and the
candidate (the local activation unit; no softmax, so that a strong interest stays strong). Owns the network
only; the input batch, the labels and the losses are `models.networks.ranker`'s.

Shapes: B requests, T history, M candidates, A actions, F live features, D width, W width of the unit.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.batch import NUM_ACTIONS
from models.candidates import Source
from models.networks.config import ModelConfig
from models.networks.ranker import NUM_SCORES, PADDING_LOGIT, RankerOutput, RankingBatch, candidate_inputs
from models.networks.recommender import NUM_GAP_BUCKETS, gap_bucket

# The paper's sizes (section 4 and its code): 36 in the activation unit, 200 and 80 above it.
UNIT_WIDTH = 36
HIDDEN_WIDTHS = (200, 80)


class DinRanker(nn.Module):
    """Local activation units over the history, then a PReLU network -> relevance and action logits."""

    def __init__(self, config: ModelConfig, num_features: int) -> None:
        super().__init__()
        self.config = config
        self.num_features = num_features
        width = config.ranker_dim
        self.item = nn.Linear(config.d_model, width)
        self.action_embedding = nn.Embedding(NUM_ACTIONS, width)
        self.gap_embedding = nn.Embedding(NUM_GAP_BUCKETS, width)
        nn.init.normal_(self.action_embedding.weight, std=0.02)
        nn.init.normal_(self.gap_embedding.weight, std=0.02)
        # [event, candidate, event - candidate, event * candidate] -> W, split by what each part depends on
        self.of_event = nn.Linear(width, UNIT_WIDTH)
        self.of_candidate = nn.Linear(width, UNIT_WIDTH, bias=False)
        self.of_both = nn.Parameter(torch.randn(UNIT_WIDTH, width) * width**-0.5)
        self.unit_activation = nn.PReLU(UNIT_WIDTH)
        self.unit_weight = nn.Linear(UNIT_WIDTH, 1)
        num_inputs = 3 * width + num_features + NUM_SCORES + len(Source)
        first, second = HIDDEN_WIDTHS
        self.hidden = nn.ModuleList([nn.Linear(num_inputs, first), nn.Linear(first, second)])
        self.activations = nn.ModuleList([nn.PReLU(first), nn.PReLU(second)])
        self.output = nn.Linear(second, 1 + NUM_ACTIONS)

    def forward(self, batch: RankingBatch, item_ND: Tensor) -> RankerOutput:
        """Scores all candidates; `item_ND` float32, the generator's item representations by row, detached."""
        history = batch.history
        event_BTD = self.item(functional.embedding(history.item_BT.clamp(min=0), item_ND))
        event_BTD = event_BTD + self.action_embedding(history.action_BT)
        event_BTD = event_BTD + self.gap_embedding(gap_bucket(history.time_ms_BT))
        candidate_BMD = self.item(functional.embedding(batch.row_BM.clamp(min=0), item_ND))
        weight_BMT = self._activation(event_BTD, candidate_BMD)
        valid_BT = torch.arange(event_BTD.shape[1], device=event_BTD.device) < history.length_B[:, None]
        interest_BMD = (weight_BMT * valid_BT[:, None].to(weight_BMT.dtype)) @ event_BTD
        x_BMX = torch.cat(
            [interest_BMD, candidate_BMD, interest_BMD * candidate_BMD, candidate_inputs(batch)], dim=2
        )
        for layer, activation in zip(self.hidden, self.activations, strict=True):
            x_BMX = activation(layer(x_BMX).transpose(1, 2)).transpose(1, 2)
        out_BMO = self.output(x_BMX).float()
        relevance_BM = out_BMO[:, :, 0].masked_fill(batch.row_BM < 0, PADDING_LOGIT)
        return RankerOutput(relevance_BM=relevance_BM, action_logit_BMA=out_BMO[:, :, 1:])

    def _activation(self, event_BTD: Tensor, candidate_BMD: Tensor) -> Tensor:
        """The weight of each event for each candidate, [B, M, T]."""
        both_BMWD = candidate_BMD[:, :, None, :] * self.of_both
        unit_BWMT = (both_BMWD @ event_BTD.transpose(1, 2)[:, None]).transpose(1, 2)
        unit_BWMT = unit_BWMT + self.of_event(event_BTD).transpose(1, 2)[:, :, None, :]
        unit_BWMT = unit_BWMT + self.of_candidate(candidate_BMD).transpose(1, 2)[:, :, :, None]
        weight_BMT: Tensor = self.unit_weight(self.unit_activation(unit_BWMT).movedim(1, 3))[..., 0]
        return weight_BMT
