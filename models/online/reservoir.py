"""A uniform sample of the past, to be learned again so that nothing is forgotten.

Algorithm R (Vitter, 1985): after n sequences were offered, each of them is in the reservoir with the same
probability. The random numbers are the caller's, so that their state is saved in one place.
"""

import numpy as np
import torch
from torch import Tensor

from models.sequences.histories import Past, flat_columns, split_columns


class Reservoir:
    """At most `size` sequences of events, each one user's history at the moment it was offered."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.num_offered = 0
        self._kept: list[Past] = []

    def __len__(self) -> int:
        return len(self._kept)

    def offer(self, past: Past, random: np.random.Generator) -> None:
        """Keeps the sequence, or not: Algorithm R decides."""
        self.num_offered += 1
        if len(self._kept) < self.size:
            self._kept.append(past)
            return
        place = int(random.integers(self.num_offered))
        if place < self.size:
            self._kept[place] = past

    def draw(self, num_targets: int, random: np.random.Generator) -> list[Past]:
        """Random sequences (with replacement) until they hold `num_targets` events that follow another."""
        drawn: list[Past] = []
        while self._kept and num_targets > 0:
            drawn.append(self._kept[int(random.integers(len(self._kept)))])
            num_targets -= len(drawn[-1]) - 1
        return drawn

    def state(self) -> dict[str, Tensor]:
        """`num_offered` int64 [1], `length` int64 by sequence, and the `flat_columns` of all sequences."""
        return {
            "num_offered": torch.tensor([self.num_offered], dtype=torch.int64),
            "length": torch.tensor([len(past) for past in self._kept], dtype=torch.int64),
            **flat_columns(self._kept),
        }

    @classmethod
    def from_state(cls, size: int, tensors: dict[str, Tensor]) -> "Reservoir":
        """The reservoir that `state` described (same names and dtypes), cut to its first `size` sequences."""
        reservoir = cls(size)
        reservoir.num_offered = int(tensors["num_offered"][0])
        reservoir._kept = split_columns(tensors, tensors["length"].tolist())[:size]
        return reservoir
