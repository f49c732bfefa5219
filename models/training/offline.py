"""Offline training of the generative recommender, in two stages, with early stopping on validation.

Owns the optimiser, its schedule and when to stop. The objective is `models/training/objective.py`'s, the data
order `models/sequences/windows.py`'s. Does not know where events come from, and draws nothing on a screen.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from models.batch import EventBatch
from models.catalogue.index import CatalogueIndex
from models.decoding.cpu_engine import CpuEngine
from models.decoding.dense_ranks import dense_ranks
from models.decoding.popularity_ranks import popularity_ranks
from models.device import autocast, compute_dtype
from models.errors import NonFiniteLoss
from models.measures.ranking_metrics import ranking_metrics, recall_at
from models.networks.config import ModelConfig
from models.networks.item_identities import room_for
from models.networks.recommender import GenerativeRecommender
from models.progress import Progress, quietly
from models.sequences.holdout import HoldoutCases
from models.sequences.user_sequences import UserSequences
from models.sequences.windows import TrainingBatch, TrainingWindows
from models.training.config import TrainConfig
from models.training.objective import GeneratorLoss, Objective

CPU = torch.device("cpu")
# The stages, as people read them.
_ALIGNING, _TRAINING = "learning the items", "learning to recommend"
WARMUP_STEPS = 100
FINAL_LEARNING_RATE = 0.05
MAX_GRAD_NORM = 1.0
# What a validation reads costs about as much as training on a third of it.
MAX_VALIDATED_POSITIONS = 200_000


def train_recommender(
    catalogue: CatalogueIndex,
    events: EventBatch,
    config_model: ModelConfig,
    config_train: TrainConfig,
    *,
    validation: EventBatch,
    progress: Progress = quietly,
    time_share: Callable[[], float] | None = None,
    make_recommender: Callable[[ModelConfig], GenerativeRecommender] = GenerativeRecommender,
) -> GenerativeRecommender:
    """Trains on `events` (in stream order) and returns the weights that ranked `validation` best.

    Stage "align" trains the item encoder alone, stage "train" everything. Validation is one case per wish,
    with all that the user chose before it as history; without such events the last weights are kept. The same
    seed, events and thread count give the same weights. The global random state is left as it was.

    `time_share()` says how much of the time for training is used up, 0 to 1, where there is a limit: the
    learning rate then falls with the time as well, and at 1 training ends (the weights depend on the clock).

    `make_recommender` makes the untrained network; ablations bring variants of it.

    Raises NonFiniteLoss when the loss stops being a number.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config_train.seed)
        num_identities = min(config_model.num_identities, room_for(len(catalogue)))
        recommender = make_recommender(replace(config_model, num_identities=num_identities))
        run = _Run(recommender, catalogue, events, validation, config_train, progress, time_share)
        if config_train.align_epochs:
            run.align()
        run.train()
    return recommender.eval()


class _Run:
    """One offline training: the data, the objective and the best weights so far."""

    def __init__(
        self,
        recommender: GenerativeRecommender,
        catalogue: CatalogueIndex,
        events: EventBatch,
        validation: EventBatch,
        config: TrainConfig,
        progress: Progress,
        time_share: Callable[[], float] | None,
    ) -> None:
        self.recommender = recommender
        self.catalogue = catalogue
        self.config = config
        self.progress = progress
        self.time_share = time_share or (lambda: 0.0)
        self.dtype = compute_dtype(CPU)
        self.random = np.random.default_rng(config.seed)
        sequences = UserSequences.from_events(events)
        self.windows = TrainingWindows(sequences, recommender.config.max_history)
        cases = HoldoutCases.from_events(events, validation.select(validation.is_wish_N))
        self.cases = _some(cases, recommender.config.max_history)
        popular_B = popularity_ranks(self.cases, events, len(catalogue))
        popularity_N = torch.from_numpy(np.bincount(events.item_N, minlength=len(catalogue)))
        self.objective = Objective(catalogue, popularity_N, seed=config.seed)
        by_popularity_N = popularity_N.argsort(descending=True, stable=True)[: int((popularity_N > 0).sum())]
        recommender.identities.add(catalogue.codes_NC[by_popularity_N])
        self.metrics = {"popularity_recall@10": recall_at(popular_B, 10)} if len(self.cases) else {}

    def align(self) -> None:
        """Stage 1: the item encoder learns to speak to a frozen network."""
        encoder = [self.recommender.code_embedding, *self.recommender.content.parameters()]
        frozen = [p for p in self.recommender.parameters() if all(p is not e for e in encoder)]
        for parameter in frozen:
            parameter.requires_grad_(False)
        optimiser = self._optimiser(encoder)
        for epoch in range(self.config.align_epochs):
            self._epoch(_ALIGNING, epoch, self.config.align_epochs, optimiser)
        for parameter in frozen:
            parameter.requires_grad_(True)

    def train(self) -> None:
        """Stage 2: everything, until validation has not improved for `patience_epochs`."""
        optimiser = self._optimiser(list(self.recommender.parameters()))
        best, best_state, stale = -math.inf, None, 0
        for epoch in range(self.config.max_epochs):
            self._epoch(_TRAINING, epoch, self.config.max_epochs, optimiser)
            done = (epoch + 1) * self._num_steps
            if len(self.cases):
                self.metrics |= self.validate()
                if self.metrics["ndcg@10"] > best:
                    best, stale = self.metrics["ndcg@10"], 0
                    best_state = {k: v.clone() for k, v in self.recommender.state_dict().items()}
                else:
                    stale += 1
                self._report(_TRAINING, done, self.config.max_epochs * self._num_steps)
            if stale >= self.config.patience_epochs or self.time_share() >= 1.0:
                self._report(_TRAINING, done, done)
                break
        if best_state is not None:
            self.recommender.load_state_dict(best_state)

    def validate(self) -> dict[str, float]:
        """Recall and NDCG of the dense head on the validation cases."""
        engine = CpuEngine(self.recommender, self.catalogue, dtype=self.dtype)
        return ranking_metrics(dense_ranks(engine, self.cases))

    @property
    def _num_steps(self) -> int:
        return self.windows.num_batches(self.config.batch_positions)

    def _optimiser(self, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
        """AdamW without weight decay on biases, norms and scalars."""
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": self.config.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=self.config.learning_rate, fused=True
        )

    def _epoch(self, stage: str, epoch: int, num_epochs: int, optimiser: torch.optim.AdamW) -> None:
        self.recommender.train()
        total = num_epochs * self._num_steps
        for step, batch in enumerate(self.windows.epoch(self.config.batch_positions, self.random)):
            done, share = epoch * self._num_steps + step, self.time_share()
            if share >= 1.0:
                break
            factor = min(learning_rate_factor(done, total), annealed(share))
            for group in optimiser.param_groups:
                group["lr"] = self.config.learning_rate * factor
            loss = self._step(batch, optimiser)
            self.metrics |= {"dense_loss": loss.dense.item(), "code_loss": loss.code.item()}
            self._report(stage, done + 1, total)

    def _step(self, batch: TrainingBatch, optimiser: torch.optim.AdamW) -> GeneratorLoss:
        optimiser.zero_grad()
        with autocast(CPU, self.dtype):
            loss = self.objective(self.recommender, [batch], self.dtype)
        total: Tensor = loss.total
        if not bool(total.isfinite()):
            raise NonFiniteLoss("the training loss is not a finite number; lower the learning rate")
        total.backward()  # type: ignore[no-untyped-call]
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimiser.step()
        return loss

    def _report(self, stage: str, done: int, total: int) -> None:
        self.progress(stage, done, total, dict(self.metrics))


def _some(cases: HoldoutCases, max_history: int) -> HoldoutCases:
    """Cases that read `MAX_VALIDATED_POSITIONS` events together, always the same; all if that is fewer."""
    order_B = np.random.default_rng(0).permutation(len(cases))
    read_B = np.minimum(cases.length_B, max_history)[order_B]
    return cases.select(np.sort(order_B[np.cumsum(read_B) <= MAX_VALIDATED_POSITIONS]))


def learning_rate_factor(step: int, num_steps: int) -> float:
    """Linear warm-up over `WARMUP_STEPS` (at most a tenth), then a half cosine to `FINAL_LEARNING_RATE`."""
    warmup = min(WARMUP_STEPS, max(1, num_steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    return annealed((step - warmup) / max(1, num_steps - warmup))


def annealed(position: float) -> float:
    """A half cosine (Loshchilov and Hutter, 2017) from 1 at position 0 to `FINAL_LEARNING_RATE` at 1."""
    return FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * 0.5 * (1 + math.cos(math.pi * position))
