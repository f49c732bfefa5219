"""One optimiser step for the generator and one for the ranker, for each micro-batch of the stream.

Owns the optimisers, the anchor (a pull back to the live release) and what happens to a step that is not
finite: it is dropped, and nothing but the anchor moves the weights. There is no dropout online: each event
comes once. Knows nothing of histories, statistics or quality.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from models.catalogue.index import CatalogueIndex
from models.device import autocast
from models.networks.ranker import Ranker
from models.networks.recommender import GenerativeRecommender
from models.online.config import LearnerConfig
from models.sequences.windows import TrainingBatch
from models.training.objective import Objective

_CPU = torch.device("cpu")
_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Losses in nats per target, and the generator's gradient norm before clipping.

    NaN where nothing was learned; `num_nonfinite` of the two steps were dropped.
    """

    dense_loss: float
    code_loss: float
    ranker_loss: float
    grad_norm: float
    num_nonfinite: int


class OnlineTrainer:
    """Moves a recommender and a ranker, anchored to frozen copies of both."""

    def __init__(
        self, recommender: GenerativeRecommender, ranker: Ranker, config: LearnerConfig, dtype: torch.dtype
    ) -> None:
        self.recommender = recommender.eval()
        self.ranker = ranker.eval()
        self.config = config
        self.dtype = dtype
        self.num_steps = 0
        self.restart()

    def restart(self) -> None:
        """Forgets the optimisers' memory and anchors to the present weights, which were just loaded."""
        self.generator_optimiser = torch.optim.AdamW(
            self.recommender.parameters(), lr=self.config.learning_rate, weight_decay=0.0, fused=True
        )
        self.ranker_optimiser = torch.optim.AdamW(
            self.ranker.parameters(), lr=self.config.ranker_learning_rate, weight_decay=0.0, fused=True
        )
        self.anchor_recommender = frozen_copy(self.recommender)
        self.anchor_ranker = frozen_copy(self.ranker)

    def anchor_to(self, recommender: GenerativeRecommender, ranker: Ranker) -> None:
        """Pulls towards these weights from now on."""
        self.anchor_recommender = frozen_copy(recommender)
        self.anchor_ranker = frozen_copy(ranker)

    def step(
        self, batches: Sequence[TrainingBatch], ranker_loss: Tensor | None, catalogue: CatalogueIndex
    ) -> StepReport:
        """One generator step on all batches together, and one ranker step on `ranker_loss`, a float32 scalar
        in nats with its graph.

        A batch without a target, and a missing loss, teach nothing.
        """
        dense_value = code_value = ranker_value = grad_norm = math.nan
        num_nonfinite = 0
        batches = [batch for batch in batches if batch.num_targets]
        if batches:
            self.generator_optimiser.zero_grad()
            dense_value, code_value = self._backward(batches, catalogue)
            grad_norm = self._descend(self.generator_optimiser, dense_value + code_value)
            num_nonfinite += not math.isfinite(grad_norm)
            self._pull(self.recommender, self.anchor_recommender)
        if ranker_loss is not None:
            ranker_value = ranker_loss.item()
            self.ranker_optimiser.zero_grad()
            ranker_loss.backward()  # type: ignore[no-untyped-call]
            num_nonfinite += not math.isfinite(self._descend(self.ranker_optimiser, ranker_value))
            self._pull(self.ranker, self.anchor_ranker)
        self.num_steps += 1
        return StepReport(
            dense_loss=dense_value,
            code_loss=code_value,
            ranker_loss=ranker_value,
            grad_norm=grad_norm,
            num_nonfinite=num_nonfinite,
        )

    def _backward(self, batches: Sequence[TrainingBatch], catalogue: CatalogueIndex) -> tuple[float, float]:
        """Adds the gradient of all batches together; both losses."""
        # popularity matters only to catalogues beyond the full softmax: there, all alike
        objective = Objective(catalogue, torch.ones(len(catalogue)), seed=self.config.seed + self.num_steps)
        with autocast(_CPU, self.dtype):
            loss = objective(self.recommender, batches, self.dtype)
        loss.total.backward()  # type: ignore[no-untyped-call]
        return loss.dense.item(), loss.code.item()

    def _descend(self, optimiser: torch.optim.AdamW, loss: float) -> float:
        """One clipped step; the gradient's norm. Where that or the loss is not finite: NaN, nothing moves."""
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
        is_finite = math.isfinite(norm) and math.isfinite(loss)
        if is_finite:
            optimiser.step()
        optimiser.zero_grad()
        return norm if is_finite else math.nan

    @torch.no_grad()
    def _pull(self, model: nn.Module, anchor: nn.Module) -> None:
        for parameter, home in zip(model.parameters(), anchor.parameters(), strict=True):
            parameter.lerp_(home, self.config.anchor_strength)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Groups of tensors: weights, anchors and the optimisers' memory, in the dtypes that they have
        (float32; slots int64)."""
        return {
            "recommender": dict(self.recommender.state_dict()),
            "ranker": dict(self.ranker.state_dict()),
            "anchor_recommender": dict(self.anchor_recommender.state_dict()),
            "anchor_ranker": dict(self.anchor_ranker.state_dict()),
            "generator_optimiser": _optimiser_state(self.generator_optimiser),
            "ranker_optimiser": _optimiser_state(self.ranker_optimiser),
        }

    def load_state(self, tensors: dict[str, dict[str, Tensor]], num_steps: int) -> None:
        """Takes over what `state` described, dtypes included, and removes it from `tensors`.

        Raises KeyError where a group is missing, RuntimeError where names or shapes do not fit.
        """
        self.recommender.load_state_dict(tensors.pop("recommender"))
        self.ranker.load_state_dict(tensors.pop("ranker"))
        self.anchor_recommender.load_state_dict(tensors.pop("anchor_recommender"))
        self.anchor_ranker.load_state_dict(tensors.pop("anchor_ranker"))
        _load_optimiser(self.generator_optimiser, tensors.pop("generator_optimiser"))
        _load_optimiser(self.ranker_optimiser, tensors.pop("ranker_optimiser"))
        self.num_steps = num_steps


def frozen_copy(model: _Module) -> _Module:
    """A copy that no step will move."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def _optimiser_state(optimiser: torch.optim.AdamW) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": tensor
        for index, memory in optimiser.state_dict()["state"].items()
        for name, tensor in memory.items()
    }


def _load_optimiser(optimiser: torch.optim.AdamW, tensors: dict[str, Tensor]) -> None:
    memory: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".")
        memory.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({"state": memory, "param_groups": optimiser.state_dict()["param_groups"]})
