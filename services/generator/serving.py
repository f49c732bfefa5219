"""The live release as the generator serves it: swap, live inserts, and answers to batches of requests.

Everything here but `load` and `kind_of` runs in the model thread. Knows no gRPC.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from models.batch import HistoryBatch
from models.candidates import Source
from models.config import SearchConfig
from models.generation import Generator
from models.release import ReleaseBundle
from protos.headrace.v1.generator_pb2 import GenerateRequest, GenerateResponse
from protos.headrace.v1.items_pb2 import ItemSid
from services import translate
from services.errors import NotReady
from services.live_catalogue import LiveCatalogue
from services.metrics import ITEM_TO_RECOMMENDABLE_SECONDS, STAGE_SECONDS


@dataclass(frozen=True)
class LoadedRelease:
    """A release, encoded and warmed up."""

    release_id: str
    generator: Generator


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What requests must have in common to be searched together."""

    k: int
    beam: int
    use_beam: bool
    use_dense: bool


class GeneratorServing:
    """Answers from the live release and its live catalogue."""

    def __init__(self, config: SearchConfig) -> None:
        self._config = config
        self._catalogue = LiveCatalogue()
        self._live: LoadedRelease | None = None

    @property
    def is_ready(self) -> bool:
        """Whether a release is live."""
        return self._live is not None

    def load(self, bundle: ReleaseBundle) -> LoadedRelease:
        """Prepares a release beside the live one: catalogue up to date, items encoded, searches run."""
        self._catalogue.prepare(bundle.catalogue)
        generator = Generator(bundle.recommender, bundle.catalogue, self._config)
        rows = np.nonzero(bundle.catalogue.available_N)[0][:5].tolist()
        max_history = bundle.recommender.config.max_history
        histories: tuple[list[int], ...] = ([], rows)
        for history in histories:
            generator.generate_many(
                HistoryBatch.from_lists(
                    [history], [[1] * len(history)], [list(range(len(history)))], max_history=max_history
                ),
                k=self._config.num_dense or 1,
                beam=self._config.beam,
            )
        return LoadedRelease(bundle.meta.release_id, generator)

    def swap(self, loaded: LoadedRelease) -> None:
        """Makes a loaded release the live one."""
        changes = self._catalogue.swap(loaded.generator.catalogue)
        if changes.content_changed:
            loaded.generator.refresh()
        self._live = loaded

    def put_items(self, sids: Sequence[ItemSid], *, is_live: bool) -> None:
        """Takes announced items; `is_live` says that they come as they happen, so their delay counts."""
        changes = self._catalogue.put_many(sids)
        if changes.content_changed and self._live is not None:
            self._live.generator.refresh()
        if is_live:
            now_ms = time.time() * 1e3
            for sid in changes.inserted:
                ITEM_TO_RECOMMENDABLE_SECONDS.observe(max(0.0, now_ms - sid.announced_time_ms) / 1e3)

    def kind_of(self, request: GenerateRequest) -> Kind:
        """Requests of one kind can be searched together. Callable from any thread."""
        disabled = translate.to_sources(request.disabled_sources)
        return Kind(
            k=request.k or self._config.num_dense or 1,
            beam=request.beam or self._config.beam,
            use_beam=Source.BEAM not in disabled,
            use_dense=Source.DENSE not in disabled,
        )

    def generate_many(self, requests: Sequence[GenerateRequest]) -> list[GenerateResponse]:
        """Answers validated requests of one kind, in order; raises NotReady."""
        if self._live is None:
            raise NotReady("no release is loaded yet")
        generator, catalogue = self._live.generator, self._live.generator.catalogue
        kind = self.kind_of(requests[0])
        with stage("tokenize", len(requests)):
            pasts = [translate.known_past(request.history, catalogue) for request in requests]
            history = translate.past_batch(pasts, generator.recommender.config.max_history)
            exclude = [translate.known_rows(catalogue, request.exclude_item_ids) for request in requests]
        with stage("decode", len(requests)):
            found = generator.generate(
                history,
                k=kind.k,
                beam=kind.beam,
                exclude=exclude,
                use_beam=kind.use_beam,
                use_dense=kind.use_dense,
            )
        state_BD = found.state_BD.detach().float().numpy().astype("<f4")
        return [
            GenerateResponse(
                candidates=translate.candidate_messages(candidates, catalogue.item_ids),
                release_id=self._live.release_id,
                num_known_events=len(past),
                user_state=state_D.tobytes(),
            )
            for candidates, past, state_D in zip(found.candidates, pasts, state_BD, strict=True)
        ]


@contextmanager
def stage(name: str, num_requests: int) -> Iterator[None]:
    """Times a stage that requests go through together: each of them spent all of it."""
    started_s = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - started_s
        for _ in range(num_requests):
            STAGE_SECONDS.labels(name).observe(seconds)
