"""The window of event ids that were learned, so that none is learned twice.

Ids are remembered as 64-bit hashes, the newest `size` of them: an id that comes again after so many
others is learned again.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def hash_id(text: str) -> int:
    """The signed 64-bit BLAKE2b hash under which users and events are remembered."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


class DedupeWindow:
    """A ring of the newest `size` hashes with a set to ask; size 0 remembers nothing."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._ring = np.empty(0, dtype=np.int64)
        self._next = 0  # where the oldest one is, once the ring is full
        self._known: set[int] = set()

    def __len__(self) -> int:
        return len(self._known)

    def fresh(self, ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which of the N ids are neither in the window nor earlier in `ids`, bool [N]; remembers nothing."""
        seen_now: set[int] = set()
        fresh_N = np.zeros(len(ids), dtype=np.bool_)
        for n, hashed in enumerate(map(hash_id, ids)):
            fresh_N[n] = self.size == 0 or (hashed not in self._known and hashed not in seen_now)
            seen_now.add(hashed)
        return fresh_N

    def admit(self, text: str) -> bool:
        """Whether the text is new to the window; it is in it from now on."""
        is_fresh = bool(self.fresh([text])[0])
        if is_fresh:
            self.add_many([text])
        return is_fresh

    def add_many(self, ids: Sequence[str]) -> None:
        """Remembers fresh ids, each of them pushing out the oldest one when the window is full."""
        for hashed in map(hash_id, ids[-self.size :] if self.size else ()):
            if len(self._known) < self.size:
                if len(self._ring) == len(self._known):
                    self._ring = np.resize(self._ring, min(self.size, max(1024, 2 * len(self._ring))))
                self._ring[len(self._known)] = hashed
            else:
                self._known.remove(int(self._ring[self._next]))
                self._ring[self._next] = hashed
                self._next = (self._next + 1) % self.size
            self._known.add(hashed)

    def state(self) -> dict[str, Tensor]:
        """The hashes, int64, oldest first."""
        return {"hash": torch.from_numpy(np.roll(self._ring[: len(self)], -self._next))}

    @classmethod
    def from_state(cls, size: int, tensors: dict[str, Tensor]) -> "DedupeWindow":
        """The window that `state` described (int64 hashes), cut to its newest `size`."""
        window = cls(size)
        window._ring = tensors["hash"].numpy()[-size:].copy() if size else np.empty(0, dtype=np.int64)
        window._known = set(window._ring.tolist())
        return window
