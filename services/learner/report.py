"""The learner's figures for people: the Status answer and the Prometheus metrics, from the same numbers."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from models.measures.quality import K
from models.online.learner import LearnReport, OnlineLearner
from models.online.optimiser_steps import StepReport
from protos.headrace.v1.learner_pb2 import OnlineQuality, QualityPoint, StatusResponse
from services import metrics
from services.learner.position import LearnerPosition
from streaming.clients.consumer import describe_hidden
from streaming.messages.records import Record, offset_messages, split_position

GROUP = "learner"
NO_BROKER = "the broker does not answer: what it holds is learned once it does"


@dataclass(kw_only=True)
class Figures:
    """What one turn of the loop leaves behind for `Status`."""

    quality: list[OnlineQuality] = field(default_factory=list)
    hierarchical_recall: list[float] = field(default_factory=list)
    curve: list[QualityPoint] = field(default_factory=list)
    num_steps: int = 0
    train_loss: float = 0.0
    lag_records: int = 0
    stalled: str = ""
    events_per_s: float = 0.0


def read_quality(learner: OnlineLearner, figures: Figures) -> None:
    """Takes the prequential figures over from the learner, and shows them as metrics."""
    quality = learner.quality
    figures.num_steps = learner.trainer.num_steps
    figures.hierarchical_recall = quality.hierarchical_recall()
    figures.quality = [
        OnlineQuality(
            segment=one.segment,
            num_events=one.num_events,
            recall_at_10=one.recall_at_10,
            ndcg_at_10=one.ndcg_at_10,
            popularity_recall_at_10=one.popularity_recall_at_10,
        )
        for one in quality.segments()
    ]
    figures.curve = [
        QualityPoint(
            num_events=point.num_events,
            recall_at_10=point.recall_at_10,
            popularity_recall_at_10=point.popularity_recall_at_10,
        )
        for point in quality.curve()
    ]
    for one in figures.quality:
        metrics.ONLINE_RECALL.labels(str(K), one.segment).set(one.recall_at_10)
        metrics.ONLINE_NDCG.labels(str(K), one.segment).set(one.ndcg_at_10)
        if one.segment == "all":
            metrics.ONLINE_BASELINE_RECALL.labels("popularity", str(K)).set(one.popularity_recall_at_10)
    for level, recall in enumerate(figures.hierarchical_recall, start=1):
        metrics.ONLINE_HIERARCHICAL_RECALL.labels(str(level)).set(recall)


def count_batch(records: Sequence[Record], report: LearnReport, figures: Figures) -> None:
    """Counters, losses and freshness of one learned batch."""
    metrics.EVENTS_LEARNED.inc(report.num_learned)
    metrics.EVENTS_DUPLICATE.inc(report.num_duplicates)
    now_ms = time.time_ns() // 1_000_000
    for record, learned in zip(records, report.learned_N, strict=True):
        if learned and record.timestamp_ms:
            metrics.EVENT_TO_WEIGHTS_SECONDS.observe(max(0, now_ms - record.timestamp_ms) / 1000)
    if report.step is not None:
        _count_step(report.step, figures)


def count_lag(lag: Mapping[str, int], hidden: Mapping[str, int], figures: Figures) -> None:
    """Records not read yet, by partition and in all, and those of them that an open transaction hides.

    An empty `lag` means that the broker does not answer: the last numbers stay, and `figures.stalled` says
    so.
    """
    metrics.BROKER_ANSWERS.labels(GROUP).set(bool(lag))
    if not lag:
        figures.stalled = NO_BROKER
        return
    for name, records in lag.items():
        metrics.count_stream_lag(*split_position(name), GROUP, records, hidden[name])
    figures.lag_records = sum(lag.values())
    figures.stalled = describe_hidden(hidden)


def status_response(state: str, position: LearnerPosition, figures: Figures) -> StatusResponse:
    """The answer to `Status`."""
    return StatusResponse(
        state=state,
        live_release_id=position.live_release_id,
        num_events_learned=position.num_learned,
        num_events_duplicate=position.num_duplicate,
        num_events_dead_lettered=position.num_dead_lettered,
        num_steps=figures.num_steps,
        lag_records=figures.lag_records,
        events_per_second=figures.events_per_s,
        train_loss=figures.train_loss,
        quality=figures.quality,
        hierarchical_recall=figures.hierarchical_recall,
        offsets=offset_messages(position.offsets),
        last_checkpoint_time_ms=position.checkpoint_time_ms,
        curve=figures.curve,
        stalled=figures.stalled,
    )


def _count_step(step: StepReport, figures: Figures) -> None:
    losses = {"dense": step.dense_loss, "code": step.code_loss, "ranker": step.ranker_loss}
    for head, loss in losses.items():
        if math.isfinite(loss):
            metrics.TRAIN_LOSS.labels(head).set(loss)
    if math.isfinite(step.dense_loss + step.code_loss):
        figures.train_loss = step.dense_loss + step.code_loss
    if math.isfinite(step.grad_norm):
        metrics.TRAIN_GRAD_NORM.set(step.grad_norm)
    metrics.NONFINITE_STEPS.inc(step.num_nonfinite)
