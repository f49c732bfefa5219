"""What one call of the generator and of the ranker costs right after another, and after a pause.

The same calls in one process with nothing else of ours running: what a pause adds is what has gone from
the caches meanwhile, since the CPU time of the calling thread is counted and not the wait.
"""

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from serving_world import World

from models.config import SearchConfig
from models.release import load_release
from protos.headrace.v1.events_pb2 import HistoryEvent
from protos.headrace.v1.generator_pb2 import GenerateRequest, GenerateResponse
from protos.headrace.v1.ranker_pb2 import RankRequest
from services.generator.serving import GeneratorServing
from services.ranker.serving import RankerServing
from services.user_key import user_key

PAUSES_MS = (0, 5, 40)
_NUM_CANDIDATES = _BEAM = 50
_NOW_MS = 1_760_000_000_000


def pause_rows(world: World, num_calls: int) -> list[dict[str, Any]]:
    """Median CPU milliseconds of `num_calls` calls for users whose state is known, for each pause."""
    release = next(folder for folder in (world.root / "releases").iterdir() if folder.is_dir())
    generator = GeneratorServing(SearchConfig(), max_kept_users=num_calls)
    generator.swap(generator.load(load_release(release)))
    ranker = RankerServing(dedupe_window=1)
    ranker.swap(ranker.load(load_release(release)))
    asked = _generate_requests(world, num_calls)
    answers = [generator.generate_many([request])[0] for request in asked]
    to_rank = [_rank_request(*pair) for pair in zip(asked, answers, strict=True)]
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


def _generate_requests(world: World, num_users: int) -> list[GenerateRequest]:
    users = world.user_ids
    chosen = set(random.Random(3).sample(users, min(num_users, len(users))))
    histories: dict[str, list[HistoryEvent]] = {user: [] for user in sorted(chosen)}
    data = world.dataset
    for n in np.argsort(data.time_ms_N, kind="stable"):
        if (user := data.user_id_N[n]) in chosen:
            histories[user].append(
                HistoryEvent(
                    item_id=data.item_id_N[n],
                    action=int(data.action_N[n]),  # type: ignore[arg-type]
                    event_time_ms=int(data.time_ms_N[n]),
                )
            )
    return [
        GenerateRequest(
            history=history,
            k=_NUM_CANDIDATES,
            beam=_BEAM,
            exclude_item_ids=[event.item_id for event in history],
            user_key=user_key(user),
            request_time_ms=_NOW_MS,
        )
        for user, history in histories.items()
    ]


def _rank_request(request: GenerateRequest, answer: GenerateResponse) -> RankRequest:
    return RankRequest(
        history=request.history,
        candidates=answer.candidates,
        exclude_item_ids=request.exclude_item_ids,
        request_time_ms=request.request_time_ms,
        release_id=answer.release_id,
        user_state=answer.user_state,
    )
