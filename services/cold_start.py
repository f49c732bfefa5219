"""`headrace train`: the first release and the learner's first checkpoint, offline, from past events.

Owns the order of the work: content, codebook, catalogue, recommender, then the learner, who observes
what was trained on and learns what was held out. It knows neither the command line nor where the events
came from.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import structlog
import torch
from torch import Tensor
from torch.nn import functional

from models.batch import EventBatch
from models.catalogue import CatalogueIndex
from models.config import ModelConfig
from models.features import feature_names
from models.learner import OnlineLearner
from models.quality import PrequentialQuality
from models.ranker import Ranker
from models.ranker_training import fit_ranker
from models.recommend import Pipeline
from models.recommender import GenerativeRecommender
from models.release import ReleaseBundle
from models.semantic_ids import fit_codebook
from models.statistics import LiveStatistics
from models.text import TextEmbedder, item_text
from models.training import train_recommender
from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.items_pb2 import Item
from protos.headrace.v1.release_pb2 import RELEASE_STATE_LIVE, Release
from services.errors import ServiceError
from services.learner.checkpoints import CheckpointStore
from services.learner.ledger import Ledger
from services.learner.position import LearnerPosition
from services.learner.releases import new_release_id
from services.release import ReleasePublisher
from services.settings import Settings
from services.translate import event_batch
from streaming.meaning import EventMeaning

log = structlog.get_logger()

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""`progress(stage, number done, number in all, figures)`."""

HOLDOUT_SHARE = 0.1
_MIN_EVENTS = 20
_LOCK_PATIENCE_S = 20.0
# Under a time limit, the ranker is fitted on so many: its candidates cost some 8 ms each on one core.
_HURRIED_EXAMPLES = 2_000


class NothingToLearn(ServiceError):
    """There are too few events or items for a first release."""


@dataclass(frozen=True, kw_only=True)
class FirstRelease:
    """What training made: the record that was announced as live, and its content.

    `num_left_out` events were on unknown items or had an id that was there before.
    """

    release: Release
    bundle: ReleaseBundle
    num_learned: int
    num_left_out: int


def train_first_release(
    settings: Settings,
    items: Sequence[Item],
    events: Sequence[Event],
    *,
    offsets: Mapping[str, int],
    progress: Progress,
    max_seconds: float | None = None,
) -> FirstRelease:
    """Trains on all events, writes the learner's checkpoint and publishes the release as live.

    `offsets` ("topic/partition") is where the learner goes on reading: what `events` hold of the topics.
    Events on items that are not in `items` are left out and counted. `max_seconds` bounds the training of
    the recommender, and shortens the fit of the ranker. Raises LearnerRunning if a learner owns the
    state, NothingToLearn, NonFiniteLoss, BrokerUnavailable.
    """
    store = CheckpointStore(settings.store.checkpoint_path)
    with store.lock(patience_s=_LOCK_PATIENCE_S):
        content_NE = embed_items(items, progress)
        catalogue = _fit_catalogue(settings, items, content_NE, progress)
        batch = _known_events(events, catalogue, settings.meaning)
        learner, figures = _train(settings, catalogue, batch, progress, max_seconds)
        release_id = new_release_id(time.time())
        bundle = learner.release_bundle(
            release_id,
            parent_release_id="",
            created_time_ms=time.time_ns() // 1_000_000,
            offsets=dict(offsets),
        )
        bundle = replace(bundle, meta=replace(bundle.meta, metrics=figures))
        learner.set_live(bundle)
        # The checkpoint first: whoever sees the release live finds the learner's state that belongs to it.
        _write_checkpoint(settings, store, learner, release_id, offsets, batch)
        reason = f"trained offline on {len(batch):,} events"
        release = ReleasePublisher(settings).publish(bundle, RELEASE_STATE_LIVE, reason)
    log.info("first release", release=release_id, num_events=len(batch), num_items=len(catalogue))
    return FirstRelease(
        release=release,
        bundle=bundle,
        num_learned=len(batch),
        num_left_out=len(events) - len(batch),
    )


def embed_items(items: Sequence[Item], progress: Progress) -> Tensor:
    """The content vector of each item, float32 [N, E], L2-normalised.

    The items' own vectors where all of them have one of the same width (`text` first), else MiniLM of
    title, brand and categories.
    """
    own = [_own_vector(item) for item in items]
    widths = {0 if vector is None else len(vector) for vector in own}
    if len(widths) == 1 and 0 not in widths:
        stacked_NE = torch.tensor(np.stack([vector for vector in own if vector is not None]))
        return functional.normalize(stacked_NE, dim=1)
    texts = [item_text(item.title, item.brand, item.categories) for item in items]
    return TextEmbedder().embed_many(texts, lambda done, total: progress("embed items", done, total, {}))


def prepare_catalogue(
    settings: Settings, items: Sequence[Item], progress: Progress
) -> tuple[CatalogueIndex, ModelConfig]:
    """A catalogue with a codebook fitted to the items, and the model's config for it."""
    catalogue = _fit_catalogue(settings, items, embed_items(items, progress), progress)
    return catalogue, fitted_config(settings, catalogue)


def fitted_config(settings: Settings, catalogue: CatalogueIndex) -> ModelConfig:
    """The model's config with the sizes that the codebook decides."""
    codebook = catalogue.codebook
    return replace(
        settings.model,
        content_dim=codebook.content_dim,
        num_levels=codebook.num_levels,
        codebook_size=codebook.codebook_size,
    )


def _own_vector(item: Item) -> "np.ndarray[tuple[int], np.dtype[np.float32]] | None":
    embeddings = sorted(item.embeddings, key=lambda embedding: embedding.modality != "text")
    return np.asarray(embeddings[0].values, dtype=np.float32) if embeddings else None


def _fit_catalogue(
    settings: Settings, items: Sequence[Item], content_NE: Tensor, progress: Progress
) -> CatalogueIndex:
    if not items:
        raise NothingToLearn("there are no items to learn a codebook from")
    codebook = fit_codebook(
        content_NE, settings.codebook, lambda done, total: progress("fit codebook", done, total, {})
    )
    catalogue = CatalogueIndex(codebook)
    announced_ms_N = np.array([item.announced_time_ms for item in items], dtype=np.int64)
    catalogue.add_many([item.item_id for item in items], content_NE, announced_ms_N)
    for row, item in enumerate(items):
        if item.unavailable:
            catalogue.set_available(row, False)
    return catalogue


def _known_events(events: Sequence[Event], catalogue: CatalogueIndex, meaning: EventMeaning) -> EventBatch:
    """The events on known items, each id of a user once, in time order (equal times in the order given)."""
    rows_N = catalogue.rows([event.item_id for event in events])
    batch = event_batch(events, rows_N, meaning)
    first = {key: n for n, key in reversed(list(enumerate(batch.keys)))}
    keep = np.array(sorted(n for n in first.values() if rows_N[n] >= 0), dtype=np.int64)
    num_wishes = int(np.count_nonzero(batch.is_wish_N[keep]))
    if num_wishes < _MIN_EVENTS:
        raise NothingToLearn(
            f"{num_wishes} events that wish for a known item are too few for a first release; "
            f"{_MIN_EVENTS} are needed"
        )
    return batch.select(keep[np.argsort(batch.time_ms_N[keep], kind="stable")])


def _train(
    settings: Settings,
    catalogue: CatalogueIndex,
    batch: EventBatch,
    progress: Progress,
    max_seconds: float | None,
) -> tuple[OnlineLearner, dict[str, float]]:
    """Both networks on all events, the last ones through the learner; and what the ranker reached.

    The recommender learns all but the last events and is stopped by those; the ranker is fitted on the
    last ones, of which the recommender knows nothing; then the learner learns them, in order.
    """
    split = len(batch) - max(1, round(len(batch) * HOLDOUT_SHARE))
    past, held_out = batch.select(np.arange(split)), batch.select(np.arange(split, len(batch)))
    config = fitted_config(settings, catalogue)
    began_s = time.monotonic()
    recommender = train_recommender(
        catalogue,
        past,
        config,
        settings.train,
        validation=held_out,
        progress=lambda stage, done, total, figures: progress(f"{stage} recommender", done, total, figures),
        time_share=lambda: (time.monotonic() - began_s) / max_seconds if max_seconds else 0.0,
    )
    hurried = max_seconds is not None
    ranker, figures = _fit_ranker(settings, recommender, catalogue, past, held_out, progress, hurried=hurried)
    learner = OnlineLearner(
        recommender,
        ranker,
        catalogue,
        LiveStatistics(settings.statistics),
        settings.learner,
        settings.search,
    )
    for begin, end in _chunks(past, settings):
        learner.observe_many(past.select(np.arange(begin, end)))
        progress("read histories", end, len(past), {})
    for begin, end in _chunks(held_out, settings):
        learner.learn_many(held_out.select(np.arange(begin, end)))
        progress("learn the newest events", end, len(held_out), {})
    # The ranker had been fitted on these very events: nothing that was scored here was a prediction.
    learner.memory.quality = PrequentialQuality(settings.learner.quality_window, config.num_levels + 1)
    return learner, figures


def _fit_ranker(
    settings: Settings,
    recommender: GenerativeRecommender,
    catalogue: CatalogueIndex,
    past: EventBatch,
    held_out: EventBatch,
    progress: Progress,
    *,
    hurried: bool,
) -> tuple[Ranker, dict[str, float]]:
    statistics = LiveStatistics(settings.statistics)
    past_ids = [catalogue.item_ids[row] for row in past.item_N]
    statistics.update_many(past.user_ids, past_ids, past.action_N.tolist(), past.time_ms_N.tolist())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.train.seed)
        ranker = Ranker(recommender.config, len(feature_names(settings.statistics)))
    wishes = np.nonzero(held_out.is_wish_N)[0]
    if hurried:
        wishes = wishes[:_HURRIED_EXAMPLES]
    pipeline = Pipeline.build(recommender, ranker, catalogue, statistics, settings.search)
    figures = fit_ranker(
        pipeline,
        past,
        held_out.select(wishes),
        stream=held_out,
        seed=settings.train.seed,
        progress=progress,
    )
    return ranker, figures


def _chunks(events: EventBatch, settings: Settings) -> Iterator[tuple[int, int]]:
    size = settings.learner_service.batch_events
    return ((begin, min(begin + size, len(events))) for begin in range(0, len(events), size))


def _write_checkpoint(
    settings: Settings,
    store: CheckpointStore,
    learner: OnlineLearner,
    release_id: str,
    offsets: Mapping[str, int],
    batch: EventBatch,
) -> None:
    position = LearnerPosition(
        live_release_id=release_id, offsets=dict(offsets), num_learned=learner.num_learned
    )
    if settings.learner_service.ledger:
        position.ledger_name = f"ledger-{release_id}.txt"
        with Ledger(store.ledger_path(position.ledger_name), num_bytes=0) as ledger:
            ledger.append(batch.event_ids)
            position.ledger_bytes = ledger.flush()
    store.save(learner, position)
