"""The latency window and the view of releases."""

from protos.headrace.v1.release_pb2 import ReleaseState
from services.gateway.latency import LatencyWindow

CANDIDATE = ReleaseState.RELEASE_STATE_CANDIDATE
LIVE = ReleaseState.RELEASE_STATE_LIVE
RETIRED = ReleaseState.RELEASE_STATE_RETIRED


def test_the_window_forgets_old_answers() -> None:
    window = LatencyWindow(size=100)
    for n in range(300):
        window.add({"total": float(n), "history": 1.0})
    summary = window.summary()
    assert list(summary) == ["history", "total"]
    assert summary["total"] == {"p50_ms": 249.5, "p99_ms": 298.01}
    assert window.num_answers == 300


def test_nothing_measured_is_nothing_shown() -> None:
    assert LatencyWindow().summary() == {}
