"""Kept user states: the same answers as without, for exactly the events that a request brings."""

import numpy as np
import pytest
import torch

from models.decoding.cpu_engine import CpuEngine
from services.generator.user_states import UserStateCache
from services.metrics import USER_STATES
from services.wire.translate import PastEvent, past_batch
from tests.factories import MODEL, TIME_MS, make_release

OUTCOMES = ("hit", "extended", "computed")


@pytest.fixture
def engine() -> CpuEngine:
    bundle = make_release("one")
    return CpuEngine(bundle.recommender, bundle.catalogue, dtype=torch.float32)


@pytest.fixture
def cache(engine: CpuEngine) -> UserStateCache:
    return UserStateCache(engine, max_users=3)


def past_of(*rows: int) -> list[PastEvent]:
    """Clicks, ever further apart."""
    return [(row, 2, TIME_MS + 60_000 * n * n) for n, row in enumerate(rows)]


def counts() -> list[int]:
    return [int(USER_STATES.labels(outcome)._value.get()) for outcome in OUTCOMES]


def reference(engine: CpuEngine, *pasts: list[PastEvent]) -> torch.Tensor:
    """What the trunk says without any cache."""
    return engine.states(past_batch(pasts, MODEL.max_history)).state_BD


def check(cache: UserStateCache, engine: CpuEngine, users: dict[int, list[PastEvent]]) -> list[int]:
    """The states are right; returns how many were hit, extended and computed."""
    before = counts()
    states_BD = cache.states_of(list(users), list(users.values()))
    torch.testing.assert_close(states_BD, reference(engine, *users.values()), atol=1e-4, rtol=0)
    return [now - then for now, then in zip(counts(), before, strict=True)]


def test_a_request_pays_for_what_is_new_only(cache: UserStateCache, engine: CpuEngine) -> None:
    assert check(cache, engine, {7: past_of(1, 2, 3)}) == [0, 0, 1]
    assert check(cache, engine, {7: past_of(1, 2, 3)}) == [1, 0, 0]
    assert check(cache, engine, {7: past_of(1, 2, 3, 4)}) == [0, 1, 0]
    assert check(cache, engine, {7: past_of(1, 2, 3, 4, 5, 6)}) == [0, 0, 1]  # two at once: as cheap anew
    assert check(cache, engine, {7: past_of(1, 2, 3, 4, 5)}) == [0, 0, 1]  # a history that was read before
    mixed = {7: past_of(1, 2, 3, 4, 5), 8: past_of(9), 9: [], 0: past_of(4)}
    assert check(cache, engine, mixed) == [1, 0, 3]
    mixed = {8: past_of(9, 8), 7: past_of(1, 2, 3, 4, 5, 6), 9: past_of(1)}
    assert check(cache, engine, mixed) == [0, 2, 1]
    # another past than the one that was kept: nothing of it is used
    assert check(cache, engine, {7: past_of(2, 1, 3, 4)}) == [0, 0, 1]
    assert check(cache, engine, {7: past_of(2, 1, 3, 4)}) == [1, 0, 0]


def test_beyond_the_window_the_newest_events_count(cache: UserStateCache, engine: CpuEngine) -> None:
    rng = np.random.default_rng(0)
    past = past_of(*rng.integers(50, size=MODEL.max_history + 3).tolist())
    full = MODEL.max_history
    assert check(cache, engine, {7: past[: full - 1]}) == [0, 0, 1]
    assert check(cache, engine, {7: past[:full]}) == [0, 1, 0]
    assert check(cache, engine, {7: past[: full + 1]}) == [0, 0, 1]  # the window has slid
    assert check(cache, engine, {7: past[: full + 1]}) == [1, 0, 0]


def test_those_who_asked_last_are_kept(cache: UserStateCache, engine: CpuEngine) -> None:
    for key in (1, 2, 3, 1, 4):
        check(cache, engine, {key: past_of(key, 5)})
    for key, outcome in ((1, [1, 0, 0]), (3, [1, 0, 0]), (4, [1, 0, 0]), (2, [0, 0, 1]), (1, [0, 0, 1])):
        assert check(cache, engine, {key: past_of(key, 5)}) == outcome
    cache.clear()
    assert len(cache) == 0
    nobody = UserStateCache(engine, max_users=0)
    for _ in range(2):
        assert check(nobody, engine, {1: past_of(1, 2)}) == [0, 0, 1]
