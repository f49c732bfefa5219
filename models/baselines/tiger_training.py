"""Training TIGER: RQ-VAE tokens, every prefix an example, the checkpoint that validates best.

Owns the optimiser, the schedule and the choice; the network is `tiger.py`'s. The learning rate warms up,
then follows a half cosine over the minutes (or epochs) that there are.

Shapes: B windows or cases, T history, N items, E content width, U users, W windows.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.arrays import Int64Array
from models.baselines.tiger import Tiger, TigerConfig, user_token
from models.batch import EventBatch
from models.device import autocast, compute_dtype
from models.errors import NonFiniteLoss
from models.measures.ranking_metrics import Ranks, ranking_metrics, ranks_in_lists
from models.progress import Progress, quietly
from models.sequences.holdout import HoldoutCases
from models.sequences.user_sequences import UserSequences
from models.sequences.windows import LENGTH_BLUR, TrainingWindows
from models.tokenizers.rq_vae import RqVaeConfig, fit_rq_vae, with_last_code

NUM_ANSWERS = 10
_CPU = torch.device("cpu")
_BATCH_CASES = 64
_MAX_GRAD_NORM = 1.0


@dataclass(frozen=True, kw_only=True)
class TrainedTiger:
    """The network of the best checkpoint, and how it came to be."""

    network: Tiger
    num_epochs: float
    best_step: int

    def ranks(self, cases: HoldoutCases, progress: Progress = quietly) -> Ranks:
        """The 0-based place of each case's item among the first ten of the beam search, -1 past them.

        Items of the case's own history are left out.
        """
        network, config = self.network.eval(), self.network.config
        dtype = compute_dtype(_CPU)
        rank_B = np.full(len(cases), -1, dtype=np.int64)
        done = 0
        for chosen, part in cases.batches(_BATCH_CASES):
            user_B = torch.tensor([user_token(user, config.num_user_tokens) for user in part.user_ids])
            item_BT = part.histories(config.max_items).item_BT
            with autocast(_CPU, dtype):
                found = network.search(
                    item_BT, user_B, k=NUM_ANSWERS, beam=config.beam, exclude=part.known_rows()
                )
            rank_B[chosen] = ranks_in_lists(found.row_BK.numpy(), part.target_B)
            done += len(chosen)
            progress("TIGER answers", done, len(cases))
        return rank_B


class _Examples:
    """All windows of the training sequences, in batches of similar lengths, with their users' tokens."""

    def __init__(self, sequences: UserSequences, config: TigerConfig) -> None:
        self._windows = TrainingWindows(sequences, config.max_items)
        self._config = config
        self._length_W = np.maximum(self._windows.end_W - self._windows.begin_W, 1)
        owner_W = np.searchsorted(sequences.begin_U, self._windows.begin_W, side="right") - 1
        token_U = np.array([user_token(user, config.num_user_tokens) for user in sequences.user_ids])
        self._token_W = token_U[owner_W].astype(np.int64)

    @property
    def num_batches(self) -> int:
        """Steps of an epoch."""
        return max(1, -(-int(self._length_W.sum()) // self._config.batch_positions))

    def epoch(self, random: np.random.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(items [B, T], user tokens [B], targets [B, T]) until every window was in a batch."""
        blur_W = random.uniform(1.0, 1.0 + LENGTH_BLUR, len(self._length_W))
        order_W = np.argsort(self._length_W * blur_W, kind="stable")
        at_W = np.cumsum(self._length_W[order_W]) * self.num_batches // (int(self._length_W.sum()) + 1)
        batches: list[Int64Array] = np.split(order_W, np.nonzero(np.diff(at_W))[0] + 1)
        for index in random.permutation(len(batches)):
            batch = self._windows.batch(batches[index])
            if bool((batch.target_BT >= 0).any()):
                yield batch.history.item_BT, torch.from_numpy(self._token_W[batches[index]]), batch.target_BT


def train_tiger(
    content_NE: Tensor,
    events: EventBatch,
    validation: EventBatch,
    config: TigerConfig,
    codes: RqVaeConfig,
    *,
    minutes: float,
    progress: Progress = quietly,
) -> TrainedTiger:
    """Fits tokens to the items' content (float32 [N, E]), then trains for at most `minutes` or `max_epochs`.

    `events` and `validation` are on rows of `content_NE`. The checkpoint with the best NDCG@10 on a fixed
    sample of the validation events stays. The global random state is left as it was. Raises ValueError
    without content, NonFiniteLoss when the loss stops being a number.
    """
    rq_vae = fit_rq_vae(content_NE, codes, progress)
    codes_NC = with_last_code(rq_vae.encode(content_NE), seed=codes.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        run = _Run(Tiger(config, codes_NC), events, validation, config, minutes, progress)
        run.train()
    return TrainedTiger(network=run.network.eval(), num_epochs=run.epochs_done, best_step=run.best_step)


class _Run:
    """One training: the data, the clock and the best weights so far."""

    def __init__(
        self,
        network: Tiger,
        events: EventBatch,
        validation: EventBatch,
        config: TigerConfig,
        minutes: float,
        progress: Progress,
    ) -> None:
        self.network, self.config, self.progress = network, config, progress
        self.examples = _Examples(UserSequences.from_events(events), config)
        random = np.random.default_rng(config.seed)
        cases = HoldoutCases.from_events(events, validation)
        self.cases = cases.select(random.permutation(len(cases))[: config.validation_cases])
        self.random = random
        self.seconds = minutes * 60
        self.step, self.best_step, self.best = 0, 0, -math.inf
        self.best_state: dict[str, Tensor] = {}
        self.epochs_done = 0.0

    def train(self) -> None:
        """Until the minutes or the epochs are used up; the network then has its best weights."""
        optimiser = torch.optim.AdamW(
            self.network.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        dtype, begin_s = compute_dtype(_CPU), time.perf_counter()
        total = self.config.max_epochs * self.examples.num_batches
        figures: dict[str, float] = {}
        share = 0.0
        for _ in range(self.config.max_epochs):
            for items, users, targets in self.examples.epoch(self.random):
                share = max((time.perf_counter() - begin_s) / self.seconds, self.step / total)
                if share >= 1.0:
                    break
                for group in optimiser.param_groups:
                    group["lr"] = self.config.learning_rate * self._factor(share)
                figures["loss"] = self._step(optimiser, items, users, targets, dtype)
                self.step += 1
                if self.step % self.config.validate_every == 0:
                    figures |= self._validate()
                self.epochs_done = self.step / self.examples.num_batches
                self.progress("TIGER", int(share * 1000), 1000, figures | {"epochs": self.epochs_done})
            if share >= 1.0:
                break
        self._validate()
        self.network.load_state_dict(self.best_state)

    def _factor(self, share: float) -> float:
        warm = min(1.0, (self.step + 1) / self.config.warmup_steps)
        return warm * 0.5 * (1.0 + math.cos(math.pi * share))

    def _step(
        self, optimiser: torch.optim.AdamW, items: Tensor, users: Tensor, targets: Tensor, dtype: torch.dtype
    ) -> float:
        self.network.train()
        optimiser.zero_grad()
        with autocast(_CPU, dtype):
            loss = self.network(items, users, targets)
        if not bool(loss.isfinite()):
            raise NonFiniteLoss("TIGER's loss is not a finite number")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _MAX_GRAD_NORM)
        optimiser.step()
        return float(loss.detach())

    def _validate(self) -> dict[str, float]:
        trained = TrainedTiger(network=self.network, num_epochs=self.epochs_done, best_step=self.step)
        figures = ranking_metrics(trained.ranks(self.cases))
        if figures["ndcg@10"] > self.best:
            self.best, self.best_step = figures["ndcg@10"], self.step
            self.best_state = {name: value.clone() for name, value in self.network.state_dict().items()}
        return figures


def _nobody(stage: str, done: int, total: int, figures: dict[str, float]) -> None:
    del stage, done, total, figures
