"""How the learner begins without a checkpoint: from a live release and the events it was learned from."""

import threading

import structlog

from models.learner import OnlineLearner
from models.release import ReleaseBundle
from models.statistics import LiveStatistics
from services.errors import ServiceError
from services.learner.position import LearnerPosition
from services.learner.stream import STAGE
from services.metrics import DLQ_RECORDS
from services.settings import Settings
from services.translate import event_batch
from streaming.consumer import PartitionConsumer
from streaming.dead_letter import DeadLetters
from streaming.topics import INTERACTIONS

log = structlog.get_logger()

_BATCH_EVENTS = 1_000
_POLL_S = 0.5


class Interrupted(ServiceError):
    """The learner was told to stop before it had begun."""


def learner_from_release(
    settings: Settings, bundle: ReleaseBundle, stopping: threading.Event
) -> tuple[OnlineLearner, LearnerPosition]:
    """A learner with the release's weights, and histories and statistics of the events up to its offsets.

    Those events are read from `interactions` again and observed, not learned: the weights know them.
    Raises Interrupted if `stopping` is set meanwhile.
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
    position = LearnerPosition(live_release_id=meta.release_id, offsets=dict(meta.offsets))
    wanted = {name: end for name, end in meta.offsets.items() if name.startswith(f"{INTERACTIONS}/")}
    letters = DeadLetters(
        settings.broker.bootstrap_servers,
        stage=STAGE,
        on_dead_letter=lambda topic, stage, reason: DLQ_RECORDS.labels(topic, stage, reason).inc(),
    )
    with PartitionConsumer(
        settings.broker.bootstrap_servers, [INTERACTIONS], offsets={}, dead_letters=letters, stage=STAGE
    ) as consumer:
        while any(consumer.offsets.get(name, 0) < end for name, end in wanted.items()):
            if stopping.is_set():
                raise Interrupted("stopped before the histories were read")
            records = consumer.poll(_BATCH_EVENTS, _POLL_S)
            events = [
                record.message
                for record in records
                if record.offset < wanted.get(record.position, 0)
                and learner.catalogue.row(record.message.item_id) is not None
            ]
            rows_N = learner.catalogue.rows([event.item_id for event in events])
            report = learner.observe_many(event_batch(events, rows_N, settings.meaning))
            position.num_learned += report.num_learned
    letters.close()
    log.info("histories read", num_events=position.num_learned, release=meta.release_id)
    return learner, position
