"""The live release as the generator serves it: swap, live inserts, and answers to batches of requests.

Everything here but `load`, `kind_of` and `knows_user` runs in the model thread. Knows no gRPC.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import structlog
from torch import Tensor

from models.arrays import Int64Array
from models.artifacts.release import ReleaseBundle
from models.candidates import Candidates, Source
from models.catalogue.index import CatalogueIndex
from models.decoding.config import SearchConfig
from models.decoding.cpu_engine import CpuEngine
from models.decoding.generation import generate
from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.generator_pb2 import GenerateRequest, GenerateResponse
from protos.headrace.v1.items_pb2 import ItemSid
from services.errors import NotReady
from services.generator.user_states import UserStateCache
from services.metrics import INVALID_SIDS, ITEM_TO_RECOMMENDABLE_SECONDS, stage
from services.model_host.live_catalogue import LiveCatalogue
from services.wire import translate
from services.wire.translate import PastEvent
from services.wire.user_key import user_key
from streaming.messages.meaning import EventMeaning, Meaning

log = structlog.get_logger()

# The user whose state is kept while a release warms up.
_NOBODY = 1


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What requests must have in common to be searched together."""

    k: int
    beam: int
    use_beam: bool = True
    use_dense: bool = True


class GeneratorRelease:
    """A release with its items encoded, and the states of its users."""

    def __init__(self, bundle: ReleaseBundle, max_kept_users: int) -> None:
        self.release_id = bundle.meta.release_id
        self.engine = CpuEngine(bundle.recommender, bundle.catalogue)
        self.catalogue = bundle.catalogue
        self.user_states = UserStateCache(self.engine, max_kept_users)

    def search(
        self, keys: Sequence[int], pasts: Sequence[list[PastEvent]], kind: Kind, exclude: Sequence[Int64Array]
    ) -> tuple[Tensor, list[Candidates]]:
        """The state (float32 [B, D]) and the candidates of each of B users."""
        with stage("trunk", len(keys)):
            state_BD = self.user_states.states_of(keys, pasts)
        with stage("decode", len(keys)):
            found = generate(
                self.engine,
                None,
                k=kind.k,
                beam=kind.beam,
                exclude=exclude,
                use_beam=kind.use_beam,
                use_dense=kind.use_dense,
                state_BD=state_BD,
            )
        return state_BD, found.candidates

    def warm_up(self, kind: Kind) -> None:
        """Makes every kind of call once: states computed, extended and kept; one request, and several."""
        rows = np.nonzero(self.catalogue.available_N)[0][:5].tolist()
        past = [(row, 1, time_ms) for time_ms, row in enumerate(rows)]
        nothing = np.empty(0, dtype=np.int64)
        batches: list[list[list[PastEvent]]] = [[[]], [past[:1]], [past], [past], [past] * 4]
        for pasts in batches:
            self.search([_NOBODY] * len(pasts), pasts, kind, [nothing] * len(pasts))
        self.user_states.clear()

    def put_items(self, row_M: Sequence[int]) -> None:
        """The content of these rows changed, and with it the states of the users who had them."""
        if row_M:
            self.engine.put_items(row_M)
            self.user_states.clear()


class GeneratorServing:
    """Answers from the live release and its live catalogue."""

    def __init__(self, config: SearchConfig, meaning: EventMeaning, *, max_kept_users: int = 0) -> None:
        self._config = config
        self._meaning = meaning
        self._max_kept_users = max_kept_users
        self._catalogue = LiveCatalogue()
        self._live: GeneratorRelease | None = None

    @property
    def is_ready(self) -> bool:
        """Whether a release is live."""
        return self._live is not None

    def load(self, bundle: ReleaseBundle) -> GeneratorRelease:
        """Prepares a release beside the live one: catalogue up to date, items encoded, searches run."""
        self._catalogue.prepare(bundle.catalogue)
        loaded = GeneratorRelease(bundle, self._max_kept_users)
        loaded.warm_up(Kind(k=self._config.num_dense or 1, beam=self._config.beam))
        return loaded

    def swap(self, loaded: GeneratorRelease) -> None:
        """Makes a loaded release the live one."""
        changes = self._catalogue.swap(loaded.catalogue)
        loaded.put_items(changes.changed_rows)
        self._live = loaded

    def put_items(self, sids: Sequence[ItemSid], *, is_live: bool) -> None:
        """Takes announced items; `is_live` says that they come as they happen, so their delay counts."""
        changes = self._catalogue.put_many(sids)
        if self._live is not None:
            self._live.put_items(changes.changed_rows)
        if is_live:
            now_ms = time.time() * 1e3
            for sid in changes.inserted:
                ITEM_TO_RECOMMENDABLE_SECONDS.observe(max(0.0, now_ms - sid.announced_time_ms) / 1e3)

    def knows_user(self, key: int) -> bool:
        """Whether an event of this user would change a kept state. Callable from any thread."""
        live = self._live
        return live is not None and live.user_states.knows(key)

    def put_events(self, events: Sequence[Event]) -> None:
        """Takes events that have just happened: kept states come to cover them."""
        if self._live is None:
            return
        rows = self._live.catalogue.rows([event.item_id for event in events]).tolist()
        news: dict[int, list[PastEvent]] = {}
        for event, row in zip(events, rows, strict=True):
            if row >= 0 and self._meaning.of(event.action, event.value) is Meaning.WISH:
                past = news.setdefault(user_key(event.user_id), [])
                past.append((row, event.action, event.event_time_ms))
        self._live.user_states.append(news)

    def kind_of(self, request: GenerateRequest) -> Kind:
        """Requests of one kind can be searched together. Callable from any thread."""
        disabled = translate.to_sources(request.disabled_sources)
        return Kind(
            k=request.num_candidates or self._config.num_dense or 1,
            beam=request.beam or self._config.beam,
            use_beam=Source.BEAM not in disabled,
            use_dense=Source.DENSE not in disabled,
        )

    def generate_many(self, requests: Sequence[GenerateRequest]) -> list[GenerateResponse]:
        """Answers validated requests of one kind, in order; raises NotReady."""
        if self._live is None:
            raise NotReady("no release is loaded yet")
        catalogue = self._live.catalogue
        with stage("look_up", len(requests)):
            pasts = [translate.known_past(request.history, catalogue, self._meaning) for request in requests]
            exclude = [translate.known_rows(catalogue, request.exclude_item_ids) for request in requests]
        keys = [request.user_key for request in requests]
        state_BD, found = self._live.search(keys, pasts, self.kind_of(requests[0]), exclude)
        found = [_answerable(candidates, catalogue) for candidates in found]
        return [
            GenerateResponse(
                candidates=translate.candidates_message(candidates, catalogue.item_ids),
                release_id=self._live.release_id,
                num_known_events=len(past),
                user_state=state_D.tobytes(),
            )
            for candidates, past, state_D in zip(found, pasts, state_BD.numpy().astype("<f4"), strict=True)
        ]


def _answerable(candidates: Candidates, catalogue: CatalogueIndex) -> Candidates:
    """The candidates without those whose semantic ID does not stand for them: a fault of ours, counted."""
    can_M = catalogue.can_answer(candidates.row_M)
    if not can_M.all():
        INVALID_SIDS.inc(int(np.count_nonzero(~can_M)))
        log.error("invalid_semantic_ids", num_items=int(np.count_nonzero(~can_M)))
    return candidates.select(can_M)
