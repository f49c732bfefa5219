"""The ranker: all candidates of a request in one pass, masked so that none sees another.

Owns the network, its input batch and its losses. Its trunk is its own and narrow; item vectors and
dense logits come in detached, so ranking never moves the generator. `models.ranking.scorer` builds the input,
`models.training.ranker_fitting` fits it offline, `models.online.learner` online.

The history is action-oriented: one token for each item and what was done with it. Tried and left out, since
NDCG@10 on 4,000 validation cases of Beauty did not rise (.085 without): an embedding of the request that an
event belongs to (breaks of half an hour, counted from the newest; .084 to .085), one of the time since the
last event on the candidates' tokens (.084), standardised features (.086), dropout (.080 to .084).

Shapes: B requests, T history, M candidates, A actions, F live features, D the generator's width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.batch import ACTION_NAMES, NUM_ACTIONS, HistoryBatch, few_sizes
from models.candidates import Source
from models.networks.config import ModelConfig
from models.networks.recommender import NUM_GAP_BUCKETS, gap_bucket
from models.networks.softmax_trunk import SoftmaxTrunk

RATING, LIKE = ACTION_NAMES.index("rating"), ACTION_NAMES.index("like")
# A rating of this many stars or more also counts as a like.
LIKE_FROM_STARS = 4.0
NUM_HIDDEN = 128
# Fixed scales: dense logits are cosines over a temperature near 0.07, log-probabilities of a SID -2 to -16.
DENSE_SCALE = 10.0
BEAM_FLOOR, BEAM_SCALE = -16.0, 8.0
# The numbers of a candidate beside its live features: dense logit, beam score, whether the beam proposed it.
NUM_SCORES = 3
# Logits of candidates that are only padding.
PADDING_LOGIT = -1e9


@dataclass(frozen=True, kw_only=True)
class RankingBatch:
    """B requests padded to M candidates.

    `row_BM` int64 catalogue rows (padding -1), `source_BM` int64 bit masks, `beam_BM` float32 (NaN
    where the beam did not propose it), `dense_BM` float32, `feature_BMF` float32.
    """

    history: HistoryBatch
    row_BM: Tensor
    source_BM: Tensor
    beam_BM: Tensor
    dense_BM: Tensor
    feature_BMF: Tensor

    def __len__(self) -> int:
        return len(self.history)

    def in_few_sizes(self) -> "RankingBatch":
        """The same with histories and candidates padded to `models.batch.few_sizes`, for training."""
        num_candidates, num_events = self.row_BM.shape[1], self.history.item_BT.shape[1]
        more = (0, few_sizes(num_candidates) - num_candidates)
        return RankingBatch(
            history=self.history.padded(len(self), few_sizes(num_events)),
            row_BM=functional.pad(self.row_BM, more, value=-1),
            source_BM=functional.pad(self.source_BM, more),
            beam_BM=functional.pad(self.beam_BM, more, value=torch.nan),
            dense_BM=functional.pad(self.dense_BM, more),
            feature_BMF=functional.pad(self.feature_BMF, (0, 0, *more)),
        )


@dataclass(frozen=True, kw_only=True)
class RankingTargets:
    """What happened: `target_B` int64, the column of the event's item (-1: not among the candidates);
    `chosen_B` bool, whether the event is a wish for the item (else only its action is learned);
    `action_BA` float32, 1 for each action the event stands for."""

    target_B: Tensor
    chosen_B: Tensor
    action_BA: Tensor


@dataclass(frozen=True, kw_only=True)
class RankerOutput:
    """`relevance_BM` float32 logits (higher is better, padding at -1e9) and `action_logit_BMA` float32: given
    an event on the item, the logit of each action."""

    relevance_BM: Tensor
    action_logit_BMA: Tensor


class Ranker(nn.Module):
    """Candidate output of a masked trunk + scores + live features -> relevance and action logits.

    A blank ranker orders by the dense logit plus a small bonus for the beam's favourites: the network
    adds to that, and its last layer starts at zero.
    """

    def __init__(self, config: ModelConfig, num_features: int) -> None:
        super().__init__()
        self.config = config
        width = config.ranker_dim
        self.num_features = num_features
        self.history_item = nn.Linear(config.d_model, width)
        self.candidate_item = nn.Linear(config.d_model, width)
        self.action_embedding = nn.Embedding(NUM_ACTIONS, width)
        self.gap_embedding = nn.Embedding(NUM_GAP_BUCKETS, width)
        nn.init.normal_(self.action_embedding.weight, std=0.02)
        nn.init.normal_(self.gap_embedding.weight, std=0.02)
        self.history_norm = nn.LayerNorm(width)
        self.candidate_norm = nn.LayerNorm(width)
        self.trunk = SoftmaxTrunk(width, 1, config.num_heads, dropout=0.0)
        num_inputs = width + num_features + NUM_SCORES + len(Source)
        self.hidden = nn.Sequential(
            nn.Linear(num_inputs, NUM_HIDDEN), nn.GELU(), nn.Linear(NUM_HIDDEN, NUM_HIDDEN), nn.GELU()
        )
        self.output = nn.Linear(NUM_HIDDEN, 1 + NUM_ACTIONS)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.dense_weight = nn.Parameter(torch.tensor(1.0))
        self.beam_weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, batch: RankingBatch, item_ND: Tensor) -> RankerOutput:
        """Scores all candidates; `item_ND` float32, the generator's item representations by row, detached."""
        history = batch.history
        x_BTD = _projected(self.history_item, history.item_BT, item_ND)
        x_BTD = x_BTD + self.action_embedding(history.action_BT)
        x_BTD = self.history_norm(x_BTD + self.gap_embedding(gap_bucket(history.time_ms_BT)))
        candidate_BMD = _projected(self.candidate_item, batch.row_BM, item_ND)
        last_BMD = self.candidate_norm(candidate_BMD)
        now_B = history.time_ms_BT.amax(dim=1)
        seen_BMD = self.trunk.forward_candidates(x_BTD, history.length_B, history.time_ms_BT, last_BMD, now_B)

        inputs = torch.cat([seen_BMD, candidate_inputs(batch)], dim=2)
        out_BMO = self.output(self.hidden(inputs)).float()
        relevance_BM = (
            out_BMO[:, :, 0] + self.dense_weight * batch.dense_BM + self.beam_weight * scaled_beam(batch)
        )
        relevance_BM = relevance_BM.masked_fill(batch.row_BM < 0, PADDING_LOGIT)
        return RankerOutput(relevance_BM=relevance_BM, action_logit_BMA=out_BMO[:, :, 1:])


def _projected(linear: nn.Linear, row: Tensor, item_ND: Tensor) -> Tensor:
    """`linear` of the items at each `row` (int64, padding -1); of the whole catalogue, if that is fewer."""
    row = row.clamp(min=0)
    if len(item_ND) < row.numel():
        return functional.embedding(row, linear(item_ND))
    projected: Tensor = linear(functional.embedding(row, item_ND))
    return projected


def scaled_beam(batch: RankingBatch) -> Tensor:
    """The beam scores, brought within 0 to 2, float32 [B, M]: 0 where the beam did not propose it."""
    return ((batch.beam_BM.nan_to_num(BEAM_FLOOR) - BEAM_FLOOR) / BEAM_SCALE).clamp(min=0.0)


def candidate_inputs(batch: RankingBatch) -> Tensor:
    """What is known of each candidate without its item: features, scores and sources, float32 [B, M, F + 3 +
    S], S being the number of sources."""
    by_beam_BM = ~batch.beam_BM.isnan()
    scores_BM3 = torch.stack([batch.dense_BM / DENSE_SCALE, scaled_beam(batch), by_beam_BM.float()], dim=2)
    bit_S = torch.tensor([source.bit for source in Source], device=batch.source_BM.device)
    sources_BMS = (batch.source_BM[:, :, None] & bit_S) != 0
    return torch.cat([batch.feature_BMF, scores_BM3, sources_BMS.float()], dim=2)


def action_labels(action_B: Tensor, value_B: Tensor) -> Tensor:
    """Float32 [B, A]: 1 for the event's action (int64); 4 stars or more (float64) also count as a like."""
    label_BA = functional.one_hot(action_B, NUM_ACTIONS).float()
    label_BA[(action_B == RATING) & (value_B >= LIKE_FROM_STARS), LIKE] = 1.0
    return label_BA


def ranking_loss(output: RankerOutput, targets: RankingTargets) -> Tensor:
    """Listwise softmax cross entropy of the chosen item + binary cross entropy of its actions: a float32
    scalar, in nats.

    Requests whose item is not among the candidates teach nothing; one that nobody chose (an impression, a
    skip) teaches only the actions. Zero where there is nothing to learn.
    """
    known = (targets.target_B >= 0).nonzero()[:, 0]
    if not len(known):
        return output.relevance_BM.sum() * 0.0
    target_B = targets.target_B[known]
    chosen = targets.chosen_B[known]
    loss_B = functional.cross_entropy(output.relevance_BM[known], target_B, reduction="none")
    relevance = (loss_B * chosen).sum() / chosen.sum().clamp(min=1)
    logit_BA = output.action_logit_BMA[known, target_B]
    actions = functional.binary_cross_entropy_with_logits(logit_BA, targets.action_BA[known])
    return relevance + actions
