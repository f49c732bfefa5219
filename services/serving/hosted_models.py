"""The models of this very process as the gateway asks them: searched and ranked in one turn of the model.

Owns that an answer is of one release, since nothing is swapped within a turn, and what is left of it when a
part fails. Messages are for the network: here go arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import structlog

from services.errors import BackendUnavailable, DeadlineExpired, NotFound, NotReady
from services.gateway.models import Ask, Explained, PairedModels, TimeLeft, unranked
from services.gateway.ranking import RankedItem, Ranking
from services.generator.serving import Found, GeneratorServing
from services.model_host.host import HostedRelease, ModelHost
from services.model_host.micro_batches import MicroBatcher
from services.model_host.model_thread import ModelThread
from services.ranker.ranking import Ranked
from services.ranker.serving import RankerServing

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """A ranking, and the milliseconds that its turn took to rank."""

    ranking: Ranking
    rank_ms: float


class HostedModels:
    """A `services.gateway.models.Models`. `paired`: the same generator and ranker, asked one by one."""

    def __init__(
        self,
        host: ModelHost,
        generator: GeneratorServing,
        ranker: RankerServing,
        thread: ModelThread,
        *,
        paired: PairedModels,
        max_batch: int,
    ) -> None:
        self._host = host
        self._generator = generator
        self._ranker = ranker
        self._paired = paired
        self._batcher = MicroBatcher(
            thread, self._answer_many, kind_of=generator.kind_of, max_batch=max_batch
        )

    async def ranking(self, ask: Ask, left: TimeLeft, latency_ms: dict[str, float]) -> Ranking | None:
        """As `Models.ranking`. What waited for its turn waited for the search."""
        start = perf_counter()
        try:
            answer = await self._batcher.answer(ask, left())
        except NotReady:
            return None
        except DeadlineExpired:
            raise
        except Exception as error:
            log.exception("search_failed", exc_info=error)
            return None
        latency_ms["rank"] = answer.rank_ms
        latency_ms["generate"] = (perf_counter() - start) * 1_000 - answer.rank_ms
        return answer.ranking

    async def explain(self, ask: Ask, item_id: str, left: TimeLeft) -> Explained:
        """As `Models.explain`."""
        try:
            return await self._paired.explain(ask, item_id, left)
        except (NotFound, DeadlineExpired, BackendUnavailable):
            raise
        except Exception as error:
            log.exception("explain_failed", exc_info=error)
            raise BackendUnavailable("the models of this process do not answer") from error

    def _answer_many(self, asks: Sequence[Ask]) -> list[_Answer]:
        found = self._generator.find_many(asks)
        live = self._host.live
        assert live is not None, "found in the live release"
        found_s = perf_counter()
        try:
            ranked = self._ranker.rank_found(asks, found)
            rankings = [_ranking(one, live) for one in ranked]
        except Exception as error:
            if len(asks) > 1:
                raise  # then each is tried alone
            log.exception("ranking_failed", exc_info=error)
            rankings = [_unranked(one, live) for one in found]
        rank_ms = (perf_counter() - found_s) * 1e3
        return [_Answer(ranking=one, rank_ms=rank_ms) for one in rankings]


def _ranking(ranked: Ranked, release: HostedRelease) -> Ranking:
    id_of = release.catalogue.item_ids
    items = (RankedItem(id_of[row], score, mask) for row, score, mask in zip(*ranked.columns(), strict=True))
    return Ranking(items=items, release_id=release.release_id, degraded=False)


def _unranked(found: Found, release: HostedRelease) -> Ranking:
    ids = [release.catalogue.item_ids[row] for row in found.candidates.row_M.tolist()]
    return unranked(ids, found.candidates.source_M.tolist(), release.release_id)
