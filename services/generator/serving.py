"""The live release as the generator serves it: searches for batches of requests, and their users' states.

A tenant of `services.model_host.host`, which says what is called under the model's lock; `kind_of` may be
called at any time. Knows no gRPC.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import structlog
from torch import Tensor

from models.arrays import Int64Array
from models.artifacts.release import ReleaseBundle
from models.candidates import Candidates, Source
from models.catalogue.index import CatalogueIndex
from models.decoding.config import SearchConfig
from models.decoding.generation import generate
from protos.headrace.v1.events_pb2 import Event, HistoryEvent
from protos.headrace.v1.generator_pb2 import GenerateRequest, GenerateResponse
from services.errors import NotReady
from services.generator.user_states import UserStateCache
from services.metrics import INVALID_SIDS, ITEM_TO_RECOMMENDABLE_SECONDS, USERS_KEPT, stage
from services.model_host.host import HostedRelease
from services.model_host.live_catalogue import Changes
from services.wire import translate
from services.wire.translate import PastEvent
from streaming.messages.meaning import EventMeaning

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


class Asking(Protocol):
    """What a search reads of a request: a `GenerateRequest`, or whatever asks the same."""

    @property
    def history(self) -> Sequence[HistoryEvent]: ...
    @property
    def exclude_item_ids(self) -> Sequence[str]: ...
    @property
    def user_key(self) -> int: ...
    @property
    def num_candidates(self) -> int: ...
    @property
    def beam(self) -> int: ...
    @property
    def disabled_sources(self) -> Iterable[int]: ...


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found for one user: the events it knows, the state (float32 [1, D]), and candidates."""

    past: list[PastEvent]
    exclude_X: Int64Array
    state_1D: Tensor
    candidates: Candidates


class GeneratorRelease:
    """A release, and the states of its users."""

    def __init__(self, hosted: HostedRelease, max_kept_users: int) -> None:
        self.release_id = hosted.release_id
        self.engine = hosted.engine
        self.catalogue = hosted.catalogue
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
        batches: list[list[list[PastEvent]]] = [[[]], [past[:-1]], [past], [past], [past] * 4]
        for pasts in batches:
            self.search([_NOBODY] * len(pasts), pasts, kind, [nothing] * len(pasts))
        self.user_states.clear()


class GeneratorServing:
    """Answers from the live release. A `services.model_host.host.Tenant`."""

    name = "generator"
    counts_events = False

    def __init__(self, config: SearchConfig, meaning: EventMeaning, *, max_kept_users: int = 0) -> None:
        self._config = config
        self._meaning = meaning
        self._max_kept_users = max_kept_users
        self._live: GeneratorRelease | None = None

    @property
    def is_ready(self) -> bool:
        """Whether a release is live."""
        return self._live is not None

    def load(self, hosted: HostedRelease, bundle: ReleaseBundle) -> GeneratorRelease:
        """Prepares a release beside the live one: items encoded, searches run."""
        loaded = GeneratorRelease(hosted, self._max_kept_users)
        loaded.warm_up(Kind(k=self._config.num_dense or 1, beam=self._config.beam))
        USERS_KEPT.set(0 if self._live is None else len(self._live.user_states))
        return loaded

    def swap(self, loaded: GeneratorRelease) -> None:
        """Makes a loaded release the live one."""
        self._live = loaded

    def items_changed(self, changes: Changes, *, is_live: bool) -> None:
        """Forgets the states of users where content changed, and counts the delay of what came."""
        if self._live is not None and changes.changed_rows:
            self._live.user_states.clear()
        if is_live:
            now_ms = time.time() * 1e3
            for sid in changes.inserted:
                ITEM_TO_RECOMMENDABLE_SECONDS.observe(max(0.0, now_ms - sid.announced_time_ms) / 1e3)

    def put_events(self, events: Sequence[Event]) -> None:
        """Takes none: a request brings its user's history."""

    def kind_of(self, request: Asking) -> Kind:
        """Requests of one kind can be searched together. Callable from any thread."""
        disabled = translate.to_sources(request.disabled_sources)
        return Kind(
            k=request.num_candidates or self._config.num_dense or 1,
            beam=request.beam or self._config.beam,
            use_beam=Source.BEAM not in disabled,
            use_dense=Source.DENSE not in disabled,
        )

    def find_many(self, requests: Sequence[Asking]) -> list[Found]:
        """Searches for valid requests of one kind, in order; raises NotReady."""
        if self._live is None:
            raise NotReady("no release is loaded yet")
        catalogue = self._live.catalogue
        with stage("look_up", len(requests)):
            pasts = [translate.known_past(request.history, catalogue, self._meaning) for request in requests]
            exclude = [translate.known_rows(catalogue, request.exclude_item_ids) for request in requests]
        keys = [request.user_key for request in requests]
        state_BD, found = self._live.search(keys, pasts, self.kind_of(requests[0]), exclude)
        return [
            Found(
                past=past,
                exclude_X=exclude_X,
                state_1D=state_BD[b : b + 1],
                candidates=_answerable(candidates, catalogue),
            )
            for b, (past, exclude_X, candidates) in enumerate(zip(pasts, exclude, found, strict=True))
        ]

    def generate_many(self, requests: Sequence[GenerateRequest]) -> list[GenerateResponse]:
        """Answers validated requests of one kind, in order; raises NotReady."""
        found = self.find_many(requests)
        assert self._live is not None
        return [
            GenerateResponse(
                candidates=translate.candidates_message(one.candidates, self._live.catalogue.item_ids),
                release_id=self._live.release_id,
                num_known_events=len(one.past),
                user_state=one.state_1D.numpy().astype("<f4").tobytes(),
            )
            for one in found
        ]


def _answerable(candidates: Candidates, catalogue: CatalogueIndex) -> Candidates:
    """The candidates without those whose semantic ID does not stand for them: a fault of ours, counted."""
    can_M = catalogue.can_answer(candidates.row_M)
    if not can_M.all():
        INVALID_SIDS.inc(int(np.count_nonzero(~can_M)))
        log.error("invalid_semantic_ids", num_items=int(np.count_nonzero(~can_M)))
    return candidates.select(can_M)
