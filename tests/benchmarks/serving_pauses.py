"""What one call of the generator and of the ranker costs right after another, and after a pause.

The same calls in one process with nothing else of ours running: what a pause adds is what has gone from
the caches meanwhile, since the CPU time of the calling thread is counted and not the wait.
"""

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from serving_world import World, settings_for

from models.artifacts.release import load_release
from models.decoding.config import SearchConfig
from services.gateway.models import Ask, generate_request, rank_request
from services.generator.serving import GeneratorServing
from services.model_host.host import ModelHost
from services.ranker.serving import RankerServing
from services.wire.user_key import user_key
from streaming.histories.store import HistoryStore
from streaming.messages.meaning import EventMeaning

PAUSES_MS = (0, 5, 40)
_NUM_CANDIDATES = _BEAM = 50
_MAX_HISTORY = 50


def pause_rows(world: World, num_calls: int) -> list[dict[str, Any]]:
    """Median CPU milliseconds of `num_calls` calls for users whose state is known, for each pause."""
    release = next(folder for folder in (world.root / "releases").iterdir() if folder.is_dir())
    generator = GeneratorServing(SearchConfig(), EventMeaning(), max_kept_users=num_calls)
    ranker = RankerServing(1, search=SearchConfig(), meaning=EventMeaning())
    host = ModelHost(generator, ranker)
    host.swap(host.load(load_release(release)))
    asks = _asks(world, num_calls)
    asked = [generate_request(ask) for ask in asks]
    to_rank = [
        rank_request(ask, generator.generate_many([request])[0])
        for ask, request in zip(asks, asked, strict=True)
    ]
    for request in to_rank[:10]:
        ranker.rank_many([request])
    rows = []
    for pause_ms in PAUSES_MS:
        for call, work, requests in (
            ("generate", generator.generate_many, asked),
            ("rank", ranker.rank_many, to_rank),
        ):
            cpu_ms = _cpu_ms(work, requests, pause_ms / 1e3)
            rows.append({"call": call, "pause_ms": pause_ms, "cpu_ms_median": float(np.median(cpu_ms))})
    return rows


def _cpu_ms(work: Callable[[list[Any]], object], requests: Sequence[Any], pause_s: float) -> list[float]:
    taken = []
    for request in requests:
        time.sleep(pause_s)
        begin_s = time.thread_time()
        work([request])
        taken.append((time.thread_time() - begin_s) * 1e3)
    return taken


def _asks(world: World, num_users: int) -> list[Ask]:
    users = random.Random(3).sample(world.user_ids, min(num_users, len(world.user_ids)))
    with HistoryStore.open(settings_for(world.root).store.history_path, read_only=True) as store:
        histories = {user: store.get(user, _MAX_HISTORY) for user in users}
    return [
        Ask(
            history=history,
            num_candidates=_NUM_CANDIDATES,
            beam=_BEAM,
            exclude_item_ids=[event.item_id for event in history],
            disabled_sources=(),
            request_time_ms=history[-1].event_time_ms + 1,
            user_key=user_key(user),
        )
        for user, history in histories.items()
    ]
