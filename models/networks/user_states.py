"""The state of some users between two events: what a request decodes from, and what the next event extends.

Owns that the two stay together when users are split and joined. Does not know the network.

Shapes: B users, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.networks.trunk_cache import TrunkCache


@dataclass(frozen=True, kw_only=True)
class UserStates:
    """`state_BD` float32, the trunk's last output; `cache`, keys and values of the events behind it."""

    state_BD: Tensor
    cache: TrunkCache

    def __len__(self) -> int:
        return len(self.state_BD)

    @property
    def length_B(self) -> Tensor:
        """How many events each user has, int64."""
        return self.cache.length_B

    def select(self, index_B: Tensor) -> "UserStates":
        """The users at these positions (int64)."""
        return UserStates(state_BD=self.state_BD[index_B], cache=self.cache.select(index_B))

    @classmethod
    def cat(cls, parts: Sequence["UserStates"]) -> "UserStates":
        """The users of all parts, one after the other."""
        return cls(
            state_BD=torch.cat([part.state_BD for part in parts]),
            cache=TrunkCache.cat([part.cache for part in parts]),
        )
