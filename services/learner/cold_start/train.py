"""`headrace train`: the first release and the learner's first checkpoint, offline, from past events.

Owns the order of the work: content, codebook, catalogue, recommender, ranker, then the learner, which
observes what was trained on and learns what was held out. It knows neither the command line nor where the
events came from; `services.learner.cold_start.publish` makes the result live. A learner may run beside it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import structlog
import torch

from models.artifacts.release import ReleaseBundle
from models.batch import EventBatch
from models.catalogue.index import CatalogueIndex
from models.measures.quality import PrequentialQuality
from models.networks.ranker import Ranker
from models.networks.recommender import GenerativeRecommender
from models.online.learner import OnlineLearner
from models.progress import Progress, quietly
from models.ranking.features import feature_names
from models.ranking.live_statistics import LiveStatistics
from models.ranking.pipeline import Pipeline
from models.training.offline import train_recommender
from models.training.ranker_fitting import fit_ranker
from protos.headrace.v1.events_pb2 import Event
from protos.headrace.v1.items_pb2 import Item
from protos.headrace.v1.release_pb2 import Release
from services.errors import ServiceError
from services.learner.checkpoints import CheckpointStore
from services.learner.cold_start.catalogue import NothingToLearn, catalogue_of, fitted_config
from services.learner.cold_start.deadline import Deadline
from services.learner.cold_start.publish import Trained, announce_before, clear_remains, publish_training
from services.learner.release_desk import new_release_id
from services.memory import give_back
from services.settings import Settings
from services.wire.translate import event_batch
from streaming.messages.meaning import EventMeaning

log = structlog.get_logger()

HOLDOUT_SHARE = 0.1
_MIN_EVENTS = 20
# Until which share of a limited time each stage may go on; what is left is for the newest events and for
# writing it all.
_RECOMMENDER_UNTIL, _RANKER_UNTIL, _NEWEST_UNTIL = 0.6, 0.85, 0.95
# Reading histories cannot be cut: some 25 us an event, twice that where the machine is busy.
_OBSERVE_S = 50e-6
# A modest training: passes, which its time limit cuts shorter where it must, examples of the ranker, and a
# network that learns in so little time what it can: a wide one would have seen too little of anything.
_MODEST_EPOCHS, _MODEST_EXAMPLES, _MODEST_WIDTH, _MODEST_LAYERS = 5, 1_500, 128, 1


class TooLittleTime(ServiceError):
    """What cannot be cut takes longer than the whole training may."""


@dataclass(frozen=True, kw_only=True)
class FirstRelease:
    """What training made: the record that was announced as live, and its content.

    Left out were `num_unmatched` events on items without a line or content, and `num_repeated` events of an
    id that their user had already used; `notes` are for people.
    """

    release: Release
    bundle: ReleaseBundle
    num_learned: int
    num_unmatched: int
    num_repeated: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Modest:
    """A release that goes live before the whole training ends, `max_seconds` after its codebook is there.

    `went_live` is told its record, `progress` how far it is.
    """

    max_seconds: float
    went_live: Callable[[Release], None]
    progress: Progress = quietly

    def of(self, settings: Settings) -> Settings:
        """The settings with a small network and few passes, all of them on everything."""
        num_epochs = min(settings.train.max_epochs, _MODEST_EPOCHS)
        short = replace(settings.train, align_epochs=0, max_epochs=num_epochs)
        width = settings.model.d_model
        if width > _MODEST_WIDTH and _MODEST_WIDTH % settings.model.num_heads == 0:
            width = _MODEST_WIDTH
        small = replace(
            settings.model, d_model=width, num_layers=min(settings.model.num_layers, _MODEST_LAYERS)
        )
        return settings.model_copy(update={"train": short, "model": small})


def train_first_release(
    settings: Settings,
    items: Sequence[Item],
    events: Sequence[Event],
    *,
    offsets: Mapping[str, int],
    progress: Progress,
    deadline: Deadline | None = None,
    modest: Modest | None = None,
) -> FirstRelease:
    """Trains on all events and makes the release live, with the checkpoint from which the learner goes on.

    With `modest`, a release of a short training on the same events goes live before that, of the same
    codebook and measured on the same held-out events.

    `offsets` ("topic/partition") is where the learner goes on reading: what `events` hold of the topics.
    Events on items that are not in `items` are left out and counted. Items that were never announced are
    announced before the release: nobody else would know their titles. `deadline` bounds all stages together.
    Raises TrainingRunning, NothingToLearn, TooLittleTime, PrefixFull, NonFiniteLoss,
    BrokerUnavailable, OSError; then nothing has changed but that items may be announced.
    """
    deadline = deadline or Deadline(None)
    with CheckpointStore(settings.store.checkpoint_path).training_lock():
        _require_wishes(events, {item.item_id for item in items}, settings.meaning)
        clear_remains(settings)
        catalogue, notes = catalogue_of(settings, items, events, watched(progress, deadline))
        batch = _known_events(events, catalogue, settings.meaning)
        if modest is not None:
            shortened = modest.of(settings)
            learner, figures = _train(
                shortened,
                catalogue.copy(),
                batch,
                modest.progress,
                Deadline(modest.max_seconds + len(batch) * _OBSERVE_S),
                num_examples=_MODEST_EXAMPLES,
            )
            reason = f"trained briefly on {len(batch):,} events"
            modest.went_live(_publish(settings, items, learner, figures, batch, offsets, reason)[0])
            # the stages' shares are of the time that is left
            deadline = deadline.rest()
        learner, figures = _train(settings, catalogue, batch, progress, deadline)
        reason = f"trained offline on {len(batch):,} events"
        release, bundle = _publish(settings, items, learner, figures, batch, offsets, reason)
    num_unmatched = sum(catalogue.row(event.item_id) is None for event in events)
    log.info("first_release", release_id=release.release_id, num_events=len(batch), num_items=len(catalogue))
    return FirstRelease(
        release=release,
        bundle=bundle,
        num_learned=len(batch),
        num_unmatched=num_unmatched,
        num_repeated=len(events) - len(batch) - num_unmatched,
        notes=tuple(notes),
    )


def _publish(
    settings: Settings,
    items: Sequence[Item],
    learner: OnlineLearner,
    figures: dict[str, float],
    batch: EventBatch,
    offsets: Mapping[str, int],
    reason: str,
) -> tuple[Release, ReleaseBundle]:
    """Cuts a release of what was trained on `batch` and makes it live."""
    bundle = learner.release_bundle(
        new_release_id(time.time()),
        parent_release_id=announce_before(settings, items),
        created_time_ms=time.time_ns() // 1_000_000,
        offsets=dict(offsets),
    )
    bundle = replace(bundle, meta=replace(bundle.meta, metrics=figures))
    learner.set_live(bundle)
    trained = Trained(learner=learner, bundle=bundle, event_ids=batch.event_ids)
    return publish_training(settings, trained, reason), bundle


def watched(progress: Progress, deadline: Deadline) -> Progress:
    """`progress` that ends work which cannot be cut short as soon as it is plain that it takes too long."""

    first: dict[str, tuple[float, int]] = {}

    def watch(stage: str, done: int, total: int, figures: Mapping[str, float] | None = None, /) -> None:
        progress(stage, done, total, figures)
        # counted from the first report: before it, a model was loaded
        first_s, first_done = first.setdefault(stage, (deadline.used_s, done))
        is_over = deadline.max_seconds is not None and deadline.used_s > deadline.max_seconds
        if deadline.max_seconds is None or (done <= first_done and not is_over):
            return
        pace_s = (deadline.used_s - first_s) / (done - first_done) if done > first_done else first_s / done
        needed_s = pace_s * total
        if deadline.used_s + pace_s * (total - done) > deadline.max_seconds:
            raise TooLittleTime(
                f"to {stage} ({total:,}) takes about {needed_s / 60:.2g} minutes, and the whole training may "
                f"take {deadline.max_seconds / 60:g}: raise --max-minutes"
            )

    return watch


def _require_wishes(events: Sequence[Event], item_ids: set[str], meaning: EventMeaning) -> None:
    """Raises NothingToLearn where there is too little at first sight, before minutes go into the items."""
    known = [event for event in events if event.item_id in item_ids]
    batch = event_batch(known, np.zeros(len(known), dtype=np.int64), meaning)
    _require_enough(int(np.count_nonzero(batch.is_wish_N)))


def _require_enough(num_wishes: int) -> None:
    if num_wishes < _MIN_EVENTS:
        raise NothingToLearn(
            f"{num_wishes} events that wish for a known item are too few for a first release; "
            f"{_MIN_EVENTS} are needed (`headrace replay --data DIR` sends events)"
        )


def _known_events(events: Sequence[Event], catalogue: CatalogueIndex, meaning: EventMeaning) -> EventBatch:
    """The events on known items, each id of a user once, in time order (equal times in the order given)."""
    rows_N = catalogue.rows([event.item_id for event in events])
    batch = event_batch(events, rows_N, meaning)
    first = {key: n for n, key in reversed(list(enumerate(batch.keys)))}
    keep = np.array(sorted(n for n in first.values() if rows_N[n] >= 0), dtype=np.int64)
    _require_enough(int(np.count_nonzero(batch.is_wish_N[keep])))
    return batch.select(keep[np.argsort(batch.time_ms_N[keep], kind="stable")])


def _train(
    settings: Settings,
    catalogue: CatalogueIndex,
    batch: EventBatch,
    progress: Progress,
    deadline: Deadline,
    num_examples: int | None = None,
) -> tuple[OnlineLearner, dict[str, float]]:
    """Both networks on all events, the last ones through the learner; and what the ranker reached.

    The recommender learns all but the last events and is stopped by those; the ranker is fitted on the
    last ones, of which the recommender knows nothing; then the learner learns them, in order.
    """
    split = len(batch) - max(1, round(len(batch) * HOLDOUT_SHARE))
    past, held_out = batch.select(np.arange(split)), batch.select(np.arange(split, len(batch)))
    reserve_s = len(batch) * _OBSERVE_S
    recommender = train_recommender(
        catalogue,
        past,
        fitted_config(settings, catalogue),
        settings.train,
        validation=held_out,
        progress=progress,
        time_share=deadline.until(_RECOMMENDER_UNTIL, reserve_s=reserve_s),
    )
    give_back()
    time_share = deadline.until(_RANKER_UNTIL, reserve_s=reserve_s)
    ranker, figures = _fit_ranker(
        settings, recommender, catalogue, past, held_out, progress, time_share, num_examples
    )
    learner = OnlineLearner(
        recommender,
        ranker,
        catalogue,
        LiveStatistics(settings.statistics),
        settings.learner,
        settings.search,
    )
    give_back()
    _read_and_learn(settings, learner, past, held_out, progress, deadline)
    give_back()
    return learner, figures


def _read_and_learn(
    settings: Settings,
    learner: OnlineLearner,
    past: EventBatch,
    held_out: EventBatch,
    progress: Progress,
    deadline: Deadline,
) -> None:
    """The learner reads what was trained on and learns the newest events, or reads those too without time."""
    for begin, end in _chunks(past, settings):
        learner.observe_many(past.select(np.arange(begin, end)))
        progress("reading histories", end, len(past))
    time_share = deadline.until(_NEWEST_UNTIL)
    for begin, end in _chunks(held_out, settings):
        take = learner.learn_many if time_share() < 1.0 else learner.observe_many
        take(held_out.select(np.arange(begin, end)))
        progress("learning the newest events", end, len(held_out))
    # The ranker was fitted on these very events, so nothing that was scored here was a prediction.
    num_codes = learner.recommender.config.num_levels + 1
    learner.memory.quality = PrequentialQuality(settings.learner.quality_window, num_codes)


def _fit_ranker(
    settings: Settings,
    recommender: GenerativeRecommender,
    catalogue: CatalogueIndex,
    past: EventBatch,
    held_out: EventBatch,
    progress: Progress,
    time_share: Callable[[], float],
    num_examples: int | None,
) -> tuple[Ranker, dict[str, float]]:
    statistics = LiveStatistics(settings.statistics)
    past_ids = [catalogue.item_ids[row] for row in past.item_N]
    statistics.update_many(past.user_ids, past_ids, past.action_N.tolist(), past.time_ms_N.tolist())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.train.seed)
        ranker = Ranker(recommender.config, len(feature_names(settings.statistics)))
    wishes = np.nonzero(held_out.is_wish_N)[0]
    pipeline = Pipeline.build(recommender, ranker, catalogue, statistics, settings.search)
    figures = fit_ranker(
        pipeline,
        past,
        held_out.select(wishes),
        stream=held_out,
        seed=settings.train.seed,
        num_examples=num_examples,
        progress=progress,
        time_share=time_share,
    )
    return ranker, figures


def _chunks(events: EventBatch, settings: Settings) -> Iterator[tuple[int, int]]:
    size = settings.learner_service.batch_events
    return ((begin, min(begin + size, len(events))) for begin in range(0, len(events), size))
