"""What every trunk does: the seam at which a second user model is put in.

Shapes: B batch, T history, M candidates, D width.
"""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

from models.networks.trunk_cache import TrunkCache


class StatefulTrunk(Protocol):
    """What serving asks of a trunk, in whatever form: states that the next event extends."""

    def prefill(self, x_BTD: Tensor, length_B: Tensor, time_ms_BT: Tensor) -> tuple[Tensor, TrunkCache]:
        """The state after the last event of each history, floating, [B, D], and the cache for `extend`.

        T >= 1; for an empty history the state means nothing.
        """
        ...

    def extend(self, cache: TrunkCache, x_BD: Tensor, time_ms_B: Tensor) -> tuple[Tensor, TrunkCache]:
        """One more event for each history: the state after it, floating, [B, D], and the longer cache.

        `time_ms_B` int64. `cache` stays as it was.
        """
        ...


class Trunk(StatefulTrunk, Protocol):
    """A causal network over the positions of a history, one for each event; an `nn.Module`.

    Positions come in as float vectors, right-padded, with the times of their events (int64, ms) and the
    lengths of the histories (int64 [B]); what is finite in the padding has no influence. There are three ways
    to a state, and they agree: `extend` of a `prefill` equals the `prefill` of the longer history, which
    equals the last state of the whole pass.
    """

    def __call__(self, x_BTD: Tensor, length_B: Tensor, time_ms_BT: Tensor) -> Tensor:
        """The state after each event, floating, [B, T, D]; zero past the end of a history."""
        ...

    def states_at(self, x_BTD: Tensor, length_B: Tensor, time_ms_BT: Tensor, wanted_BT: Tensor) -> Tensor:
        """The states of the X positions that `wanted_BT` (bool) marks, in its order, floating, [X, D].

        Those of a whole pass; none may be past the end of its history.
        """
        ...

    def forward_candidates(
        self,
        x_BTD: Tensor,
        length_B: Tensor,
        time_ms_BT: Tensor,
        candidate_BMD: Tensor,
        candidate_time_ms_B: Tensor,
    ) -> Tensor:
        """The output of each candidate as if it alone were the next event, floating, [B, M, D].

        Candidates see the whole valid history, which may be empty, and themselves, never each other (the
        M-FALCON mask of Zhai et al., 2024, "Actions speak louder than words"). `candidate_time_ms_B` int64.
        """
        ...

    def modules(self) -> Iterator[nn.Module]:
        """As of every `nn.Module`."""
        ...
