"""Every Prometheus metric that Headrace exports, and the HTTP server that shows them.

One process has one registry and one port. No user or item ids in labels. Who observes what is
the business of the callers.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_FRESH = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)
# finer around the 3 s within which an event is to be learned
_LEARNED = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)
_BATCH = (1, 2, 4, 8, 16, 32, 64)
_SIZE = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)

# serving
REQUESTS = Counter("headrace_requests", "Requests answered, by status code.", ["service", "method", "code"])
REQUEST_SECONDS = Histogram(
    "headrace_request_duration_seconds",
    "Time from a request's arrival to its answer.",
    ["service", "method"],
    buckets=_FAST,
)
INFLIGHT = Gauge("headrace_inflight_requests", "Requests being worked on.", ["service"])
OPEN_STREAMS = Gauge("headrace_open_streams", "Streams and watches that are open.", ["service", "kind"])
OPEN_FILES = Gauge("headrace_open_files", "Files and connections that this process has open.")
SHED = Counter("headrace_requests_shed", "Requests refused to protect the others.", ["reason"])
QUEUE_WAIT_SECONDS = Histogram(
    "headrace_queue_wait_seconds", "Time a request waited for the model's thread.", buckets=_FAST
)
BATCH_SIZE = Histogram(
    "headrace_batch_size", "Requests answered by one turn of the model's thread.", buckets=_BATCH
)
USER_STATES = Counter(
    "headrace_user_states",
    "User states that requests needed: kept (hit), brought up to date (extended) or computed anew.",
    ["outcome"],
)
USERS_KEPT = Gauge("headrace_user_states_kept", "Users whose state is kept.")
STAGE_SECONDS = Histogram(
    "headrace_stage_duration_seconds",
    "Time spent in one stage: history, generate, rank, policy and total at the gateway, look_up, trunk and "
    "decode at the generator, score at the ranker, tokenize at the tokenizer.",
    ["stage"],
    buckets=_FAST,
)
RECOMMENDATIONS = Histogram(
    "headrace_recommendations_returned", "Items in one answer of Recommend.", buckets=_SIZE
)
INVALID_SIDS = Counter(
    "headrace_invalid_sids",
    "Items left out of an answer since their semantic ID does not stand for them; stays 0.",
)
FALLBACKS = Counter("headrace_fallback", "Answers made without the model.", ["reason"])
RECOMMENDATION_LOGS_DROPPED = Counter(
    "headrace_recommendation_logs_dropped", "Answers that were given but not written to `recommendations`."
)
LOG_LINES_LOST = Counter("headrace_log_lines_lost", "Log lines that could not be written: a full disk, say.")
CANCELLED = Counter("headrace_cancelled", "Requests given up by their callers, by stage.", ["stage"])

# releases
RELEASE_INFO = Gauge(
    "headrace_release_info", "1 for the release this service serves.", ["service", "release", "codebook"]
)
RELEASE_CREATED = Gauge(
    "headrace_release_created_timestamp_seconds", "When the served release was cut.", ["service"]
)
RELEASE_SWAPS = Counter(
    "headrace_release_swaps", "Releases taken up (swapped) or refused, and why.", ["result", "reason"]
)
RELEASE_LOAD_SECONDS = Histogram(
    "headrace_release_load_seconds",
    "Time to fetch, verify and load a release.",
    buckets=(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
CHECKPOINT_SUCCESS = Gauge(
    "headrace_checkpoint_last_success_timestamp_seconds", "When the learner last wrote a checkpoint."
)
CHECKPOINT_BYTES = Gauge("headrace_checkpoint_bytes", "Size of the learner's last checkpoint.")

# streams
EVENTS_CONSUMED = Counter(
    "headrace_events_consumed", "Valid records read; those refused are in headrace_dlq_records.", ["topic"]
)
EVENTS_LEARNED = Counter(
    "headrace_events_learned",
    "Events that the learner took, each once: wishes change the weights, others what it knows.",
)
EVENTS_DUPLICATE = Counter("headrace_events_duplicate", "Events dropped because their id was known.")
DLQ_RECORDS = Counter(
    "headrace_dlq_records", "Records sent to a dead-letter topic.", ["topic", "stage", "reason"]
)
STREAM_LAG = Gauge("headrace_stream_lag_records", "Records not read yet.", ["topic", "partition", "group"])
STREAM_HIDDEN = Gauge(
    "headrace_stream_hidden_records",
    "Records not read yet that an open transaction hides.",
    ["topic", "partition", "group"],
)
BROKER_ANSWERS = Gauge("headrace_broker_answers", "1 while the broker answers this reader.", ["group"])
EVENT_TO_HISTORY_SECONDS = Histogram(
    "headrace_event_to_history_seconds", "From a record's append to its place in the history.", buckets=_FRESH
)
EVENT_TO_WEIGHTS_SECONDS = Histogram(
    "headrace_event_to_weights_seconds",
    "From a record's append to the step that learned it.",
    buckets=_LEARNED,
)
ITEM_TO_SID_SECONDS = Histogram(
    "headrace_item_to_sid_seconds", "From an item's announcement to its semantic ID.", buckets=_FRESH
)
ITEM_TO_RECOMMENDABLE_SECONDS = Histogram(
    "headrace_item_to_recommendable_seconds",
    "From an item's announcement to its place in a generator's trie.",
    buckets=_FRESH,
)

# learning
TRAIN_STEP_SECONDS = Histogram("headrace_train_step_seconds", "Time of one optimiser step.", buckets=_FAST)
TRAIN_LOSS = Gauge("headrace_train_loss", "Loss of the last step, by head.", ["head"])
TRAIN_GRAD_NORM = Gauge("headrace_train_grad_norm", "Gradient norm of the last step before clipping.")
NONFINITE_STEPS = Counter("headrace_nonfinite_steps", "Steps dropped because their loss was not finite.")
ONLINE_RECALL = Gauge(
    "headrace_online_recall_ratio", "Prequential recall of the last window.", ["k", "segment"]
)
ONLINE_NDCG = Gauge("headrace_online_ndcg_ratio", "Prequential NDCG of the last window.", ["k", "segment"])
ONLINE_HIERARCHICAL_RECALL = Gauge(
    "headrace_online_hierarchical_recall_ratio",
    "Prequential recall of the right prefix, by level.",
    ["level"],
)
ONLINE_BASELINE_RECALL = Gauge(
    "headrace_online_baseline_recall_ratio", "Recall of a baseline on the same events.", ["baseline", "k"]
)
RELEASE_GATE = Counter("headrace_release_gate", "Candidate releases judged, by decision.", ["decision"])

# codebook
CODEBOOK_USAGE = Gauge("headrace_codebook_usage_ratio", "Share of the codes in use.", ["level"])
CODEBOOK_ERROR = Gauge(
    "headrace_codebook_quantisation_error", "Mean squared residual after a level.", ["level"]
)
SID_COLLISIONS = Gauge(
    "headrace_sid_collisions_ratio", "Share of items whose semantic prefix another item shares."
)


def count_stream_lag(topic: str, partition: int, group: str, num_records: int, num_hidden: int) -> None:
    """Shows how many records of a partition a reader has not read, and how many of them it cannot yet."""
    STREAM_LAG.labels(topic, str(partition), group).set(num_records)
    STREAM_HIDDEN.labels(topic, str(partition), group).set(num_hidden)


class _Page(Collector):
    """The metrics of one service of this process; the host's page also has what is of no service."""

    def __init__(self, service: str, *, is_guest: bool) -> None:
        self._service = service
        self._default = "" if is_guest else service

    def collect(self) -> Iterator[Metric]:
        """Every family with the samples that stand on this page."""
        for family in REGISTRY.collect():
            shown = copy.copy(family)  # some collectors hand out the same object each time
            shown.samples = [
                sample
                for sample in family.samples
                if sample.labels.get("service", self._default) == self._service
            ]
            if shown.samples:
                yield shown


def serve_metrics(host: str, port: int, service: str, *, is_guest: bool = False) -> Callable[[], None]:
    """Shows a service's metrics on http://host:port/metrics; returns the function that stops it.

    Where services share a process, each metric stands on one page: a guest's has only what is labelled with
    its name, the other's all that is labelled with no service.
    """
    registry = CollectorRegistry()
    registry.register(_Page(service, is_guest=is_guest))
    server, thread = start_http_server(port, addr=host, registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


@cache
def stage_seconds(name: str) -> Histogram:
    """The histogram of one stage; looking it up by its label costs more than to observe."""
    return STAGE_SECONDS.labels(name)


@contextmanager
def stage(name: str, num_requests: int) -> Iterator[None]:
    """Times a stage that requests go through together: each of them spent all of it."""
    started_s = time.perf_counter()
    try:
        yield
    finally:
        seconds, histogram = time.perf_counter() - started_s, stage_seconds(name)
        for _ in range(num_requests):
            histogram.observe(seconds)
