"""What is learned of single items: a vector for each item that was learned from, none for the others.

Codes and content say what an item is like; two items that are alike may still be chosen differently. Owns
who has a vector. A new item has none until it is learned from, and is represented as before: training
leaves some items' vectors out at random, so that the network also knows items without one (DropoutNet,
Volkovs et al., 2017). The table has a fixed size, so weights keep their shape while the catalogue grows.

Shapes: N items, C codes of an item, S slots, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

# An odd number near 2^64 / golden ratio: powers of it spread the codes over 64 bits.
_MIXER = 0x9E3779B97F4A7C15
_FREE = torch.iinfo(torch.int64).max


def room_for(num_items: int) -> int:
    """Slots for so many items and a quarter more."""
    return num_items + num_items // 4 + 64


class ItemIdentities(nn.Module):
    """At most `num_slots` items have a vector; `dropout` of them are left out of each pass in training.

    Slots are found by codes: a search among the sorted keys of those that have one.
    """

    key_S: Tensor
    slot_S: Tensor

    def __init__(self, num_slots: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.weight = nn.Parameter(torch.zeros(num_slots, width))
        self.register_buffer("key_S", torch.full((num_slots,), _FREE))
        self.register_buffer("slot_S", torch.arange(num_slots))

    def __len__(self) -> int:
        return int((self.key_S != _FREE).sum())

    def add(self, codes_NC: Tensor) -> int:
        """Gives a slot, with a zero vector, to those of N items (int64 [N, C]) that have none, while slots
        are free.

        Returns how many got one; earlier items are served first.
        """
        key_N = _keys(codes_NC)
        missing_N = key_N[self._find(key_N) < 0]
        first_seen = dict.fromkeys(missing_N.tolist())
        num_used = len(self)
        new_keys = torch.tensor(list(first_seen)[: len(self.key_S) - num_used], dtype=torch.int64)
        if len(new_keys):
            self.key_S[num_used : num_used + len(new_keys)] = new_keys.to(self.key_S.device)
            # used slots are given in order, and the free ones stay behind them
            order = self.key_S.argsort(stable=True)
            self.key_S.copy_(self.key_S[order])
            self.slot_S.copy_(self.slot_S[order])
        return len(new_keys)

    def forward(self, codes_NC: Tensor) -> Tensor:
        """The items' vectors, float32 [N, D], of int64 codes; zero for an item without one."""
        slot_N = self._find(_keys(codes_NC))
        shown_N = slot_N >= 0
        if self.training and self.dropout:
            shown_N &= torch.rand(len(slot_N), device=slot_N.device) >= self.dropout
        if not len(self.weight):
            return self.weight.new_zeros(len(slot_N), self.weight.shape[1])
        own_ND: Tensor = functional.embedding(slot_N.clamp(min=0), self.weight) * shown_N[:, None]
        return own_ND

    def _find(self, key_N: Tensor) -> Tensor:
        """The slot of each key, int64 [N]; -1 where it has none."""
        if not len(self.key_S):
            return torch.full_like(key_N, -1)
        at_N = torch.searchsorted(self.key_S, key_N).clamp(max=len(self.key_S) - 1)
        return torch.where(self.key_S[at_N] == key_N, self.slot_S[at_N], -1)


def _keys(codes_NC: Tensor) -> Tensor:
    """A number for each item's codes, int64 [N]; two items share one with a chance of 2^-63."""
    place, places = 1, []
    for _ in range(codes_NC.shape[1]):
        place = place * _MIXER % 2**64
        places.append(place - 2**64 if place >= 2**63 else place)
    place_C = torch.tensor(places, device=codes_NC.device)
    # overflow wraps; one bit is left so that no key is the mark of a free slot
    return ((codes_NC + 1) * place_C).sum(1) >> 1
