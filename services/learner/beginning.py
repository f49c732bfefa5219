"""What the learner begins from: its own checkpoint, a training's, or a release and the events behind it.

What is live decides. Its own newest checkpoint where that belongs to the live release; else the one that the
training of the live release staged; else its own, anchored to the live release, where both have one codebook
and architecture; else the live release, with histories and statistics read from the topic again.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import structlog

from models.artifacts.release import ReleaseBundle
from models.errors import IncompatibleCheckpoint
from models.online.learner import OnlineLearner
from models.ranking.live_statistics import LiveStatistics
from protos.headrace.v1.release_pb2 import Release
from services.errors import ServiceError
from services.learner.checkpoints import CheckpointStore, read_checkpoint
from services.learner.position import LearnerPosition
from services.learner.release_desk import ReleaseDesk
from services.learner.stream import STAGE
from services.metrics import DLQ_RECORDS
from services.settings import Settings
from services.wire.translate import event_batch
from streaming.clients.consumer import PartitionConsumer
from streaming.clients.dead_letter import DeadLetters
from streaming.messages.meaning import EventMeaning
from streaming.messages.records import Record
from streaming.messages.topics import INTERACTIONS

log = structlog.get_logger()

_BATCH_EVENTS = 1_000
_POLL_S = 0.5


class Interrupted(ServiceError):
    """The learner was told to stop before it had begun."""


class CannotBegin(ServiceError):
    """There is nothing to continue from; the text names the cure."""


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """A learner, its place in the stream, and what an operator should know, empty where all is well.

    `problem` says why it begins from there, `live_problem` why it does not follow what is live.
    """

    learner: OnlineLearner
    position: LearnerPosition
    problem: str = ""
    live_problem: str = ""


def find_beginning(
    settings: Settings,
    store: CheckpointStore,
    desk: ReleaseDesk,
    stopping: threading.Event,
    meanwhile: Callable[[], None] = lambda: None,
) -> Beginning | None:
    """What to continue from; None where there is neither a release nor a checkpoint yet.

    Needs the store's lock. Raises CannotBegin, BrokerUnavailable, OSError, IncompatibleCheckpoint for a live
    release whose id cannot name a directory, and Interrupted if `stopping` is set meanwhile. `meanwhile` is
    called now and then where histories are read, which may take minutes.
    """
    own, problem = _read_own(store)
    live = desk.live()
    if live is None:
        if own is None:
            if problem:
                raise CannotBegin(f"{problem}, and no release is live: run `headrace train`")
            return None
        live = _announce_again(desk, own.position.live_release_id)
    if own is not None and own.position.live_release_id == live.release_id:
        return own
    staged = _read_staged(store, live.release_id)
    if staged is not None:
        return staged
    try:
        bundle = desk.load(live.release_id)
    except (IncompatibleCheckpoint, OSError) as error:
        line = why_unloadable(live, error)
        if own is None:
            raise CannotBegin(line) from error
        return Beginning(learner=own.learner, position=own.position, live_problem=line)
    if own is not None and own.learner.is_kin(bundle):
        # promoted while no learner was there, or by a learner that died before its next checkpoint
        own.learner.set_live(bundle)
        own.position.live_release_id = live.release_id
        return own
    learner, position = learner_from_release(settings, bundle, stopping, meanwhile)
    if own is not None:
        problem = (
            f"release {live.release_id} is of another codebook or architecture than the learner's: it began "
            "again from that release and the topics. Events of a folder that were never sent are not known "
            "to it; `headrace replay` sends them"
        )
    elif problem:
        problem += f": the learner began again from release {live.release_id} and the events in the topic"
    return Beginning(learner=learner, position=position, problem=problem)


def why_unloadable(release: Release, error: Exception) -> str:
    """One line on a live release that cannot be loaded, and the cure."""
    return (
        f"release {release.release_id} is live but cannot be loaded from {release.uri} ({error}): put its "
        "files back, promote one that `headrace release list` shows as loadable, or run `headrace train`"
    )


def _read_own(store: CheckpointStore) -> tuple[Beginning | None, str]:
    """The learner's own newest checkpoint that can be read, or why the newest of them cannot."""
    problem = ""
    for directory in store.newest_first():
        try:
            learner, position = read_checkpoint(directory)
        except IncompatibleCheckpoint as error:
            log.error("checkpoint_refused", directory=str(directory), reason=error.reason, error=str(error))
            problem = problem or f"the checkpoint {directory} cannot be read ({error.reason}: {error})"
        else:
            return Beginning(learner=learner, position=position), ""
    return None, problem


def _read_staged(store: CheckpointStore, release_id: str) -> Beginning | None:
    """The checkpoint that the release's training staged, made the learner's newest."""
    directory = store.staged(release_id)
    if directory is None:
        return None
    try:
        learner, position = read_checkpoint(directory)
    except IncompatibleCheckpoint as error:
        log.error("staged_checkpoint_refused", directory=str(directory), error=str(error))
        return None
    store.adopt(release_id, position.ledger_name)
    return Beginning(learner=learner, position=position)


def _announce_again(desk: ReleaseDesk, release_id: str) -> Release:
    """Announces the checkpoint's release as live where the topic knows of none, having lost it."""
    try:
        release = desk.announce_stored(release_id, "known to the learner's checkpoint, live nowhere")
    except (IncompatibleCheckpoint, OSError) as error:
        raise CannotBegin(
            f"no release is live, and {release_id}, which the learner's checkpoint belongs to, cannot be "
            f"announced again ({error}): run `headrace train`"
        ) from error
    log.warning("release_announced_again", release_id=release_id)
    return release


def learner_from_release(
    settings: Settings,
    bundle: ReleaseBundle,
    stopping: threading.Event,
    meanwhile: Callable[[], None] = lambda: None,
) -> tuple[OnlineLearner, LearnerPosition]:
    """A learner with the release's weights, and histories and statistics of the events up to its offsets.

    Those events are read from `interactions` again and observed, not learned: the weights know them. Where
    the topic ends before, having lost its tail or been made anew, the learner goes on from that end.
    `meanwhile` is called before each poll. Raises BrokerUnavailable, and Interrupted if `stopping` is set
    meanwhile.
    """
    meta = bundle.meta
    learner = OnlineLearner(
        bundle.recommender,
        bundle.ranker,
        bundle.catalogue,
        LiveStatistics(bundle.statistics.config),
        settings.learner,
        settings.search,
    )
    letters = DeadLetters(
        settings.broker.bootstrap_servers,
        stage=STAGE,
        on_dead_letter=lambda topic, stage, reason: DLQ_RECORDS.labels(topic, stage, reason).inc(),
    )
    with (
        closing(letters),
        PartitionConsumer(
            settings.broker.bootstrap_servers, [INTERACTIONS], offsets={}, dead_letters=letters, stage=STAGE
        ) as consumer,
    ):
        offsets = within_topic(meta.offsets, consumer.end_offsets())
        if offsets != meta.offsets:
            beyond = {name: end for name, end in meta.offsets.items() if offsets.get(name) != end}
            log.warning(
                "release_offsets_beyond_topic", release_id=meta.release_id, offsets=beyond, taken=offsets
            )
        position = LearnerPosition(live_release_id=meta.release_id, offsets=offsets)
        while any(consumer.offsets.get(name, 0) < end for name, end in offsets.items()):
            meanwhile()
            if stopping.is_set():
                raise Interrupted("stopped before the histories were read")
            records = consumer.poll(_BATCH_EVENTS, _POLL_S)
            position.num_learned += _observe(learner, records, offsets, settings.meaning)
    log.info("histories_read", num_events=position.num_learned, release_id=meta.release_id)
    return learner, position


def within_topic(offsets: Mapping[str, int], end: Mapping[str, int]) -> dict[str, int]:
    """The offsets of `end`'s partitions, none beyond its end: what lies there never comes.

    >>> within_topic({"t/0": 9, "t/1": 2, "t/7": 5}, {"t/0": 4, "t/1": 3, "t/2": 1})
    {'t/0': 4, 't/1': 2}
    """
    return {name: min(offset, end[name]) for name, offset in offsets.items() if name in end}


def _observe(
    learner: OnlineLearner, records: Sequence[Record], offsets: Mapping[str, int], meaning: EventMeaning
) -> int:
    """Observes the events before `offsets` on known items; returns how many were new."""
    events = [
        record.message
        for record in records
        if record.offset < offsets.get(record.position, 0)
        and learner.catalogue.row(record.message.item_id) is not None
    ]
    rows_N = learner.catalogue.rows([event.item_id for event in events])
    return learner.observe_many(event_batch(events, rows_N, meaning)).num_learned
