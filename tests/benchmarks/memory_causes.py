"""What takes the memory of the process that answers: a child does its work step by step, and is weighed.

    echo '["user", ...]' | python tests/benchmarks/memory_causes.py ROOT   # as JSON, for a world's folder

After each step freed pages are given back, so a step's figure is what it keeps. The process of a stack holds
the same, but shares what is imported, and the holes between what it freed come on top.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_processes import Memory

from services.memory import give_back

if TYPE_CHECKING:
    from serving_world import World

    from services.gateway.models import Ask

_NUM_USERS = 300
_NUM_CANDIDATES, _MAX_HISTORY = 50, 50


def cause_rows(world: "World") -> list[dict[str, Any]]:
    """A row for each step: the cause and what it keeps, 10^6 bytes."""
    users = random.Random(3).sample(world.user_ids, min(_NUM_USERS, len(world.user_ids)))
    done = subprocess.run(
        [sys.executable, __file__, str(world.root)],
        input=json.dumps(users),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


class _Scale:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._before_mb = 0.0

    def weigh(self, cause: str) -> None:
        """What came since the last weighing is by this cause."""
        before_mb = self._before_mb
        self.forget()
        self.rows.append({"cause": cause, "mb": self._before_mb - before_mb})

    def forget(self) -> None:
        """What came since the last weighing is nobody's."""
        give_back()
        self._before_mb = Memory.of(os.getpid()).pss


def _weigh_all(root: Path, users: list[str]) -> list[dict[str, Any]]:
    """Imports, release, tables and traffic, in the order in which a service comes by them."""
    scale = _Scale()
    import torch

    torch.set_num_threads(1)
    scale.weigh("Python and torch")
    import services.serving.__main__  # noqa: F401
    from models.artifacts.release import load_release
    from models.compilation.precompile import precompile
    from models.decoding.config import SearchConfig
    from models.online.optimiser_steps import frozen_copy
    from models.ranking.live_statistics import LiveStatistics
    from services.gateway.models import generate_request, rank_request
    from services.generator.serving import GeneratorServing
    from services.model_host.host import ModelHost
    from services.ranker.serving import RankerServing
    from streaming.messages.meaning import EventMeaning

    precompile()
    scale.weigh("other imports, compiled kernels")
    bundle = load_release(next(folder for folder in (root / "releases").iterdir() if folder.is_dir()))
    scale.forget()
    # the parts of a release are read together: a second copy of each tells what it takes
    copies: list[object] = [frozen_copy(bundle.recommender), frozen_copy(bundle.ranker)]
    scale.weigh("weights")
    copies.append(bundle.catalogue.copy())
    scale.weigh("catalogue")
    copies.append(LiveStatistics.from_state(bundle.statistics.config, *bundle.statistics.state()))
    scale.weigh("statistics")
    copies.clear()
    scale.forget()
    generator = GeneratorServing(SearchConfig(), EventMeaning(), max_kept_users=len(users))
    ranker = RankerServing(1, search=SearchConfig(), meaning=EventMeaning())
    host = ModelHost(generator, ranker)
    host.swap(host.load(bundle))
    scale.weigh("encoded items, prepared weights")
    asks = _asks(root, users)
    scale.forget()
    asked = [generate_request(ask) for ask in asks]
    found = [generator.generate_many([request])[0] for request in asked]
    for ask, one in zip(asks, found, strict=True):
        ranker.rank_many([rank_request(ask, one)])
    del asked, found
    scale.weigh(f"{len(users)} users' states, torch's and oneDNN's own")
    return scale.rows


def _asks(root: Path, users: list[str]) -> "list[Ask]":
    from services.gateway.models import Ask
    from services.wire.user_key import user_key
    from streaming.histories.store import HistoryStore

    asks = []
    with HistoryStore.open(root / "history", read_only=True) as store:
        for user in users:
            history = store.get(user, _MAX_HISTORY)
            ask = Ask(
                history=history,
                num_candidates=_NUM_CANDIDATES,
                beam=_NUM_CANDIDATES,
                exclude_item_ids=[event.item_id for event in history],
                disabled_sources=(),
                request_time_ms=history[-1].event_time_ms + 1,
                user_key=user_key(user),
            )
            asks.append(ask)
    return asks


if __name__ == "__main__":
    json.dump(_weigh_all(Path(sys.argv[1]), json.load(sys.stdin)), sys.stdout)
