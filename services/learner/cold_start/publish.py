"""A training becomes what everybody serves: its checkpoint and its release together, or not at all.

The invariant: a training counts from the moment at which the topic `releases` says that its release is live,
and by then everything that belongs to it is on the disk. In this order, each whole or absent: the items that
nobody had announced yet, on their topic; the ledger and the checkpoint, staged under the release's id where
no learner looks unless that release is live; the release in the store; the announcement. A kill before the
announcement changes nothing, except that some items are known sooner, and the next training removes what is
left; after it, the learner makes the staged checkpoint its own, now or at its next start.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog

from models.artifacts.release import ReleaseBundle
from models.online.learner import OnlineLearner
from protos.headrace.v1.items_pb2 import Item
from protos.headrace.v1.release_pb2 import RELEASE_STATE_LIVE, Release
from services.learner.checkpoints import CheckpointStore, ledger_name_of
from services.learner.cold_start.announcements import announce_items, not_announced
from services.learner.ledger import Ledger
from services.learner.position import LearnerPosition
from services.releases.publisher import ReleasePublisher
from services.releases.store import release_store
from services.settings import Settings
from streaming.clients.producer import Producer
from streaming.errors import BrokerUnavailable

T = TypeVar("T")

log = structlog.get_logger()

_ANNOUNCE_PATIENCE_S = 60.0
_ANNOUNCE_RETRY_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training made: the learner at its place in the stream, its release, and what it learned."""

    learner: OnlineLearner
    bundle: ReleaseBundle
    event_ids: Sequence[str]

    @property
    def release_id(self) -> str:
        """The release's id, which names everything that is staged."""
        return self.bundle.meta.release_id


def announce_before(settings: Settings, items: Sequence[Item]) -> str:
    """Announces those of `items` that nobody has announced; returns the id of the live release, empty for
    none.

    To be called before the release is cut: the tokenizer reads the text of an item again that was announced
    after its release. Raises BrokerUnavailable.
    """
    bootstrap = settings.broker.bootstrap_servers

    def announce() -> str:
        with Producer(bootstrap) as producer:
            announce_items(producer, not_announced(bootstrap, items))
        return ReleasePublisher(settings).list().live_id

    return _patiently(announce)


def publish_training(settings: Settings, trained: Trained, reason: str) -> Release:
    """Stages all of it, then announces it as live; returns the release's record.

    Needs the training lock. What it raises leaves things as they were: OSError, IncompatibleCheckpoint,
    BrokerUnavailable (then what is staged stays, since the record may be on the topic all the same).
    """
    store = CheckpointStore(settings.store.checkpoint_path)
    releases = release_store(settings)
    try:
        _stage(settings, store, trained)
        releases.save(trained.bundle)
    except BaseException:
        # in this order: what is staged names the release that a killed training left
        releases.discard(trained.release_id)
        store.drop_staged()
        raise
    publisher = ReleasePublisher(settings)
    release = _patiently(lambda: publisher.announce_stored(trained.release_id, RELEASE_STATE_LIVE, reason))
    # the learner may have taken it meanwhile
    store.drop_staged(but=trained.release_id)
    return release


def clear_remains(settings: Settings) -> None:
    """Removes what killed trainings left; needs the training lock. Raises BrokerUnavailable, OSError."""
    store = CheckpointStore(settings.store.checkpoint_path)
    known = ReleasePublisher(settings).list()
    for release_id in store.staged_releases():
        if release_id not in known:
            log.info("remains_of_a_training_removed", release_id=release_id)
            release_store(settings).discard(release_id)
    store.drop_staged(but=known.live_id)


def _stage(settings: Settings, store: CheckpointStore, trained: Trained) -> None:
    learner = trained.learner
    position = LearnerPosition(
        live_release_id=trained.release_id,
        offsets=dict(trained.bundle.meta.offsets),
        num_learned=learner.num_learned,
    )
    if settings.learner_service.ledger:
        position.ledger_name = ledger_name_of(trained.release_id)
        with Ledger(store.staged_ledger_path(position.ledger_name), num_bytes=0) as ledger:
            ledger.append(trained.event_ids)
            position.ledger_bytes = ledger.flush()
    store.stage(learner, position, trained.release_id)


def _patiently(announce: Callable[[], T]) -> T:
    """A broker that is away for a moment must not cost a whole training."""
    deadline_s = time.monotonic() + _ANNOUNCE_PATIENCE_S
    while True:
        try:
            return announce()
        except BrokerUnavailable as error:
            if time.monotonic() > deadline_s:
                raise
            log.warning("the_release_waits_for_the_broker", error=str(error))
            time.sleep(_ANNOUNCE_RETRY_S)
