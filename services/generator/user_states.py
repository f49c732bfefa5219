"""The trunk's states of the users who asked lately, kept so that a request pays for decoding only.

Owns which events a kept state covers, when it is extended and when it is computed anew. The history that a
request brings is the truth: a kept state is used only for exactly the events it covers. An event changes no
state by itself: most users who act do not ask before they act again, and an extension costs as much as an
answer. Belongs to one release and to the model's thread.

Shapes: B requests, D width of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from cachetools import LRUCache
from torch import Tensor

from models.decoding.engine import Engine
from models.networks.user_states import UserStates
from services.metrics import USER_STATES, USERS_KEPT
from services.wire.translate import PastEvent, past_batch


@dataclass(frozen=True, slots=True)
class _Kept:
    """One user's state and the events behind it, oldest first."""

    past: list[PastEvent]
    states: UserStates


@dataclass(slots=True)
class _Work:
    """Requests (by place) whose state has to be extended or computed first."""

    extended: list[int] = field(default_factory=list)
    computed: list[int] = field(default_factory=list)


class UserStateCache:
    """The `max_users` users who asked last; 0 keeps nobody. A past holds at most the model's
    `max_history` events."""

    def __init__(self, engine: Engine, max_users: int) -> None:
        self._engine = engine
        self._max_history = engine.config.max_history
        self._max_users = max_users
        self._kept: LRUCache[int, _Kept] = LRUCache(max_users)

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forgets all: what the states were computed from has changed."""
        self._kept.clear()
        USERS_KEPT.set(0)

    def states_of(self, keys: Sequence[int], pasts: Sequence[Sequence[PastEvent]]) -> Tensor:
        """The state of each user after exactly these events, float32 [B, D]; key 0 keeps nothing."""
        newest = [list(past[-self._max_history :]) for past in pasts]
        kept = [self._kept.get(key) for key in keys]
        state_of: dict[int, Tensor] = {}
        work = _Work()
        for b, (one, past) in enumerate(zip(kept, newest, strict=True)):
            if one is not None and one.past == past:
                state_of[b] = one.states.state_BD[0]
                self._keep(keys[b], one)
            elif one is not None and len(past) == len(one.past) + 1 and one.past == past[:-1]:
                work.extended.append(b)  # by more than one event it takes as long as to compute it anew
            else:
                work.computed.append(b)
        for places, states in (
            (work.extended, self._extended([(kept[b], newest[b]) for b in work.extended])),
            (work.computed, self._computed([newest[b] for b in work.computed])),
        ):
            for place, b in enumerate(places):
                state_of[b] = states.state_BD[place]  # type: ignore[union-attr]
                if keys[b] and newest[b]:
                    self._keep(keys[b], _Kept(newest[b], _one_of(states, place)))
        _count(len(keys) - len(work.extended) - len(work.computed), work)
        return torch.stack([state_of[b] for b in range(len(keys))]).float()

    def _extended(self, users: Sequence[tuple[_Kept | None, list[PastEvent]]]) -> UserStates | None:
        kept = [one for one, _ in users if one is not None]
        if not kept:
            return None
        news = [past[len(one.past) :] for one, (_, past) in zip(kept, users, strict=True)]
        before = UserStates.cat([one.states for one in kept])
        return self._engine.extend(before, past_batch(news, self._max_history))

    def _computed(self, pasts: Sequence[list[PastEvent]]) -> UserStates | None:
        if not pasts:
            return None
        return self._engine.states(past_batch(pasts, self._max_history))

    def _keep(self, key: int, one: _Kept) -> None:
        if self._max_users:
            self._kept[key] = one
            USERS_KEPT.set(len(self._kept))


def _one_of(states: UserStates | None, place: int) -> UserStates:
    assert states is not None
    return states.select(torch.tensor([place]))


def _count(num_hits: int, work: _Work) -> None:
    USER_STATES.labels("hit").inc(num_hits)
    USER_STATES.labels("extended").inc(len(work.extended))
    USER_STATES.labels("computed").inc(len(work.computed))
